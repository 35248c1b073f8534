"""An exact log of what was admitted, kept from what the engine tells, to judge the engine by.

The log knows no slots. Over a period of length W, at any moment, the engine must count

    at least what was admitted in the closed interval [now - W, now]        (nobody gets more than the cap)
    at most  what was admitted in ]now - W - W/60, now]                     (capacity comes back a slot late at most)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from sluice.core.buckets import NOTHING, Bucket, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey
from sluice.core.limits import CALL_CAPS, CAPS_BY_LENGTH, PART_CAPS, Cap, Limits, Mode
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import RuleBook
from sluice.core.windows import SLOTS

LENGTHS: dict[tuple[Cap, ...], int] = {caps: length for kind in (CALL_CAPS, PART_CAPS) for length, caps in kind.items()}


class Booking:
    """Two amounts of one admitted call that are counted together; they change when it is settled."""

    __slots__ = ("at", "first", "second", "tallies")

    def __init__(self, at: int, first: int, second: int) -> None:
        self.at, self.first, self.second = at, first, second
        self.tallies: list[Tally] = []

    def amend(self, now: int, first: int, second: int) -> None:
        """What it is from now on."""
        for tally in self.tallies:
            tally.change(self, now, first - self.first, second - self.second)
        self.first, self.second = first, second


class Admission(NamedTuple):
    """One admitted call: its requests and tokens, and its input tokens and output tokens."""

    calls: Booking
    parts: Booking


class Tally:
    """The sum of what was booked within `reach` ns before now, both ends included."""

    __slots__ = ("bookings", "first", "reach", "second")

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.bookings: deque[Booking] = deque()
        self.first = self.second = 0

    def slide(self, now: int) -> None:
        while self.bookings and self.bookings[0].at < now - self.reach:
            gone = self.bookings.popleft()
            self.first -= gone.first
            self.second -= gone.second

    def add(self, booking: Booking) -> None:
        self.bookings.append(booking)
        self.first += booking.first
        self.second += booking.second

    def change(self, booking: Booking, now: int, first: int, second: int) -> None:
        self.slide(now)
        if booking.at >= now - self.reach:
            self.first += first
            self.second += second

    def remove(self, booking: Booking, now: int) -> None:
        self.slide(now)
        if booking in self.bookings:
            self.bookings.remove(booking)
            self.first -= booking.first
            self.second -= booking.second


class Window(NamedTuple):
    """What a bucket counts over one period, as its limits cap it and as a call asks for it."""

    caps: tuple[Cap, Cap]
    length: int
    limits: tuple[int | None, int | None]
    asked: tuple[int, int]

    def has_room(self, counted: Tally) -> bool:
        return all(
            limit is None or used + asked <= limit
            for limit, used, asked in zip(self.limits, (counted.first, counted.second), self.asked, strict=True)
        )


def windows(limits: Limits, demand: Demand) -> Iterator[Window]:
    """Every window of a bucket with these limits."""
    _, requests, tokens, input_tokens, output_tokens = demand
    for length, *counts in limits.periods:
        yield Window(CALL_CAPS[length], length, (counts[0], counts[1]), (requests, tokens))
    for length, *counts in limits.parts:
        yield Window(PART_CAPS[length], length, (counts[0], counts[1]), (input_tokens, output_tokens))


class Oracle:
    """Telemetry that checks every admission against the exact log as it happens, and the engine when asked to."""

    def __init__(self, rules: RuleBook, settings: EngineSettings | None = None) -> None:
        self.engine = Engine(rules, settings, self)
        self.now = 0
        """To be set before the engine is told of it."""
        self.withdrawing: Permit | None = None
        """To be set before the engine is told to: its end is not a release, it never was."""
        self.in_flight: dict[BucketKey, int] = {}
        self._tallies: dict[tuple[BucketKey, tuple[Cap, ...]], tuple[Tally, Tally]] = {}
        self._admissions: dict[str, Admission] = {}
        self._limits: dict[BucketKey, Limits] = {}

    # -- what the engine tells -----------------------------------------------------------------------------------

    def acquired(self, permit: Permit) -> None:
        assert permit.admitted_at == self.now
        slots, requests, tokens, input_tokens, output_tokens = permit.call.demand
        calls = Booking(self.now, requests, tokens)
        parts = Booking(self.now, input_tokens, output_tokens)
        self._admissions[permit.lease] = Admission(calls, parts)
        for bucket in permit.buckets:
            self.in_flight[bucket.key] = self.in_flight.get(bucket.key, 0) + slots
            for booking, counting in ((calls, bucket.windows), (parts, bucket.parts)):
                for window in counting:
                    tallies = self._of(bucket.key, window.caps)
                    booking.tallies += tallies
                    for tally in tallies:
                        tally.add(booking)
            self._check_admission(permit, bucket)

    def committed(self, permit: Permit) -> None:
        calls, parts = self._admissions[permit.lease]
        calls.amend(self.now, calls.first, permit.charge.tokens)
        parts.amend(self.now, permit.charge.input_tokens, permit.charge.output_tokens)

    def released(self, permit: Permit) -> None:
        for key in permit.keys:
            self.in_flight[key] -= permit.call.demand.slots
        if permit is self.withdrawing:
            for booking in self._admissions.pop(permit.lease):
                for tally in booking.tallies:
                    tally.remove(booking, self.now)

    expired = released

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        """Refusals are judged by `check_refusal`, where it is known who waits."""

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        assert self._limits_of(refusal.key).mode is Mode.SHADOW

    # -- what the test tells -------------------------------------------------------------------------------------

    def swapped(self) -> None:
        """Other rules are about to come into force."""
        self._limits.clear()

    def restart(self) -> None:
        """Another engine from now on; no call of the one before is known to it."""
        self.engine = Engine(self.engine.rules, self.engine.settings, self)
        self.in_flight.clear()
        self._admissions.clear()

    # -- judgement -----------------------------------------------------------------------------------------------

    def check_refusal(self, call: Call, refusal: Refusal) -> None:
        """For a call refused at once while nobody waits: one of its buckets has no room, not even a slot later."""
        demand = call.demand
        for key, limits, _ in call.applied:
            if limits.mode is Mode.SHADOW:
                continue
            cap = limits.max_concurrent
            if cap is not None and demand.slots and self.in_flight.get(key, 0) + demand.slots > cap:
                return
            for window in windows(limits, demand):
                _, wide = self._of(key, window.caps)
                if not window.has_room(wide):
                    return
        raise AssertionError(f"room for {call}, but {refusal}")

    def fits_at(self, call: Call, then: int) -> bool:
        """True if every window has room for the call at that time, if nothing else happens: by slots, to the ns."""
        return all(
            self._left(key, window, then)
            for key, limits, _ in call.applied
            if limits.mode is Mode.ENFORCE
            for window in windows(limits, call.demand)
        )

    def check_state(self) -> None:
        """Every window counts what the exact log says, give or take a slot; every slot in flight is accounted for."""
        snapshot = self.engine.snapshot(self.now)
        for state in snapshot.buckets:
            assert state.in_flight == self.in_flight.get(state.key, 0)
            for caps in (*CALL_CAPS.values(), *PART_CAPS.values()):
                narrow, wide = self._of(state.key, caps)
                first, second = map(state.windows.get, caps)
                assert first is None or narrow.first <= first.used <= wide.first, (state, caps)
                assert second is None or narrow.second <= second.used <= wide.second, (state, caps)

    def check_waiters(self, waiters: list[Waiter]) -> None:
        """Nobody waits past the deadline or beside room that is there, once the engine has been told of the time."""
        blocked: dict[BucketKey, list[Waiter]] = {}
        first: dict[BucketKey, Waiter] = {}
        for waiter in sorted((waiter for waiter in waiters if waiter.pending), key=lambda waiter: waiter.ticket):
            assert waiter.deadline > self.now
            obstacles = 0
            for bucket in waiter.buckets:
                ahead = list(blocked.get(bucket.key, ()))
                head = first.setdefault(bucket.key, waiter)
                if head is not waiter and head not in ahead:
                    ahead.append(head)
                if not self._fits(bucket.key, [*ahead, waiter]):
                    blocked.setdefault(bucket.key, []).append(waiter)
                    obstacles += 1
            assert obstacles, f"room for {waiter.call}"

    # -- within --------------------------------------------------------------------------------------------------

    def _of(self, key: BucketKey, caps: tuple[Cap, ...]) -> tuple[Tally, Tally]:
        tallies = self._tallies.get((key, caps))
        if tallies is None:
            length = LENGTHS[caps]
            tallies = self._tallies[key, caps] = Tally(length), Tally(length + length // SLOTS - 1)
        for tally in tallies:
            tally.slide(self.now)
        return tallies

    def _left(self, key: BucketKey, window: Window, then: int) -> bool:
        slot = window.length // SLOTS
        _, wide = self._of(key, window.caps)
        counted = Tally(window.length)
        for booking in wide.bookings:
            if (booking.at // slot + SLOTS + 1) * slot > then:
                counted.add(booking)
        return window.has_room(counted)

    def _limits_of(self, key: BucketKey) -> Limits:
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = self.engine.rules.limits_of(key)
        return limits

    def _check_admission(self, permit: Permit, bucket: Bucket) -> None:
        key, limits = bucket.key, self._limits_of(bucket.key)
        enforced = limits.mode is Mode.ENFORCE
        if enforced and permit.call.demand.slots and limits.max_concurrent is not None:
            assert self.in_flight[key] <= limits.max_concurrent, key
        counted = {window.caps for window in (*bucket.windows, *bucket.parts)}
        for window in windows(limits, NOTHING):
            assert window.caps in counted, (key, window)
            narrow, _ = self._of(key, window.caps)
            assert window.has_room(narrow) or not enforced, (key, window)

    def _fits(self, key: BucketKey, waiters: list[Waiter]) -> bool:
        """True if the bucket has room for all of them together, as far as it counts now."""
        limits = self._limits_of(key)
        if limits.mode is Mode.SHADOW:
            return True
        slots, *asked = (sum(amounts) for amounts in zip(*(w.call.demand for w in waiters), strict=True))
        cap = limits.max_concurrent
        if cap is not None and waiters[-1].call.demand.slots and self.in_flight.get(key, 0) + slots > cap:
            return False
        state = self.engine.current_state(key, self.now)
        windows_of = {} if state is None else state.windows
        return all(
            counted.used + amount <= counted.limit
            for amount, caps in zip(asked, CAPS_BY_LENGTH, strict=True)
            for cap in caps.values()
            if (counted := windows_of.get(cap)) is not None
        )
