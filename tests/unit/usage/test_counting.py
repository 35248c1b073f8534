"""What a call costs by its provider's own count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.core.buckets import Charge
from sluice.core.limits import MAX_COUNT
from sluice.usage.counting import PLAIN, Scale, scale_of
from sluice.usage.profiles.profile import Combine, Counting, FailedRequests, ModelWeights, Weights

CACHED_FREE = Scale(Weights(cache_read=0, cache_write=125))
counts = st.integers(0, MAX_COUNT)


def test_every_token_counts_once_where_nothing_else_is_known() -> None:
    assert PLAIN.charge(100, 20, cache_read=40, cache_write=10) == Charge(120, 100, 20)


def test_each_kind_of_input_has_its_weight() -> None:
    assert CACHED_FREE.charge(100, 20, cache_read=40, cache_write=8) == Charge(52 + 10 + 20, 62, 20)


def test_output_has_its_weight_in_tokens_and_none_in_output_tokens() -> None:
    assert Scale(Weights(output=500)).charge(100, 20) == Charge(200, 100, 20)
    assert Scale(Weights(output=0)).charge(100, 20) == Charge(100, 100, 20)


def test_a_part_of_a_token_counts_as_one() -> None:
    assert Scale(Weights(input=10, output=10)).charge(1, 1) == Charge(2, 1, 1)


def test_more_from_a_cache_than_there_was_input_is_not_counted() -> None:
    assert CACHED_FREE.charge(100, 0, cache_read=1000, cache_write=1000) == Charge(0, 0, 0)
    assert CACHED_FREE.charge(100, 0, cache_read=60, cache_write=1000) == Charge(50, 50, 0)


@pytest.mark.parametrize(("output", "tokens"), [(20, 100), (100, 100), (300, 300)])
def test_the_larger_of_input_and_output_is_reserved_where_the_provider_does_so(output: int, tokens: int) -> None:
    scale = Scale(combine=Combine.LARGEST)

    assert scale.reservation(100, output) == Charge(tokens, 100, output)
    assert scale.charge(100, output) == Charge(100 + output, 100, output)


def test_a_reservation_has_weights_of_its_own_where_the_provider_does_so() -> None:
    scale = Scale(Weights(output=500), admission=Weights())

    assert scale.reservation(100, 20) == Charge(120, 100, 20)
    assert scale.charge(100, 20) == Charge(200, 100, 20)


@given(counts, counts, counts, counts, st.builds(Weights, *[st.integers(0, 9999)] * 4))
def test_no_counts_leave_their_range(taken: int, brought: int, read: int, written: int, weights: Weights) -> None:
    scale = Scale(weights, Combine.LARGEST)

    for charge in (scale.charge(taken, brought, read, written), scale.reservation(taken, brought)):
        assert all(0 <= count <= MAX_COUNT for count in charge)


@given(counts, counts, st.builds(Weights, *[st.integers(1, 9999)] * 4), st.sampled_from(Combine))
def test_within_so_many_tokens_there_is_room_for_the_output_that_it_says(
    tokens: int, taken: int, weights: Weights, combine: Combine
) -> None:
    scale = Scale(weights, combine)
    alone = scale.reservation(taken, 0).tokens

    assert scale.reservation(taken, scale.output_within(tokens, taken)).tokens <= max(tokens, alone)


@pytest.mark.parametrize(("weights", "fresh"), [(Weights(), 60), (Weights(50), 60), (Weights(0, 10), None)])
def test_what_was_charged_is_told_as_input_that_no_cache_had_a_part_in(weights: Weights, fresh: int | None) -> None:
    scale = Scale(replace(weights, cache_read=0))

    assert scale.fresh_input(scale.charge(100, 7, cache_read=40)) == fresh


def test_a_model_is_counted_by_the_first_weights_that_match_it() -> None:
    counting = Counting(
        combine=Combine.LARGEST,
        failed_requests=FailedRequests.COUNTED,
        models=(
            ModelWeights(("*claude-3-5*",), Weights(output=300)),
            ModelWeights(("*claude*", "exact"), Weights(output=500)),
        ),
    )

    assert scale_of(counting, "eu.claude-3-5-haiku") == Scale(
        Weights(output=300), Combine.LARGEST, FailedRequests.COUNTED
    )
    assert scale_of(counting, "claude-sonnet-4").weights.output == 500
    assert scale_of(counting, "exact").weights.output == 500
    assert scale_of(counting, "exactly").weights.output == 100
