"""The clocks, read here and nowhere else."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds of the monotonic clock: changes of the wall clock do not move it."""
    return time.monotonic()


def wall() -> float:
    """Seconds since 1970, for people and for what is stored in the cluster."""
    return time.time()
