"""What a load brings home, and how several rounds of it become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter_ns
from typing import Self

GOOD = "ok"
"""The one answer of a load's calls that is not a failure."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a load. Latencies are in microseconds, times in seconds."""

    count: int
    seconds: float
    mean: float
    p50: float
    p99: float
    load_cpu: float
    """CPU time that the load itself used: if it comes near `seconds`, the load was the limit."""
    answers: dict[str, int]
    """How often each kind of answer came."""

    @classmethod
    def of(cls, latencies: list[int], seconds: float, load_cpu: float, answers: Counter[str]) -> Self:
        """From every latency in nanoseconds. Raises `RuntimeError` if there is none."""
        if not latencies:
            raise RuntimeError(f"the load has not seen one answer in {seconds:.1f} s")
        latencies.sort()
        return cls(
            len(latencies),
            seconds,
            fmean(latencies) / 1000,
            percentile(latencies, 0.5) / 1000,
            percentile(latencies, 0.99) / 1000,
            load_cpu,
            dict(answers),
        )

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / self.seconds

    @property
    def failures(self) -> int:
        return sum(count for answer, count in self.answers.items() if answer != GOOD)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least that share of the values, in order, does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def middle(values: Iterable[float]) -> float:
    """The median; of nothing, 0."""
    return median(found) if (found := list(values)) else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the gate costs: once, or the median and the 99th percentile of many times."""

    name: str
    unit: str
    cost: float
    p99: float | None = None


class Stopwatch:
    """Times what is done `with` it, over and over."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._began = 0

    def __enter__(self) -> None:
        self._began = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._times.append(perf_counter_ns() - self._began)

    def part(self, name: str) -> Part:
        """The median and the 99th percentile, in microseconds."""
        self._times.sort()
        return Part(name, "µs", percentile(self._times, 0.5) / 1000, percentile(self._times, 0.99) / 1000)
