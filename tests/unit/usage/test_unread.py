"""What the bytes of a cut answer are worth that nobody read."""

from __future__ import annotations

import pytest

from sluice.usage.estimate import Estimate
from sluice.usage.estimation import BYTES_PER_TOKEN
from sluice.usage.unread import unread_output

EVENT_BYTES = 128

DECLARED = Estimate(25, 100, 100)
LEARNED = Estimate(25, 20, 100)
GUESSED = Estimate(25, 100, None)


@pytest.mark.parametrize(
    ("size", "tokens"), [(0, 0), (0.99, 0), (1, 1), (40, 40), (100, 100), (101, 100), (10**9, 100)]
)
@pytest.mark.parametrize("expected", [DECLARED, LEARNED])
def test_a_stream_brings_a_token_an_event_up_to_what_the_caller_declared(
    expected: Estimate, size: float, tokens: int
) -> None:
    told = unread_output(int(size * EVENT_BYTES), EVENT_BYTES, expected, is_stream=True)

    assert told == tokens * BYTES_PER_TOKEN


def test_a_stream_without_a_declared_bound_is_worth_all_its_bytes() -> None:
    told = unread_output(5000 * EVENT_BYTES, EVENT_BYTES, GUESSED, is_stream=True)

    assert told == 5000 * BYTES_PER_TOKEN


@pytest.mark.parametrize("expected", [DECLARED, GUESSED])
@pytest.mark.parametrize(("size", "characters"), [(3, 0), (83, 80), (400, 400), (10**6, 400)])
def test_a_document_is_worth_its_text_up_to_what_was_expected(expected: Estimate, size: int, characters: int) -> None:
    assert unread_output(size, EVENT_BYTES, expected, is_stream=False) == characters
