"""The engine against an exact log, in any sequence of events that hypothesis can think of."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.ledger import PROVIDER, assert_balanced, everything
from helpers.oracle import Oracle
from sluice.core.buckets import NO_CHARGE, Charge, Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import EngineSettings
from sluice.core.keeping import keep, put_back
from sluice.core.keys import SCOPES, Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Settled, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.windows import NEVER, SLOTS

LEASE = 30 * SECOND
PERIODS = (MINUTE, HOUR, DAY)
JUMPS = sorted(
    {0, 1, LEASE}
    | {span + by for length in PERIODS for span in (length // SLOTS, length) for by in (-1, 0, 1)}
    | {length + length // SLOTS for length in PERIODS}
)

REQUESTS = st.none() | st.integers(0, 6)
TOKENS = st.none() | st.integers(20, 150)
PARTS = st.none() | st.none() | TOKENS
LIMITS = st.builds(
    Limits,
    requests_per_minute=REQUESTS,
    requests_per_hour=REQUESTS,
    requests_per_day=REQUESTS,
    tokens_per_minute=TOKENS,
    tokens_per_hour=TOKENS,
    tokens_per_day=TOKENS,
    input_tokens_per_minute=PARTS,
    input_tokens_per_hour=PARTS,
    input_tokens_per_day=PARTS,
    output_tokens_per_minute=PARTS,
    output_tokens_per_hour=PARTS,
    output_tokens_per_day=PARTS,
    max_concurrent=st.none() | st.integers(0, 4),
    max_wait=st.sampled_from((0, 1, SECOND, MINUTE, HOUR)),
    mode=st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW)),
)
RULES = st.builds(Rule, st.just(PROVIDER), st.sampled_from(SCOPES), LIMITS, st.sampled_from(((), ("ann",))))
BOOKS = st.lists(RULES, max_size=4).map(lambda rules: RuleBook(tuple(rules)))
PICK = st.integers(0, 10**6)
"""Which of the permits or waiters there are."""


class Life(RuleBasedStateMachine):
    """Callers come, wait, give up, end their calls in every way and at every time; the limits change under them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.permits: list[Permit] = []
        self.waiters: list[Waiter] = []

    @initialize(book=BOOKS, now=st.integers(0, 2 * DAY))
    def start(self, book: RuleBook, now: int) -> None:
        self.oracle = Oracle(book, EngineSettings(lease=LEASE, max_waiters=6))
        self.engine = self.oracle.engine
        self.pass_time(now)

    # -- calls ---------------------------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(("ann", "bob", "")),
        org=st.sampled_from(("x", "y")),
        demand=st.builds(
            Demand, st.sampled_from((1, 1, 1, 0)), st.sampled_from((1, 1, 1, 0, 3)), *[st.integers(0, 160)] * 3
        ),
        patience=st.sampled_from((NEVER, NEVER, NEVER, MINUTE, 0)),
    )
    def ask(self, user: str, org: str, demand: Demand, patience: int) -> None:
        subjects = {Scope.USER: user, Scope.ORG: org, Scope.PROJECT: "p"}
        call = Call(self.engine.rules.match(PROVIDER, subjects), demand, patience)
        before = everything(self.engine, self.now)
        alone = not self.waiting()
        outcome = self.engine.acquire(call, self.now)
        if isinstance(outcome, Refusal):
            assert everything(self.engine, self.now) == before
            if alone:
                self.judge(call, outcome)
        elif isinstance(outcome, Waiter):
            self.waiters.append(outcome)
            outcome.notify = self.hear
        elif call.applied:
            self.permits.append(outcome)

    def judge(self, call: Call, refusal: Refusal) -> None:
        """A refusal while nobody waits."""
        self.oracle.check_refusal(call, refusal)
        if refusal.reason is Reason.WOULD_EXCEED:
            assert refusal.retry_after is not None
            assert self.oracle.fits_at(call, self.now + refusal.retry_after)
            assert not self.oracle.fits_at(call, self.now + refusal.retry_after - 1)
        elif refusal.reason is Reason.OVERSIZED_REQUEST:
            assert refusal.requested > refusal.limit

    @precondition(lambda self: self.permits)
    @rule(pick=PICK, actual=st.builds(Charge, *[st.integers(-5, 200)] * 3), settled=st.sampled_from(Settled))
    def commit(self, pick: int, actual: Charge, settled: Settled) -> None:
        permit = self.permits[pick % len(self.permits)]
        permit.commit_tokens(NO_CHARGE if settled is Settled.REFUNDED else actual, self.now, settled)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        permit = self.permits[pick % len(self.permits)]
        before = permit.released
        assert permit.release(self.now) is not before
        assert not permit.release(self.now)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK)
    def claim(self, pick: int) -> None:
        permit = self.permits[pick % len(self.permits)]
        assert self.engine.claim(permit.lease, self.now) in (permit, None)
        assert self.engine.claim(permit.lease, self.now) is None

    @precondition(lambda self: self.waiters)
    @rule(pick=PICK)
    def give_up(self, pick: int) -> None:
        waiter = self.waiters[pick % len(self.waiters)]
        self.forget(waiter.outcome)
        self.engine.cancel(waiter, self.now)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK)
    def withdraw(self, pick: int) -> None:
        permit = self.permits[pick % len(self.permits)]
        self.forget(permit)
        self.engine.withdraw(permit, self.now)

    def hear(self, outcome: Permit | Refusal) -> None:
        if isinstance(outcome, Permit):
            self.permits.append(outcome)

    def forget(self, outcome: Permit | Refusal | None) -> None:
        """About to be withdrawn, if it still can be."""
        if isinstance(outcome, Permit) and not outcome.released and outcome.settled is None:
            self.oracle.withdrawing = outcome
            self.permits.remove(outcome)

    # -- time and limits -----------------------------------------------------------------------------------------

    @rule(by=st.sampled_from(JUMPS) | st.integers(0, MINUTE))
    def pass_time(self, by: int) -> None:
        self.now += by
        self.oracle.now = self.now
        self.engine.advance(self.now)

    @precondition(lambda self: self.waiting())
    @rule(early=st.sampled_from((0, 0, 0, 1)))
    def pass_time_until_somebody_is_due(self, early: int) -> None:
        due = self.engine.next_wake
        assert due > self.now
        self.pass_time(due - early - self.now)

    @rule(by=st.sampled_from(JUMPS))
    def step_the_clock_back(self, by: int) -> None:
        before = self.engine.snapshot(self.now)
        assert self.engine.snapshot(self.now - by) == before

    @rule(book=BOOKS)
    def swap(self, book: RuleBook) -> None:
        self.oracle.swapped()
        self.engine.swap(book, self.now)

    @rule(away=st.sampled_from(JUMPS) | st.integers(0, MINUTE))
    def restart(self, away: int) -> None:
        """The gate ends, calls in flight and in the queue or not, and starts again with what it counted."""
        kept = self.engine.visit(self.engine.keys(), self.now, keep)
        self.oracle.restart()
        self.engine = self.oracle.engine
        self.permits.clear()
        self.waiters.clear()
        self.now += away
        self.oracle.now = self.now
        for bucket in kept:
            put_back(self.engine, bucket, self.now)

    # -- what always holds ---------------------------------------------------------------------------------------

    def waiting(self) -> list[Waiter]:
        return [waiter for waiter in self.waiters if waiter.pending]

    @invariant()
    def everything_adds_up(self) -> None:
        self.engine.advance(self.now)
        self.oracle.check_state()
        self.oracle.check_waiters(self.waiters)
        assert_balanced(self.engine, self.permits, self.now)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestLife = Life.TestCase
