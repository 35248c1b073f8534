"""What may be seen of the gate at `/status`: the fullest buckets, totals, what happened lately, what is in force."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sluice import __version__
from sluice.config.merge import Provider
from sluice.core.buckets import RECENT
from sluice.core.keys import OVERFLOW, OVERFLOW_SHOWN, BucketKey
from sluice.core.limits import SECOND
from sluice.core.states import BucketState, LastRefusal, Summary
from sluice.core.upstream import UpstreamState
from sluice.usage.commits import ADVICE, Missing
from sluice.usage.learning import MOST_OUTPUT, Experience, Kind, Learner
from sluice_sidecar import upstream_status
from sluice_sidecar.health import Health, Saving, StoreHealth
from sluice_sidecar.logs import utc
from sluice_sidecar.recent import Tally

MOST_BUCKETS: Final = 1000
"""Buckets in one answer; the fullest are shown."""
MOST_LEARNED: Final = 20
"""Kinds of calls in one answer of which is told what was learned; those with most calls."""

Json = Any


@dataclass(frozen=True, slots=True)
class Selection:
    """Which buckets are wanted; None for any."""

    provider: str | None = None
    scope: str | None = None
    subject: str | None = None

    def wants(self, key: BucketKey) -> bool:
        return (
            self.provider in (None, key.provider)
            and self.scope in (None, str(key.scope))
            and self.subject in (None, shown_subject(key))
        )


class Fullest:
    """Of all the buckets that are wanted, the fullest, up to `most`."""

    def __init__(self, selection: Selection | None = None, most: int = MOST_BUCKETS) -> None:
        self._selection = selection or Selection()
        self._most = most
        self._heap: list[tuple[float, int, BucketState]] = []
        self._seen = 0

    def wants(self, key: BucketKey) -> bool:
        return self._selection.wants(key)

    def add(self, bucket: BucketState) -> None:
        """Take a bucket that is wanted."""
        self._seen += 1
        entry = (fullness(bucket), -self._seen, bucket)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def buckets(self) -> list[BucketState]:
        """The fullest first; among equals by name."""
        return [bucket for _, _, bucket in sorted(self._heap, key=lambda entry: (-entry[0], entry[2].key))]

    @property
    def provider(self) -> str | None:
        """The one that is wanted; None for all."""
        return self._selection.provider

    @property
    def omitted(self) -> int:
        return self._seen - len(self._heap)


def document(
    health: Health,
    summary: Summary,
    fullest: Fullest,
    recent: Mapping[str, Tally],
    estimation: Mapping[str, Json],
    missing: Mapping[str, Missing],
    upstreams: Iterable[UpstreamState] = (),
) -> dict[str, Json]:
    """The answer of `/status`. Only buckets and accounts are selected: the rest is of everything."""
    totals = summary.totals
    return {
        "version": __version__,
        "ready": health.is_ready,
        "configuration": {
            "generation": health.generation,
            "loadedAt": utc(health.loaded_at) if health.generation else None,
            "files": dict(health.files),
            "problems": [problem._asdict() for problem in health.problems],
        },
        "store": _shared_store(health.store) if health.store else _memory(health.saving),
        "buckets": [_bucket(bucket) for bucket in fullest.buckets],
        "bucketsOmitted": fullest.omitted,
        **upstream_status.document(upstreams, fullest.provider),
        "totals": {
            "admitted": totals.admitted,
            "unlimited": totals.unlimited,
            "rejected": totals.rejected,
            "wouldReject": totals.would_reject,
            "inFlight": summary.in_flight,
            "queued": summary.queued,
            "committed": totals.committed,
            "estimated": totals.estimated,
            "refunded": totals.refunded,
            "committedTokens": totals.committed_tokens,
            "estimatedTokens": totals.estimated_tokens,
            "expiredPermits": totals.expired_permits,
        },
        "commits": {
            "healthy": not missing,
            "missing": [
                {"provider": provider, "why": why, "message": ADVICE[why]} for provider, why in sorted(missing.items())
            ],
        },
        "recent": {
            "seconds": RECENT // SECOND,
            "providers": {provider: _recent(tally) for provider, tally in sorted(recent.items())},
        },
        "estimation": estimation,
    }


def estimation(providers: Iterable[Provider], learner: Learner) -> dict[str, Json]:
    """By what calls are judged: each provider's mode, and what was learned of the kinds with most calls."""
    return {
        "modes": {provider.name: provider.estimation.mode for provider in providers},
        "learned": [_learned(kind, experience) for kind, experience in learner.most_taught(MOST_LEARNED)],
    }


def fullness(bucket: BucketState) -> float:
    """The largest share of a cap that is used: 1 at a cap, more where commits went past it."""
    shares = [window.used / window.limit if window.limit else 1.0 for window in bucket.windows.values()]
    if bucket.max_concurrent is not None:
        shares.append(bucket.in_flight / bucket.max_concurrent if bucket.max_concurrent else 1.0)
    return max(shares, default=0.0)


def shown_subject(key: BucketKey) -> str:
    """The subject as people see it."""
    return OVERFLOW_SHOWN if key.subject == OVERFLOW else key.subject


def _memory(saving: Saving | None) -> dict[str, Json]:
    if saving is None:
        return {"kind": "memory", "healthy": True}  # the gate's own, and there as long as the gate is
    return {
        "kind": "memory",
        "healthy": saving.is_healthy,
        "stateDir": saving.folder,
        "savedSecondsAgo": round(saving.age, 3),
        "restoredBuckets": saving.restored,
        "failedSaves": saving.failures,
        **({"problem": saving.problem} if saving.problem else {}),
    }


def _shared_store(store: StoreHealth) -> dict[str, Json]:
    return {
        "kind": "redis",
        "address": store.address,
        "prefix": store.prefix,
        "mode": store.mode,
        "healthy": store.is_healthy,
        "secondsInMode": round(store.age, 3),
        "gates": store.gates,
        "modeChanges": store.changes,
        "decisions": {str(mode): number for mode, number in store.decisions.items()},
        **({"problem": store.problem} if store.problem else {}),
        **({"unsentSeconds": round(store.unsent, 3)} if store.unsent_since is not None else {}),
    }


def _bucket(bucket: BucketState) -> dict[str, Json]:
    key = bucket.key
    return {
        "provider": key.provider,
        "scope": str(key.scope),
        "subject": shown_subject(key),
        **({"models": key.models.split(",")} if key.models else {}),
        "inFlight": bucket.in_flight,
        "queued": bucket.queued,
        "maxConcurrent": bucket.max_concurrent,
        "admitted": bucket.admitted,
        "rejected": bucket.rejected,
        **({"recentlyRejected": bucket.recently_rejected} if bucket.recently_rejected else {}),
        **({"wouldReject": bucket.would_reject} if bucket.would_reject else {}),
        **({"lastRefusal": _last(bucket.last_refusal)} if bucket.last_refusal else {}),
        "windows": {
            str(cap): {
                "limit": window.limit,
                "used": window.used,
                "remaining": window.remaining,
                "resetSeconds": round(window.reset / SECOND, 3),
            }
            for cap, window in bucket.windows.items()
        },
    }


def _recent(tally: Tally) -> dict[str, Json]:
    return {
        "admitted": tally.admitted,
        "rejected": tally.rejected,
        "wouldReject": tally.would_reject,
        "committed": tally.committed,
        "estimated": tally.estimated,
        "refunded": tally.refunded,
        "expired": tally.expired,
        "untold": tally.untold,
        "throttled": tally.throttled,
        **({"overloaded": tally.overloaded} if tally.overloaded else {}),
        **({"spendCapped": tally.spend_capped} if tally.spend_capped else {}),
        **({"lastThrottledStatus": tally.last_throttled_status} if tally.throttled else {}),
        "committedTokens": tally.committed_tokens,
        "estimateErrorTokens": tally.estimate_error_tokens,
        "underestimated": tally.underestimated,
    }


def _learned(kind: Kind, experience: Experience) -> dict[str, Json]:
    ratio, output = experience.bytes_per_token, experience.output
    brings: dict[str, Json]
    if kind.least_cap is None:
        brings = {"outputTokens": output and int(output)}
    else:
        brings = {"capsFrom": kind.least_cap, "outputShare": output and round(output / MOST_OUTPUT, 6)}
    return {
        "provider": kind.provider,
        "model": kind.model,
        "entries": list(kind.entries),
        "calls": experience.samples,
        "bytesPerToken": ratio and round(ratio, 2),
        **brings,
    }


def _last(refusal: LastRefusal) -> dict[str, Json]:
    return {
        "reason": str(refusal.reason),
        "cap": str(refusal.cap),
        "secondsAgo": round(refusal.ago / SECOND, 3),
    }
