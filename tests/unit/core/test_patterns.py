"""Patterns of `match`: `*` is the only special character."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.core.keys import Scope
from sluice.core.limits import Limits
from sluice.core.rules import Rule, RuleBook

LETTERS = st.text("ab*[?", max_size=8)


def applies(pattern: str, subject: str) -> bool:
    rule = Rule("openai", Scope.USER, Limits(requests_per_minute=1), subjects=(pattern,))
    return bool(RuleBook((rule,)).match("openai", {Scope.USER: subject}))


@given(pattern=LETTERS.filter(bool), subject=LETTERS)
def test_a_star_stands_for_any_run_of_characters_and_all_else_for_itself(pattern: str, subject: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), subject, re.DOTALL) is not None

    assert applies(pattern, subject) == expected


@pytest.mark.parametrize("subject", ["a", "x", "[ab]c", "a\nb"])
def test_a_lone_star_matches_every_subject_and_no_subject(subject: str) -> None:
    assert applies("*", subject)
    assert applies("*", "")


def test_a_subject_that_spells_a_pattern_is_not_its_name() -> None:
    wide = Limits(requests_per_minute=100)
    narrow = Limits(requests_per_minute=1)
    book = RuleBook(
        (
            Rule("openai", Scope.USER, wide, subjects=("*",)),
            Rule("openai", Scope.USER, narrow, subjects=("**",)),
        )
    )

    (applied,) = book.match("openai", {Scope.USER: "*"})

    assert applied.limits == narrow


def test_a_hostile_subject_costs_no_more_than_its_length() -> None:
    # With backtracking, twelve stars over 64 KiB that all but match would not end.
    assert not applies("a*" * 12 + "b", "a" * 65536)
