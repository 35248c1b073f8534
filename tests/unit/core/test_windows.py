"""A sliding count: how it fills, drains slot by slot, and is amended."""

from __future__ import annotations

import pytest

from sluice.core.limits import DAY, HOUR, MINUTE, SECOND
from sluice.core.windows import MAX_AMOUNT, NEVER, SLOTS, SlidingWindow

LENGTHS = pytest.mark.parametrize("length", [MINUTE, HOUR, DAY])


def window(length: int = MINUTE, first: int = NEVER, second: int = NEVER) -> SlidingWindow:
    made = SlidingWindow(length)
    made.first_limit, made.second_limit = first, second
    return made


def counts(of: SlidingWindow, now: int) -> tuple[int, int]:
    of.slide(now)
    return of.first, of.second


@LENGTHS
@pytest.mark.parametrize("into_slot", [0, 1, 499_999_999, 999_999_999])
def test_a_call_counts_for_the_whole_period_after_it_and_at_most_one_slot_longer(length: int, into_slot: int) -> None:
    slot = length // SLOTS
    booked_at = 5 * slot + into_slot * slot // SECOND
    of = window(length)
    of.book(booked_at, 1, 10)
    assert counts(of, booked_at + length) == (1, 10)
    leaves = (5 + SLOTS + 1) * slot
    assert booked_at + length < leaves <= booked_at + length + slot
    assert counts(of, leaves - 1) == (1, 10)
    assert counts(of, leaves) == (0, 0)


@LENGTHS
def test_a_full_window_drains_slot_by_slot_and_refills(length: int) -> None:
    slot = length // SLOTS
    of = window(length)
    for k in range(SLOTS + 1):
        of.book(k * slot, 1, k)
    for gone in range(SLOTS + 2):
        now = (gone + SLOTS) * slot
        assert counts(of, now) == (SLOTS + 1 - gone, sum(range(gone, SLOTS + 1)))
    of.book((2 * SLOTS + 1) * slot, 1, 7)
    assert counts(of, (2 * SLOTS + 1) * slot) == (1, 7)


def test_calls_of_one_slot_share_it() -> None:
    of = window()
    for at in (0, 1, SECOND - 1):
        of.book(at, 1, 10)
    assert list(of._slots) == [0, 3, 30]  # noqa: SLF001


def test_slots_without_calls_cost_nothing_and_those_that_left_are_dropped() -> None:
    of = window(DAY)
    for at in range(0, 100 * DAY, DAY // SLOTS):
        of.slide(at)
        of.book(at, 1, 1)
    assert counts(of, 100 * DAY) == (SLOTS, SLOTS)
    assert len(of._slots) <= 3 * 2 * (SLOTS + 2)  # noqa: SLF001


def test_nothing_to_do_before_the_oldest_slot_leaves() -> None:
    of = window()
    assert of.expires == NEVER
    of.book(7 * SECOND, 1, 1)
    of.book(9 * SECOND, 1, 1)
    assert of.expires == (7 + 61) * SECOND
    of.slide(of.expires)
    assert of.expires == (9 + 61) * SECOND
    of.slide(of.expires)
    assert of.expires == NEVER


def test_room_is_what_the_caps_leave_to_the_last_token() -> None:
    of = window(first=2, second=100)
    of.book(0, 1, 60)
    assert of.has_room(1, 40)
    assert not of.has_room(1, 41)
    assert not of.has_room(2, 40)
    assert of.has_room(0, 0)


def test_an_amendment_goes_to_the_slot_of_the_booking_and_leaves_with_it() -> None:
    of = window()
    for at in (0, 3 * SECOND, 4 * SECOND, 9 * SECOND):
        of.book(at, 1, 100)
    assert of.amend(3 * SECOND + 999_999_999, 0, -60)
    assert counts(of, 10 * SECOND) == (4, 340)
    assert counts(of, 61 * SECOND) == (3, 240)
    assert counts(of, 64 * SECOND) == (2, 200)


@pytest.mark.parametrize("of_slot", [0, 1, 3, 5, 10])
def test_an_amendment_of_a_slot_that_does_not_count_changes_nothing(of_slot: int) -> None:
    of = window()
    for at in (0, 2, 4, 62):
        of.book(at * SECOND, 1, 100)
    before = counts(of, 62 * SECOND)  # slot 0 has left, 2, 4 and 62 count
    assert not of.amend(of_slot * SECOND, 1, 50)
    assert counts(of, 62 * SECOND) == before == (3, 300)


def test_an_amendment_of_an_empty_window_changes_nothing() -> None:
    of = window()
    assert not of.amend(0, 1, 1)
    assert counts(of, 0) == (0, 0)


def test_it_says_when_a_demand_fits() -> None:
    of = window(first=3, second=100)
    for at, tokens in ((0, 50), (2, 30), (5, 20)):
        of.book(at * SECOND, 1, tokens)
    now = 6 * SECOND
    of.slide(now)
    assert of.fits_at(now, 0, 0) == now
    assert of.fits_at(now, 1, 0) == 61 * SECOND
    assert of.fits_at(now, 1, 50) == 61 * SECOND
    assert of.fits_at(now, 1, 51) == 63 * SECOND
    assert of.fits_at(now, 1, 81) == 66 * SECOND
    assert of.fits_at(now, 3, 1) == 66 * SECOND
    assert of.fits_at(now, 3, 100) == 66 * SECOND


@pytest.mark.parametrize("demand", [(4, 0), (0, 101)])
def test_more_than_a_cap_allows_never_fits(demand: tuple[int, int]) -> None:
    assert window(first=3, second=100).fits_at(0, *demand) == NEVER


def test_it_is_empty_when_the_last_slot_leaves() -> None:
    of = window()
    assert of.empty_at == 0
    of.book(0, 1, 1)
    of.book(3 * SECOND, 1, 1)
    assert of.empty_at == 64 * SECOND
    of.slide(64 * SECOND)
    assert of.empty_at == 0


def test_the_largest_amounts_add_up_in_one_slot() -> None:
    of = window()
    for _ in range(1000):
        of.book(0, MAX_AMOUNT, MAX_AMOUNT)
    assert counts(of, 0) == (1000 * MAX_AMOUNT, 1000 * MAX_AMOUNT)


def test_times_far_from_zero_are_slots_like_any_other() -> None:
    for origin in (-10 * DAY, 2**62):
        of = window()
        of.book(origin, 1, 1)
        assert counts(of, origin + MINUTE) == (1, 1)
        assert counts(of, origin + MINUTE + SECOND) == (0, 0)
