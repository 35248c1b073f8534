"""The queue: who waits, for how long, who comes first, and that whoever leaves it leaves nothing behind."""

from __future__ import annotations

import pytest

from helpers.ledger import PROVIDER, Gate, admitted, assert_balanced, everything, org, project, refused, user, waiting
from sluice.core.buckets import Charge
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import EngineSettings
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import HOUR, MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Permit, Waiter
from sluice.core.windows import NEVER

ALICE = BucketKey(PROVIDER, Scope.USER, "alice")
ACME = BucketKey(PROVIDER, Scope.ORG, "acme")


def one_at_a_time(max_wait: int = 10 * SECOND) -> Limits:
    return Limits(max_concurrent=1, max_wait=max_wait)


def hold(gate: Gate, now: int, tokens: int = 10, requests: int = 1, slots: int = 1, **subjects: str) -> Permit:
    """A permit without a deadline."""
    permit = gate.admit(now, tokens, requests, slots, (0, 0), **subjects)
    gate.engine.claim(permit.lease, now)
    return permit


# -- for a slot --------------------------------------------------------------------------------------------------


def test_a_release_admits_the_first_waiter_and_only_it() -> None:
    gate = Gate(user(limits=one_at_a_time()))
    permit = hold(gate, 0)
    first, second = gate.queue(1), gate.queue(2)
    permit.release(5)
    assert admitted(first.outcome).waited == 4
    assert first.outcome is not None
    assert second.pending
    assert gate.in_flight(5) == 1
    admitted(first.outcome).release(6)
    assert admitted(second.outcome).admitted_at == 6


def test_a_waiter_is_refused_at_the_end_of_its_wait_and_no_nanosecond_earlier() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=SECOND)))
    hold(gate, 0)
    waiter = gate.queue(5)
    assert waiter.deadline == gate.engine.next_wake == 5 + SECOND
    gate.engine.advance(5 + SECOND - 1)
    assert waiter.pending
    gate.engine.advance(5 + SECOND)
    assert waiter.outcome == Refusal(Reason.NO_FREE_SLOT, ALICE, Cap.MAX_CONCURRENT, 1, 1, 1, None)
    assert gate.engine.next_wake == NEVER


def test_a_slot_that_is_free_at_the_very_end_of_the_wait_is_taken() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=SECOND)))
    permit = hold(gate, 0)
    waiter = gate.queue(0)
    permit.release(SECOND)
    admitted(waiter.outcome)


def test_without_a_wait_nobody_queues() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=0)))
    hold(gate, 0)
    gate.refuse(0)
    assert gate.engine.snapshot(0).queued == 0


def test_an_expired_lease_admits_the_first_waiter() -> None:
    gate = Gate(user(limits=one_at_a_time()))
    gate.admit(0)
    waiter = gate.queue(0)
    gate.engine.advance(EngineSettings().lease)
    admitted(waiter.outcome)


def test_one_advance_serves_the_slots_of_all_leases_that_have_expired_in_order() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=3, max_wait=MINUTE)))
    for at in range(3):
        gate.admit(at)
    waiters = [gate.queue(5) for _ in range(4)]
    gate.engine.advance(EngineSettings().lease + 2)
    assert [waiter.pending for waiter in waiters] == [False, False, False, True]


def test_a_caller_may_have_less_patience_than_its_limits() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=MINUTE)))
    hold(gate, 0)
    call = gate.queue(0).call
    impatient = waiting(gate.engine.acquire(call._replace(patience=SECOND), 5))
    assert impatient.deadline == 5 + SECOND
    assert refused(gate.engine.acquire(call._replace(patience=0), 5)).reason is Reason.NO_FREE_SLOT
    gate.engine.advance(5 + SECOND)
    refused(impatient.outcome)


def test_a_caller_may_have_less_patience_than_a_window_needs_to_slide() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1, max_wait=2 * MINUTE)))
    gate.admit(0)
    waiter = gate.queue(0)
    gate.engine.cancel(waiter, 0)
    refusal = refused(gate.engine.acquire(waiter.call._replace(patience=MINUTE), 0))
    assert (refusal.reason, refusal.retry_after) == (Reason.WOULD_EXCEED, 61 * SECOND)


# -- for a window ------------------------------------------------------------------------------------------------


def test_a_waiter_is_admitted_when_the_window_has_slid_and_no_nanosecond_earlier() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1, max_wait=MINUTE)))
    gate.admit(30 * SECOND)
    waiter = gate.queue(40 * SECOND)
    assert gate.engine.next_wake == 91 * SECOND
    gate.engine.advance(91 * SECOND - 1)
    assert waiter.pending
    gate.engine.advance(91 * SECOND)
    assert admitted(waiter.outcome).waited == 51 * SECOND


def test_who_could_get_on_but_hears_of_it_late_is_admitted_and_counts_from_then() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1, max_wait=SECOND)))
    gate.admit(0)
    waiter = gate.queue(MINUTE)
    assert waiter.deadline == gate.engine.next_wake == 61 * SECOND
    gate.engine.advance(90 * SECOND)
    assert admitted(waiter.outcome).admitted_at == 90 * SECOND
    assert gate.refuse(90 * SECOND).retry_after == 61 * SECOND
    gate.admit(151 * SECOND)


def test_what_would_clear_after_the_wait_is_refused_at_once() -> None:
    limits = Limits(requests_per_minute=1, max_wait=20 * SECOND)
    gate = Gate(user(limits=limits))
    gate.admit(0)
    assert gate.refuse(41 * SECOND - 1).retry_after == 20 * SECOND + 1
    gate.queue(41 * SECOND)
    # The next one would follow a minute after the one that waits.
    assert gate.refuse(41 * SECOND).retry_after == MINUTE


def test_a_lower_commit_admits_those_who_wait_for_tokens() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=2 * MINUTE)))
    permit = gate.admit(0, tokens=100)
    first, second, third = gate.queue(0, tokens=30), gate.queue(0, tokens=30), gate.queue(0, tokens=30)
    permit.commit_tokens(Charge(40), SECOND)
    assert [first.pending, second.pending, third.pending] == [False, False, True]
    assert gate.used(SECOND, Cap.TOKENS_PER_MINUTE) == 100


def test_a_higher_commit_makes_a_waiter_wait_longer_or_refuses_it_in_time() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=30 * SECOND)))
    gate.admit(0, tokens=60)
    late = gate.admit(35 * SECOND, tokens=40)
    waiter = gate.queue(40 * SECOND, tokens=60)
    late.commit_tokens(Charge(41), 41 * SECOND)
    gate.engine.advance(61 * SECOND)
    assert refused(waiter.outcome) == Refusal(
        Reason.WOULD_EXCEED, ALICE, Cap.TOKENS_PER_MINUTE, 100, 41, 60, retry_after=35 * SECOND
    )


def test_a_large_call_is_not_starved_by_small_ones() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=2 * MINUTE)))
    gate.admit(0, tokens=50)
    large = gate.queue(SECOND, tokens=100)
    small = [gate.queue((2 + k) * SECOND, tokens=1) for k in range(20)]
    gate.engine.advance(61 * SECOND)
    admitted(large.outcome)
    assert all(waiter.pending for waiter in small)
    gate.engine.advance(122 * SECOND)
    assert not any(waiter.pending for waiter in small)


def test_five_calls_of_42_tokens_never_pass_a_hundred_a_minute() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=10 * MINUTE)))
    outcomes = [gate.ask(0, tokens=42) for _ in range(5)]
    for now in range(0, 3 * MINUTE, SECOND):
        gate.engine.advance(now)
        assert gate.used(now, Cap.TOKENS_PER_MINUTE) <= 100
    permits = [outcome.outcome if isinstance(outcome, Waiter) else outcome for outcome in outcomes]
    assert [admitted(permit).admitted_at for permit in permits] == [0, 0, 61 * SECOND, 61 * SECOND, 122 * SECOND]


# -- in several buckets ------------------------------------------------------------------------------------------


def test_the_wait_of_each_bucket_that_stands_in_the_way_bounds_the_waiting() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=10 * SECOND)), org(limits=one_at_a_time(max_wait=3 * SECOND)))
    permit = hold(gate, 0)
    both = gate.queue(0)
    user_only = gate.ask(0, org="other")
    gate.engine.advance(3 * SECOND)
    assert refused(both.outcome).key == ACME
    assert isinstance(user_only, Waiter)
    assert user_only.deadline == 10 * SECOND
    permit.release(9 * SECOND)
    admitted(user_only.outcome)


def test_a_bucket_with_room_does_not_shorten_the_wait() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=10 * SECOND)), org(limits=Limits(max_concurrent=9, max_wait=0)))
    hold(gate, 0)
    assert gate.queue(0).deadline == 10 * SECOND


def test_the_bucket_that_has_no_patience_refuses_though_the_other_would_wait() -> None:
    gate = Gate(user(limits=one_at_a_time(max_wait=10 * SECOND)), org(limits=one_at_a_time(max_wait=0)))
    hold(gate, 0)
    assert gate.refuse(0).key == ACME


def test_a_call_waits_for_one_bucket_after_the_other() -> None:
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(requests_per_minute=1, max_wait=2 * MINUTE)))
    permit = hold(gate, 0)
    waiter = gate.queue(55 * SECOND)
    permit.release(56 * SECOND)
    assert waiter.pending
    assert waiter.deadline == 55 * SECOND + 2 * MINUTE
    assert gate.engine.next_wake == 61 * SECOND
    gate.engine.advance(61 * SECOND)
    admitted(waiter.outcome)


def test_who_waits_for_its_own_bucket_does_not_hold_up_others_of_its_org() -> None:
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(max_concurrent=3, tokens_per_minute=1000)))
    hold(gate, 0, user="alice")
    waiter = gate.queue(0, user="alice")
    hold(gate, 0, user="bob")
    assert waiter.pending


def test_the_long_queue_of_one_user_keeps_back_one_call_in_the_org_and_not_its_whole_length() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=2, max_wait=MINUTE)), org(limits=Limits(max_concurrent=10)))
    for _ in range(2):
        hold(gate, 0, user="alice")
    alices = [gate.queue(0, user="alice") for _ in range(50)]
    for k in range(7):
        hold(gate, 0, user=f"user-{k}")
    assert gate.refuse(0, user="one too many").key == ACME
    assert all(waiter.pending for waiter in alices)


def test_who_needs_two_buckets_gets_both_though_each_is_always_wanted_by_others() -> None:
    gate = Gate(user(limits=one_at_a_time(MINUTE)), project(limits=one_at_a_time(MINUTE)))
    user_holder = hold(gate, 0, user="u", project="other")
    project_holder = hold(gate, 0, user="other", project="p")
    both = gate.queue(1, user="u", project="p")
    rival_of_user = gate.queue(2, user="u", project="x")
    rival_of_project = gate.queue(2, user="x", project="p")
    user_holder.release(3)
    assert both.pending
    assert rival_of_user.pending
    project_holder.release(4)
    admitted(both.outcome)
    assert rival_of_user.pending
    assert rival_of_project.pending


def test_room_that_a_waiter_no_longer_needs_to_be_kept_passes_on_at_once() -> None:
    limits = Limits(tokens_per_minute=100, max_wait=2 * MINUTE)
    gate = Gate(user(limits=one_at_a_time(2 * MINUTE)), org(limits=limits))
    first_holder = hold(gate, 0, user="first", tokens=10)
    second_holder = hold(gate, 0, user="second", tokens=10)
    full = hold(gate, 0, user="third", tokens=80)
    first = gate.queue(1, user="first", tokens=30)  # blocked by its own slot, and by the org's tokens
    second = gate.queue(2, user="second", tokens=40)  # likewise
    third = gate.queue(3, user="fourth", tokens=40)  # only by the org's tokens, behind both
    full.commit_tokens(Charge(0), 4)  # room for the first two: both wait for their own slots only now
    assert (first.pending, second.pending) == (True, True)
    admitted(third.outcome)
    second_holder.release(5)
    assert second.pending
    first_holder.release(6)
    admitted(first.outcome)


def test_when_a_window_slides_for_one_that_another_bucket_holds_up_those_behind_it_pass() -> None:
    limits = Limits(tokens_per_minute=100, max_wait=2 * MINUTE)
    gate = Gate(user(limits=one_at_a_time(2 * MINUTE)), org(limits=limits))
    hold(gate, 0, user="alice", tokens=50)
    hold(gate, 10 * SECOND, user="bob", tokens=40)
    gate.queue(20 * SECOND, user="bob", tokens=0)  # the first of all waits for its own slot
    gate.queue(20 * SECOND, user="alice", tokens=30)  # likewise, and for the org's tokens until 61 s
    last = gate.queue(20 * SECOND, user="carol", tokens=60)
    gate.engine.advance(61 * SECOND)
    assert admitted(last.outcome).admitted_at == 61 * SECOND


def test_those_blocked_in_different_buckets_are_served_in_order_of_arrival() -> None:
    """One release frees a slot of the user and one of the org: who came first gets both, wherever it was blocked."""
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(max_concurrent=4, max_wait=10 * SECOND)))
    alice, _, _ = (hold(gate, 0, user=name) for name in ("alice", "bob", "carol"))
    gate.queue(1, user="bob")  # the first of all: the org's last slot is kept back for it
    earlier = gate.queue(2, user="alice")
    later = gate.queue(3, user="dave")
    alice.release(4)
    admitted(earlier.outcome)
    assert later.pending


def test_a_call_without_a_slot_is_not_held_up_by_those_that_wait_for_one() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, tokens_per_minute=100, max_wait=2 * MINUTE)))
    permit = hold(gate, 0, tokens=90)
    for_slot = gate.queue(1, tokens=10)
    for_tokens = gate.queue(2, tokens=30, slots=0)
    permit.commit_tokens(Charge(50), 3)
    admitted(for_tokens.outcome)
    assert for_slot.pending


# -- no overtaking -----------------------------------------------------------------------------------------------


def test_a_newcomer_does_not_overtake_in_a_short_bucket_even_where_it_would_fit_alone() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=2 * MINUTE)))
    gate.admit(0, tokens=60)
    gate.queue(1, tokens=50)
    small = gate.queue(2, tokens=10)
    gate.engine.advance(3)
    assert small.pending


def test_a_newcomer_passes_where_there_is_room_for_it_and_all_who_wait() -> None:
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(tokens_per_minute=100)))
    hold(gate, 0, user="alice", tokens=30)
    gate.queue(0, user="alice", tokens=40)
    gate.refuse(0, user="bob", tokens=31)
    hold(gate, 0, user="bob", tokens=30)


def test_waiters_of_one_bucket_are_admitted_in_order_of_arrival() -> None:
    gate = Gate(user(limits=one_at_a_time(HOUR)))
    holder = hold(gate, 0)
    waiters = [gate.queue(k) for k in range(20)]
    for k, waiter in enumerate(waiters):
        holder.release(100 + k)
        assert [other.pending for other in waiters] == [False] * (k + 1) + [True] * (19 - k)
        holder = admitted(waiter.outcome)
        gate.engine.claim(holder.lease, 100 + k)


# -- leaving the queue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [one_at_a_time(), Limits(tokens_per_minute=10, max_wait=2 * MINUTE)])
def test_a_cancelled_waiter_has_consumed_nothing_and_holds_nothing(limits: Limits) -> None:
    gate = Gate(user(limits=limits), org(limits=Limits(tokens_per_hour=1000, max_concurrent=5)))
    gate.engine.claim(gate.admit(0).lease, 0)
    before = everything(gate.engine, 1)
    waiter = gate.queue(1)
    gate.engine.cancel(waiter, 1)
    assert everything(gate.engine, 1) == before
    assert not waiter.pending
    gate.engine.advance(MINUTE)
    assert waiter.outcome is None
    gate.engine.cancel(waiter, MINUTE)


def test_a_cancelled_waiter_makes_room_for_those_behind_it() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_wait=2 * MINUTE)))
    gate.admit(0, tokens=60)
    large, small = gate.queue(0, tokens=80), gate.queue(0, tokens=40)
    gate.engine.cancel(large, 1)
    admitted(small.outcome)


def test_a_waiter_that_was_admitted_but_not_told_yet_is_withdrawn_and_the_next_is_served() -> None:
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(tokens_per_hour=1000)))
    permit = hold(gate, 0)
    first, second = gate.queue(1), gate.queue(2)
    permit.release(3)
    gate.engine.cancel(first, 3)
    admitted(second.outcome)
    assert gate.in_flight(3) == 1
    assert gate.used(3, Cap.TOKENS_PER_HOUR, Scope.ORG, "acme") == 20
    assert_balanced(gate.engine, [permit, admitted(second.outcome)], 3)


def test_when_one_of_the_queue_gives_up_those_behind_it_wait_as_much_less() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=3, max_wait=2 * MINUTE)))
    for at in (0, 10 * SECOND, 20 * SECOND):
        gate.admit(at)
    first, second, third = gate.queue(30 * SECOND), gate.queue(30 * SECOND), gate.queue(30 * SECOND)
    gate.engine.cancel(first, 31 * SECOND)
    for waiter, due in ((second, 61 * SECOND), (third, 71 * SECOND)):
        assert gate.engine.next_wake == due
        gate.engine.advance(due - 1)
        assert waiter.pending
        gate.engine.advance(due)
        admitted(waiter.outcome)


def test_to_cancel_a_refused_waiter_changes_nothing() -> None:
    gate = Gate(user(limits=one_at_a_time(SECOND)))
    hold(gate, 0)
    waiter = gate.queue(0)
    gate.engine.advance(SECOND)
    before = everything(gate.engine, SECOND)
    gate.engine.cancel(waiter, SECOND)
    assert everything(gate.engine, SECOND) == before


def test_the_whole_queue_may_leave_in_any_order() -> None:
    gate = Gate(user(limits=one_at_a_time(HOUR)), org(limits=Limits(max_concurrent=50)))
    hold(gate, 0)
    before = everything(gate.engine, 1)
    waiters = [gate.queue(1) for _ in range(30)]
    for k in (*range(0, 30, 3), *range(29, 0, -3), *range(1, 30, 3)):
        gate.engine.cancel(waiters[k], 1)
    assert everything(gate.engine, 1) == before
    assert gate.engine.next_wake == NEVER


# -- bounds and signals ------------------------------------------------------------------------------------------


def test_past_the_cap_on_waiters_a_call_is_refused_and_room_in_the_queue_is_room_again() -> None:
    gate = Gate(user(limits=one_at_a_time()), settings=EngineSettings(max_waiters=2))
    hold(gate, 0)
    waiters = [gate.queue(0) for _ in range(2)]
    assert gate.refuse(0) == Refusal(Reason.QUEUE_FULL, ALICE, Cap.MAX_CONCURRENT, 1, 1, 1, None, ahead=2)
    hold(gate, 0, user="bob")
    gate.engine.cancel(waiters[0], 0)
    gate.queue(0)


def test_the_callers_of_one_bucket_leave_places_in_the_queue_to_others() -> None:
    gate = Gate(user(limits=one_at_a_time()), settings=EngineSettings(max_queue=2, max_waiters=4))
    for name in ("alice", "bob"):
        hold(gate, 0, user=name)
    for _ in range(2):
        gate.queue(0)
    assert gate.refuse(0).reason is Reason.QUEUE_FULL
    gate.queue(0, user="bob")


def test_the_outcome_is_signalled_once() -> None:
    gate = Gate(user(limits=one_at_a_time(SECOND)))
    permit = hold(gate, 0)
    heard: list[Permit | Refusal] = []
    first, second = gate.queue(0), gate.queue(0)
    first.notify = second.notify = heard.append
    permit.release(1)
    gate.engine.advance(2 * SECOND)
    assert heard == [first.outcome, second.outcome]
    assert [type(outcome) for outcome in heard] == [Permit, Refusal]


def test_a_snapshot_tells_how_many_wait_in_all_and_for_each_bucket() -> None:
    gate = Gate(user(limits=one_at_a_time()), org(limits=Limits(max_concurrent=9)))
    hold(gate, 0)
    for _ in range(3):
        gate.queue(0)
    snapshot = gate.engine.snapshot(0)
    assert snapshot.queued == 3
    assert {state.key: state.queued for state in snapshot.buckets} == {ALICE: 3, ACME: 0}


def test_the_list_of_wakes_stays_in_proportion_to_the_queue_and_keeps_every_deadline() -> None:
    gate = Gate(user(limits=one_at_a_time(HOUR)), org(limits=Limits(max_concurrent=9)))
    hold(gate, 0, user="alice")
    call = gate.queue(0, user="alice").call
    waiters = [waiting(gate.engine.acquire(call._replace(patience=k * SECOND), 0)) for k in range(9, 4, -1)]
    for k in range(1, 1000):
        hold(gate, k, user="bob").release(k)
        gate.engine.cancel(gate.queue(k, user="alice"), k)
    assert len(gate.engine._waiters._wakes) < 100  # noqa: SLF001
    for waiter in reversed(waiters):
        gate.engine.advance(waiter.deadline - 1)
        assert waiter.pending
        gate.engine.advance(waiter.deadline)
        refused(waiter.outcome)
