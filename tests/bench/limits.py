"""The limits of the bench: wide enough that nothing is refused, but where that is what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDE = 10**9
SIX = ("requestsPerMinute", "requestsPerHour", "requestsPerDay", "tokensPerMinute", "tokensPerHour", "tokensPerDay")
TWO = ("requestsPerMinute", "tokensPerMinute")


def entry(scope: str, caps: tuple[str, ...] = SIX, cap: int = WIDE, **more: Any) -> dict[str, Any]:
    """One limit; the subject stands in the header `x-user-id` and so on."""
    return {"scope": scope, "subject": {"header": f"x-{scope.lower()}-id"}, **dict.fromkeys(caps, cap), **more}


def document(provider: str, *entries: dict[str, Any], upstream: str = "http://127.0.0.1:9") -> dict[str, Any]:
    """One provider's limits."""
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": provider},
        "spec": {"provider": provider, "api": "OpenAI", "upstream": upstream, "limits": list(entries)},
    }


def write(path: Path, *documents: dict[str, Any]) -> Path:
    """As one file."""
    path.write_text("\n---\n".join(json.dumps(document) for document in documents))
    return path


THREE_BUCKETS = (entry("User", maxConcurrent=WIDE), entry("Org"), entry("Project"))
"""Three buckets of six windows each, and a cap on calls in flight."""
