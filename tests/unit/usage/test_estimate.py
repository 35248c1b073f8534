"""What a call is expected to cost, whatever its request says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.core.limits import MAX_COUNT
from sluice.usage.counting import Scale
from sluice.usage.estimate import OUTPUT_CAPS, Asked, Estimate, asked, estimate
from sluice.usage.estimation import Estimation
from sluice.usage.learning import Experience, Lesson
from sluice.usage.profiles.profile import Combine, EstimationMode, Weights

counts = st.integers(0, MAX_COUNT)
DECLARED = Estimation(mode=EstimationMode.DECLARED)
LEARNED = Estimation(mode=EstimationMode.LEARNED)
FIXED = Estimation(mode=EstimationMode.FIXED)


TOKEN_A_BYTE = {"size": 300, "tokens": 100_000}
"""Calls whose input stands elsewhere than in their bodies."""


def experience(cap: int | None, output: int, size: int = 800, tokens: int = 100) -> Experience:
    """What is known after twenty calls that were all the same."""
    experience = Experience()
    for _ in range(20):
        experience.learn(Lesson(size, cap, tokens, output), 90)
    return experience


@pytest.mark.parametrize("name", OUTPUT_CAPS)
def test_a_request_says_its_size_and_what_bounds_its_output(name: str) -> None:
    assert asked({"bytes": "100", name: "20"}) == Asked(100, 20)


def test_the_largest_of_several_output_caps_counts() -> None:
    assert asked({"max_tokens": "1", "max_completion_tokens": "9000", "max_output_tokens": "20"}) == Asked(0, 9000)


@pytest.mark.parametrize(("n", "output"), [("3", 60), ("1", 20), ("0", 20), ("-4", 20), ("x", 20)])
def test_a_declared_cap_counts_for_every_answer_and_at_least_for_one(n: str, output: int) -> None:
    assert asked({"max_tokens": "20", "n": n}) == Asked(0, output)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "-1",
        "+1",
        "0",
        "0.0",
        "1e9",
        "nan",
        "inf",
        "0x10",
        "1_0",
        "1 ",
        "1\n",
        "²",
        "٣",
        "9" * 5000,
        ".",
        "1" * 21,
        "1.",
        ".5",
        "16.0.0",
        "\x00",
        "true",
        "[1]",
        "\ud800",
    ],
    ids=lambda text: ascii(text)[:12],
)
def test_an_unreadable_cap_declares_nothing(text: str) -> None:
    assert asked(dict.fromkeys((*OUTPUT_CAPS, "bytes", "blob_bytes", "n"), text)) == Asked(0, None)


@pytest.mark.parametrize(("text", "tokens"), [("16.000000", 16), ("16.5", 17), ("0.1", 1), ("0016", 16)])
def test_a_number_is_read_as_envoy_prints_it(text: str, tokens: int) -> None:
    assert asked({"max_tokens": text}) == Asked(0, tokens)


def test_absurd_numbers_stay_in_range() -> None:
    huge = "9" * 20

    found = estimate(asked({"bytes": huge, "max_tokens": huge, "n": huge}), DECLARED)

    assert found == Estimate(-(-MAX_COUNT // 4), MAX_COUNT, MAX_COUNT)
    assert found.total == MAX_COUNT


@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000)])
@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_an_input_of_which_nothing_was_learned_is_a_quarter_of_its_bytes(
    estimation: Estimation, size: int, tokens: int
) -> None:
    assert estimate(Asked(size, None), estimation).input_tokens == tokens


@pytest.mark.parametrize(
    ("size", "blobs", "tokens"),
    [
        (1_333_336, 1_333_336, 2605),
        (1_333_736, 1_333_336, 100 + 2605),
        (1, 1, 1),
        (512, 512, 1),
        (513, 513, 2),
        (100, 200, 1),
    ],
)
@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_files_count_far_less_than_text_of_their_size(
    estimation: Estimation, size: int, blobs: int, tokens: int
) -> None:
    request = asked({"bytes": str(size), "blob_bytes": str(blobs)})

    assert estimate(request, estimation).input_tokens == tokens


def test_what_was_learned_of_text_is_not_applied_to_files() -> None:
    known = experience(None, 100, size=800, tokens=800)

    assert estimate(Asked(51_600, None, 51_200), LEARNED, known).input_tokens == 400 + 100


@pytest.mark.parametrize("facts", [{"blob_bytes": "512"}, {"bytes": "8", "blob_bytes": "x"}, {"bytes": "8"}])
def test_files_of_no_size_or_in_a_body_of_none_change_nothing(facts: dict[str, str]) -> None:
    assert asked(facts).blob_size == 0


def test_an_api_without_output_has_files_too() -> None:
    assert asked({"bytes": "20", "blob_bytes": "10"}, brings_output=False) == Asked(20, 0, 10)


@pytest.mark.parametrize(("ratio", "tokens"), [(1, 1001), (3, 334), (64, 16)])
def test_how_many_bytes_make_a_token_can_be_said(ratio: int, tokens: int) -> None:
    assert estimate(Asked(1001, None), replace(DECLARED, bytes_per_token=ratio)).input_tokens == tokens


@pytest.mark.parametrize(
    ("estimation", "cap", "output"),
    [
        (DECLARED, 20, 20),
        (DECLARED, 64_000, 64_000),
        (DECLARED, None, 256),
        (LEARNED, 20, 20),
        (LEARNED, 64_000, 64_000),
        (LEARNED, None, 256),
        (FIXED, 20, 20),
        (FIXED, 64_000, 256),
        (FIXED, None, 256),
    ],
)
def test_what_each_mode_reserves_for_a_call_of_which_nothing_was_learned(
    estimation: Estimation, cap: int | None, output: int
) -> None:
    assert estimate(Asked(0, cap), estimation) == Estimate(0, output, cap)


@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_the_default_can_be_said(estimation: Estimation) -> None:
    assert estimate(Asked(8, None), replace(estimation, default_output_tokens=1000)) == Estimate(2, 1000, None)


@pytest.mark.parametrize(
    ("cap", "learned", "expected"),
    [
        (65_536, 512, Estimate(100, 512, 65_536)),
        (None, 512, Estimate(100, 512, None)),
        (None, 8192, Estimate(100, 8192, None)),
        (1000, 1000, Estimate(100, 1000, 1000)),
    ],
)
def test_what_was_learned_is_reserved_in_the_mode_for_it(cap: int | None, learned: int, expected: Estimate) -> None:
    assert estimate(Asked(800, cap), LEARNED, experience(cap, learned)) == expected


@pytest.mark.parametrize("estimation", [DECLARED, FIXED])
@pytest.mark.parametrize("cap", [None, 65_536])
def test_other_modes_do_not_heed_what_was_learned(estimation: Estimation, cap: int | None) -> None:
    request = Asked(800, cap)

    assert estimate(request, estimation, experience(cap, 512)) == estimate(request, estimation)


def test_input_is_learned_also_where_the_output_was_never_told() -> None:
    known = Experience()
    for _ in range(20):
        known.learn(Lesson(800, 64, 400, None), 90)

    assert estimate(Asked(1600, 64), LEARNED, known) == Estimate(800, 64, 64)


@pytest.mark.parametrize(
    ("size", "cap", "expected"),
    [
        (100, 100_000, Estimate(25, 256, None)),
        (100, 1124, Estimate(25, 256, None)),
        (100, 1123, Estimate(25, 255, None)),
        (40, 100, Estimate(10, 15, None)),
        (100, 100, Estimate(25, 1, None)),
        (4000, 100, Estimate(1000, 1, None)),
        (4, 0, Estimate(1, 1, None)),
    ],
)
@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_an_undeclared_output_leaves_the_estimate_within_a_quarter_of_the_smallest_cap(
    estimation: Estimation, size: int, cap: int, expected: Estimate
) -> None:
    assert estimate(Asked(size, None), estimation, smallest_cap=cap) == expected


def test_a_declared_output_is_not_lowered_where_the_callers_word_counts() -> None:
    assert estimate(Asked(0, 5000), DECLARED, smallest_cap=100) == Estimate(0, 5000, 5000)


@pytest.mark.parametrize(
    ("cap", "input_cap", "size", "expected"),
    [
        (None, None, 200_000, 200_000),
        (100_000, None, 200_000, 50_000),
        (None, 100_000, 200_000, 50_000),
        (400_000, None, 200_000, 100_000),
        (400_000, 300_000, 200_000, 75_000),
        (400_000, None, 60_000, 60_000),
    ],
)
def test_what_was_learned_of_other_calls_makes_no_input_too_large_for_ever(
    cap: int | None, input_cap: int | None, size: int, expected: int
) -> None:
    known = experience(1000, 50, **TOKEN_A_BYTE)
    found = estimate(Asked(size, 1000), LEARNED, known, smallest_cap=cap, smallest_input_cap=input_cap)
    assert found.input_tokens == expected


def test_an_input_that_costs_nothing_meets_no_cap() -> None:
    known, scale = experience(1000, 50, **TOKEN_A_BYTE), Scale(Weights(input=0))
    assert estimate(Asked(200_000, 1000), LEARNED, known, scale, smallest_cap=100).input_tokens == 200_000


@pytest.mark.parametrize(("cap", "output"), [(10_000, 256), (1000, 250), (3, 1), (0, 1)])
@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_an_undeclared_output_stays_within_a_quarter_of_the_smallest_cap_on_output(
    estimation: Estimation, cap: int, output: int
) -> None:
    assert estimate(Asked(4000, None), estimation, smallest_output_cap=cap) == Estimate(1000, output, None)


@pytest.mark.parametrize(
    ("scale", "output"),
    [
        (Scale(Weights(output=500)), 30),
        (Scale(Weights(output=0)), 256),
        (Scale(combine=Combine.LARGEST), 250),
        (Scale(Weights(output=500), Combine.LARGEST), 50),
    ],
)
def test_what_is_within_the_quarter_is_seen_by_what_the_provider_counts(scale: Scale, output: int) -> None:
    found = estimate(Asked(400, None), DECLARED, None, scale, smallest_cap=1000)

    assert found == Estimate(100, output, None)
    assert scale.reservation(100, output).tokens <= 250


@pytest.mark.parametrize("estimation", [DECLARED, LEARNED, FIXED])
def test_a_call_that_brings_no_output_reserves_none(estimation: Estimation) -> None:
    request = asked({"bytes": "800", "max_tokens": "20"}, brings_output=False)

    assert estimate(request, estimation, smallest_cap=100) == Estimate(200, 0, 0)
    assert estimate(request, estimation, experience(0, 0)).output_tokens == 0


@pytest.mark.parametrize("known", [None, experience(64_000, 32_000)])
def test_neither_a_declared_cap_nor_what_was_learned_refuses_every_call_where_it_learns(
    known: Experience | None,
) -> None:
    assert estimate(Asked(0, 64_000), LEARNED, known, smallest_cap=10_000) == Estimate(0, 2500, 64_000)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*OUTPUT_CAPS, "bytes", "blob_bytes", "n"]), st.text() | st.integers().map(str)),
    st.builds(
        Estimation,
        st.sampled_from(EstimationMode),
        st.integers(1, 64),
        st.integers(1, MAX_COUNT),
    ),
    st.none() | st.builds(experience, st.none() | counts, counts, counts, counts),
    st.builds(Scale, st.builds(Weights, *[st.integers(0, 9999)] * 4), st.sampled_from(Combine)),
    st.none() | counts,
    st.none() | counts,
)
def test_every_estimate_is_a_pair_of_counts_and_no_guess_is_too_large_for_ever(
    facts: dict[str, str],
    estimation: Estimation,
    known: Experience | None,
    scale: Scale,
    smallest: int | None,
    smallest_output: int | None,
) -> None:
    request = asked(facts)

    found = estimate(request, estimation, known, scale, smallest_cap=smallest, smallest_output_cap=smallest_output)

    assert 0 <= found.input_tokens <= MAX_COUNT
    assert 1 <= found.output_tokens <= (MAX_COUNT if request.output_cap is None else request.output_cap)
    if found.output_tokens > 1 and (request.output_cap is None or estimation.mode is not EstimationMode.DECLARED):
        reserved = scale.reservation(found.input_tokens, found.output_tokens)
        alone = scale.reservation(found.input_tokens, 0)
        assert smallest is None or reserved.tokens <= max(smallest // 4, alone.tokens)
        assert smallest_output is None or reserved.output_tokens <= smallest_output // 4
