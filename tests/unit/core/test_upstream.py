"""The provider's own word: what it holds up, for how long, and whom it does not concern."""

from __future__ import annotations

from sluice.core import upstream
from sluice.core.buckets import RECENT, Charge, Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

PROVIDER = "openai"
MANY = Limits(requests_per_minute=1000)
PATIENT = Limits(requests_per_minute=1000, max_wait=20 * SECOND)
KEY = BucketKey(PROVIDER, Scope.PROVIDER, "key-1", "gpt")
ONE = Demand(1, 1, 10, 6, 4)

REFUSED = Feedback(refused_as=RefusedAs.RATE_LIMITED)
OVERLOADED = Feedback(refused_as=RefusedAs.OVERLOADED)
NO_MONEY = Feedback(refused_as=RefusedAs.SPEND_CAP)
SERVED = Feedback()


def wait(seconds: int, refused_as: RefusedAs = RefusedAs.RATE_LIMITED) -> Feedback:
    return Feedback((), refused_as, seconds * SECOND)


def left(
    remaining: int, limit: int | None = 100, reset: int = MINUTE, of: Amount = Amount.REQUESTS, name: str = ""
) -> Feedback:
    return Feedback((Quota(name or f"left-{of}", of, remaining, limit, reset),))


class Gate:
    """An engine whose calls come from one account unless they say otherwise."""

    def __init__(self, *limits: Limits) -> None:
        scopes = (Scope.USER, Scope.ORG, Scope.PROJECT)
        rules = (Rule(PROVIDER, scope, each) for scope, each in zip(scopes, limits or (MANY,), strict=False))
        self.engine = Engine(RuleBook(tuple(rules)))

    def ask(
        self, now: int, demand: Demand = ONE, key: BucketKey | None = KEY, user: str = ""
    ) -> Permit | Refusal | Waiter:
        applied = self.engine.rules.match(PROVIDER, {Scope.USER: user})
        return self.engine.acquire(Call(applied, demand, upstream=key), now)

    def admit(self, now: int, demand: Demand = ONE, key: BucketKey | None = KEY) -> Permit:
        outcome = self.ask(now, demand, key)
        assert isinstance(outcome, Permit), outcome
        return outcome

    def refuse(self, now: int, demand: Demand = ONE, key: BucketKey | None = KEY) -> Refusal:
        outcome = self.ask(now, demand, key)
        assert isinstance(outcome, Refusal), outcome
        return outcome

    def queue(self, now: int, demand: Demand = ONE) -> Waiter:
        outcome = self.ask(now, demand)
        assert isinstance(outcome, Waiter), outcome
        return outcome

    def told(self, now: int, feedback: Feedback, *, admitted_at: int | None = None) -> None:
        """A call of which the provider says that in its answer."""
        self.engine.hear(self.admit(now if admitted_at is None else admitted_at), feedback, now)

    def paused_until(self, now: int) -> int:
        return max((now + state.paused for state in self.engine.upstreams(now)), default=now)


# -- pauses ------------------------------------------------------------------------------------------------------


def test_a_refusal_pauses_as_long_as_the_provider_says_and_no_nanosecond_longer() -> None:
    gate = Gate()
    gate.told(0, wait(7))
    refusal = gate.refuse(SECOND)
    assert refusal == Refusal(Reason.PROVIDER_LIMIT, KEY, Amount.REQUESTS, 0, 0, 1, 6 * SECOND)
    gate.refuse(7 * SECOND - 1)
    gate.admit(7 * SECOND)


def test_a_pause_is_bounded_whatever_the_provider_says() -> None:
    gate = Gate()
    gate.told(0, wait(86_400))
    assert gate.refuse(1).retry_after == upstream.LONGEST_PAUSE - 1


def test_who_is_refused_has_consumed_nothing() -> None:
    gate = Gate()
    gate.told(0, wait(7))
    before = gate.engine.current_state(BucketKey(PROVIDER, Scope.USER, ""), SECOND)
    gate.refuse(SECOND)
    assert gate.engine.current_state(BucketKey(PROVIDER, Scope.USER, ""), SECOND) == before
    assert gate.engine.summary().totals.rejected == 1
    (state,) = gate.engine.upstreams(SECOND)
    assert (state.rejected, state.paused, state.paused_for) == (1, 6 * SECOND, RefusedAs.RATE_LIMITED)


def test_a_call_waits_for_the_end_of_a_pause_as_long_as_its_limits_have_it() -> None:
    gate = Gate(PATIENT)
    gate.told(0, wait(7))
    first, second = gate.queue(SECOND), gate.queue(2 * SECOND)
    gate.engine.advance(7 * SECOND - 1)
    assert first.pending
    gate.engine.advance(7 * SECOND)
    assert isinstance(first.outcome, Permit)
    assert isinstance(second.outcome, Permit)


def test_it_is_the_most_patient_limit_that_says_how_long() -> None:
    gate = Gate(MANY, PATIENT)
    gate.told(0, wait(7))
    gate.queue(SECOND)


def test_a_pause_that_ends_too_late_refuses_at_once() -> None:
    gate = Gate(PATIENT)
    gate.told(0, wait(30))
    assert gate.refuse(0).retry_after == 30 * SECOND


def test_a_pause_stops_those_who_were_waiting_for_something_else() -> None:
    gate = Gate(Limits(max_concurrent=1, max_wait=20 * SECOND))
    running = gate.admit(0)
    waiter = gate.queue(1)
    gate.engine.hear(running, wait(10), 2)
    running.release(3)
    assert waiter.pending
    gate.engine.advance(2 + 10 * SECOND)
    assert isinstance(waiter.outcome, Permit)


def test_a_pause_longer_than_they_may_wait_refuses_those_who_wait() -> None:
    gate = Gate(Limits(max_concurrent=1, max_wait=20 * SECOND))
    running = gate.admit(0)
    waiter = gate.queue(1)
    gate.engine.hear(running, wait(60), 2)
    assert isinstance(waiter.outcome, Refusal)
    assert (waiter.outcome.reason, waiter.outcome.retry_after) == (Reason.PROVIDER_LIMIT, 60 * SECOND)


def test_without_a_time_the_pause_doubles_while_refusals_go_on() -> None:
    gate = Gate()
    now, pauses = 0, []
    for _ in range(8):
        gate.told(now, REFUSED)
        pauses.append((gate.paused_until(now) - now) // SECOND)
        now = gate.paused_until(now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    gate.told(now, SERVED)
    gate.told(now + 1, REFUSED)
    assert gate.paused_until(now + 1) == now + 1 + SECOND


def test_the_refusals_of_one_burst_are_one() -> None:
    gate = Gate()
    burst = [gate.admit(0) for _ in range(20)]
    for at, permit in enumerate(burst):
        gate.engine.hear(permit, REFUSED, at)
    assert gate.paused_until(20) == SECOND


def test_a_later_time_extends_a_pause_and_an_earlier_one_does_not_end_it() -> None:
    gate = Gate()
    burst = [gate.admit(0) for _ in range(3)]
    for permit, seconds in zip(burst, (5, 9, 2), strict=True):
        gate.engine.hear(permit, wait(seconds), 1)
    assert gate.paused_until(1) == 1 + 9 * SECOND


def test_an_overload_here_and_there_holds_nobody_up() -> None:
    gate = Gate()
    for at in range(3 * upstream.OVERLOADS):
        gate.told(at, OVERLOADED if at % 3 else SERVED)
    gate.admit(100)


def test_overloads_in_a_row_pause_shortly() -> None:
    gate = Gate()
    for at in range(upstream.OVERLOADS):
        gate.told(at, OVERLOADED)
    refusal = gate.refuse(upstream.OVERLOADS)
    assert (refusal.reason, refusal.retry_after) == (Reason.PROVIDER_OVERLOADED, SECOND - 1)


def test_an_overload_that_says_how_long_is_heeded_up_to_a_bound() -> None:
    gate = Gate()
    gate.told(0, wait(3, RefusedAs.OVERLOADED))
    assert gate.refuse(0).retry_after == 3 * SECOND
    gate.told(3 * SECOND, wait(300, RefusedAs.OVERLOADED))
    assert gate.refuse(3 * SECOND).retry_after == upstream.LONGEST_OVERLOAD


def test_a_spend_cap_pauses_every_model_of_the_key_for_long_and_nobody_else() -> None:
    gate = Gate()
    gate.told(0, NO_MONEY)
    for model in ("gpt", "o1", ""):
        refusal = gate.refuse(SECOND, key=KEY._replace(models=model))
        assert (refusal.reason, refusal.key.models) == (Reason.PROVIDER_SPEND_CAP, "")
        assert refusal.retry_after == upstream.SPEND_PAUSE - SECOND
    gate.admit(SECOND, key=KEY._replace(subject="key-2"))
    gate.admit(upstream.SPEND_PAUSE)


# -- quotas ------------------------------------------------------------------------------------------------------


def test_what_remains_is_what_is_let_through() -> None:
    gate = Gate()
    gate.told(0, left(3, None, 10 * SECOND))
    for _ in range(3):
        gate.admit(1)
    refusal = gate.refuse(2)
    assert refusal == Refusal(Reason.PROVIDER_LIMIT, KEY, Amount.REQUESTS, 0, 0, 1, retry_after=10 * SECOND - 2)
    gate.refuse(10 * SECOND - 1)
    gate.admit(10 * SECOND)


def test_where_the_limit_is_told_it_comes_back_evenly() -> None:
    gate = Gate()
    gate.told(0, left(0, 60, MINUTE))
    assert gate.refuse(0).retry_after == SECOND
    gate.refuse(SECOND - 1)
    gate.admit(SECOND)
    assert gate.refuse(SECOND) == Refusal(Reason.PROVIDER_LIMIT, KEY, Amount.REQUESTS, 60, 60, 1, SECOND)
    gate.admit(2 * SECOND)


def test_every_amount_has_its_own_quota() -> None:
    for of, fits, too_much in (
        (Amount.TOKENS, Demand(1, 1, 20, 90, 90), Demand(1, 1, 21)),
        (Amount.INPUT_TOKENS, Demand(1, 1, 90, 20, 90), Demand(1, 1, 0, 21)),
        (Amount.OUTPUT_TOKENS, Demand(1, 1, 90, 90, 20), Demand(1, 1, 0, 0, 21)),
    ):
        gate = Gate()
        gate.told(0, left(20, 100, MINUTE, of))
        assert gate.refuse(0, too_much).cap is of
        gate.admit(0, fits)


def test_a_call_larger_than_the_whole_limit_passes_when_it_is_whole() -> None:
    gate = Gate()
    gate.told(0, left(20, 100, MINUTE, Amount.TOKENS))
    assert gate.refuse(0, Demand(1, 1, 5000)).retry_after == MINUTE
    gate.admit(MINUTE, Demand(1, 1, 5000))


def test_what_was_admitted_after_the_call_that_told_is_taken_off() -> None:
    gate = Gate()
    gate.told(0, left(10, None))
    first, _second = gate.admit(1), gate.admit(2)
    gate.engine.hear(first, left(5, None), 3)  # of the second the provider knew nothing
    (state,) = gate.engine.upstreams(3)
    assert state.quotas[0].remaining == 4


def test_a_newer_word_replaces_an_older_one_in_either_direction() -> None:
    gate = Gate()
    gate.told(0, left(1, None))
    gate.told(1, left(8, None))
    gate.admit(2)
    gate.told(3, left(0, None))
    gate.refuse(4)


def test_the_word_of_an_earlier_call_is_old() -> None:
    gate = Gate()
    gate.told(0, left(40))
    old, new = gate.admit(1), gate.admit(2)
    gate.engine.hear(new, left(0, None), 3)
    gate.engine.hear(old, left(40, None), 4)
    gate.refuse(5)
    assert [quota.remaining for quota in gate.engine.upstreams(5)[0].quotas] == [0]


def test_a_word_that_was_long_in_coming_is_not_kept() -> None:
    gate = Gate()
    permit = gate.admit(0)
    gate.engine.hear(permit, left(0, 60, 5 * SECOND), 6 * SECOND)
    assert gate.engine.upstreams(6 * SECOND) == ()


def test_a_call_that_never_went_out_takes_nothing() -> None:
    gate = Gate()
    gate.told(0, left(1, None))
    gate.engine.withdraw(gate.admit(1), 2)
    gate.admit(3)


def test_a_call_that_never_went_out_gives_nothing_back_of_a_later_word() -> None:
    gate = Gate()
    gate.told(0, left(5, None))
    withdrawn, later = gate.admit(1), gate.admit(2)
    gate.engine.hear(later, left(0, None), 3)
    gate.engine.withdraw(withdrawn, 4)
    gate.refuse(5)


def test_a_quota_with_plenty_left_is_not_kept() -> None:
    gate = Gate()
    gate.told(0, left(50))
    assert gate.engine.upstreams(0) == ()
    gate.told(0, left(49))
    assert len(gate.engine.upstreams(0)) == 1
    gate.told(1, left(50))
    assert gate.engine.upstreams(1)[0].quotas == ()


def test_a_refund_of_ours_makes_no_room_at_the_provider() -> None:
    gate = Gate()
    gate.told(0, left(20, None, MINUTE, Amount.TOKENS))
    permit = gate.admit(1, Demand(1, 1, 20))
    permit.commit_tokens(Charge(0), 2)
    gate.refuse(3, Demand(1, 1, 1))


# -- whom it concerns --------------------------------------------------------------------------------------------


def test_other_keys_and_other_models_go_on() -> None:
    gate = Gate()
    gate.told(0, wait(7))
    gate.refuse(1)
    gate.admit(1, key=KEY._replace(models="o1"))
    gate.admit(1, key=KEY._replace(subject="key-2"))
    gate.admit(1, key=KEY._replace(provider="azure"))
    gate.admit(1, key=None)


def test_calls_that_nothing_limits_are_not_held_up() -> None:
    gate = Gate()
    gate.told(0, wait(7))
    outcome = gate.engine.acquire(Call((), ONE, upstream=KEY), 1)
    assert isinstance(outcome, Permit)


def test_limits_in_shadow_mode_hold_nobody_up() -> None:
    gate = Gate(Limits(requests_per_minute=1000, mode=Mode.SHADOW))
    gate.told(0, wait(7))
    gate.admit(1)
    assert gate.paused_until(1) == 7 * SECOND


def test_our_own_limits_hold_besides() -> None:
    gate = Gate(Limits(requests_per_minute=1))
    gate.told(0, left(40))
    assert gate.refuse(1).reason is Reason.WOULD_EXCEED


def test_a_queue_is_bounded_there_too() -> None:
    gate = Gate(PATIENT)
    gate.told(0, wait(7))
    for _ in range(gate.engine.settings.max_queue):
        gate.queue(0)
    refusal = gate.refuse(0)
    assert (refusal.reason, refusal.key) == (Reason.QUEUE_FULL, KEY)


def test_other_limits_in_force_leave_a_pause_as_it_is() -> None:
    gate = Gate(PATIENT)
    gate.told(0, wait(7))
    waiter = gate.queue(1)
    gate.engine.swap(RuleBook((Rule(PROVIDER, Scope.USER, Limits(requests_per_minute=5, max_wait=MINUTE)),)), 2)
    assert waiter.pending
    assert gate.paused_until(2) == 7 * SECOND


# -- what is kept ------------------------------------------------------------------------------------------------


def test_what_was_heard_is_forgotten_after_a_while() -> None:
    gate = Gate()
    permit = gate.admit(0)
    gate.engine.hear(permit, wait(7), 0)
    permit.release(1)
    gate.engine.advance(RECENT - 1)
    assert len(gate.engine.upstreams(RECENT - 1)) == 1
    gate.engine.advance(RECENT)
    gate.engine.advance(RECENT)
    assert gate.engine.upstreams(RECENT) == ()


def test_past_the_bound_nothing_is_kept_of_a_newcomer() -> None:
    gate = Gate(Limits(requests_per_minute=10**6))
    for at in range(upstream.MOST):
        key = KEY._replace(models=f"m{at}")
        gate.engine.hear(gate.admit(0, key=key), wait(7), 0)
    gate.engine.hear(gate.admit(0), wait(7), 0)
    gate.admit(1)
    assert len(gate.engine.upstreams(1)) == upstream.MOST


def test_who_speaks_of_nothing_costs_nothing() -> None:
    gate = Gate()
    gate.told(0, SERVED)
    gate.told(0, left(99))
    assert gate.engine.upstreams(0) == ()


def test_in_a_burst_of_refusals_those_who_wait_are_not_looked_at_for_each() -> None:
    gate = Gate(Limits(max_concurrent=100, max_wait=20 * SECOND))
    burst = [gate.admit(0) for _ in range(100)]
    waiters = [gate.queue(1) for _ in range(50)]
    for at, permit in enumerate(burst, start=2):
        gate.engine.hear(permit, wait(7), at)
        permit.release(at)
    assert gate.paused_until(102) == 101 + 7 * SECOND
    assert all(waiter.pending for waiter in waiters)
    assert waiters[-1].wake < 10 + 7 * SECOND  # it has not heard of every refusal
    gate.engine.advance(101 + 7 * SECOND)
    assert all(isinstance(waiter.outcome, Permit) for waiter in waiters)


def test_a_word_that_nobody_renews_shuts_nobody_out_for_days() -> None:
    gate = Gate()
    gate.told(0, left(0, limit=None, reset=31 * DAY))
    assert gate.refuse(SECOND).retry_after == upstream.LONGEST_PAUSE - SECOND
    gate.told(upstream.LONGEST_PAUSE, left(0, limit=1000, reset=DAY))
    assert gate.refuse(upstream.LONGEST_PAUSE + SECOND).reason is Reason.PROVIDER_LIMIT


def test_a_long_quota_comes_back_by_its_own_length_until_the_provider_is_asked_again() -> None:
    gate = Gate()
    gate.told(0, left(0, limit=24, reset=24 * HOUR))
    gate.refuse(upstream.LONGEST_PAUSE - 1)
    gate.admit(upstream.LONGEST_PAUSE)
