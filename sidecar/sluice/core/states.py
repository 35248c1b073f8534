"""What a person may see of a bucket: immutable pictures of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sluice.core.buckets import Bucket
from sluice.core.decisions import Reason
from sluice.core.keys import BucketKey
from sluice.core.limits import Cap
from sluice.core.windows import NEVER, SlidingWindow
from sluice.core.words import Amount


@dataclass(frozen=True, slots=True)
class WindowState:
    """One cap over one period."""

    limit: int
    used: int
    """For tokens: what was committed, and the estimates of the calls not settled yet."""
    reset: int
    """Nanoseconds until nothing of what is counted now counts any more."""

    @property
    def remaining(self) -> int:
        """Never below 0: commits may exceed their estimates."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class LastRefusal:
    """Why a bucket last said no, or in shadow mode would have."""

    reason: Reason
    cap: Cap | Amount
    ago: int
    """Nanoseconds."""


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket. The ledger holds at every moment: admitted = committed + estimated + refunded + unsettled."""

    key: BucketKey
    in_flight: int
    queued: int
    """Calls that wait for room in this very bucket."""
    max_concurrent: int | None
    windows: Mapping[Cap, WindowState]
    admitted: int
    rejected: int
    recently_rejected: int
    """In the last five minutes, to a slot of five seconds."""
    would_reject: int
    last_refusal: LastRefusal | None
    committed: int
    estimated: int
    refunded: int


@dataclass(slots=True)
class Totals:
    """Everything since the engine was made. Calls, but for the fields that say tokens."""

    admitted: int = 0
    unlimited: int = 0
    """Let through because no limit speaks of them; not among the admitted."""
    rejected: int = 0
    would_reject: int = 0
    committed: int = 0
    estimated: int = 0
    refunded: int = 0
    committed_tokens: int = 0
    """What providers said was used."""
    estimated_tokens: int = 0
    """What stands on an estimate, because the provider never said."""
    expired_permits: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """All calls together, at one moment."""

    totals: Totals
    queued: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Snapshot(Summary):
    """Every bucket besides."""

    buckets: tuple[BucketState, ...]


def picture(bucket: Bucket, now: int) -> BucketState:
    """The state of a bucket at `now`."""
    windows: dict[Cap, WindowState] = {}
    for window in bucket.windows + bucket.parts:
        window.slide(now)
        reset = max(0, window.empty_at - now) if window.first or window.second else 0
        for cap, limit, used in zip(
            window.caps, (window.first_limit, window.second_limit), (window.first, window.second), strict=True
        ):
            if limit != NEVER:
                windows[cap] = WindowState(limit, used, reset)
    last = None
    if bucket.last_refusal is not None:
        at, refusal = bucket.last_refusal
        last = LastRefusal(refusal.reason, refusal.cap, now - at)
    return BucketState(
        key=bucket.key,
        in_flight=bucket.in_flight,
        queued=0 if bucket.queue is None else len(bucket.queue.blocked),
        max_concurrent=bucket.limits.max_concurrent,
        windows=windows,
        admitted=bucket.admitted,
        rejected=bucket.rejected,
        recently_rejected=_count(bucket.recent_refusals, now),
        would_reject=bucket.would_reject,
        last_refusal=last,
        committed=bucket.committed,
        estimated=bucket.estimated,
        refunded=bucket.refunded,
    )


def _count(calls: SlidingWindow | None, now: int) -> int:
    if calls is None:
        return 0
    calls.slide(now)
    return calls.first
