"""Other limits at any moment: counts stay, and whoever waits feels the change at once."""

from __future__ import annotations

import pytest

from helpers.ledger import Gate, admitted, assert_balanced, everything, org, refused, user
from sluice.core.buckets import Charge
from sluice.core.decisions import Reason
from sluice.core.engine import EngineSettings
from sluice.core.limits import HOUR, MINUTE, SECOND, Cap, Limits, Mode
from sluice.core.permits import Settled

WAIT = 2 * MINUTE


# -- what is counted ---------------------------------------------------------------------------------------------


def test_counts_survive_a_changed_cap() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=3, tokens_per_hour=100, max_concurrent=2)))
    gate.admit(0, tokens=60)
    gate.swap(1, user(limits=Limits(requests_per_minute=2, tokens_per_hour=200, max_concurrent=5)))
    assert (gate.used(1, Cap.REQUESTS_PER_MINUTE), gate.used(1, Cap.TOKENS_PER_HOUR), gate.in_flight(1)) == (1, 60, 1)
    gate.admit(1, tokens=140)
    assert gate.refuse(1, tokens=0).limit == 2


def test_new_limits_are_seen_before_the_next_call() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=3)))
    permit = gate.admit(0)
    gate.swap(1, user(limits=Limits(requests_per_minute=5, max_concurrent=7)))
    state = gate.engine.current_state(permit.keys[0], 1)
    assert state is not None
    assert (state.windows[Cap.REQUESTS_PER_MINUTE].limit, state.max_concurrent) == (5, 7)
    gate.swap(2, user(limits=Limits(requests_per_minute=6, max_concurrent=8)))
    state = gate.engine.snapshot(2).buckets[0]
    assert (state.windows[Cap.REQUESTS_PER_MINUTE].limit, state.max_concurrent) == (6, 8)


def test_looking_does_not_lift_the_limits_of_the_shared_bucket() -> None:
    gate = Gate(user("a*", limits=Limits(requests_per_minute=1)), settings=EngineSettings(max_keys=0))
    gate.admit(0)
    state = gate.engine.snapshot(0).buckets[0]
    assert state.windows[Cap.REQUESTS_PER_MINUTE].limit == 1


def test_tokens_of_a_period_are_counted_before_they_are_capped_if_its_requests_are() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=9)))
    gate.admit(0, tokens=80)
    gate.swap(1, user(limits=Limits(tokens_per_minute=100)))
    assert gate.refuse(1, tokens=21).used == 80


def test_a_newly_capped_period_starts_empty() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=9)))
    gate.admit(0)
    gate.swap(1, user(limits=Limits(requests_per_minute=9, requests_per_day=1)))
    gate.admit(1)
    assert gate.refuse(1).cap is Cap.REQUESTS_PER_DAY


@pytest.mark.parametrize("meanwhile", [(), (user(limits=Limits(max_concurrent=5)),), (user("bob", limits=Limits()),)])
@pytest.mark.parametrize("looked_at", [False, True])
def test_a_cap_that_goes_and_comes_back_finds_its_counts(meanwhile: tuple[()], looked_at: bool) -> None:
    capped = user(limits=Limits(requests_per_hour=2, tokens_per_day=100))
    gate = Gate(capped)
    gate.admit(0, tokens=70)
    gate.swap(1, *meanwhile)
    if looked_at:
        gate.engine.snapshot(1)
    gate.swap(2, capped)
    assert gate.refuse(2, tokens=31).used == 70
    gate.admit(2, tokens=30)
    assert gate.refuse(2, tokens=0).cap is Cap.REQUESTS_PER_HOUR


@pytest.mark.parametrize("actual", [0, 40, 200])
def test_a_cap_that_was_added_after_the_admission_knows_nothing_of_that_call(actual: int) -> None:
    minutes = Limits(tokens_per_minute=1000)
    gate = Gate(user(limits=minutes))
    old = gate.admit(0, tokens=100)
    gate.swap(0, user(limits=Limits(tokens_per_minute=1000, tokens_per_hour=1000)))
    gate.admit(0, tokens=30)
    old.commit_tokens(Charge(actual), 1)
    assert (gate.used(1, Cap.TOKENS_PER_MINUTE), gate.used(1, Cap.TOKENS_PER_HOUR)) == (30 + actual, 30)


def test_the_withdrawal_of_a_call_from_before_the_swap_takes_nothing_from_a_cap_added_by_it() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=9)))
    old = gate.admit(0, tokens=100)
    gate.swap(0, user(limits=Limits(requests_per_minute=9, requests_per_hour=9, tokens_per_hour=1000)))
    gate.admit(0, tokens=30)
    gate.engine.withdraw(old, 0)
    assert gate.used(0, Cap.REQUESTS_PER_MINUTE) == gate.used(0, Cap.REQUESTS_PER_HOUR) == 1
    assert gate.used(0, Cap.TOKENS_PER_HOUR) == 30


def test_permits_end_as_ever_after_their_limit_is_gone() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=2, tokens_per_minute=100)))
    permits = [gate.admit(0, tokens=50) for _ in range(2)]
    gate.swap(1)
    assert permits[0].commit_tokens(Charge(10), 2)
    assert permits[0].release(2)
    gate.engine.advance(EngineSettings().lease)
    assert permits[1].settled is Settled.ESTIMATED
    assert_balanced(gate.engine, permits, EngineSettings().lease)
    assert gate.engine.summary().in_flight == 0


def test_the_same_rules_again_change_nothing() -> None:
    rules = (
        user(limits=Limits(tokens_per_minute=10, max_concurrent=1, max_wait=WAIT)),
        org(limits=Limits(max_concurrent=3)),
    )
    gate = Gate(*rules)
    gate.admit(0)
    gate.queue(0)
    before = everything(gate.engine, 1)
    gate.swap(1, *rules)
    assert everything(gate.engine, 1) == before


def test_more_calls_than_a_lowered_cap_allows_run_on_and_nobody_joins_them() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=3)))
    permits = [gate.admit(0) for _ in range(3)]
    gate.swap(0, user(limits=Limits(max_concurrent=1)))
    for permit in permits:
        assert gate.refuse(1).limit == 1
        permit.release(1)
    gate.admit(1)
    gate.refuse(1)


# -- who waits ---------------------------------------------------------------------------------------------------


def test_a_raised_cap_admits_as_many_waiters_as_it_has_room_for_in_order() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=WAIT)))
    gate.admit(0)
    waiters = [gate.queue(0) for _ in range(4)]
    gate.swap(1, user(limits=Limits(max_concurrent=3, max_wait=WAIT)))
    assert [waiter.pending for waiter in waiters] == [False, False, True, True]
    assert admitted(waiters[0].outcome).admitted_at == 1


def test_a_raised_window_admits_those_who_waited_for_it_to_slide() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=WAIT)))
    gate.admit(0, tokens=90)
    waiters = [gate.queue(0, tokens=40) for _ in range(3)]
    gate.swap(1, user(limits=Limits(tokens_per_minute=170, max_wait=WAIT)))
    assert [waiter.pending for waiter in waiters] == [False, False, True]


def test_a_lowered_cap_refuses_the_waiter_that_can_never_fit_any_more_and_serves_those_behind_it() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=WAIT)))
    gate.admit(0, tokens=30)
    large, small = gate.queue(0, tokens=80), gate.queue(0, tokens=20)
    gate.swap(1, user(limits=Limits(tokens_per_minute=60, max_wait=WAIT)))
    assert refused(large.outcome).reason is Reason.OVERSIZED_REQUEST
    admitted(small.outcome)


def test_a_shorter_wait_counts_from_the_arrival() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=WAIT)))
    gate.admit(0)
    old, new = gate.queue(0), gate.queue(9 * SECOND)
    gate.swap(10 * SECOND, user(limits=Limits(max_concurrent=1, max_wait=5 * SECOND)))
    assert refused(old.outcome).reason is Reason.NO_FREE_SLOT
    assert new.deadline == gate.engine.next_wake == 14 * SECOND


def test_a_longer_wait_is_granted_to_those_who_wait_already() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=SECOND)))
    gate.engine.claim(gate.admit(0).lease, 0)
    waiter = gate.queue(0)
    gate.swap(1, user(limits=Limits(max_concurrent=1, max_wait=HOUR)))
    gate.engine.advance(MINUTE)
    assert waiter.pending
    assert waiter.deadline == HOUR


def test_a_removed_rule_frees_those_who_waited_for_it() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=WAIT)), org(limits=Limits(requests_per_minute=9)))
    gate.admit(0)
    waiters = [gate.queue(0) for _ in range(3)]
    gate.swap(1, org(limits=Limits(requests_per_minute=9)))
    permits = [admitted(waiter.outcome) for waiter in waiters]
    assert gate.in_flight(1) == 4
    assert all(permit.release(2) for permit in permits)
    assert gate.in_flight(2) == 1


def test_a_limit_that_turns_into_a_shadow_frees_those_who_waited_for_it_and_says_so() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=WAIT)))
    gate.admit(0)
    waiter = gate.queue(0)
    gate.swap(1, user(limits=Limits(max_concurrent=1, max_wait=WAIT, mode=Mode.SHADOW)))
    admitted(waiter.outcome)
    assert [event.reason for event in gate.journal.named("would_reject")] == ["NoFreeSlot"]


def test_a_shadow_that_turns_into_a_limit_counts_what_it_let_pass() -> None:
    limits = Limits(tokens_per_minute=100, max_wait=WAIT, mode=Mode.SHADOW)
    gate = Gate(user(limits=limits))
    gate.admit(0, tokens=90)
    gate.admit(1, tokens=90)
    gate.swap(2, user(limits=Limits(tokens_per_minute=100)))
    assert gate.refuse(2, tokens=1).used == 180


def test_a_limit_that_comes_into_force_while_calls_wait_elsewhere_holds_for_them_too() -> None:
    shadow = Limits(max_concurrent=1, max_wait=WAIT, mode=Mode.SHADOW)
    waits = Limits(max_concurrent=1, max_wait=WAIT)
    gate = Gate(user(limits=waits), org(limits=shadow))
    holder = gate.admit(0, user="alice")
    gate.admit(0, user="bob")
    waiter = gate.queue(0, user="alice")
    gate.swap(1, user(limits=waits), org(limits=waits))
    holder.release(2)
    assert waiter.pending  # the org has one in flight still


def test_newcomers_in_the_shared_bucket_meet_the_new_limits() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1)), settings=EngineSettings(max_keys=0))
    gate.admit(0)
    gate.refuse(0, user="bob")
    gate.swap(1, user(limits=Limits(requests_per_minute=2)))
    gate.admit(1, user="bob")
    gate.refuse(1, user="carol")


def test_waiters_of_the_shared_bucket_meet_the_new_limits() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=WAIT)), settings=EngineSettings(max_keys=0))
    gate.admit(0)
    waiters = [gate.queue(0, user="bob") for _ in range(3)]
    gate.swap(1, user(limits=Limits(max_concurrent=2, max_wait=WAIT)))
    assert [waiter.pending for waiter in waiters] == [False, True, True]
