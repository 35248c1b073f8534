"""The provider's own word against a log of what it said: it only ever narrows, and nobody is refused by it for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from helpers.ledger import everything
from sluice.core.buckets import Demand
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MINUTE, SECOND, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.upstream import LONGEST_PAUSE
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

PROVIDER = "openai"
KEY = BucketKey(PROVIDER, Scope.PROVIDER, "key", "gpt")
RESET = 30 * SECOND
QUOTAS = st.builds(
    Quota,
    st.sampled_from(("a", "b")),
    st.sampled_from(Amount),
    st.integers(0, 20),
    st.none() | st.integers(20, 60),
    st.sampled_from((0, 1, SECOND, RESET)),
)
SAYINGS = st.builds(
    Feedback,
    st.lists(QUOTAS, max_size=2, unique_by=lambda quota: quota.name).map(tuple),
    st.none() | st.none() | st.sampled_from(RefusedAs),
    st.none() | st.sampled_from((0, 1, SECOND, MINUTE, 10**20)),
)
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.integers(1, 30),
    tokens_per_minute=st.integers(10, 300),
    max_wait=st.sampled_from((0, SECOND, MINUTE)),
)
JUMPS = st.sampled_from((0, 0, 1, SECOND, RESET - 1, RESET, MINUTE, LONGEST_PAUSE))
PICK = st.integers(0, 10**6)


class Account(RuleBasedStateMachine):
    """Calls of one account; the provider answers them in any order and says anything whatever."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.permits: list[Permit] = []
        self.waiters: list[Waiter] = []

    @initialize(limits=LIMITS)
    def start(self, limits: Limits) -> None:
        rules = RuleBook((Rule(PROVIDER, Scope.USER, limits),))
        self.engine, self.deaf = Engine(rules), Engine(rules)

    @rule(demand=st.builds(Demand, st.just(1), st.just(1), *[st.integers(0, 40)] * 3))
    def ask(self, demand: Demand) -> None:
        call = Call(self.engine.rules.match(PROVIDER, {}), demand, upstream=KEY)
        before = everything(self.engine, self.now)
        outcome = self.engine.acquire(call, self.now)
        if isinstance(outcome, Permit):
            self.permits.append(outcome)
            self.would_be_admitted(outcome)
        elif isinstance(outcome, Waiter):
            outcome.notify = self.hear_outcome
            self.waiters.append(outcome)
        else:
            assert everything(self.engine, self.now) == before
            assert outcome.retry_after is None or 0 < outcome.retry_after <= LONGEST_PAUSE + MINUTE

    def hear_outcome(self, outcome: object) -> None:
        if isinstance(outcome, Permit):
            self.permits.append(outcome)
            self.would_be_admitted(outcome)

    def would_be_admitted(self, permit: Permit) -> None:
        """An engine that hears no word of the provider, and was asked for the same calls, admits this one too."""
        outcome = self.deaf.acquire(permit.call._replace(upstream=None, patience=0), permit.admitted_at)
        assert isinstance(outcome, Permit)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK, feedback=SAYINGS)
    def answer(self, pick: int, feedback: Feedback) -> None:
        permit = self.permits[pick % len(self.permits)]
        self.engine.hear(permit, feedback, self.now)

    @rule(feedback=SAYINGS)
    def another_gate_tells(self, feedback: Feedback) -> None:
        self.engine.hear_elsewhere(KEY, feedback, self.now)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        self.permits[pick % len(self.permits)].release(self.now)

    @rule(jump=JUMPS)
    def pass_time(self, jump: int) -> None:
        self.now += jump
        self.engine.advance(self.now)
        self.deaf.advance(self.now)
        for state in self.engine.upstreams(self.now):
            assert 0 <= state.paused <= LONGEST_PAUSE
            assert all(quota.remaining >= 0 for quota in state.quotas)

    @rule()
    def in_the_end_everybody_gets_on(self) -> None:
        """Nobody waits longer than the longest wait; and after the longest pause besides, the word holds nobody up."""
        self.pass_time(MINUTE)
        assert not [waiter for waiter in self.waiters if waiter.pending]
        # Some may have been admitted only now, and count from now: their minute is over when the pause is.
        self.pass_time(LONGEST_PAUSE)
        self.ask_small()

    def ask_small(self) -> None:
        call = Call(self.engine.rules.match(PROVIDER, {}), Demand(1, 1, 1, 1, 1), upstream=KEY)
        outcome = self.engine.acquire(call, self.now)
        assert isinstance(outcome, Permit)
        self.permits.append(outcome)
        self.would_be_admitted(outcome)


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_in_the_end_everybody_gets_on_also_after_one_who_was_admitted_late() -> None:
    """It was due a second after it asked; the engine is told of time only later, and a minute has room for one call."""
    account = Account()
    account.start(Limits(requests_per_minute=1, tokens_per_minute=10, max_wait=SECOND))
    account.in_the_end_everybody_gets_on()
    account.pass_time(MINUTE)
    account.ask(Demand(1, 1, 0, 0, 0))
    account.in_the_end_everybody_gets_on()
    (late,) = account.waiters
    assert isinstance(late.outcome, Permit)
    assert late.outcome.waited == MINUTE


@given(
    remaining=st.integers(0, 30),
    limit=st.none() | st.integers(61, 200),
    asked=st.lists(st.tuples(st.integers(0, RESET - 1), st.integers(1, 40)), max_size=30),
)
def test_until_the_reset_no_more_is_admitted_than_is_left_and_comes_back(
    remaining: int, limit: int | None, asked: list[tuple[int, int]]
) -> None:
    engine = Engine(RuleBook((Rule(PROVIDER, Scope.USER, Limits(requests_per_minute=1000)),)))

    def ask(tokens: int, now: int) -> object:
        return engine.acquire(Call(engine.rules.match(PROVIDER, {}), Demand(1, 1, tokens), upstream=KEY), now)

    first = ask(1, 0)
    assert isinstance(first, Permit)
    engine.hear(first, Feedback((Quota("a", Amount.TOKENS, remaining, limit, RESET),)), 0)
    admitted = 0
    for now, tokens in sorted(asked):
        there = remaining + (0 if limit is None else (limit - remaining) * now // RESET)
        fits = admitted + tokens <= there
        assert isinstance(ask(tokens, now), Permit) is fits
        admitted += tokens if fits else 0
