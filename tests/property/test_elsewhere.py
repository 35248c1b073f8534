"""An engine that only counts, with its verdicts from another one, decides, counts and tells like a single engine."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.ledger import PROVIDER, Journal
from sluice.core.buckets import NO_CHARGE, NOTHING, Bucket, Charge, Demand, Obstacle
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import SCOPES, BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Settled
from sluice.core.rules import Rule, RuleBook
from sluice.core.states import Snapshot

LEASE = 30 * SECOND
CAPS = st.none() | st.integers(0, 6)
AMOUNTS = st.none() | st.none() | st.integers(20, 150)
LIMITS = st.builds(
    Limits,
    requests_per_minute=CAPS,
    requests_per_day=CAPS,
    tokens_per_minute=AMOUNTS,
    tokens_per_hour=AMOUNTS,
    input_tokens_per_minute=AMOUNTS,
    output_tokens_per_hour=AMOUNTS,
    max_concurrent=CAPS,
    mode=st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW)),
)
RULES = st.builds(Rule, st.just(PROVIDER), st.sampled_from(SCOPES), LIMITS, st.sampled_from(((), ("ann",))))
BOOKS = st.lists(RULES, min_size=1, max_size=4).map(lambda rules: RuleBook(tuple(rules)))
PICK = st.integers(0, 10**6)


class Mirror:
    """The same call in the engine that decides: `Permit.elsewhere`."""

    def __init__(self, permit: Permit, now: list[int]) -> None:
        self.permit = permit
        self.now = now
        self.booked = permit.charge
        self.requests = permit.call.demand.requests

    def amend(self, requests: int, charge: Charge) -> None:
        self.requests += requests
        self.booked = self.booked.plus(charge)

    def free(self) -> None:
        self.permit.release(self.now[0])


class Admitted(NamedTuple):
    """One call, in all three engines."""

    single: Permit
    counted: Permit
    decided: Permit
    mirror: Mirror


class Engines(RuleBasedStateMachine):
    """One that does everything; and a pair: one that counts, and one that decides and is believed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [0]
        self.calls: list[Admitted] = []

    @initialize(book=BOOKS, now=st.integers(0, 2 * DAY))
    def start(self, book: RuleBook, now: int) -> None:
        usual = EngineSettings(lease=LEASE)
        self.tales, self.tale = Journal(), Journal()
        self.single = Engine(book, usual, self.tales)
        self.counting = Engine(book, usual, self.tale)
        self.counting.counts_only = True
        self.deciding = Engine(book, replace(usual, lease=1000 * DAY))
        self.pass_time(now)

    @rule(
        user=st.sampled_from(("ann", "bob")),
        demand=st.builds(
            Demand, st.sampled_from((1, 1, 0)), st.sampled_from((1, 1, 0, 3)), *[st.integers(-5, 160)] * 3
        ),
    )
    def ask(self, user: str, demand: Demand) -> None:
        now = self.now[0]
        subjects = {Scope.USER: user, Scope.ORG: "x", Scope.PROJECT: "p"}
        call = Call(self.single.rules.match(PROVIDER, subjects), demand, patience=0)
        if not call.applied:
            return
        single = self.single.acquire(call, now)
        counted = self.counting.acquire(call, now, tell=False)
        assert isinstance(counted, Permit)
        shadows = self.shadows(counted)
        decided = self.deciding.acquire(counted.call, now)
        if isinstance(decided, Refusal):
            self.counting.withdraw(counted, now)
            assert self.counting.refuse(counted.call, decided, now, 0) == single
            return
        assert isinstance(single, Permit)
        assert isinstance(decided, Permit)
        counted.elsewhere = mirror = Mirror(decided, self.now)
        if shadows:
            self.counting.tell_shadow(counted.call, shadows, now)
        self.counting.confirm(counted, now, 0)
        self.calls.append(Admitted(single, counted, decided, mirror))

    def shadows(self, counted: Permit) -> list[tuple[Bucket, Obstacle]]:
        """What limits in shadow mode have no room for, as the engine that decides knows."""
        demand, now = counted.call.demand, self.now[0]
        found = []
        for mine, bucket in zip(
            counted.buckets,
            self.deciding.visit([b.key for b in counted.buckets], now, lambda each, _: each, make=True),
            strict=True,
        ):
            if bucket.is_shadow:
                found += [(mine, obstacle) for obstacle in bucket.obstacles(now, demand, NOTHING)]
        return found

    @precondition(lambda self: self.calls)
    @rule(pick=PICK, actual=st.builds(Charge, *[st.integers(-5, 200)] * 3), settled=st.sampled_from(Settled))
    def commit(self, pick: int, actual: Charge, settled: Settled) -> None:
        call, charge = self.calls[pick % len(self.calls)], NO_CHARGE if settled is Settled.REFUNDED else actual
        first = call.single.commit_tokens(charge, self.now[0], settled)
        assert call.counted.commit_tokens(charge, self.now[0], settled) is first
        call.decided.commit_tokens(charge, self.now[0], settled)

    @precondition(lambda self: self.calls)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        call = self.calls[pick % len(self.calls)]
        assert call.counted.release(self.now[0]) is call.single.release(self.now[0])

    @precondition(lambda self: self.calls)
    @rule(pick=PICK, failed=st.integers(1, 3))
    def repeat(self, pick: int, failed: int) -> None:
        call = self.calls[pick % len(self.calls)]
        for engine, permit in (
            (self.single, call.single),
            (self.counting, call.counted),
            (self.deciding, call.decided),
        ):
            engine.repeated(permit, failed, self.now[0])

    @precondition(lambda self: self.calls)
    @rule(pick=PICK)
    def withdraw(self, pick: int) -> None:
        call = self.calls[pick % len(self.calls)]
        if not call.single.released and call.single.settled is None:
            self.calls.remove(call)
        self.single.withdraw(call.single, self.now[0])
        self.deciding.withdraw(call.decided, self.now[0])
        self.counting.withdraw(call.counted, self.now[0])

    @rule(by=st.sampled_from((0, 1, SECOND, LEASE, MINUTE, MINUTE + SECOND, HOUR, DAY + HOUR)))
    def pass_time(self, by: int) -> None:
        self.now[0] += by
        for engine in (self.single, self.counting, self.deciding):
            engine.advance(self.now[0])

    @rule(book=BOOKS)
    def swap(self, book: RuleBook) -> None:
        for engine in (self.single, self.counting, self.deciding):
            engine.swap(book, self.now[0])

    @invariant()
    def both_have_counted_and_told_the_same(self) -> None:
        if not hasattr(self, "single"):
            return
        single, pair = self.single.snapshot(self.now[0]), self.counting.snapshot(self.now[0])
        self.deciding.snapshot(self.now[0])  # as whoever looks at a bucket brings its limits up to date
        assert pair.totals == single.totals
        assert pair.in_flight == single.in_flight
        assert _counted(pair) == _counted(single)
        assert self.tale.events == self.tales.events
        for call in self.calls:
            assert call.mirror.booked == call.counted.charge


def _counted(snapshot: Snapshot) -> dict[tuple[BucketKey, str], int]:
    """What counts in every bucket. One in which nothing does may be forgotten sooner by one engine than by another."""
    counted = {}
    for state in snapshot.buckets:
        counted[state.key, "in flight"] = state.in_flight
        for cap, window in state.windows.items():
            counted[state.key, cap.value] = window.used
    return {name: count for name, count in counted.items() if count}


Engines.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestEngines = Engines.TestCase
