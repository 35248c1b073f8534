"""Every row of the endings table."""

from __future__ import annotations

import pytest

from sluice.core.limits import MAX_COUNT
from sluice.core.permits import Settled
from sluice.usage.estimate import Estimate
from sluice.usage.settlement import Settlement, settle
from sluice.usage.tokens import Usage

ESTIMATE = Estimate(input_tokens=25, output_tokens=100, declared=True)
USAGE = Usage(20, 15)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("tokens", [0, 35, 10_000])
def test_usage_told_is_committed_even_if_the_client_left_after_it(tokens: int, complete: bool) -> None:
    assert settle(200, Usage(tokens, 0), ESTIMATE, complete=complete) == Settlement(tokens, Settled.COMMITTED)


@pytest.mark.parametrize("status", [200, 204, 299, 100, 101, None])
def test_without_usage_the_estimate_stands(status: int | None) -> None:
    assert settle(status, None, ESTIMATE, complete=True) == Settlement(None, Settled.ESTIMATED)


def test_without_usage_more_output_than_estimated_is_charged() -> None:
    assert settle(200, None, ESTIMATE, complete=True, seen_output=400) == Settlement(None, Settled.ESTIMATED)
    assert settle(200, None, ESTIMATE, complete=True, seen_output=401) == Settlement(126, Settled.ESTIMATED)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("usage", [None, USAGE])
@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 404, 429, 499, 500, 503, 529, 599])
def test_errors_and_redirects_are_refunded(status: int, usage: Usage | None, complete: bool) -> None:
    assert settle(status, usage, ESTIMATE, complete=complete, seen_output=99) == Settlement(0, Settled.REFUNDED)


@pytest.mark.parametrize("status", [None, 100, 200])
def test_a_cut_call_is_charged_its_input(status: int | None) -> None:
    assert settle(status, None, ESTIMATE, complete=False) == Settlement(25, Settled.ESTIMATED)


@pytest.mark.parametrize(("seen", "tokens"), [(1, 26), (4, 26), (5, 27), (4000, 1025)])
def test_a_cut_call_is_charged_the_output_that_was_seen(seen: int, tokens: int) -> None:
    assert settle(200, None, ESTIMATE, complete=False, seen_output=seen) == Settlement(tokens, Settled.ESTIMATED)


def test_a_cut_call_is_charged_what_the_provider_told_so_far_if_that_is_more() -> None:
    told = Usage(1125, 1, partial=True)

    assert settle(200, told, ESTIMATE, complete=False, seen_output=40) == Settlement(1126, Settled.ESTIMATED)


def test_a_cut_call_is_never_free() -> None:
    assert settle(None, None, Estimate(0, 256, declared=False), complete=False) == Settlement(1, Settled.ESTIMATED)


def test_a_partial_usage_never_lowers_the_charge() -> None:
    assert settle(200, Usage(None, 15, partial=True), ESTIMATE, complete=True) == Settlement(None, Settled.ESTIMATED)


def test_a_partial_usage_that_exceeds_the_estimate_is_charged() -> None:
    assert settle(200, Usage(None, 999, partial=True), ESTIMATE, complete=True) == Settlement(999, Settled.ESTIMATED)


def test_charges_stay_in_range() -> None:
    most = Estimate(MAX_COUNT, MAX_COUNT, declared=True)

    assert settle(200, None, most, complete=False, seen_output=MAX_COUNT) == Settlement(MAX_COUNT, Settled.ESTIMATED)
    assert settle(200, None, most, complete=True, seen_output=MAX_COUNT) == Settlement(None, Settled.ESTIMATED)
