"""An engine whose limits are decided on elsewhere: it counts, tells nobody too soon, and hears what was decided."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.ledger import Gate, admitted, assert_balanced, everything, org, refused, user, waiting
from sluice.core.buckets import NO_CHARGE, Charge, Demand, Obstacle
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import EngineSettings
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import DAY, MINUTE, SECOND, Cap, Limits, Mode
from sluice.core.permits import Call, Permit, Settled
from sluice.core.windows import NEVER
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

LEASE = EngineSettings().lease
EVERYTHING = Limits(
    requests_per_minute=2, requests_per_day=2, tokens_per_minute=20, input_tokens_per_hour=2, output_tokens_per_day=2,
    max_concurrent=2, max_wait=MINUTE,
)  # fmt: skip
ALICE = BucketKey("openai", Scope.USER, "alice")
ACCOUNT = BucketKey("openai", Scope.PROVIDER, "key", "gpt")
REFUSAL = Refusal(Reason.WOULD_EXCEED, ALICE, Cap.REQUESTS_PER_DAY, 2, 2, 1, 7 * SECOND)


def counting(*limits: Limits, **settings: Any) -> Gate:
    """A gate that counts only."""
    rules = [rule(limits=each) for rule, each in zip((user, org), limits or (EVERYTHING,), strict=False)]
    gate = Gate(*rules, settings=EngineSettings(**settings))
    gate.engine.counts_only = True
    return gate


def call(gate: Gate, tokens: int = 10, name: str = "alice", upstream: BucketKey | None = None) -> Call:
    applied = gate.engine.rules.match("openai", {Scope.USER: name, Scope.ORG: "acme"})
    return Call(applied, Demand(1, 1, tokens, 1, 1), upstream=upstream)


def quietly(gate: Gate, now: int = 0, **what: Any) -> Permit:
    """An admission of which nobody is told."""
    return admitted(gate.engine.acquire(call(gate, **what), now, tell=False))


class Books:
    """What is booked elsewhere."""

    def __init__(self, permit: Permit) -> None:
        self.requests = permit.call.demand.requests
        self.charge = permit.charge
        self.freed = 0
        permit.elsewhere = self

    def amend(self, requests: int, charge: Charge) -> None:
        self.requests += requests
        self.charge = self.charge.plus(charge)

    def free(self) -> None:
        self.freed += 1


# -- counting ------------------------------------------------------------------------------------------------------


def test_an_engine_that_only_counts_lets_everything_pass_and_counts_it() -> None:
    gate = counting()
    permits = [admitted(gate.engine.acquire(call(gate), 0)) for _ in range(9)]

    assert gate.used(0, Cap.REQUESTS_PER_DAY) == 9
    assert gate.used(0, Cap.TOKENS_PER_MINUTE) == 90
    assert gate.used(0, Cap.OUTPUT_TOKENS_PER_DAY) == 9
    assert gate.in_flight(0) == 9
    assert_balanced(gate.engine, permits, 0)


def test_what_it_has_counted_counts_when_it_decides_again() -> None:
    gate = counting()
    permits = [admitted(gate.engine.acquire(call(gate), 0)) for _ in range(3)]
    gate.engine.counts_only = False

    assert gate.refuse(1, user="alice").reason is Reason.WOULD_EXCEED
    for permit in permits:
        permit.release(1)
    gate.admit(2 * DAY, user="alice")


def test_a_limit_in_shadow_mode_tells_nothing_by_itself() -> None:
    gate = counting(Limits(requests_per_minute=0, mode=Mode.SHADOW))
    gate.engine.acquire(call(gate), 0)

    assert gate.journal.named("would_reject") == []


def test_the_provider_s_own_word_is_heeded_all_the_same() -> None:
    gate = counting()
    first = admitted(gate.engine.acquire(call(gate, upstream=ACCOUNT), 0))
    gate.engine.hear(first, Feedback((), RefusedAs.RATE_LIMITED, 90 * SECOND), 0)
    hasty = refused(gate.engine.acquire(call(gate, upstream=ACCOUNT), 1, tell=False))
    gate.engine.hear(first, Feedback(), 1)

    assert (hasty.reason, hasty.cap) == (Reason.PROVIDER_LIMIT, Amount.REQUESTS)
    admitted(gate.engine.acquire(call(gate, upstream=ACCOUNT), 90 * SECOND))


def test_who_waits_for_the_provider_is_admitted_without_a_word_if_it_asked_for_that() -> None:
    gate = counting()
    first = admitted(gate.engine.acquire(call(gate, upstream=ACCOUNT), 0))
    gate.engine.hear(first, Feedback((), RefusedAs.RATE_LIMITED, SECOND), 0)
    waiter = waiting(gate.engine.acquire(call(gate, upstream=ACCOUNT), 1, tell=False))
    told = list(gate.journal.events)

    gate.engine.advance(SECOND)

    permit = admitted(waiter.outcome)
    assert not permit.is_told
    assert gate.journal.events == told
    gate.engine.confirm(permit, SECOND, 7)
    assert [event.wait for event in gate.journal.named("acquired")] == [0, 7]


# -- admitted without a word ---------------------------------------------------------------------------------------


def test_a_call_is_counted_at_once_and_told_of_when_it_is_confirmed() -> None:
    gate = counting()
    permit = quietly(gate)
    counted = gate.used(0, Cap.REQUESTS_PER_DAY), gate.in_flight(0), list(gate.journal.events)

    gate.engine.confirm(permit, 3, 3)

    assert counted == (1, 1, [])
    (event,) = gate.journal.events
    assert (event.name, event.keys, event.wait, permit.waited) == ("acquired", (ALICE,), 3, 3)


def test_it_can_be_claimed_only_then_and_expires_by_then() -> None:
    gate = counting()
    permit = quietly(gate)
    assert gate.engine.claim(permit.lease, 1) is None
    gate.engine.advance(5 * LEASE)
    assert not permit.released

    gate.engine.confirm(permit, 5 * LEASE, 0)
    gate.engine.advance(6 * LEASE - 1)
    assert not permit.released
    gate.engine.advance(6 * LEASE)

    assert permit.released
    assert gate.engine.claim(permit.lease, 6 * LEASE) is permit


@pytest.mark.parametrize("limits", [EVERYTHING, Limits(max_concurrent=1)])
def test_one_that_is_withdrawn_was_never_there(limits: Limits) -> None:
    gate = counting(limits, limits)
    kept = admitted(gate.engine.acquire(call(gate), 0))
    before, told = everything(gate.engine, 0), list(gate.journal.events)

    permit = quietly(gate)
    gate.engine.withdraw(permit, 0)
    gate.engine.withdraw(permit, 0)

    assert everything(gate.engine, 0) == before
    assert gate.journal.events == told
    assert_balanced(gate.engine, [kept], 0)


def test_one_that_is_withdrawn_gives_back_what_it_took_of_the_provider_s_quota() -> None:
    gate = counting()
    first = admitted(gate.engine.acquire(call(gate, upstream=ACCOUNT), 0))
    gate.engine.hear(first, Feedback((Quota("left", Amount.REQUESTS, 1, None, MINUTE),)), 0)

    for _ in range(3):
        gate.engine.withdraw(quietly(gate, 1, upstream=ACCOUNT), 1)
    quietly(gate, 1, upstream=ACCOUNT)

    waiting(gate.engine.acquire(call(gate, upstream=ACCOUNT), 1, tell=False))


# -- refused elsewhere ---------------------------------------------------------------------------------------------


def test_a_refusal_is_counted_and_told_as_if_it_had_been_its_own() -> None:
    gate = counting()

    assert gate.engine.refuse(call(gate), REFUSAL, 5, 3) is REFUSAL

    (event,) = gate.journal.events
    assert (event.name, event.keys, event.wait, event.retry_after) == ("rejected", (ALICE,), 3, 7 * SECOND)
    state = gate.engine.current_state(ALICE, 6)
    assert state is not None
    assert (state.rejected, state.recently_rejected, state.admitted, state.in_flight) == (1, 1, 0, 0)
    assert state.last_refusal is not None
    assert (state.last_refusal.reason, state.last_refusal.ago) == (Reason.WOULD_EXCEED, 1)
    assert gate.engine.summary().totals.rejected == 1


def test_a_refusal_past_the_cap_on_keys_is_counted_where_newcomers_are() -> None:
    gate = counting(max_keys=1)
    quietly(gate, name="alice")
    bob = ALICE._replace(subject="bob")
    gate.engine.refuse(call(gate, name="bob"), REFUSAL._replace(key=bob), 0, 0)
    gate.engine.refuse(call(gate, name="bob"), REFUSAL._replace(key=bob._replace(subject=OVERFLOW)), 0, 0)

    assert gate.engine.current_state(bob, 0) is None
    state = gate.engine.current_state(bob._replace(subject=OVERFLOW), 0)
    assert state is not None
    assert state.rejected == 1
    assert gate.engine.summary().totals.rejected == 2


# -- shadow --------------------------------------------------------------------------------------------------------


def obstacle(clears_at: int | None) -> Obstacle:
    cap = Cap.MAX_CONCURRENT if clears_at is None else Cap.REQUESTS_PER_DAY
    return Obstacle(cap, 2, 2, 1, clears_at, 0)


@pytest.mark.parametrize(
    ("clears", "reason", "after"),
    [
        ((None,), Reason.NO_FREE_SLOT, None),
        ((9 * SECOND,), Reason.WOULD_EXCEED, 8 * SECOND),
        ((None, 9 * SECOND, 5 * SECOND), Reason.WOULD_EXCEED, 8 * SECOND),
        ((9 * SECOND, NEVER, None), Reason.OVERSIZED_REQUEST, None),
    ],
)
def test_what_a_limit_in_shadow_mode_would_have_refused_is_told_once_by_its_worst_obstacle(
    clears: tuple[int | None, ...], reason: Reason, after: int | None
) -> None:
    gate = counting(Limits(requests_per_day=2, max_concurrent=2, mode=Mode.SHADOW))
    permit = quietly(gate)

    gate.engine.tell_shadow(permit.call, [(permit.buckets[0], obstacle(at)) for at in clears], SECOND)

    (event,) = gate.journal.named("would_reject")
    assert (event.reason, event.retry_after) == (reason.value, after)
    state = gate.engine.current_state(ALICE, SECOND)
    assert state is not None
    assert (state.would_reject, state.rejected, gate.engine.summary().totals.would_reject) == (1, 0, 1)
    assert state.last_refusal is not None
    assert state.last_refusal.reason is reason


def test_where_nothing_stands_in_the_way_nothing_is_told() -> None:
    gate = counting(Limits(requests_per_day=2, mode=Mode.SHADOW))
    gate.engine.tell_shadow(call(gate), [], 0)

    assert gate.journal.events == []
    assert gate.engine.summary().totals.would_reject == 0


# -- booked elsewhere ----------------------------------------------------------------------------------------------


def test_whoever_books_a_call_elsewhere_is_told_of_every_change_once() -> None:
    gate = counting(EVERYTHING, EVERYTHING)
    permit = quietly(gate, tokens=60)
    books = Books(permit)

    gate.engine.repeated(permit, 2, 1)
    permit.commit_tokens(Charge(40, 5, 35), 2)
    permit.commit_tokens(Charge(70), 3)
    for _ in range(2):
        permit.release(4)

    assert (books.requests, books.charge, books.freed) == (3, Charge(40, 5, 35), 1)


def test_also_where_no_window_counts_parts_or_the_slot_has_left() -> None:
    gate = counting(Limits(requests_per_minute=9))
    permit = quietly(gate, tokens=60)
    books = Books(permit)

    permit.commit_tokens(Charge(80, 5, 75), 10 * MINUTE)

    assert books.charge == Charge(80, 5, 75)


@pytest.mark.parametrize("ending", ["withdraw", "expire", "refund", "estimate"])
def test_however_a_call_ends_its_place_is_free_and_what_is_booked_is_what_is_counted(ending: str) -> None:
    gate = counting()
    permit = quietly(gate, tokens=60)
    books = Books(permit)
    gate.engine.confirm(permit, 0, 0)

    if ending == "withdraw":
        gate.engine.withdraw(permit, 1)
    elif ending == "expire":
        gate.engine.advance(LEASE)
        gate.engine.withdraw(permit, LEASE)
    elif ending == "refund":
        permit.commit_tokens(NO_CHARGE, 1, Settled.REFUNDED)
        permit.release(1)
    else:
        permit.commit_tokens(Charge(70), 1, Settled.ESTIMATED)
        permit.commit_tokens(Charge(50), 2)
        permit.release(3)

    used = gate.used(LEASE, Cap.REQUESTS_PER_MINUTE), gate.used(LEASE, Cap.TOKENS_PER_MINUTE)
    assert (books.requests, books.charge.tokens) == used
    assert books.freed == 1


def test_a_call_that_is_undone_after_an_estimate_stands() -> None:
    gate = counting()
    permit = quietly(gate, tokens=60)
    books = Books(permit)
    permit.commit_tokens(Charge(70), 1, Settled.ESTIMATED)
    gate.engine.withdraw(permit, 1)

    assert (books.requests, books.charge.tokens, books.freed) == (1, 70, 0)
    assert gate.used(1, Cap.TOKENS_PER_MINUTE) == 70
