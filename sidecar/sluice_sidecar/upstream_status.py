"""What providers have said of their own limits, for `/status`, its table and `/metrics`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric

from sluice.core.limits import SECOND
from sluice.core.upstream import UpstreamState

MOST: Final = 200
"""Accounts in one answer: those that are paused longest, and then those heard last."""

Json = Any


def document(states: Iterable[UpstreamState], provider: str | None = None) -> dict[str, Json]:
    """Two members of `/status`: the accounts of which something is known, and how many more there are."""
    wanted = [state for state in states if provider in (None, state.key.provider)]
    wanted.sort(key=lambda state: (-state.paused, state.heard, state.key))
    return {
        "upstreams": [_account(state) for state in wanted[:MOST]],
        "upstreamsOmitted": len(wanted[MOST:]),
    }


def _account(state: UpstreamState) -> dict[str, Json]:
    return {
        "provider": state.key.provider,
        "account": state.key.subject,
        **({"model": known_as(state.key.models)} if state.key.models else {}),
        "heardSecondsAgo": round(state.heard / SECOND, 3),
        **({"pausedSeconds": round(state.paused / SECOND, 3)} if state.paused else {}),
        **({"lastRefusal": str(state.paused_for)} if state.paused_for else {}),
        "quotas": [
            {
                "of": str(quota.of),
                "remaining": quota.remaining,
                "limit": quota.limit,
                "resetSeconds": round(quota.reset / SECOND, 3),
            }
            for quota in state.quotas
        ],
        "queued": state.queued,
        "rejected": state.rejected,
    }


def lines(accounts: Iterable[Mapping[str, Json]]) -> Iterator[str]:
    """A line for each account that is not asked now."""
    for account in accounts:
        if "pausedSeconds" in account:
            whose = " ".join(account[name] for name in ("provider", "account", "model") if account.get(name))
            yield f"{whose}: not asked for {account['pausedSeconds']:.0f} s, for it said {account['lastRefusal']}"


def paused(states: Iterable[UpstreamState]) -> Metric:
    """How many accounts are paused now, by provider and by what the provider said."""
    family = GaugeMetricFamily(
        "sluice_provider_paused", "Accounts and models that a provider refuses now.", labels=("provider", "kind")
    )
    counts = Counter((state.key.provider, str(state.paused_for)) for state in states if state.paused)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def known_as(model: str) -> str:
    """A model's name stands in the body of a request, of which nothing is shown: the hash of it."""
    return "sha256-" + hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]
