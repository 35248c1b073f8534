"""The judge of what callers saw finds what was certainly wrong, and accuses nobody of what may have been right."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from helpers.history import Allowance, Bound, Call, Count, Counted, count, judge

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
ALICE = "User alice"
REQUESTS = Bound(ALICE, Counted.REQUESTS, 3, MINUTE)
TOKENS = Bound(ALICE, Counted.TOKENS, 100, MINUTE)
PERMITS = Bound(ALICE, Counted.PERMITS, 2)


def call(number: int, asked: int, answered: int, ended: int | None = None, reserved: int = 0, **more: int) -> Call:
    return Call(f"gate-{number % 2}", number, asked, answered, True, (ALICE,), reserved, ended, **more)


def calls(*times: tuple[int, int]) -> list[Call]:
    return [call(number, asked, answered) for number, (asked, answered) in enumerate(times)]


def excess(history: Iterable[Call], *bounds: Bound) -> list[tuple[int, int]]:
    """What was counted, and what was allowed, of each bound exceeded."""
    return [(found.count, found.allowed) for found in judge(history, bounds)]


def test_as_many_requests_as_allowed_are_no_violation() -> None:
    assert judge(calls((0, 1), (2, 3), (4, 5)), [REQUESTS]) == []


def test_one_request_too_many_is_found_with_the_calls_and_the_gates_that_made_it() -> None:
    history = calls((0, 1), (2, 3), (MINUTE - 2, MINUTE - 1), (MINUTE - 1, MINUTE))
    (found,) = judge(history, [REQUESTS])

    assert (found.count, found.allowed, found.first, found.last) == (4, 3, 0, MINUTE)
    assert found.calls == tuple(history)
    assert str(found).startswith(
        "User alice: 4 requests where 3 are allowed, by gate-0, gate-1, within 60.000 s up to 60000000000:\n  Call("
    )


def test_a_request_that_may_have_been_admitted_after_the_period_is_not_held_against_it() -> None:
    assert judge(calls((0, 1), (2, 3), (4, 5), (MINUTE - 1, MINUTE + 1)), [REQUESTS]) == []


def test_a_request_that_may_have_been_admitted_before_the_period_is_not_held_against_it() -> None:
    assert judge(calls((0, 5), (2, 3), (4, 6), (MINUTE, MINUTE + 1)), [REQUESTS]) == []


def test_a_request_that_took_longer_than_the_period_is_counted_nowhere() -> None:
    assert judge(calls((0, 2 * MINUTE), (1, 2), (3, 4), (5, 6)), [REQUESTS]) == []


def test_the_worst_place_is_told() -> None:
    late = 10 * MINUTE
    history = calls(*[(0, 1)] * 4, *[(late, late + 1)] * 6, *[(2 * late, 2 * late + 1)] * 5)
    (found,) = judge(history, [REQUESTS])

    assert (found.count, found.last) == (6, late + 1)


def test_refused_calls_and_other_buckets_do_not_count() -> None:
    history = calls((0, 1), (2, 3), (4, 5))
    refused = [replace(each, admitted=False) for each in history]
    others = [replace(each, buckets=("User bob",)) for each in history]

    assert judge([*history, *refused, *others], [REQUESTS]) == []


def test_a_call_counts_in_all_its_buckets() -> None:
    both = [replace(each, buckets=(ALICE, "Org")) for each in calls(*[(0, 1)] * 4)]
    org = replace(REQUESTS, bucket="Org", at_most=2)

    assert excess(both, REQUESTS, org) == [(4, 3), (4, 2)]


def test_windows_that_hold_a_part_of_an_allowance_may_hold_more() -> None:
    allowed = replace(REQUESTS, allowances=(Allowance(5, 8, 2),))
    five = calls(*[(6, 7)] * 5)

    assert excess(five, allowed) == []
    assert excess([*five, call(5, 7, 8)], allowed) == [(6, 5)]


def test_an_allowance_is_of_every_window_that_touches_it() -> None:
    bound = replace(REQUESTS, allowances=(Allowance(10, 20, 2),))

    assert [bound.over(*window) for window in ((0, 9), (0, 10), (12, 15), (20, 30), (21, 30))] == [3, 5, 5, 5, 3]


def test_no_window_after_an_allowance_may_hold_more() -> None:
    last = 9 * SECOND
    allowed = replace(REQUESTS, allowances=(Allowance(0, last, 2),))
    at = last + 1

    assert excess(calls(*[(last, at)] * 5), allowed) == []
    assert excess(calls(*[(at, at + 1)] * 5), allowed) == [(5, 3)]


def test_tokens_count_as_reserved_until_the_end_is_told_and_then_as_used_if_that_is_less() -> None:
    def history(ended: int) -> list[Call]:
        return [call(0, 0, 1, ended=ended, reserved=80, used=10), call(1, 4, 6, reserved=80)]

    assert excess(history(7), TOKENS) == [(160, 100)]
    assert excess(history(6), TOKENS) == []


def test_tokens_used_beyond_what_was_reserved_are_no_violation() -> None:
    history = [call(0, 0, 1, ended=2, reserved=50, used=500), call(1, 0, 1, reserved=50)]

    assert excess(history, TOKENS) == []


def test_tokens_of_a_gate_that_was_killed_stay_reserved() -> None:
    history = [call(0, 0, 1, ended=2, reserved=60), call(1, 3, 4, reserved=60)]

    assert excess(history, TOKENS) == [(120, 100)]


def test_a_permit_is_held_from_the_answer_until_the_end_is_told() -> None:
    def history(answered: int) -> list[Call]:
        return [call(0, 0, 5, ended=20), call(1, 0, 6, ended=10), call(2, 1, answered, ended=30)]

    assert excess(history(10), PERMITS) == []
    assert excess(history(9), PERMITS) == [(3, 2)]


def test_a_permit_whose_end_is_never_told_is_held_for_ever() -> None:
    history = [call(0, 0, 1), call(1, 2, 3), call(2, 100 * MINUTE, 101 * MINUTE)]

    assert excess(history, PERMITS) == [(3, 2)]


def test_permits_that_are_still_held_after_an_allowance_are_a_violation() -> None:
    allowed = replace(PERMITS, allowances=(Allowance(0, 10, 1),))

    assert excess([call(number, 0, 1, ended=11) for number in range(3)], allowed) == []
    assert excess([call(number, 0, 1, ended=12) for number in range(3)], allowed) == [(3, 2)]


def test_a_store_may_say_what_was_certainly_admitted_up_to_what_may_have_been() -> None:
    unanswered = Call("gate-0", 9, 3, None, False, (ALICE,), reserved=5)
    history = [
        call(0, 0, 2, reserved=10),
        call(1, 1, 2, ended=3, reserved=10, used=4),
        call(2, 2, 4, ended=5, reserved=10, used=40),
        unanswered,
        replace(unanswered, answered=4),
    ]

    assert count(history, ALICE, Counted.REQUESTS, 1, 4) == Count(2, 4)
    assert count(history, ALICE, Counted.TOKENS, 1, 4) == Count(14, 65)
    assert count(history, ALICE, Counted.REQUESTS, 2, 4) == Count(1, 4)
    assert count(history, ALICE, Counted.REQUESTS, 5, 9) == Count(0, 1)


@pytest.mark.parametrize("times", [(2, 1, None), (0, 3, 2), (0, None, None)])
def test_a_call_whose_times_are_out_of_order_is_refused(times: tuple[int, int | None, int | None]) -> None:
    asked, answered, ended = times
    with pytest.raises(ValueError, match="cannot have happened"):
        Call("gate", 1, asked, answered, True, (ALICE,), ended=ended)


def test_a_hundred_thousand_calls_are_judged_in_seconds() -> None:
    step = MINUTE // 1000
    history = [
        call(number, number * step, (number + 20) * step, ended=(number + 60) * step, reserved=10, used=5)
        for number in range(100_000)
    ]
    bounds = [replace(REQUESTS, at_most=981), replace(TOKENS, at_most=981 * 10), replace(PERMITS, at_most=40)]

    start = time.process_time()
    assert judge(history, bounds) == []
    assert time.process_time() - start < 10
    assert excess(history, replace(REQUESTS, at_most=980), replace(PERMITS, at_most=39)) == [(981, 980), (40, 39)]
