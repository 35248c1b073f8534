"""Hostile and surprising YAML."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.schema.yamltext import Document, Plain, Refused, Unreadable, read, read_word


def trees(text: str) -> list[object]:
    return [document.tree for document in read(text)]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_nesting_is_refused_before_it_costs_anything(opening: str) -> None:
    with pytest.raises(Unreadable, match="line 1: nests more than 64 levels deep"):
        trees(opening * 100_000)


def test_nesting_as_deep_as_the_bound_is_read() -> None:
    assert trees("[" * 63 + "]" * 63)


def test_a_bomb_of_aliases_is_never_unfolded() -> None:
    levels = [f"l{n}: &l{n} [" + ", ".join([f"*l{n - 1}"] * 9) + "]" for n in range(1, 30)]
    refused = Refused("anchors and aliases are not read: write the value out")

    (tree,) = trees("\n".join(["l0: &l0 lol", *levels]))

    assert tree == {f"l{n}": refused for n in range(30)}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", 0),
        ("-1", -1),
        ("9007199254740993", 9007199254740993),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("gpt-4.1", "gpt-4.1"),
        ("4o-mini", "4o-mini"),
        ("10s", "10s"),
        ("a:b", "a:b"),
    ],
)
def test_a_word_that_all_readers_agree_on_is_read(word: str, value: object) -> None:
    assert trees(f"[{word}]") == [[value]]


TRUTHS = ["yes", "No", "ON", "off", "y", "N", "True", "FALSE"]
INTEGERS = ["017", "0o17", "0x1F", "0b1", "+1", "1_000", "1:30", "9" * 5000]
FRACTIONS = ["1e3", "1.0", ".5", "1.", ".inf", "-.INF", ".NaN"]
OTHERS = ["NULL", "2026-01-02", "2026-01-02T03:04:05Z", "="]


@pytest.mark.parametrize("word", [*TRUTHS, *INTEGERS, *FRACTIONS, *OTHERS])
def test_a_word_that_readers_disagree_on_stays_a_word(word: str) -> None:
    assert trees(f"[{word}]") == [[Plain(word)]]
    assert trees(f"['{word}']") == [[word]]


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\ta: 1", "a: 'b", "%YAML 9.0\n---\n", "a: 1\n...\nb: 2", '"\\ud800"', "\0"]
)
def test_a_broken_text_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(Unreadable, match=r"is not YAML: .*[a-z]"):
        trees(text)


def test_a_lone_surrogate_is_refused_at_its_place() -> None:
    with pytest.raises(Unreadable, match="not valid Unicode at character 4"):
        trees("a: \ud800")


def test_documents_before_a_broken_one_are_read() -> None:
    documents = read("a: 1\n---\n---\nb: 2\n---\n[")

    assert [next(documents), next(documents)] == [Document(1, {"a": 1}), Document(3, {"b": 2})]
    with pytest.raises(Unreadable):
        next(documents)


def test_a_byte_order_mark_is_skipped() -> None:
    assert trees("\ufeffa: 1") == [{"a": 1}]


# What YAML treats apart, and a few bytes that it does not allow.
YAMLS_OWN = st.text(alphabet="&*!?:-[]{},'\"|>#%@` \n\tab01.~<=\\\0\r\x1b\x85\ufeff\ufffe\U0001f600\ud800")


@given(YAMLS_OWN)
def test_any_run_of_yamls_own_characters_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Unreadable):
        trees(text)


@given(st.integers(-(10**18), 10**18))
def test_an_integer_is_read_as_itself(number: int) -> None:
    assert read_word(str(number)) == number
