"""What other gates tell of a provider narrows what this one's own word lets through, and never widens it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from sluice.core.buckets import Demand
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MAX_COUNT, MINUTE, SECOND, Limits
from sluice.core.permits import Call, Permit
from sluice.core.rules import Rule, RuleBook
from sluice.core.upstream import LONGEST_PAUSE
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

PROVIDER = "openai"
KEY = BucketKey(PROVIDER, Scope.PROVIDER, "key", "gpt")
RESET = 30 * SECOND
QUOTAS = st.builds(
    Quota,
    st.sampled_from(("a", "b")),
    st.just(Amount.REQUESTS),
    st.sampled_from((0, 1, 5, 20, MAX_COUNT)),
    st.sampled_from((None, None, 20, 60, MAX_COUNT)),
    st.sampled_from((RESET, RESET, 0, 1, SECOND, MAX_COUNT)),
)
SAID = st.lists(QUOTAS, min_size=1, max_size=2, unique_by=lambda quota: quota.name).map(tuple)
PAUSES = st.sampled_from((None, 1, SECOND, MINUTE, MAX_COUNT))
# A refusal that names no time pauses by how often this gate was refused, of which the others know nothing.
OWN = (
    st.builds(Feedback, SAID)
    | st.builds(Feedback, SAID)
    | st.builds(Feedback, SAID, st.sampled_from(RefusedAs), st.sampled_from((1, MINUTE)))
)
OTHERS = st.builds(Feedback, SAID, st.none() | st.sampled_from(RefusedAs), PAUSES)
JUMPS = st.sampled_from((0, 1, 1, 1, SECOND, RESET - 1, RESET, MINUTE, LONGEST_PAUSE))
PICK = st.integers(0, 10**6)


class Gates(RuleBasedStateMachine):
    """Two gates with the same calls and the same answers; one of them is told of other gates' answers besides."""

    def __init__(self) -> None:
        super().__init__()
        rules = RuleBook((Rule(PROVIDER, Scope.USER, Limits(requests_per_minute=10_000)),))
        self.now = 0
        self.told, self.alone = Engine(rules), Engine(rules)
        self.permits: list[tuple[Permit, Permit]] = []

    @rule(demand=st.builds(Demand, st.just(1), st.sampled_from((1, 1, 2, 10)), st.just(0)))
    def ask(self, demand: Demand) -> None:
        call = Call(self.told.rules.match(PROVIDER, {}), demand, upstream=KEY)
        told, alone = self.told.acquire(call, self.now), self.alone.acquire(call, self.now)
        if isinstance(told, Permit):
            assert isinstance(alone, Permit)
            self.permits.append((told, alone))
        elif isinstance(alone, Permit):
            self.alone.withdraw(alone, self.now)

    @precondition(lambda self: self.permits)
    @rule(pick=PICK, feedback=OWN)
    def answer(self, pick: int, feedback: Feedback) -> None:
        told, alone = self.permits[-1 - pick % min(2, len(self.permits))]
        self.told.hear(told, feedback, self.now)
        self.alone.hear(alone, feedback, self.now)

    @rule(feedback=OTHERS)
    def another_gate_tells(self, feedback: Feedback) -> None:
        self.told.hear_elsewhere(KEY, feedback, self.now)
        for state in self.told.upstreams(self.now):
            assert 0 <= state.paused <= LONGEST_PAUSE

    @rule(jump=JUMPS)
    def pass_time(self, jump: int) -> None:
        self.now += jump
        self.told.advance(self.now)
        self.alone.advance(self.now)


Gates.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestGates = Gates.TestCase
