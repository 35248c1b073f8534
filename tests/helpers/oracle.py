"""An exact log of what was admitted, kept from what the engine tells, to judge the engine by.

The log knows no slots. Over a period of length W, at any moment, the engine must count

    at least what was admitted in the closed interval [now - W, now]        (nobody gets more than the cap)
    at most  what was admitted in ]now - W - W/60, now]                     (capacity comes back a slot late at most)
"""

from __future__ import annotations

from collections import deque

from sluice.core.buckets import Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey
from sluice.core.limits import REQUEST_CAPS, TOKEN_CAPS, Limits, Mode
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import RuleBook
from sluice.core.windows import SLOTS


class Admission:
    """One admitted call; its tokens change when it is settled."""

    __slots__ = ("at", "requests", "tallies", "tokens")

    def __init__(self, at: int, requests: int, tokens: int) -> None:
        self.at, self.requests, self.tokens = at, requests, tokens
        self.tallies: list[Tally] = []


class Tally:
    """The sum of what was admitted within `reach` ns before now, both ends included."""

    __slots__ = ("admissions", "reach", "requests", "tokens")

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.admissions: deque[Admission] = deque()
        self.requests = self.tokens = 0

    def slide(self, now: int) -> None:
        while self.admissions and self.admissions[0].at < now - self.reach:
            gone = self.admissions.popleft()
            self.requests -= gone.requests
            self.tokens -= gone.tokens

    def add(self, admission: Admission) -> None:
        self.admissions.append(admission)
        self.requests += admission.requests
        self.tokens += admission.tokens

    def change(self, admission: Admission, now: int, difference: int) -> None:
        self.slide(now)
        if admission.at >= now - self.reach:
            self.tokens += difference

    def remove(self, admission: Admission, now: int) -> None:
        self.slide(now)
        if admission in self.admissions:
            self.admissions.remove(admission)
            self.requests -= admission.requests
            self.tokens -= admission.tokens


class Oracle:
    """Telemetry that checks every admission against the exact log as it happens, and the engine when asked to."""

    def __init__(self, rules: RuleBook, settings: EngineSettings | None = None) -> None:
        self.engine = Engine(rules, settings, self)
        self.now = 0
        """To be set before the engine is told of it."""
        self.withdrawing: Permit | None = None
        """To be set before the engine is told to: its end is not a release, it never was."""
        self.in_flight: dict[BucketKey, int] = {}
        self._tallies: dict[tuple[BucketKey, int], tuple[Tally, Tally]] = {}
        self._admissions: dict[str, Admission] = {}
        self._limits: dict[BucketKey, Limits] = {}

    # -- what the engine tells -----------------------------------------------------------------------------------

    def acquired(self, permit: Permit) -> None:
        assert permit.admitted_at == self.now
        slots, requests, tokens = permit.call.demand
        admission = self._admissions[permit.lease] = Admission(self.now, requests, tokens)
        for bucket, windows in zip(permit.buckets, permit.windows, strict=True):
            key = bucket.key
            self.in_flight[key] = self.in_flight.get(key, 0) + slots
            for window in windows:
                admission.tallies += self._of(key, window.length)
            self._check_admission(key, slots, {window.length for window in windows}, admission)

    def committed(self, permit: Permit) -> None:
        admission = self._admissions[permit.lease]
        for tally in admission.tallies:
            tally.change(admission, self.now, permit.tokens - admission.tokens)
        admission.tokens = permit.tokens

    def released(self, permit: Permit) -> None:
        for key in permit.keys:
            self.in_flight[key] -= permit.call.demand.slots
        if permit is self.withdrawing:
            admission = self._admissions.pop(permit.lease)
            for tally in admission.tallies:
                tally.remove(admission, self.now)

    expired = released

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        """Refusals are judged by `check_refusal`, where it is known who waits."""

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        assert self._limits_of(refusal.key).mode is Mode.SHADOW

    # -- what the test tells -------------------------------------------------------------------------------------

    def swapped(self) -> None:
        """Other rules are about to come into force."""
        self._limits.clear()

    # -- judgement -----------------------------------------------------------------------------------------------

    def check_refusal(self, call: Call, refusal: Refusal) -> None:
        """For a call refused at once while nobody waits: one of its buckets has no room, not even a slot later."""
        demand = call.demand
        for key, limits in call.applied:
            if limits.mode is Mode.SHADOW:
                continue
            cap = limits.max_concurrent
            if cap is not None and demand.slots and self.in_flight.get(key, 0) + demand.slots > cap:
                return
            for length, request_cap, token_cap in limits.periods:
                _, wide = self._of(key, length)
                if request_cap is not None and wide.requests + demand.requests > request_cap:
                    return
                if token_cap is not None and wide.tokens + demand.tokens > token_cap:
                    return
        raise AssertionError(f"room for {call}, but {refusal}")

    def fits_at(self, call: Call, then: int) -> bool:
        """True if every window has room for the call at that time, if nothing else happens: by slots, to the ns."""
        return all(
            self._left(key, length, then, call.demand, request_cap, token_cap)
            for key, limits in call.applied
            if limits.mode is Mode.ENFORCE
            for length, request_cap, token_cap in limits.periods
        )

    def check_state(self) -> None:
        """Every window counts what the exact log says, give or take a slot; every slot in flight is accounted for."""
        snapshot = self.engine.snapshot(self.now)
        for state in snapshot.buckets:
            assert state.in_flight == self.in_flight.get(state.key, 0)
            for length in REQUEST_CAPS:
                narrow, wide = self._of(state.key, length)
                requests, tokens = state.windows.get(REQUEST_CAPS[length]), state.windows.get(TOKEN_CAPS[length])
                assert requests is None or narrow.requests <= requests.used <= wide.requests, (state, length)
                assert tokens is None or narrow.tokens <= tokens.used <= wide.tokens, (state, length)

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

    def _of(self, key: BucketKey, length: int) -> tuple[Tally, Tally]:
        tallies = self._tallies.get((key, length))
        if tallies is None:
            tallies = self._tallies[key, length] = Tally(length), Tally(length + length // SLOTS - 1)
        for tally in tallies:
            tally.slide(self.now)
        return tallies

    def _left(
        self, key: BucketKey, length: int, then: int, demand: Demand, request_cap: int | None, token_cap: int | None
    ) -> bool:
        slot = length // SLOTS
        _, wide = self._of(key, length)
        counted = [admission for admission in wide.admissions if (admission.at // slot + SLOTS + 1) * slot > then]
        requests = demand.requests + sum(admission.requests for admission in counted)
        tokens = demand.tokens + sum(admission.tokens for admission in counted)
        return (request_cap is None or requests <= request_cap) and (token_cap is None or tokens <= token_cap)

    def _limits_of(self, key: BucketKey) -> Limits:
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = self.engine.rules.limits_of(key)
        return limits

    def _check_admission(self, key: BucketKey, slots: int, counted: set[int], admission: Admission) -> None:
        limits = self._limits_of(key)
        enforced = limits.mode is Mode.ENFORCE
        if enforced and slots and limits.max_concurrent is not None:
            assert self.in_flight[key] <= limits.max_concurrent, key
        for length in counted:
            for tally in self._of(key, length):
                tally.add(admission)
        for length, request_cap, token_cap in limits.periods:
            assert length in counted, (key, length)
            narrow, _ = self._of(key, length)
            if enforced:
                assert request_cap is None or narrow.requests <= request_cap, (key, length)
                assert token_cap is None or narrow.tokens <= token_cap, (key, length)

    def _fits(self, key: BucketKey, waiters: list[Waiter]) -> bool:
        """True if the bucket has room for all of them together, as far as it counts now."""
        limits = self._limits_of(key)
        if limits.mode is Mode.SHADOW:
            return True
        slots, requests, tokens = (sum(amounts) for amounts in zip(*(w.call.demand for w in waiters), strict=True))
        cap = limits.max_concurrent
        if cap is not None and waiters[-1].call.demand.slots and self.in_flight.get(key, 0) + slots > cap:
            return False
        state = self.engine.current_state(key, self.now)
        windows = {} if state is None else state.windows
        return all(
            window.used + (requests if name in REQUEST_CAPS.values() else tokens) <= window.limit
            for name, window in windows.items()
        )
