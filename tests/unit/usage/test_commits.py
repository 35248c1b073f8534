"""When the tokens that calls use are said to be missing."""

from __future__ import annotations

import pytest

from sluice.usage.commits import FEWEST, Missing, missing


@pytest.mark.parametrize(
    ("committed", "untold", "expired", "why"),
    [
        (0, 0, 0, None),
        (0, FEWEST - 1, 0, None),
        (0, FEWEST, 0, Missing.NO_USAGE),
        (0, 0, FEWEST, Missing.NO_STREAM),
        (0, 3, 2, Missing.NO_USAGE),
        (0, 2, 3, Missing.NO_STREAM),
        (5, 5, 0, None),
        (5, 6, 0, Missing.NO_USAGE),
        (5, 0, 6, Missing.NO_STREAM),
        (1000, 400, 400, None),
    ],
)
def test_most_of_enough_calls_decide(committed: int, untold: int, expired: int, why: Missing | None) -> None:
    assert missing(committed, untold, expired) is why
