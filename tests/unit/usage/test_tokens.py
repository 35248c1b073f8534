"""Which numbers are believed, how reports merge, and what is charged."""

from __future__ import annotations

import math

import pytest

from sluice.core.limits import MAX_COUNT
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import UsageFields
from sluice.usage.tokens import MAX_USED, Tally, Usage

OPENAI, ANTHROPIC, GEMINI = (
    BUILT_IN.profile(name).shapes[-1].response.fields for name in ("openai", "anthropic", "gemini")
)


def tallied(fields: UsageFields, *reports: object) -> Usage | None:
    tally = Tally(fields)
    for report in reports:
        tally.add(report)
    return tally.usage()


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -MAX_USED,
        MAX_USED + 1,
        MAX_COUNT,
        10**400,
        True,
        False,
        1.0,
        0.5,
        math.nan,
        math.inf,
        "7",
        "",
        [7],
        {"n": 7},
        b"7",
    ],
    ids=repr,
)
def test_a_malformed_count_makes_the_usage_partial(value: object) -> None:
    report = {"prompt_tokens": value, "completion_tokens": 5, "total_tokens": 12}

    assert tallied(OPENAI, report) == Usage(None, 5, 12, partial=True)


@pytest.mark.parametrize("value", [0, 1, MAX_USED])
def test_an_integer_in_range_is_a_count(value: int) -> None:
    assert tallied(OPENAI, {"prompt_tokens": value}) == Usage(value, None, None)


@pytest.mark.parametrize("report", [None, {}, {"prompt_tokens": None}, {"prompt_tokens_details": {"cached_tokens": 1}}])
def test_null_and_absent_tell_nothing(report: object) -> None:
    assert tallied(OPENAI, report) is None


@pytest.mark.parametrize("report", ["", "none", 7, True, [], [{"prompt_tokens": 7}]], ids=repr)
def test_a_report_that_is_no_object_makes_the_usage_partial(report: object) -> None:
    assert tallied(OPENAI, report, {"prompt_tokens": 7}) == Usage(7, None, None, partial=True)


def test_usage_without_any_word_of_the_input_is_partial() -> None:
    assert tallied(OPENAI, {"prompt_tokens": None, "completion_tokens": 5}) == Usage(None, 5, partial=True)
    assert tallied(OPENAI, {"completion_tokens": 5, "total_tokens": 12}) == Usage(None, 5, 12)


def test_the_last_report_wins_field_by_field() -> None:
    first = {"input_tokens": 25, "cache_read_input_tokens": 1000, "output_tokens": 1}
    last = {"output_tokens": 15, "input_tokens": None}

    assert tallied(ANTHROPIC, first, last) == Usage(1025, 15, cache_read=1000)


def test_a_malformed_count_takes_the_place_of_an_older_good_one() -> None:
    assert tallied(OPENAI, {"prompt_tokens": 7}, {"prompt_tokens": -7}) == Usage(partial=True)


def test_a_good_count_takes_the_place_of_an_older_malformed_one() -> None:
    assert tallied(OPENAI, {"prompt_tokens": -7}, {"prompt_tokens": 7}) == Usage(7)


def test_openai_has_two_names_for_one_count_and_the_first_one_told_counts() -> None:
    both = {"prompt_tokens": 7, "input_tokens": 0, "completion_tokens": None, "output_tokens": 3}

    assert tallied(OPENAI, both) == Usage(7, 3)


def test_anthropic_input_is_the_sum_of_three() -> None:
    report = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 10},
        "output_tokens": 5,
    }

    assert tallied(ANTHROPIC, report) == Usage(111, 5, cache_read=100, cache_write=10)


def test_gemini_adds_tool_use_and_thoughts_but_not_cached_content() -> None:
    report = {
        "promptTokenCount": 1,
        "toolUsePromptTokenCount": 10,
        "cachedContentTokenCount": 1000,
        "candidatesTokenCount": 100,
        "thoughtsTokenCount": 20,
        "totalTokenCount": 131,
    }

    assert tallied(GEMINI, report) == Usage(11, 120, 131, cache_read=1000, reasoning=20)


def test_sums_do_not_leave_the_range_of_counts() -> None:
    usage = Usage(MAX_COUNT, MAX_COUNT)

    assert usage.total == MAX_COUNT


@pytest.mark.parametrize(
    ("usage", "total"),
    [
        (Usage(3, 4, 99), 7),
        (Usage(3, None, 9), 9),
        (Usage(None, 4, 9), 9),
        (Usage(3, None, 2), 3),
        (Usage(None, None, 9), 9),
        (Usage(3, None, None), 3),
        (Usage(partial=True), 0),
    ],
    ids=repr,
)
def test_the_providers_own_total_counts_only_where_a_part_is_missing(usage: Usage, total: int) -> None:
    assert usage.total == total


def test_usage_fields_know_all_their_names() -> None:
    fields = UsageFields(input_tokens=(("a", "b"), ("c",)), output_tokens=(("d",),))

    assert fields.names == {"a", "b", "c", "d"}
