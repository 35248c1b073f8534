"""Many seeded operations in one life of an engine, every admission checked against an exact log."""

from __future__ import annotations

from random import Random

import pytest

from helpers.ledger import PROVIDER
from helpers.oracle import Oracle
from sluice.core.buckets import NO_CHARGE, Charge, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Settled, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.windows import NEVER, SLOTS

EXACT_JUMPS = [span + by for length in (MINUTE, HOUR, DAY) for span in (length // SLOTS, length) for by in (-1, 0, 1)]


def some_limits(random: Random, scale: int) -> Limits:
    """Caps that a few hundred calls use up."""

    def maybe(cap: int) -> int | None:
        return random.choice((None, random.randint(1, cap * scale), cap * scale))

    return Limits(
        requests_per_minute=maybe(5),
        requests_per_hour=maybe(50),
        requests_per_day=maybe(500),
        tokens_per_minute=maybe(500),
        tokens_per_hour=maybe(5_000),
        tokens_per_day=maybe(50_000),
        input_tokens_per_minute=random.choice((None, maybe(400))),
        input_tokens_per_hour=random.choice((None, maybe(4_000))),
        output_tokens_per_minute=random.choice((None, maybe(200))),
        output_tokens_per_day=random.choice((None, maybe(20_000))),
        max_concurrent=maybe(4),
        max_wait=random.choice((0, 0, 0, SECOND, MINUTE)),
        mode=random.choice((Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW)),
    )


def some_rules(random: Random) -> RuleBook:
    rules = [Rule(PROVIDER, scope, some_limits(random, scale)) for scope, scale in ((Scope.USER, 1), (Scope.ORG, 3))]
    return RuleBook((*rules, Rule(PROVIDER, Scope.USER, some_limits(random, 2), ("user-0",))))


def some_time(random: Random) -> int:
    kind = random.random()
    if kind < 0.5:
        return random.randrange(2 * SECOND)
    if kind < 0.7:
        return random.choice((0, 1))
    if kind < 0.98:
        return random.randrange(10 * SECOND)
    return random.choice(EXACT_JUMPS)


class Crowd:
    """Six users of two organisations."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.oracle = Oracle(some_rules(self.random), EngineSettings(lease=20 * SECOND, max_waiters=20))
        self.engine = self.oracle.engine
        self.now = 0
        self.live: list[Permit] = []
        self.ended: list[Permit] = []
        self.waiters: list[Waiter] = []
        self.admitted = self.refused = 0

    def run(self, operations: int) -> None:
        acts = (self.ask, self.end, self.pass_time, self.speak_late, self.give_up, self.swap)
        for act in self.random.choices(acts, (50, 34, 12, 2, 1.98, 0.02), k=operations):
            act()

    # -- what they do --------------------------------------------------------------------------------------------

    def ask(self) -> None:
        random = self.random
        user = random.randrange(6)
        subjects = {Scope.USER: f"user-{user}", Scope.ORG: f"org-{user % 2}"}
        demand = Demand(1, 1, *(random.choice((0, 1, random.randrange(50), random.randrange(200))) for _ in range(3)))
        call = Call(self.engine.rules.match(PROVIDER, subjects), demand)
        alone = self.engine.next_wake == NEVER
        outcome = self.engine.acquire(call, self.now)
        if isinstance(outcome, Waiter):
            self.waiters.append(outcome)
            outcome.notify = self.hear
            return
        if isinstance(outcome, Refusal) and alone:
            self.oracle.check_refusal(call, outcome)
        if call.applied:
            self.hear(outcome)

    def hear(self, outcome: Permit | Refusal) -> None:
        if isinstance(outcome, Refusal):
            self.refused += 1
            return
        self.admitted += 1
        self.live.append(outcome)

    def end(self) -> None:
        """A call ends, in one of the ways in which calls end."""
        if not self.live:
            return
        random = self.random
        at = random.randrange(len(self.live))
        self.live[at], self.live[-1] = self.live[-1], self.live[at]
        permit = self.live.pop()
        ending = random.random()
        if ending < 0.05:
            if not permit.released and permit.settled is None:
                self.oracle.withdrawing = permit
                self.admitted -= 1
            self.engine.withdraw(permit, self.now)
            return
        self.ended.append(permit)
        if ending < 0.15:
            return  # nobody ever speaks of it again
        self.engine.claim(permit.lease, self.now)
        if ending < 0.25:
            permit.commit_tokens(NO_CHARGE, self.now, Settled.REFUNDED)
        elif ending < 0.85:
            permit.commit_tokens(Charge(*(random.randrange(2 * amount + 1) for amount in permit.charge)), self.now)
        permit.release(self.now)

    def speak_late(self) -> None:
        """Somebody comes back to a call that has ended long ago."""
        if self.ended:
            permit = self.random.choice(self.ended[-500:])
            permit.commit_tokens(
                Charge(*self.random.choices(range(300), k=3)), self.now, self.random.choice(tuple(Settled))
            )
            permit.release(self.now)

    def give_up(self) -> None:
        if self.waiters:
            waiter = self.waiters.pop(self.random.randrange(len(self.waiters)))
            if waiter.pending:
                self.engine.cancel(waiter, self.now)

    def pass_time(self) -> None:
        self.now += some_time(self.random)
        self.oracle.now = self.now
        self.engine.advance(self.now)

    def swap(self) -> None:
        self.oracle.swapped()
        self.engine.swap(some_rules(self.random), self.now)

    def take_stock(self) -> None:
        self.engine.advance(self.now)
        self.waiters = [waiter for waiter in self.waiters if waiter.pending]
        self.oracle.check_waiters(self.waiters)
        self.oracle.check_state()


@pytest.mark.timeout(900)  # two and a half minutes of a core for the longest, which others may want as well
@pytest.mark.parametrize("operations", [100_000, pytest.param(5_000_000, marks=pytest.mark.thorough)])
def test_no_interval_is_over_its_cap_no_room_is_withheld_and_nothing_leaks(operations: int) -> None:
    crowd = Crowd(seed=operations)
    for _ in range(0, operations, 500):
        crowd.run(500)
        crowd.take_stock()
    # Everybody has come to an end: every slot is free, and the books agree to the last call.
    crowd.oracle.now = crowd.now = crowd.now + DAY
    crowd.engine.advance(crowd.now)
    while crowd.live:
        crowd.end()
    crowd.engine.advance(crowd.now + DAY)
    crowd.oracle.now = crowd.now = crowd.now + DAY
    snapshot = crowd.engine.snapshot(crowd.now)
    totals = snapshot.totals
    assert (snapshot.in_flight, snapshot.queued) == (0, 0)
    assert totals.admitted == crowd.admitted == totals.committed + totals.estimated + totals.refunded
    assert min(crowd.admitted, crowd.refused, totals.committed, totals.expired_permits) > operations // 1000
