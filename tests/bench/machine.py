"""The machine under the figures: what it is, which cores it gives, how busy it is, and what a process costs it."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds; `/proc` counts in these, usually 10 ms."""
QUIET: Final = 0.1
"""Figures taken while others used more than this share of the machine say little."""


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(core: int | None) -> None:
    """Keep this process to one core, where the system can."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time, user and system, that these processes have used, to 10 ms each; 0 where there is no `/proc`."""
    return sum(_cpu_of(pid) for pid in pids)


def _cpu_of(pid: int) -> float:
    try:
        # The name in brackets may hold anything; behind it the fields are numbered from 3 (`proc(5)`).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is in RAM; 0 where there is no `/proc`."""
    try:
        fields = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Others:
    """How much of this machine others use, from here on."""

    def __init__(self) -> None:
        self._before = _cpu_ticks()
        self._own = _own_seconds()

    def share(self) -> float | None:
        """0 to 1, once the processes that were started meanwhile have ended; None where there is no `/proc`."""
        after = _cpu_ticks()
        if after is None or self._before is None:
            return None
        whole = sum(after) - sum(self._before)
        idle = after[3] + after[4] - self._before[3] - self._before[4]
        own = (_own_seconds() - self._own) / TICK
        return max(0.0, (whole - idle - own) / whole) if whole else 0.0


def _own_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def _cpu_ticks() -> list[int] | None:
    try:
        return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None


def facts() -> dict[str, str]:
    """What a reader needs to know to compare."""
    return {
        "cpu": f"{_cpu_model()}, {len(cores())} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf")),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
