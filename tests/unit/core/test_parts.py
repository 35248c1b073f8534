"""Input tokens and output tokens, counted and capped apart, beside requests and tokens."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.ledger import PROVIDER, Gate, Parts, admitted, assert_balanced, everything, org, project, user
from sluice.core.buckets import Charge
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import EngineSettings
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import (
    CAPS_BY_LENGTH,
    DAY,
    HOUR,
    INPUT_TOKEN_CAPS,
    MINUTE,
    OUTPUT_TOKEN_CAPS,
    SECOND,
    Cap,
    Limits,
    Mode,
)
from sluice.core.permits import Settled
from sluice.core.windows import MAX_AMOUNT, SLOTS

ALICE = BucketKey(PROVIDER, Scope.USER, "alice")
EVERY: Any = {cap.attribute: 1000 for caps in CAPS_BY_LENGTH for cap in caps.values()}
EVERY_CAP = Limits(**EVERY)
LENGTHS = {caps[length]: length for caps in CAPS_BY_LENGTH for length in caps}
KINDS = pytest.mark.parametrize("cap", [*INPUT_TOKEN_CAPS.values(), *OUTPUT_TOKEN_CAPS.values()])
WAIT = 2 * MINUTE


def capped(cap: Cap, count: int, max_wait: int = 0) -> Limits:
    only: Any = {cap.attribute: count}
    return Limits(**only, max_wait=max_wait)


def parts(cap: Cap, count: int, other: int = 0) -> Parts:
    """So much of what the cap counts, and so much of the other part."""
    return (count, other) if cap in INPUT_TOKEN_CAPS.values() else (other, count)


def used(gate: Gate, now: int, scope: Scope = Scope.USER, subject: str = "alice") -> list[tuple[int, ...]]:
    """Of each amount, what the windows count from the shortest to the longest."""
    return [tuple(gate.used(now, cap, scope, subject) for cap in caps.values()) for caps in CAPS_BY_LENGTH]


# -- admission ---------------------------------------------------------------------------------------------------


@KINDS
def test_a_part_drains_and_refills_whatever_the_other_part_and_the_tokens_are(cap: Cap) -> None:
    gate = Gate(user(limits=capped(cap, 100)))
    gate.admit(0, tokens=10**9, parts=parts(cap, 60, 10**9))
    gate.admit(0, tokens=10**9, parts=parts(cap, 40, 10**9))
    leaves = LENGTHS[cap] + LENGTHS[cap] // SLOTS
    refusal = gate.refuse(1, tokens=10**9, parts=parts(cap, 1, 10**9))
    assert refusal == Refusal(Reason.WOULD_EXCEED, ALICE, cap, 100, 100, 1, leaves - 1)
    gate.refuse(leaves - 1, parts=parts(cap, 1))
    gate.admit(leaves, parts=parts(cap, 100))
    assert gate.used(leaves, cap) == 100


@KINDS
def test_more_of_a_part_than_its_cap_allows_can_never_be_admitted(cap: Cap) -> None:
    gate = Gate(user(limits=capped(cap, 100, max_wait=HOUR)))
    gate.admit(0, parts=parts(cap, 100))
    refusal = gate.refuse(0, tokens=1, parts=parts(cap, 101))
    assert refusal == Refusal(Reason.OVERSIZED_REQUEST, ALICE, cap, 100, 100, 101, None)


def test_every_amount_is_recorded_in_every_window_of_every_bucket() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP), project(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=30, parts=(7, 22))
    assert permit.charge == Charge(30, 7, 22)
    for state in gate.engine.snapshot(0).buckets:
        counts = {cap: window.used for cap, window in state.windows.items()}
        amounts = zip((1, 30, 7, 22), CAPS_BY_LENGTH, strict=True)
        assert counts == {cap: amount for amount, caps in amounts for cap in caps.values()}


@pytest.mark.parametrize("tight", ["user", "org", "project"])
@KINDS
def test_a_refusal_leaves_every_bucket_as_it_was(tight: str, cap: Cap) -> None:
    makers = {"user": user, "org": org, "project": project}
    gate = Gate(*(make(limits=capped(cap, 25) if name == tight else EVERY_CAP) for name, make in makers.items()))
    for at in range(2):
        gate.admit(at * SECOND, parts=(10, 10))
    before = everything(gate.engine, 2 * SECOND)
    refusal = gate.refuse(2 * SECOND, parts=(10, 10))
    assert (refusal.key.scope, refusal.cap, refusal.used) == (tight.capitalize(), cap, 20)
    assert everything(gate.engine, 2 * SECOND) == before


def test_of_input_and_output_of_one_window_the_one_that_holds_longer_is_told() -> None:
    gate = Gate(user(limits=Limits(input_tokens_per_minute=100, output_tokens_per_minute=50)))
    gate.admit(0, parts=(90, 0))
    gate.admit(5 * SECOND, parts=(10, 50))
    assert gate.refuse(6 * SECOND, parts=(1, 1)).cap is Cap.OUTPUT_TOKENS_PER_MINUTE
    assert gate.refuse(6 * SECOND, parts=(91, 1)).cap is Cap.OUTPUT_TOKENS_PER_MINUTE
    assert gate.refuse(6 * SECOND, parts=(91, 0)).cap is Cap.INPUT_TOKENS_PER_MINUTE


def test_what_holds_longest_says_no_among_all_amounts() -> None:
    limits = Limits(tokens_per_minute=100, input_tokens_per_hour=100, output_tokens_per_minute=100)
    gate = Gate(user(limits=limits))
    gate.admit(0, tokens=100, parts=(100, 100))
    refusal = gate.refuse(0, tokens=1, parts=(1, 1))
    assert (refusal.cap, refusal.retry_after) == (Cap.INPUT_TOKENS_PER_HOUR, HOUR + MINUTE)


@pytest.mark.parametrize(("asked", "counted"), [(-5, 0), (10**30, MAX_AMOUNT)])
def test_absurd_parts_of_a_demand_are_bounded(asked: int, counted: int) -> None:
    gate = Gate(user(limits=Limits(input_tokens_per_minute=10**12, output_tokens_per_day=10**12)))
    permit = gate.admit(0, parts=(asked, asked))
    assert permit.charge == Charge(10, counted, counted)
    assert gate.used(0, Cap.INPUT_TOKENS_PER_MINUTE) == gate.used(0, Cap.OUTPUT_TOKENS_PER_DAY) == counted


def test_a_limit_in_shadow_mode_says_which_part_had_no_room() -> None:
    gate = Gate(user(limits=Limits(output_tokens_per_minute=10, mode=Mode.SHADOW)))
    gate.admit(0, parts=(0, 10))
    gate.admit(0, parts=(0, 10))
    state = gate.engine.current_state(ALICE, 0)
    assert state is not None
    assert state.last_refusal is not None
    assert (state.would_reject, state.last_refusal.cap) == (1, Cap.OUTPUT_TOKENS_PER_MINUTE)
    assert state.windows[Cap.OUTPUT_TOKENS_PER_MINUTE].used == 20


# -- who pays for it ---------------------------------------------------------------------------------------------


def test_only_buckets_whose_limits_cap_a_part_count_parts() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100)), org(limits=Limits(input_tokens_per_day=1000)))
    permit = gate.admit(0, parts=(5, 5))
    of_user, of_org = permit.buckets
    assert (of_user.parts, of_org.windows) == ((), ())
    assert [window.length for window in of_org.parts] == [DAY]
    assert permit.parts == of_org.parts


def test_a_bucket_that_counts_only_parts_is_kept_until_they_have_left_the_window() -> None:
    gate = Gate(user(limits=Limits(output_tokens_per_minute=100)))
    permit = gate.admit(0, parts=(0, 60))
    permit.release(0)
    leaves = MINUTE + SECOND
    gate.engine.advance(leaves - 1)
    gate.engine.advance(leaves - 1)
    assert gate.engine.keys() == (ALICE,)
    gate.engine.advance(leaves)
    gate.engine.advance(leaves)
    assert gate.engine.keys() == ()


def test_newcomers_share_the_parts_of_the_overflow_bucket() -> None:
    gate = Gate(user(limits=Limits(input_tokens_per_minute=100)), settings=EngineSettings(max_keys=0))
    gate.admit(0, parts=(60, 0))
    refusal = gate.refuse(0, parts=(41, 0), user="bob")
    assert (refusal.key.subject, refusal.used) == (OVERFLOW, 60)


# -- commit and withdrawal ---------------------------------------------------------------------------------------


def test_a_commit_replaces_every_part_of_the_estimate_in_every_bucket() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    gate.admit(0, tokens=7, parts=(3, 4))
    permit = gate.admit(0, tokens=100, parts=(40, 60))
    assert permit.commit_tokens(Charge(90, 55, 35), 1)
    expected = [(2, 2, 2), (97, 97, 97), (58, 58, 58), (39, 39, 39)]
    assert used(gate, 1) == used(gate, 1, Scope.ORG, "acme") == expected
    assert (permit.charge, permit.tokens, permit.estimate) == (Charge(90, 55, 35), 90, 100)


def test_parts_are_amended_also_where_the_tokens_were_right() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100, parts=(40, 60))
    permit.commit_tokens(Charge(100, 90, 10), 1)
    assert used(gate, 1)[2:] == [(90, 90, 90), (10, 10, 10)]


def test_a_late_commit_is_booked_where_the_estimate_was() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, parts=(10, 20))
    permit.commit_tokens(Charge(300, 100, 200), 2 * MINUTE)
    assert used(gate, 2 * MINUTE)[2:] == [(0, 100, 100), (0, 200, 200)]
    assert used(gate, HOUR + MINUTE)[2:] == [(0, 0, 100), (0, 0, 200)]


def test_only_the_first_commit_counts_and_a_refund_gives_all_parts_back() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit, failed = gate.admit(0, parts=(10, 20)), gate.admit(0, parts=(10, 20))
    permit.commit_tokens(Charge(9, 4, 5), 1)
    assert not permit.commit_tokens(Charge(99, 44, 55), 2)
    failed.commit_tokens(Charge(0), 1, Settled.REFUNDED)
    assert used(gate, 2)[2:] == [(4, 4, 4), (5, 5, 5)]
    assert_balanced(gate.engine, [permit, failed], 2)


@pytest.mark.parametrize(("actual", "booked"), [(-1, 0), (-(10**30), 0), (10**30, MAX_AMOUNT)])
def test_absurd_parts_of_a_usage_are_bounded(actual: int, booked: int) -> None:
    gate = Gate(user(limits=EVERY_CAP))
    gate.admit(0, parts=(10, 20)).commit_tokens(Charge(5, actual, actual), 0)
    assert used(gate, 0)[1:] == [(5, 5, 5), (booked,) * 3, (booked,) * 3]


def test_a_withdrawn_permit_leaves_everything_as_it_was() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    gate.admit(0, tokens=5, parts=(2, 3))
    before = everything(gate.engine, 1)
    permit = gate.admit(1, tokens=100, parts=(40, 60))
    gate.engine.withdraw(permit, 1)
    assert everything(gate.engine, 1) == before
    assert permit.charge == Charge(0)


# -- waiting -----------------------------------------------------------------------------------------------------


@KINDS
def test_a_waiter_is_admitted_when_its_part_has_room_and_no_nanosecond_earlier(cap: Cap) -> None:
    leaves = LENGTHS[cap] + LENGTHS[cap] // SLOTS
    gate = Gate(user(limits=capped(cap, 100, max_wait=leaves)))
    gate.admit(0, parts=parts(cap, 100))
    waiter = gate.queue(1, parts=parts(cap, 1))
    gate.engine.advance(leaves - 1)
    assert waiter.pending
    gate.engine.advance(leaves)
    assert admitted(waiter.outcome).admitted_at == leaves


@pytest.mark.parametrize("cap", [Cap.INPUT_TOKENS_PER_MINUTE, Cap.OUTPUT_TOKENS_PER_MINUTE])
def test_less_of_a_part_admits_those_who_wait_for_it_though_the_tokens_are_more(cap: Cap) -> None:
    gate = Gate(user(limits=capped(cap, 100, max_wait=WAIT)))
    permit = gate.admit(0, tokens=100, parts=parts(cap, 100))
    waiters = [gate.queue(0, parts=parts(cap, 30)) for _ in range(3)]
    permit.commit_tokens(Charge(500, *parts(cap, 40, 460)), 1)
    assert [waiter.pending for waiter in waiters] == [False, False, True]
    assert gate.used(1, cap) == 100


def test_nobody_is_overtaken_by_a_call_that_asks_for_less_of_the_same_part() -> None:
    gate = Gate(user(limits=Limits(output_tokens_per_minute=100, max_wait=WAIT)))
    gate.admit(0, parts=(0, 60))
    first = gate.queue(0, parts=(0, 70))
    second = gate.queue(0, parts=(0, 30))  # it would fit beside the 60
    assert gate.refuse(0, parts=(0, 101)).ahead == 100
    gate.engine.advance(MINUTE + SECOND)
    assert [admitted(waiter.outcome).admitted_at for waiter in (first, second)] == [MINUTE + SECOND] * 2


# -- other limits ------------------------------------------------------------------------------------------------


@KINDS
def test_a_part_that_is_newly_capped_starts_empty_and_knows_nothing_of_older_calls(cap: Cap) -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=1000)))
    old, older = gate.admit(0, parts=(50, 50)), gate.admit(0, parts=(50, 50))
    gate.swap(0, user(limits=capped(cap, 100)))
    gate.admit(0, parts=(30, 30))
    old.commit_tokens(Charge(900, 300, 600), 1)
    gate.engine.withdraw(older, 1)
    assert gate.used(1, cap) == 30


def test_the_other_part_of_a_period_is_counted_before_it_is_capped() -> None:
    gate = Gate(user(limits=Limits(input_tokens_per_minute=100)))
    gate.admit(0, parts=(10, 80))
    gate.swap(1, user(limits=Limits(output_tokens_per_minute=100)))
    assert gate.refuse(1, parts=(0, 21)).used == 80


def test_a_cap_on_a_part_that_goes_and_comes_back_finds_its_counts() -> None:
    rule = user(limits=Limits(input_tokens_per_day=100))
    gate = Gate(rule)
    gate.admit(0, parts=(70, 0))
    gate.swap(1, user(limits=Limits(requests_per_minute=9)))
    gate.admit(1, parts=(500, 0))
    gate.swap(2, rule)
    assert gate.refuse(2, parts=(31, 0)).used == 570
    assert gate.engine.snapshot(2).buckets[0].windows.keys() == {Cap.INPUT_TOKENS_PER_DAY}


def test_a_raised_cap_on_a_part_admits_those_who_waited_for_it() -> None:
    gate = Gate(user(limits=Limits(input_tokens_per_minute=100, max_wait=WAIT)))
    gate.admit(0, parts=(90, 0))
    waiters = [gate.queue(0, parts=(40, 0)) for _ in range(3)]
    gate.swap(1, user(limits=Limits(input_tokens_per_minute=170, max_wait=WAIT)))
    assert [waiter.pending for waiter in waiters] == [False, False, True]
