"""Durations of the Gateway API."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.core.limits import HOUR, MINUTE, SECOND
from sluice.schema.durations import format_duration, parse_duration

MILLISECOND = SECOND // 1000


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0s", 0),
        ("10s", 10 * SECOND),
        ("1m30s", 90 * SECOND),
        ("500ms", 500 * MILLISECOND),
        ("1h", HOUR),
        ("1h2m3s4ms", HOUR + 2 * MINUTE + 3 * SECOND + 4 * MILLISECOND),
        ("30s1m", 90 * SECOND),
        ("007s", 7 * SECOND),
        ("99999h", 99999 * HOUR),
    ],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "0", "10", "-1s", "1.5s", "1d", "1S", " 1s", "1s\n", "1 s", "s", "123456s", "1s1s1s1s1s", "\u0661s", "1us"],
)
def test_anything_else_is_none(text: str) -> None:
    assert parse_duration(text) is None


@given(st.integers(0, 99999 * HOUR // MILLISECOND))
def test_a_written_duration_is_read_back(milliseconds: int) -> None:
    nanoseconds = milliseconds * MILLISECOND

    assert parse_duration(format_duration(nanoseconds)) == nanoseconds
