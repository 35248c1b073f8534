"""A permit's life: commit, release, claim, expiry and withdrawal, in any order and any number."""

from __future__ import annotations

from itertools import permutations

import pytest

from helpers.ledger import Gate, assert_balanced, everything, org, user
from sluice.core.buckets import Charge
from sluice.core.engine import REMEMBERED, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Settled
from sluice.core.windows import MAX_AMOUNT

LEASE = EngineSettings().lease
EVERY_CAP = Limits(
    requests_per_minute=50, requests_per_hour=50, requests_per_day=50,
    tokens_per_minute=1000, tokens_per_hour=1000, tokens_per_day=1000, max_concurrent=4,
)  # fmt: skip
TOKEN_CAPS = (Cap.TOKENS_PER_MINUTE, Cap.TOKENS_PER_HOUR, Cap.TOKENS_PER_DAY)


def tokens_used(gate: Gate, now: int, scope: Scope = Scope.USER, subject: str = "alice") -> tuple[int, ...]:
    return tuple(gate.used(now, cap, scope, subject) for cap in TOKEN_CAPS)


# -- commit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actual", [0, 1, 40, 100, 5000])
def test_a_commit_replaces_the_estimate_in_every_window_of_every_bucket(actual: int) -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    gate.admit(0, tokens=7)
    permit = gate.admit(0, tokens=100)
    assert permit.commit_tokens(Charge(actual), 1)
    assert tokens_used(gate, 1) == tokens_used(gate, 1, Scope.ORG, "acme") == (7 + actual,) * 3
    assert gate.used(1, Cap.REQUESTS_PER_MINUTE) == 2
    assert (permit.estimate, permit.tokens, permit.settled) == (100, actual, Settled.COMMITTED)


def test_a_late_commit_is_booked_where_the_estimate_was_and_leaves_with_it() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    gate.admit(30 * SECOND, tokens=50)
    permit.commit_tokens(Charge(20), 59 * SECOND)
    assert tokens_used(gate, 61 * SECOND - 1) == (70, 70, 70)
    assert tokens_used(gate, 61 * SECOND) == (50, 70, 70)


def test_a_commit_after_the_slot_left_one_window_still_corrects_the_longer_ones() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    permit.commit_tokens(Charge(300), 2 * MINUTE)
    assert tokens_used(gate, 2 * MINUTE) == (0, 300, 300)
    gate.admit(2 * HOUR, tokens=1).commit_tokens(Charge(2), 2 * HOUR)
    assert tokens_used(gate, 2 * HOUR) == (2, 2, 302)


def test_a_commit_after_every_window_forgot_the_call_changes_no_window() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    gate.admit(2 * DAY, tokens=10)
    assert permit.commit_tokens(Charge(500), 2 * DAY)
    assert tokens_used(gate, 2 * DAY) == (10, 10, 10)
    assert gate.engine.summary().totals.committed_tokens == 500


def test_only_the_first_commit_counts() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    assert permit.commit_tokens(Charge(40), 1)
    assert not permit.commit_tokens(Charge(70), 2)
    assert not permit.commit_tokens(Charge(0), 3, Settled.REFUNDED)
    assert not permit.commit_tokens(Charge(80), 4, Settled.ESTIMATED)
    assert tokens_used(gate, 4) == (40, 40, 40)
    assert gate.engine.summary().totals.committed_tokens == 40


@pytest.mark.parametrize(
    ("actual", "booked"), [(-1, 0), (-(10**30), 0), (10**30, MAX_AMOUNT), (MAX_AMOUNT + 1, MAX_AMOUNT)]
)
def test_an_absurd_usage_is_bounded(actual: int, booked: int) -> None:
    gate = Gate(user(limits=EVERY_CAP))
    gate.admit(0, tokens=100).commit_tokens(Charge(actual), 0)
    assert tokens_used(gate, 0) == (booked, booked, booked)


def test_more_than_was_reserved_is_charged_past_the_cap_and_holds_up_the_next() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100)))
    gate.admit(0, tokens=10).commit_tokens(Charge(150), 0)
    assert gate.used(0, Cap.TOKENS_PER_MINUTE) == 150
    assert gate.refuse(0, tokens=1).used == 150


def test_less_than_was_reserved_makes_room_at_once() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100)))
    permit = gate.admit(0, tokens=100)
    gate.refuse(0, tokens=40)
    permit.commit_tokens(Charge(60), 0)
    gate.admit(0, tokens=40)


def test_a_refund_gives_the_tokens_back_and_leaves_the_request() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    assert permit.commit_tokens(Charge(0), 1, Settled.REFUNDED)
    assert tokens_used(gate, 1) == (0, 0, 0)
    assert gate.used(1, Cap.REQUESTS_PER_DAY) == 1
    totals = gate.engine.summary().totals
    assert (totals.refunded, totals.committed, totals.committed_tokens) == (1, 0, 0)
    assert_balanced(gate.engine, [permit], 1)


def test_a_better_estimate_replaces_the_first_and_the_providers_word_replaces_both() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    assert permit.commit_tokens(Charge(30), 1, Settled.ESTIMATED)
    assert not permit.commit_tokens(Charge(50), 1, Settled.ESTIMATED)
    totals = gate.engine.summary().totals
    assert (totals.estimated, totals.estimated_tokens) == (1, 30)
    assert permit.commit_tokens(Charge(45), 2)
    assert tokens_used(gate, 2) == (45, 45, 45)
    totals = gate.engine.summary().totals
    assert (totals.estimated, totals.estimated_tokens, totals.committed, totals.committed_tokens) == (0, 0, 1, 45)


# -- release -----------------------------------------------------------------------------------------------------


def test_only_the_first_release_frees_the_slots() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    permits = [gate.admit(0) for _ in range(3)]
    assert permits[0].release(1)
    assert not permits[0].release(1)
    assert gate.in_flight(1) == gate.in_flight(1, Scope.ORG, "acme") == gate.engine.summary().in_flight == 2


def test_a_release_without_a_commit_leaves_the_estimate_standing() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    permit.release(1)
    assert permit.settled is Settled.ESTIMATED
    assert tokens_used(gate, 1) == (100, 100, 100)
    totals = gate.engine.summary().totals
    assert (totals.estimated, totals.estimated_tokens) == (1, 100)


EVENTS = ("commit", "commit again", "release", "release again", "expire", "claim")


def test_every_order_of_events_settles_once_frees_once_and_balances() -> None:
    for order in permutations(EVENTS):
        live_through(order)


def live_through(order: tuple[str, ...]) -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    other = gate.admit(0, tokens=7)
    gate.engine.claim(other.lease, 0)
    now = 0
    settled = freed = given = 0
    for event in order:
        if event.startswith("commit"):
            settled += permit.commit_tokens(Charge(40 if event == "commit" else 60), now)
        elif event.startswith("release"):
            freed += permit.release(now)
        elif event == "expire":
            now = LEASE
            gate.engine.advance(now)
        else:
            given += gate.engine.claim(permit.lease, now) is permit
        assert_balanced(gate.engine, [permit, other], now)
    first_commit = 40 if order.index("commit") < order.index("commit again") else 60
    assert settled == 1, order
    assert tokens_used(gate, now) == (first_commit + 7,) * 3, order
    expired = gate.engine.summary().totals.expired_permits
    assert freed + expired == 1, order
    assert permit.released, order
    assert gate.in_flight(now) == gate.in_flight(now, Scope.ORG, "acme") == gate.engine.summary().in_flight == 1
    # A lease is there to be claimed until the call has been released; once it has expired, also afterwards.
    released_first = min(order.index("release"), order.index("release again")) < order.index("claim")
    assert given == (expired or not released_first), order
    assert gate.engine.claim(permit.lease, now) is None


# -- leases ------------------------------------------------------------------------------------------------------


def test_a_permit_nobody_claims_is_freed_at_its_deadline_and_no_nanosecond_earlier() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, tokens_per_minute=100)))
    permit = gate.admit(5, tokens=60)
    gate.engine.advance(5 + LEASE - 1)
    assert not permit.released
    gate.engine.advance(5 + LEASE)
    assert permit.released
    assert permit.settled is Settled.ESTIMATED
    assert gate.used(5 + LEASE, Cap.TOKENS_PER_MINUTE) == 60
    assert gate.engine.summary().totals.expired_permits == 1


def test_a_claimed_permit_has_no_deadline() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1)))
    permit = gate.admit(0)
    assert gate.engine.claim(permit.lease, 1) is permit
    gate.engine.advance(DAY)
    assert not permit.released
    assert gate.engine.summary().totals.expired_permits == 0


def test_a_lease_is_claimed_once_and_a_strange_one_never() -> None:
    gate = Gate(user(limits=EVERY_CAP), settings=EngineSettings(name="gate-7:"))
    permit = gate.admit(0)
    assert permit.lease.startswith("gate-7:")
    assert gate.engine.claim("gate-6:1", 0) is None
    assert gate.engine.claim(permit.lease, 0) is permit
    assert gate.engine.claim(permit.lease, 0) is None


def test_a_late_claim_settles_an_expired_permit() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    gate.engine.advance(LEASE)
    assert gate.engine.claim(permit.lease, LEASE + 1) is permit
    assert permit.commit_tokens(Charge(33), LEASE + 2)
    assert not permit.release(LEASE + 3)
    assert tokens_used(gate, LEASE + 3) == (33, 33, 33)
    assert_balanced(gate.engine, [permit], LEASE + 3)


def test_so_many_expired_permits_are_remembered_and_no_more() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=10**6)))
    permits = [gate.admit(0, slots=0) for _ in range(REMEMBERED + 5)]
    gate.engine.advance(LEASE)
    assert [gate.engine.claim(permit.lease, LEASE) is permit for permit in permits] == [False] * 5 + [True] * REMEMBERED


# -- withdrawal --------------------------------------------------------------------------------------------------


def test_a_withdrawn_permit_leaves_everything_as_it_was() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    gate.admit(0, tokens=5)
    before = everything(gate.engine, 1)
    permit = gate.admit(1, tokens=100)
    gate.engine.withdraw(permit, 1)
    assert everything(gate.engine, 1) == before
    assert gate.engine.claim(permit.lease, 1) is None


@pytest.mark.parametrize("ending", ["release", "commit", "withdraw", "expire"])
def test_a_permit_that_has_ended_or_begun_to_settle_cannot_be_withdrawn(ending: str) -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    if ending == "release":
        permit.release(0)
    elif ending == "commit":
        permit.commit_tokens(Charge(40), 0)
    elif ending == "withdraw":
        gate.engine.withdraw(permit, 0)
    else:
        gate.engine.advance(LEASE)
    before = everything(gate.engine, LEASE)
    gate.engine.withdraw(permit, LEASE)
    assert everything(gate.engine, LEASE) == before


def test_a_withdrawn_permit_can_be_neither_committed_nor_released() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=100)
    gate.engine.withdraw(permit, 0)
    assert not permit.commit_tokens(Charge(50), 0)
    assert not permit.release(0)
    assert tokens_used(gate, 0) == (0, 0, 0)
    assert gate.in_flight(0) == 0
