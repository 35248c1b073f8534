"""The most specific rule of each scope applies, whatever the book holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.ledger import PROVIDER
from sluice.core.keys import SCOPES, BucketKey, Scope
from sluice.core.limits import Limits
from sluice.core.rules import Rule, RuleBook

WORDS = st.text("ab", max_size=3)
PATTERNS = st.lists(st.text("ab*", min_size=1, max_size=4), max_size=2).map(tuple)
LIMITS = st.integers(0, 10**6).map(lambda cap: Limits(requests_per_minute=cap))
RULES = st.lists(
    st.builds(Rule, st.sampled_from((PROVIDER, "other")), st.sampled_from(SCOPES), LIMITS, PATTERNS, PATTERNS),
    max_size=6,
)
SUBJECTS = st.dictionaries(st.sampled_from(SCOPES), WORDS)


def fits(pattern: str, value: str) -> bool:
    """By the book: a star is any run of characters."""
    if not pattern:
        return not value
    if pattern[0] == "*":
        return any(fits(pattern[1:], value[k:]) for k in range(len(value) + 1))
    return value[:1] == pattern[0] and fits(pattern[1:], value[1:])


def narrowness(patterns: tuple[str, ...], value: str) -> tuple[bool, int] | None:
    """How narrowly the patterns fit: a name most, a longer pattern more than a shorter one; None: not at all."""
    if not patterns:
        return False, 0
    fitting = (("*" not in pattern, len(pattern)) for pattern in patterns if fits(pattern, value))
    return max(fitting, default=None)


@given(RULES, SUBJECTS, WORDS)
def test_the_most_specific_rule_of_each_scope_applies(
    rules: list[Rule], subjects: dict[Scope, str], model: str
) -> None:
    applied = {each.key.scope: each for each in RuleBook(tuple(rules)).match(PROVIDER, subjects, model)}
    for scope in SCOPES:
        subject = subjects.get(scope, "")
        fitting = []
        for rule in rules:
            by_subject, by_model = narrowness(rule.subjects, subject), narrowness(rule.models, model)
            if rule.provider == PROVIDER and rule.scope is scope and by_subject is not None and by_model is not None:
                fitting.append((by_subject, by_model, rule))
        if not fitting:
            assert scope not in applied
            continue
        _, _, best = max(fitting, key=lambda found: found[:2])
        assert applied[scope].limits is best.limits
        assert applied[scope].key == BucketKey(PROVIDER, scope, subject, ",".join(sorted(best.models)))


@given(RULES, SUBJECTS, WORDS)
def test_a_bucket_finds_the_limits_by_which_it_was_made(
    rules: list[Rule], subjects: dict[Scope, str], model: str
) -> None:
    book = RuleBook(tuple(rules))
    for key, limits, _ in book.match(PROVIDER, subjects, model):
        assert book.limits_of(key) == limits


@given(RULES, SUBJECTS, WORDS)
def test_rules_of_other_scopes_and_providers_change_nothing(
    rules: list[Rule], subjects: dict[Scope, str], model: str
) -> None:
    applied = {each.key.scope: each for each in RuleBook(tuple(rules)).match(PROVIDER, subjects, model)}
    for scope in SCOPES:
        alone = [rule for rule in rules if rule.scope is scope and rule.provider == PROVIDER]
        found = RuleBook(tuple(alone)).match(PROVIDER, subjects, model)
        assert found == ((applied[scope],) if scope in applied else ())
