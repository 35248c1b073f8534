"""What a person may see of the gate: `/status` as JSON, and the table of `sluice status`."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sluice import __version__
from sluice.core.buckets import RECENT
from sluice.core.keys import OVERFLOW, BucketKey
from sluice.core.limits import SECOND, Cap
from sluice.core.states import BucketState, LastRefusal, Summary
from sluice.errors import Problem
from sluice_sidecar.logs import utc
from sluice_sidecar.recent import Tally

MOST_BUCKETS: Final = 1000
"""Buckets in one answer; the fullest are shown."""
OVERFLOW_SHOWN: Final = "(overflow)"
"""How the bucket that newcomers share is called where people read."""

Json = Any


@dataclass(slots=True)
class Health:
    """What the gate says of itself. Changed by the program as it starts, reloads and ends."""

    waiting_for: str = "start"
    """What stands between the gate and being ready; empty once it is."""
    generation: int = 0
    """How many configurations have been in force, the one now included."""
    loaded_at: float = 0.0
    """When that one was put in force: seconds since 1970."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The files it was read from, by the paths they were given by, each with the SHA-256 of its bytes."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the files as they are now; what is in force is the last good configuration."""
    rejected: int = 0
    """Configurations that were not put in force because of their mistakes."""

    @property
    def is_ready(self) -> bool:
        return not self.waiting_for

    def loaded(self, at: float, files: Mapping[str, str]) -> None:
        """A configuration has been put in force."""
        self.generation += 1
        self.loaded_at = at
        self.files = files
        self.problems = ()

    def turned_down(self, problems: Iterable[Problem]) -> None:
        """The files are bad: what was in force stays."""
        self.rejected += 1
        self.problems = tuple(problems)


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
    def omitted(self) -> int:
        return self._seen - len(self._heap)


def document(health: Health, summary: Summary, fullest: Fullest, recent: Mapping[str, Tally]) -> dict[str, Json]:
    """The answer of `/status`. Totals and what was counted lately are of everything, whatever is selected."""
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
        "store": {"kind": "memory", "healthy": True},  # the gate's own, and there as long as the gate is
        "buckets": [_bucket(bucket) for bucket in fullest.buckets],
        "bucketsOmitted": fullest.omitted,
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
        "recent": {
            "seconds": RECENT // SECOND,
            "providers": {provider: _recent(tally) for provider, tally in sorted(recent.items())},
        },
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
        "throttled": tally.throttled,
        **({"lastThrottledStatus": tally.last_throttled_status} if tally.throttled else {}),
        "committedTokens": tally.committed_tokens,
        "estimateErrorTokens": tally.estimate_error_tokens,
    }


def _last(refusal: LastRefusal) -> dict[str, Json]:
    return {
        "reason": str(refusal.reason),
        "cap": str(refusal.cap),
        "secondsAgo": round(refusal.ago / SECOND, 3),
    }


_COLUMNS: Final = {
    Cap.REQUESTS_PER_MINUTE: "RPM",
    Cap.TOKENS_PER_MINUTE: "TPM",
    Cap.REQUESTS_PER_HOUR: "RPH",
    Cap.TOKENS_PER_HOUR: "TPH",
    Cap.REQUESTS_PER_DAY: "RPD",
    Cap.TOKENS_PER_DAY: "TPD",
}
"""The minute's are always shown, the others where a bucket has one."""
_ALWAYS: Final = (Cap.REQUESTS_PER_MINUTE, Cap.TOKENS_PER_MINUTE)


def table(status: Mapping[str, Json]) -> str:
    """A `/status` answer as a table of its buckets, a line of totals, and what is wrong."""
    buckets = status["buckets"]
    caps = [cap for cap in _COLUMNS if cap in _ALWAYS or any(cap in bucket["windows"] for bucket in buckets)]
    narrowed = any("models" in bucket for bucket in buckets)
    head = ["PROVIDER", "SCOPE", "SUBJECT", *(["MODELS"] if narrowed else []), "IN-FLIGHT", "QUEUED"]
    refused = any("lastRefusal" in bucket for bucket in buckets)
    rows = [[*head, *(_COLUMNS[cap] for cap in caps), "REJECTED", *(["LAST REFUSAL"] if refused else [])]]
    rows += [_row(bucket, caps, narrowed=narrowed, refused=refused) for bucket in buckets]
    lines = _aligned(rows) if buckets else ["no bucket: no such call has met a limit lately"]
    if status["bucketsOmitted"]:
        lines.append(f"and {status['bucketsOmitted']} less full: choose with --provider, --scope, --subject")
    return "\n".join([*lines, "", _totals(status["totals"]), *_configuration(status)])


def _row(bucket: Mapping[str, Json], caps: Iterable[Cap], *, narrowed: bool, refused: bool) -> list[str]:
    return [
        bucket["provider"],
        bucket["scope"],
        _printable(bucket["subject"]) or '""',
        *([",".join(bucket.get("models", [])) or "-"] if narrowed else []),
        _used(bucket["inFlight"], bucket["maxConcurrent"]),
        str(bucket["queued"]),
        *(_window(bucket["windows"].get(cap)) for cap in caps),
        _rejected(bucket),
        *([_refusal(bucket.get("lastRefusal"))] if refused else []),
    ]


def _rejected(bucket: Mapping[str, Json]) -> str:
    shadow = bucket.get("wouldReject", 0)
    return f"{bucket['rejected']}" + (f" ({shadow} in shadow)" if shadow else "")


def _refusal(refusal: Mapping[str, Json] | None) -> str:
    if refusal is None:
        return "-"
    return f"{refusal['reason']}, {refusal['cap']}, {refusal['secondsAgo']:.0f} s ago"


def _totals(totals: Mapping[str, int]) -> str:
    shadow = f", {totals['wouldReject']} would have been" if totals["wouldReject"] else ""
    return (
        f"calls: {totals['admitted']} admitted, {totals['rejected']} rejected{shadow}, {totals['inFlight']} in flight, "
        f"{totals['queued']} queued, {totals['unlimited']} unlimited, "
        f"{totals['refunded']} refunded; "
        f"tokens: {totals['committedTokens']} committed, {totals['estimatedTokens']} estimated; "
        f"{totals['expiredPermits']} permits expired"
    )


def _configuration(status: Mapping[str, Json]) -> list[str]:
    configuration = status["configuration"]
    state = "ready" if status["ready"] else "not ready"
    generation, problems = configuration["generation"], configuration["problems"]
    if generation:
        lines = [f"{state}; configuration {generation} since {configuration['loadedAt']}"]
    else:
        lines = [f"{state}; no configuration is in force yet"]
    if problems:
        stays = ", and the last good configuration stays in force" if generation else ""
        lines.append(f"the limits files have mistakes{stays}:")
        lines += [f"  {Problem(**problem)}" for problem in problems]
    return lines


def _used(used: int, limit: int | None) -> str:
    return str(used) if limit is None else f"{used}/{limit}"


def _window(window: Mapping[str, int] | None) -> str:
    return "-" if window is None else f"{window['used']}/{window['limit']}"


def _printable(text: str) -> str:
    """A subject is what a caller sent: nothing in it may move the reader's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
