"""The clocks, read here and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def now() -> int:
    """Nanoseconds of the monotonic clock, which asyncio's loops use too: changes of the wall clock do not move it."""
    return time.monotonic_ns()


def wall_now() -> int:
    """Nanoseconds since 1970, to compare with what others say of the time."""
    return time.time_ns()


def wall() -> float:
    """Seconds since 1970, for people."""
    return time.time()


def boot() -> str:
    """What names this life of the machine, in which all programs share one monotonic clock; empty if not known."""
    try:
        return BOOT_ID.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def continued(at: int) -> Callable[[], int]:
    """The monotonic clock, set so that it says `at` now."""
    ahead = at - now()
    return lambda: time.monotonic_ns() + ahead
