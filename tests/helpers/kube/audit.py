"""What the API server was asked, by whom, and how it answered: read from its own audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

# All that is no noise: who asked what of which object, and of our own kind the whole request.
POLICY: Mapping[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/openapi/*"]},
        {"level": "Request", "resources": [{"group": "sluice.dev"}]},
        {"level": "Metadata"},
    ],
}
READS = frozenset({"get", "list", "watch"})


@dataclass(frozen=True, slots=True)
class Audited:
    """A call that has ended. A watch ends with its connection."""

    user: str
    """Who it was for, where somebody acts as somebody else."""
    verb: str
    """As RBAC has it: get, list, watch, create, update, patch, delete, deletecollection."""
    resource: str
    """The plural, with its subresource: `providerlimits/status`. Empty if it was for no object."""
    namespace: str
    name: str
    """Empty for a list, and where the API server gives the name."""
    code: int
    sent: Mapping[str, Any] | None
    """The body, where our own kind was written."""
    received: float = field(default=0.0, compare=False)
    """When it came in: seconds since 1970."""

    @property
    def writes(self) -> bool:
        return self.verb not in READS

    @classmethod
    def read(cls, event: Mapping[str, Any]) -> Self:
        """From an event of the log."""
        about = event.get("objectRef", {})
        part = about.get("subresource")
        return cls(
            user=event.get("impersonatedUser", event["user"])["username"],
            verb=event["verb"],
            resource=about.get("resource", "") + (f"/{part}" if part else ""),
            namespace=about.get("namespace", ""),
            name=about.get("name", ""),
            code=event.get("responseStatus", {}).get("code", 0),
            sent=event.get("requestObject"),
            received=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        )


def audited(log: Path) -> list[Audited]:
    """Every call that has ended so far, in the order of their ends."""
    whole = log.read_text().rpartition("\n")[0]  # the last line may be half written
    # Not `splitlines`: what was sent may hold other characters that it takes for the end of a line.
    return [Audited.read(json.loads(line)) for line in whole.split("\n") if line]
