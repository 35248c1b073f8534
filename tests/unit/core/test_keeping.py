"""Counts taken out of an engine and put into another, and buckets of which nothing is known."""

from __future__ import annotations

import pytest

from helpers.ledger import PROVIDER, Gate, user
from sluice.core.buckets import Charge
from sluice.core.engine import EngineSettings
from sluice.core.keeping import KeptBucket, keep, put_back
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Permit
from sluice.core.windows import SLOTS

ALICE = BucketKey(PROVIDER, Scope.USER, "alice")
RULE = user(limits=Limits(requests_per_minute=5, tokens_per_day=1000, max_concurrent=1))
PARTS = user(limits=Limits(input_tokens_per_minute=100, output_tokens_per_hour=100))


def restarted(gate: Gate, now: int, settings: EngineSettings | None = None) -> Gate:
    """Another gate that goes on from what this one counts."""
    started = Gate(*gate.engine.rules.rules, settings=settings)
    for kept in gate.engine.visit(gate.engine.keys(), now, keep):
        put_back(started.engine, kept, now)
    return started


def test_what_is_kept_are_the_slots_of_every_window_that_counts() -> None:
    gate = Gate(RULE)
    gate.admit(61 * SECOND, tokens=30)

    (kept,) = gate.engine.visit([ALICE], 62 * SECOND, keep)

    assert kept == KeptBucket(ALICE, {MINUTE: [61, 1, 30], DAY: [0, 1, 30]}, {})


def test_input_and_output_are_kept_where_they_are_capped() -> None:
    gate = Gate(PARTS)
    gate.admit(61 * SECOND, tokens=30, parts=(10, 20))

    (kept,) = gate.engine.visit([ALICE], 62 * SECOND, keep)

    assert kept.parts == {MINUTE: [61, 10, 20], HOUR: [1, 10, 20]}


def test_a_call_in_flight_keeps_its_reservation_and_loses_its_slot() -> None:
    gate = Gate(RULE)
    gate.admit(0, tokens=40)

    started = restarted(gate, SECOND)

    assert started.in_flight(SECOND) == 0
    assert started.used(SECOND, Cap.TOKENS_PER_DAY) == 40


def test_what_was_committed_is_kept_and_not_its_estimate() -> None:
    gate = Gate(RULE)
    permit = gate.admit(0, tokens=40)
    permit.commit_tokens(Charge(7), SECOND)

    assert restarted(gate, SECOND).used(SECOND, Cap.TOKENS_PER_DAY) == 7


def test_windows_go_on_under_limits_that_come_after_them() -> None:
    gate = Gate(RULE)
    for _ in range(5):
        gate.admit(0).release(0)
    started = Gate()
    for kept in gate.engine.visit([ALICE], SECOND, keep):
        put_back(started.engine, kept, SECOND)

    started.swap(SECOND, RULE)

    assert started.refuse(SECOND).cap is Cap.REQUESTS_PER_MINUTE
    assert started.refuse(61 * SECOND - 1).retry_after == 1
    assert started.admit(61 * SECOND).waited == 0


def test_a_bucket_of_which_nothing_counts_any_more_is_not_made() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=5)))
    gate.admit(0)
    (kept,) = gate.engine.visit([ALICE], SECOND, keep)
    started = Gate(RULE)

    assert [put_back(started.engine, kept, now) for now in (61 * SECOND - 1, 61 * SECOND)] == [True, False]


def test_past_the_cap_on_keys_counts_are_those_of_the_shared_bucket() -> None:
    gate = Gate(RULE)
    for name in ("alice", "bob", "carol", "dave"):
        gate.admit(0, tokens=10, user=name)

    started = restarted(gate, SECOND, EngineSettings(max_keys=2))

    assert len(started.engine.keys()) == 3
    assert started.used(SECOND, Cap.TOKENS_PER_DAY, subject=OVERFLOW) == 20
    assert started.used(SECOND, Cap.REQUESTS_PER_MINUTE, subject=OVERFLOW) == 2


def test_the_ledger_begins_anew() -> None:
    gate = Gate(RULE)
    gate.admit(0)

    snapshot = restarted(gate, SECOND).engine.snapshot(SECOND)

    assert (snapshot.totals.admitted, snapshot.buckets[0].admitted) == (0, 0)


# -- a start without knowledge -------------------------------------------------------------------------------------


def cautious(limits: Limits, start: int) -> Gate:
    gate = Gate(user(limits=limits))
    gate.engine.assumed_until = start
    return gate


@pytest.mark.parametrize("start", [0, 1, 17 * SECOND - 1, 5 * DAY + 123])
@pytest.mark.parametrize(
    ("length", "cap", "limits"),
    [
        (MINUTE, Cap.TOKENS_PER_MINUTE, Limits(tokens_per_minute=1200)),
        (HOUR, Cap.OUTPUT_TOKENS_PER_HOUR, Limits(output_tokens_per_hour=1200)),
        (DAY, Cap.TOKENS_PER_DAY, Limits(tokens_per_day=1200)),
    ],
)
def test_what_is_not_known_comes_back_in_twelfths_over_the_period_and_never_before_its_time(
    start: int, length: int, cap: Cap, limits: Limits
) -> None:
    gate = cautious(limits, start)
    gate.refuse(start, tokens=1, parts=(1, 1))
    slot = length // SLOTS
    for passed in range(0, length + 2 * slot, slot):
        assumed = gate.used(start + passed, cap)
        assert 1200 * max(0, length - passed) <= assumed * length  # no sooner than evenly
        assert assumed * length <= 1200 * max(0, length + length // 12 + slot - passed)
    assert gate.used(start + length + slot, cap) == 0


def test_a_bucket_that_is_made_later_has_what_has_come_back_until_then() -> None:
    gate = cautious(Limits(requests_per_minute=12), 0)

    gate.admit(31 * SECOND)

    assert gate.used(31 * SECOND, Cap.REQUESTS_PER_MINUTE) == 6 + 1


def test_a_bucket_that_is_made_when_the_period_is_over_starts_full() -> None:
    gate = cautious(Limits(requests_per_minute=1), 0)

    assert gate.refuse(61 * SECOND - 1, user="bob").retry_after == 1
    assert gate.admit(61 * SECOND).waited == 0


def test_a_bucket_that_is_known_keeps_what_it_counts() -> None:
    gate = Gate(RULE)
    gate.admit(0)
    (kept,) = gate.engine.visit([ALICE], SECOND, keep)
    started = Gate()
    put_back(started.engine, kept, SECOND)
    started.engine.assumed_until = SECOND
    started.swap(SECOND, RULE)

    assert started.used(SECOND, Cap.REQUESTS_PER_MINUTE) == 1
    assert started.refuse(SECOND, user="bob").used == 1000


def test_a_cautious_start_admits_at_most_what_has_come_back() -> None:
    gate = cautious(Limits(requests_per_minute=60), 0)
    admitted = 0
    for now in range(0, 60 * SECOND, SECOND // 4):
        while isinstance(gate.ask(now, slots=0), Permit):
            admitted += 1
        assert admitted * MINUTE <= 60 * now
    assert admitted == 55
