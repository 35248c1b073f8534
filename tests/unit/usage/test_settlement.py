"""Every row of the endings table."""

from __future__ import annotations

import pytest

from sluice.core.buckets import NO_CHARGE, Charge
from sluice.core.limits import MAX_COUNT
from sluice.core.permits import Settled
from sluice.usage.counting import Scale
from sluice.usage.estimate import Estimate
from sluice.usage.profiles.profile import Combine, FailedRequests, Weights
from sluice.usage.settlement import Settlement, settle
from sluice.usage.tokens import Usage

ESTIMATE = Estimate(input_tokens=25, output_tokens=100, output_cap=100)
USAGE = Usage(20, 15)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("usage", "charge"),
    [
        (Usage(0, 0), NO_CHARGE),
        (USAGE, Charge(35, 20, 15)),
        (Usage(10_000, 0), Charge(10_000, 10_000, 0)),
        (Usage(20, 15, provider_total=99), Charge(35, 20, 15)),
    ],
)
def test_usage_told_is_committed_even_if_the_client_left_after_it(usage: Usage, charge: Charge, complete: bool) -> None:
    assert settle(200, usage, ESTIMATE, complete=complete) == Settlement(charge, Settled.COMMITTED)


@pytest.mark.parametrize(
    ("usage", "charge"),
    [
        (Usage(20, None), Charge(20, 20, 0)),
        (Usage(20, None, 50), Charge(50, 20, 30)),
        (Usage(None, 15, 50), Charge(50, 35, 15)),
        (Usage(None, None, 90), Charge(90, 25, 65)),
        (Usage(None, None, 9), Charge(9, 9, 0)),
        (Usage(20, None, 10), Charge(20, 20, 0)),
    ],
)
def test_a_part_that_was_not_told_is_what_is_left_of_the_providers_sum(usage: Usage, charge: Charge) -> None:
    assert settle(200, usage, ESTIMATE, complete=True) == Settlement(charge, Settled.COMMITTED)


@pytest.mark.parametrize("status", [200, 204, 299, 100, 101, None])
def test_without_usage_the_estimate_stands(status: int | None) -> None:
    assert settle(status, None, ESTIMATE, complete=True) == Settlement(None, Settled.ESTIMATED)


def test_without_usage_more_output_than_estimated_is_charged() -> None:
    more = Settlement(Charge(126, 25, 101), Settled.ESTIMATED)

    assert settle(200, None, ESTIMATE, complete=True, seen_output=400) == Settlement(None, Settled.ESTIMATED)
    assert settle(200, None, ESTIMATE, complete=True, seen_output=401) == more


def test_a_call_without_usage_is_charged_all_that_was_expected_though_less_was_reserved() -> None:
    expected = Settlement(Charge(125, 25, 100), Settled.ESTIMATED)

    assert settle(200, None, ESTIMATE, complete=True, scale=Scale(combine=Combine.LARGEST)) == expected


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("usage", [None, USAGE])
@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 404, 429, 499, 500, 503, 529, 599])
def test_errors_and_redirects_are_refunded(status: int, usage: Usage | None, complete: bool) -> None:
    settlement = settle(status, usage, ESTIMATE, complete=complete, seen_output=99)

    assert settlement == Settlement(NO_CHARGE, Settled.REFUNDED)


@pytest.mark.parametrize("status", [None, 100, 200])
def test_a_cut_call_is_charged_its_input(status: int | None) -> None:
    assert settle(status, None, ESTIMATE, complete=False) == Settlement(Charge(25, 25, 0), Settled.ESTIMATED)


@pytest.mark.parametrize(("seen", "output"), [(1, 1), (4, 1), (5, 2), (4000, 1000)])
def test_a_cut_call_is_charged_the_output_that_was_seen(seen: int, output: int) -> None:
    settlement = settle(200, None, ESTIMATE, complete=False, seen_output=seen)

    assert settlement == Settlement(Charge(25 + output, 25, output), Settled.ESTIMATED)


@pytest.mark.parametrize(
    ("told", "charge"),
    [
        (Usage(1125, 1, partial=True), Charge(1135, 1125, 10)),
        (Usage(24, 300, partial=True), Charge(325, 25, 300)),
        (Usage(None, 300, partial=True), Charge(325, 25, 300)),
        (Usage(None, None, 90, partial=True), Charge(90, 25, 65)),
    ],
)
def test_a_cut_call_is_charged_the_larger_of_told_and_seen_for_each_part(told: Usage, charge: Charge) -> None:
    assert settle(200, told, ESTIMATE, complete=False, seen_output=40) == Settlement(charge, Settled.ESTIMATED)


def test_a_cut_call_is_never_free() -> None:
    settlement = settle(None, None, Estimate(0, 256, None), complete=False)

    assert settlement == Settlement(Charge(1, 1, 0), Settled.ESTIMATED)


def test_a_partial_usage_never_lowers_the_charge() -> None:
    assert settle(200, Usage(None, 15, partial=True), ESTIMATE, complete=True) == Settlement(None, Settled.ESTIMATED)


@pytest.mark.parametrize(
    ("told", "charge"),
    [
        (Usage(None, 999, partial=True), Charge(1024, 25, 999)),
        (Usage(30, 1, partial=True), Charge(130, 30, 100)),
        (Usage(30, 999, partial=True), Charge(1029, 30, 999)),
    ],
)
def test_what_a_partial_usage_tells_above_the_estimate_is_charged(told: Usage, charge: Charge) -> None:
    assert settle(200, told, ESTIMATE, complete=True) == Settlement(charge, Settled.ESTIMATED)


def test_charges_stay_in_range() -> None:
    most = Estimate(MAX_COUNT, MAX_COUNT, MAX_COUNT)
    seen = Settlement(Charge(MAX_COUNT, MAX_COUNT, MAX_COUNT // 4 + 1), Settled.ESTIMATED)

    assert settle(200, None, most, complete=False, seen_output=MAX_COUNT) == seen
    assert settle(200, None, most, complete=True, seen_output=MAX_COUNT) == Settlement(None, Settled.ESTIMATED)


@pytest.mark.parametrize("usage", [Usage(2**64 - 1, None, 5), Usage(None, 2**64 - 1, 5), Usage(2**64 - 1, 2**64 - 1)])
def test_absurd_counts_are_charged_in_range(usage: Usage) -> None:
    charge = settle(200, usage, ESTIMATE, complete=True).charge

    assert charge is not None
    assert all(0 <= count <= MAX_COUNT for count in charge)
    assert charge.tokens == MAX_COUNT


def test_usage_is_charged_by_the_providers_scale() -> None:
    scale = Scale(Weights(cache_read=0, output=500))
    usage = Usage(100, 20, cache_read=40)

    assert settle(200, usage, ESTIMATE, complete=True, scale=scale).charge == Charge(160, 60, 20)


@pytest.mark.parametrize(
    ("status", "settled"), [(302, Settled.REFUNDED), (400, Settled.ESTIMATED), (429, Settled.ESTIMATED)]
)
def test_a_failed_call_keeps_its_estimate_where_the_provider_counts_it(status: int, settled: Settled) -> None:
    scale = Scale(failed_requests=FailedRequests.COUNTED)
    settlement = settle(status, None, ESTIMATE, complete=True, scale=scale)

    assert settlement == Settlement(None if settled is Settled.ESTIMATED else NO_CHARGE, settled)
