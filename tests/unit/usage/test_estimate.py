"""What a call is expected to cost, whatever its request says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.core.limits import MAX_COUNT
from sluice.usage.estimate import OUTPUT_CAPS, Estimate, estimate


@pytest.mark.parametrize(("size", "tokens"), [("0", 0), ("1", 1), ("4", 1), ("5", 2), ("4000", 1000)])
def test_input_is_a_quarter_of_the_bytes_rounded_up(size: str, tokens: int) -> None:
    assert estimate({"bytes": size}).input_tokens == tokens


@pytest.mark.parametrize("name", OUTPUT_CAPS)
def test_a_declared_output_cap_is_reserved(name: str) -> None:
    assert estimate({"bytes": "100", name: "20"}) == Estimate(25, 20, declared=True)


def test_the_largest_of_several_output_caps_counts() -> None:
    facts = {"max_tokens": "1", "max_completion_tokens": "9000", "max_output_tokens": "20"}

    assert estimate(facts) == Estimate(0, 9000, declared=True)


@pytest.mark.parametrize(("n", "output"), [("3", 60), ("1", 20), ("0", 20), ("-4", 20), ("x", 20)])
def test_a_declared_cap_counts_for_every_answer_and_at_least_for_one(n: str, output: int) -> None:
    assert estimate({"max_tokens": "20", "n": n}).output_tokens == output


def test_a_call_that_declares_nothing_is_expected_to_use_the_default() -> None:
    assert estimate({}) == Estimate(0, 256, declared=False)
    assert estimate({"bytes": "8"}, default_output_tokens=1000) == Estimate(2, 1000, declared=False)


@pytest.mark.parametrize(
    ("size", "cap", "expected"),
    [
        (100, 100_000, Estimate(25, 256, declared=False)),
        (100, 1124, Estimate(25, 256, declared=False)),
        (100, 1123, Estimate(25, 255, declared=False)),
        (40, 100, Estimate(10, 15, declared=False)),
        (100, 100, Estimate(25, 1, declared=False)),
        (4000, 100, Estimate(1000, 1, declared=False)),
        (4, 0, Estimate(1, 1, declared=False)),
    ],
)
def test_an_undeclared_output_leaves_the_estimate_within_a_quarter_of_the_smallest_cap(
    size: int, cap: int, expected: Estimate
) -> None:
    assert estimate({"bytes": str(size)}, smallest_cap=cap) == expected


@pytest.mark.parametrize(
    ("cap", "output_cap", "output"),
    [(None, 2000, 256), (None, 1000, 250), (400, 1000, 75), (2000, 40, 10), (None, 3, 1), (None, 0, 1)],
)
def test_an_undeclared_output_is_within_a_quarter_of_the_smallest_cap_on_output_too(
    cap: int | None, output_cap: int, output: int
) -> None:
    expected = Estimate(25, output, declared=False)

    assert estimate({"bytes": "100"}, smallest_cap=cap, smallest_output_cap=output_cap) == expected


def test_a_declared_output_is_not_lowered() -> None:
    expected = Estimate(0, 5000, declared=True)

    assert estimate({"max_tokens": "5000"}, smallest_cap=100, smallest_output_cap=100) == expected


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
    assert estimate(dict.fromkeys((*OUTPUT_CAPS, "bytes", "n"), text)) == Estimate(0, 256, declared=False)


@pytest.mark.parametrize(("text", "tokens"), [("16.000000", 16), ("16.5", 17), ("0.1", 1), ("0016", 16)])
def test_a_number_is_read_as_envoy_prints_it(text: str, tokens: int) -> None:
    assert estimate({"max_tokens": text}).output_tokens == tokens


def test_absurd_numbers_stay_in_range() -> None:
    huge = "9" * 20

    found = estimate({"bytes": huge, "max_tokens": huge, "n": huge})

    assert found == Estimate(-(-MAX_COUNT // 4), MAX_COUNT, declared=True)
    assert found.total == MAX_COUNT


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*OUTPUT_CAPS, "bytes", "n"]), st.text() | st.integers().map(str)),
    st.integers(0, MAX_COUNT),
    st.none() | st.integers(0, MAX_COUNT),
)
def test_every_estimate_is_a_pair_of_counts(facts: dict[str, str], default: int, cap: int | None) -> None:
    found = estimate(facts, default, cap)

    assert 0 <= found.input_tokens <= MAX_COUNT
    assert 0 <= found.output_tokens <= MAX_COUNT
    if cap is not None and not found.declared and default:
        assert found.output_tokens == 1 or found.total <= cap // 4
