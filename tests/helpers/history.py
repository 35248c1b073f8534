"""What callers saw of several gates that share their counts, and a judge of it. Times are of one clock, in ns.

Theory of operation
    A caller knows when it asked and when it was answered. If it was admitted, that happened at some moment between the
    two, which nobody saw. So a call is counted only where it is CERTAIN to count, and the judge never accuses falsely.

    Requests    At a moment e, the calls that asked at e - W or later and were answered by e have all been admitted
                within the W before e. The last of them to be admitted was so with all the others already in its
                window, so they are at most L together.
    Tokens      The same, where a call counts for what it reserved as long as its end was not told, and from then on
                for what it used, if that is less: the gates give the rest back. What it used beyond its reservation
                refuses later calls and is no fault, so it is not counted.
    Permits     A call is in flight from its answer until its end is told. A permit that was not renewed in time, as by
                a gate that was paused, has ended before that: say so, or allow for it.

    Moving e back to the newest answer that counts only adds to the count. So the moments to look at are the answers,
    and those at which the bound falls: two pointers over sorted times, and a third for the ends.

    Where gates had to decide alone the bound is raised, by an `Allowance`, for every window that holds a part of that
    time. It cannot see a fault smaller than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

SHOWN_CALLS = 20


class Counted(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"
    PERMITS = "calls in flight"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as its caller saw it. Raises `ValueError` if its times are out of order."""

    gate: str
    number: int
    asked: int
    answered: int | None
    """None if it never was, as by a gate that was killed: it may have been admitted."""
    admitted: bool
    buckets: tuple[str, ...]
    reserved: int = 0
    """Tokens that it was admitted with."""
    ended: int | None = None
    """When its caller told the gate that it was over, or its gate was killed; None if neither happened."""
    used: int | None = None
    """Tokens that were told then; None if none were."""

    def __post_init__(self) -> None:
        times = [time for time in (self.asked, self.answered, self.ended) if time is not None]
        if times != sorted(times) or (self.admitted and self.answered is None):
            raise ValueError(f"this cannot have happened: {self}")


class Allowance(NamedTuple):
    """From `first` to `last` gates decided alone, and may have let in so much more."""

    first: int
    last: int
    more: int


@dataclass(frozen=True, slots=True)
class Bound:
    """What never may be exceeded."""

    bucket: str
    counted: Counted
    at_most: int
    length: int = 0
    """Of the period; 0 for permits. A little less than the gates have it, if the store's clock may run faster."""
    allowances: Sequence[Allowance] = ()

    def over(self, first: int, last: int) -> int:
        """What the bound is between these two moments."""
        return self.at_most + sum(each.more for each in self.allowances if each.first <= last and first <= each.last)


@dataclass(frozen=True, slots=True)
class Violation:
    """A bound exceeded, where it was so by most."""

    bound: Bound
    first: int
    last: int
    count: int
    allowed: int
    calls: tuple[Call, ...]
    """Those that make up the count, by when they asked."""

    def __str__(self) -> str:
        gates = sorted({call.gate for call in self.calls})
        seconds = (self.last - self.first) / 1e9
        what = f"{self.bound.bucket}: {self.count} {self.bound.counted} where {self.allowed} are allowed"
        lines = [f"{what}, by {', '.join(gates)}, within {seconds:.3f} s up to {self.last}:"]
        lines += [f"  {call}" for call in self.calls[-SHOWN_CALLS:]]
        return "\n".join(lines)


def judge(calls: Iterable[Call], bounds: Iterable[Bound]) -> list[Violation]:
    """The bounds that were certainly exceeded, each where it was by most."""
    by_bucket: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.admitted:
            for bucket in call.buckets:
                by_bucket[bucket].append(call)
    return [found for bound in bounds if (found := _worst(by_bucket[bound.bucket], bound)) is not None]


class Count(NamedTuple):
    """What a store may say of a time."""

    least: int
    most: int


def count(calls: Iterable[Call], bucket: str, counted: Counted, first: int, last: int) -> Count:
    """The requests or tokens of a bucket that were admitted between two moments, both included."""
    least = most = 0
    for call in calls:
        if bucket in call.buckets and call.asked <= last and (call.answered is None or call.answered >= first):
            low, high = (1, 1) if counted is Counted.REQUESTS else _tokens(call)
            if _is_within(call, first, last):
                least += low
            if call.admitted or call.answered is None:
                most += high
    return Count(least, most)


def _tokens(call: Call) -> tuple[int, int]:
    used = call.reserved if call.used is None else call.used
    return min(used, call.reserved), max(used, call.reserved)


def _is_within(call: Call, first: int, last: int) -> bool:
    return call.admitted and call.answered is not None and first <= call.asked and call.answered <= last


def _is_in_flight(call: Call, moment: int) -> bool:
    return call.answered is not None and call.answered <= moment and (call.ended is None or moment < call.ended)


def _worst(calls: list[Call], bound: Bound) -> Violation | None:
    permits = bound.counted is Counted.PERMITS
    length = 0 if permits else bound.length
    worst, at, number, allowed = 0, 0, 0, 0
    for moment, total in _in_flight(calls, bound) if permits else _in_windows(calls, bound):
        limit = bound.over(moment - length, moment)
        if total - limit > worst:
            worst, at, number, allowed = total - limit, moment, total, limit
    if worst == 0:
        return None
    counts = (call for call in calls if (_is_in_flight(call, at) if permits else _is_within(call, at - length, at)))
    shown = tuple(sorted(counts, key=lambda call: (call.asked, call.gate, call.number)))
    return Violation(bound, at - length, at, number, allowed, shown)


def _moments(calls: list[Call], bound: Bound, length: int) -> list[int]:
    """The answers, and when windows no longer hold a part of an allowance."""
    answers = {call.answered for call in calls if call.answered is not None}
    return sorted(answers | {each.last + length + 1 for each in bound.allowances})


def _in_flight(calls: list[Call], bound: Bound) -> Iterator[tuple[int, int]]:
    """How many calls were certainly in flight, at each moment that matters."""
    begun = sorted(call.answered for call in calls if call.answered is not None)
    ended = sorted(call.ended for call in calls if call.ended is not None)
    for moment in _moments(calls, bound, 0):
        yield moment, bisect_right(begun, moment) - bisect_right(ended, moment)


def _in_windows(calls: list[Call], bound: Bound) -> Iterator[tuple[int, int]]:
    """What was certainly admitted in the period before each moment that matters."""
    tokens = bound.counted is Counted.TOKENS
    entering = sorted((call.answered, number) for number, call in enumerate(calls) if call.answered is not None)
    leaving = sorted((call.asked, number) for number, call in enumerate(calls))
    ending = sorted((call.ended, number) for number, call in enumerate(calls) if tokens and call.ended is not None)
    entered = left = ended = total = 0
    inside: dict[int, int] = {}
    for moment in _moments(calls, bound, bound.length):
        first = moment - bound.length
        while entered < len(entering) and entering[entered][0] <= moment:
            number = entering[entered][1]
            entered += 1
            if calls[number].asked >= first:
                inside[number] = calls[number].reserved if tokens else 1
                total += inside[number]
        while ended < len(ending) and ending[ended][0] <= moment:
            number = ending[ended][1]
            ended += 1
            if number in inside:
                total -= inside[number]
                inside[number] = _tokens(calls[number])[0]
                total += inside[number]
        while left < len(leaving) and leaving[left][0] < first:
            total -= inside.pop(leaving[left][1], 0)
            left += 1
        yield moment, total
