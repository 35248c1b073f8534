"""The clocks, read here and nowhere else."""

from __future__ import annotations

import time


def now() -> int:
    """Nanoseconds of the monotonic clock, which asyncio's loops use too: changes of the wall clock do not move it."""
    return time.monotonic_ns()


def wall_now() -> int:
    """Nanoseconds since 1970, to compare with what others say of the time."""
    return time.time_ns()


def wall() -> float:
    """Seconds since 1970, for people."""
    return time.time()
