"""What a bucket counts as plain values: taken out, kept somewhere, and put back into an engine that starts.

Kept is what windows count, and nothing else. A call in flight stands in it with its reservation; its slot is free
again after a start. Totals begin anew, as all counters of a program do.

The engine must go on in time where it was: `Engine` starts at a `now` that is the last one before, and the time that
has passed since. Then it decides as one that had never stopped would, but for slots that calls in flight held.
"""

from __future__ import annotations

from typing import NamedTuple

from sluice.core.buckets import Bucket, Counts
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey
from sluice.core.windows import SLOTS, SlidingWindow


class KeptBucket(NamedTuple):
    """One bucket. Windows in which nothing counts are absent."""

    key: BucketKey
    calls: Counts
    """Requests and tokens."""
    parts: Counts
    """Input tokens and output tokens."""


def keep(bucket: Bucket, now: int) -> KeptBucket:
    """What it counts at `now`: for `Engine.visit`."""
    return KeptBucket(bucket.key, _counts(bucket.windows, now), _counts(bucket.parts, now) if bucket.parts else {})


def put_back(engine: Engine, kept: KeptBucket, now: int) -> bool:
    """Go on from what was kept; False if nothing of it counts any more.

    Past the engine's cap on keys it is counted where a newcomer would be.
    """
    if not (_counts_at(kept.calls, now) or _counts_at(kept.parts, now)):
        return False
    engine.visit((kept.key,), now, lambda bucket, at: bucket.count_besides(at, kept.calls, kept.parts), make=True)
    return True


def _counts_at(counts: Counts, now: int) -> bool:
    return any((slots[-3] + SLOTS + 1) * (length // SLOTS) > now for length, slots in counts.items() if slots)


def _counts(windows: tuple[SlidingWindow, ...], now: int) -> Counts:
    counts = {}
    for window in windows:
        window.slide(now)
        if slots := window.slots:
            counts[window.length] = slots
    return counts
