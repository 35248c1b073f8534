"""What limits say of themselves."""

from __future__ import annotations

import pytest

from sluice.core.limits import DAY, HOUR, MINUTE, Limits, Mode


def test_only_capped_periods_are_counted() -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=2, tokens_per_day=3)
    assert limits.periods == ((MINUTE, 1, 2), (DAY, None, 3))
    assert Limits(requests_per_hour=0).periods == ((HOUR, 0, None),)


def test_periods_of_parts_are_apart_from_those_of_calls() -> None:
    limits = Limits(tokens_per_minute=2, input_tokens_per_minute=3, output_tokens_per_day=0)
    assert limits.periods == ((MINUTE, None, 2),)
    assert limits.parts == ((MINUTE, 3, None), (DAY, None, 0))


@pytest.mark.parametrize(
    ("limits", "unset"),
    [
        (Limits(), True),
        (Limits(max_wait=5, mode=Mode.SHADOW), True),
        (Limits(max_concurrent=0), False),
        (Limits(tokens_per_hour=0), False),
        (Limits(output_tokens_per_day=0), False),
    ],
)
def test_limits_without_a_cap_are_unset_and_a_cap_of_nothing_is_a_cap(limits: Limits, unset: bool) -> None:
    assert limits.is_unset is unset


@pytest.mark.parametrize(
    ("limits", "cap"),
    [
        (Limits(requests_per_day=1, max_concurrent=1), None),
        (Limits(tokens_per_minute=30, tokens_per_hour=20, tokens_per_day=40), 20),
        (Limits(tokens_per_day=0), 0),
        (Limits(tokens_per_day=10, mode=Mode.SHADOW), None),
    ],
)
def test_the_smallest_token_cap_is_the_smallest_that_is_enforced(limits: Limits, cap: int | None) -> None:
    assert limits.smallest_token_cap == cap


@pytest.mark.parametrize(
    ("limits", "cap"),
    [
        (Limits(tokens_per_day=1, input_tokens_per_day=1), None),
        (Limits(output_tokens_per_minute=30, output_tokens_per_hour=20), 20),
        (Limits(output_tokens_per_day=0), 0),
        (Limits(output_tokens_per_day=10, mode=Mode.SHADOW), None),
    ],
)
def test_the_smallest_cap_on_output_is_the_smallest_that_is_enforced(limits: Limits, cap: int | None) -> None:
    assert limits.smallest_output_cap == cap
