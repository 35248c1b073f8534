"""What other gates tell of a provider's own limits, in one that hears it."""

from __future__ import annotations

import pytest

from sluice.core.buckets import Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, MINUTE, SECOND, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.upstream import LONGEST_OVERLOAD, LONGEST_PAUSE, MOST_ELSEWHERE
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

KEY = BucketKey("openai", Scope.PROVIDER, "key-1", "gpt")
MANY = Limits(requests_per_minute=1000)


def paused(seconds: int | None, kind: RefusedAs = RefusedAs.RATE_LIMITED) -> Feedback:
    return Feedback((), kind, None if seconds is None else seconds * SECOND)


def left(remaining: int, limit: int | None = 100, reset: int = MINUTE, name: str = "left") -> Feedback:
    return Feedback((Quota(name, Amount.REQUESTS, remaining, limit, reset),))


class Gate:
    """An engine whose calls come from one account."""

    def __init__(self, limits: Limits = MANY) -> None:
        self.engine = Engine(RuleBook((Rule("openai", Scope.USER, limits),)))

    def ask(self, now: int, requests: int = 1, key: BucketKey = KEY) -> Permit | Refusal | Waiter:
        return self.engine.acquire(
            Call(self.engine.rules.match("openai", {}), Demand(1, requests, 0), upstream=key), now
        )

    def admits(self, now: int, requests: int = 1, key: BucketKey = KEY) -> bool:
        outcome = self.ask(now, requests, key)
        if isinstance(outcome, Permit):
            self.engine.withdraw(outcome, now)
        return isinstance(outcome, Permit)

    def told(self, feedback: Feedback, now: int = 0) -> None:
        self.engine.hear_elsewhere(KEY, feedback, now)

    def answered(self, feedback: Feedback, now: int, admitted_at: int | None = None) -> None:
        permit = self.ask(now if admitted_at is None else admitted_at)
        assert isinstance(permit, Permit)
        self.engine.hear(permit, feedback, now)


# -- pauses --------------------------------------------------------------------------------------------------------


def test_a_pause_that_was_told_elsewhere_holds_here_as_long() -> None:
    gate = Gate()
    gate.told(paused(7))

    assert gate.ask(SECOND) == Refusal(Reason.PROVIDER_LIMIT, KEY, Amount.REQUESTS, 0, 0, 1, 6 * SECOND)
    assert not gate.admits(7 * SECOND - 1)
    assert gate.admits(7 * SECOND)


@pytest.mark.parametrize(
    ("kind", "longest"), [(RefusedAs.RATE_LIMITED, LONGEST_PAUSE), (RefusedAs.OVERLOADED, LONGEST_OVERLOAD)]
)
def test_a_pause_is_bounded_whatever_another_gate_says(kind: RefusedAs, longest: int) -> None:
    gate = Gate()
    gate.told(paused(86_400, kind))

    assert not gate.admits(longest - 1)
    assert gate.admits(longest)


def test_a_shorter_pause_ends_no_longer_one() -> None:
    gate = Gate()
    gate.answered(paused(60), 0)
    gate.told(paused(1))
    gate.told(left(99))

    assert not gate.admits(MINUTE - 1)


def test_a_refusal_that_paused_nothing_elsewhere_pauses_nothing_here() -> None:
    gate = Gate()
    for kind in RefusedAs:
        gate.told(paused(None, kind))

    assert gate.admits(1)


def test_a_spend_cap_holds_up_every_model_of_the_account_and_no_other_account() -> None:
    gate = Gate()
    gate.told(paused(300, RefusedAs.SPEND_CAP))

    assert not gate.admits(1)
    assert not gate.admits(1, key=KEY._replace(models="another"))
    assert gate.admits(1, key=KEY._replace(subject="key-2"))


def test_what_another_gate_was_refused_says_nothing_of_how_often_this_one_was() -> None:
    gate = Gate()
    gate.answered(paused(None), 0)  # a second
    gate.told(left(99), SECOND)
    gate.told(paused(1), SECOND)
    gate.answered(paused(None), 2 * SECOND)  # so two seconds now

    assert not gate.admits(4 * SECOND - 1)
    assert gate.admits(4 * SECOND)


def test_who_waits_hears_of_a_pause_at_once() -> None:
    gate = Gate(Limits(max_concurrent=1, max_wait=5 * SECOND))
    first = gate.ask(0)
    waiting = gate.ask(0)
    assert isinstance(first, Permit)
    assert isinstance(waiting, Waiter)

    gate.told(paused(60), SECOND)

    assert isinstance(waiting.outcome, Refusal)
    assert waiting.outcome.reason is Reason.PROVIDER_LIMIT


def test_who_waits_gets_on_when_the_pause_ends() -> None:
    gate = Gate(Limits(requests_per_minute=1000, max_wait=20 * SECOND))
    gate.told(paused(7))
    waiting = gate.ask(SECOND)
    assert isinstance(waiting, Waiter)
    gate.engine.advance(7 * SECOND)

    assert isinstance(waiting.outcome, Permit)


# -- quotas --------------------------------------------------------------------------------------------------------


def test_a_quota_that_was_told_elsewhere_lets_no_more_through_than_is_left() -> None:
    gate = Gate()
    gate.told(left(3, None))

    assert [isinstance(gate.ask(1), Permit) for _ in range(5)] == [True] * 3 + [False] * 2
    assert gate.admits(MINUTE)


def test_a_quota_of_which_more_is_left_elsewhere_widens_nothing() -> None:
    gate = Gate()
    gate.answered(left(2), 0)
    for remaining in (40, 60, 99):
        gate.told(left(remaining))

    assert not gate.admits(1, requests=3)
    assert gate.admits(1, requests=2)


def test_of_what_other_gates_tell_the_narrowest_holds() -> None:
    gate = Gate()
    for remaining in (20, 5, 40):
        gate.told(left(remaining, None))

    assert not gate.admits(1, requests=6)
    assert gate.admits(1, requests=5)


def test_the_answer_to_a_later_call_of_its_own_is_believed_again() -> None:
    gate = Gate()
    gate.told(left(1, None), 10)
    gate.answered(left(30, None), 12, admitted_at=11)

    assert gate.admits(13, requests=30)
    assert not gate.admits(13, requests=31)


def test_the_answer_to_an_earlier_call_of_its_own_is_not() -> None:
    gate = Gate()
    earlier = gate.ask(9)
    assert isinstance(earlier, Permit)
    gate.told(left(1, None), 10)
    gate.engine.hear(earlier, left(30, None), 12)

    assert gate.admits(13, requests=1)
    assert not gate.admits(13, requests=2)


def test_it_is_seen_of_a_quota_what_is_left_by_the_narrowest_word() -> None:
    gate = Gate()
    gate.answered(left(40, None), 0)
    gate.told(left(7, None), 1)
    gate.told(left(3, None, name="another"), 1)

    (state,) = gate.engine.upstreams(2)
    assert [(quota.name, quota.remaining) for quota in state.quotas] == [("left", 7), ("another", 3)]


def test_a_call_that_never_went_out_gives_back_what_it_took() -> None:
    gate = Gate()
    gate.told(left(1, None))

    assert [gate.admits(1) for _ in range(3)] == [True] * 3


def test_only_so_many_quotas_are_kept_and_those_that_are_over_make_room() -> None:
    gate = Gate()
    for number in range(3 * MOST_ELSEWHERE):
        gate.told(left(10, name=f"quota-{number}"))
    (full,) = gate.engine.upstreams(0)
    gate.told(left(1, None, name="new"), 2 * MINUTE)

    assert len(full.quotas) == MOST_ELSEWHERE
    assert [quota.name for quota in gate.engine.upstreams(2 * MINUTE)[0].quotas] == ["new"]


def test_what_says_nothing_that_matters_makes_no_bucket() -> None:
    gate = Gate()
    for feedback in (Feedback(), left(50), left(100), left(1, reset=0)):
        gate.told(feedback)

    assert gate.engine.upstreams(0) == ()


def test_what_was_heard_elsewhere_is_forgotten_when_it_holds_nobody_up() -> None:
    gate = Gate()
    gate.told(left(1))
    gate.told(paused(30))
    for _ in range(2):
        gate.engine.advance(DAY)

    assert gate.engine.upstreams(DAY) == ()
