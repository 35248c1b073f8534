"""Which limits meet a call."""

from __future__ import annotations

import pytest

from sluice.core.keys import SCOPES, BucketKey, Scope
from sluice.core.limits import Limits
from sluice.core.rules import Applied, Rule, RuleBook


def rule(cap: int, *subjects: str, models: tuple[str, ...] = (), scope: Scope = Scope.USER) -> Rule:
    """A rule that is recognised by its cap."""
    return Rule("openai", scope, Limits(requests_per_minute=cap), subjects, models)


def cap_for(book: RuleBook, subject: str, model: str = "") -> int | None:
    applied = book.match("openai", {Scope.USER: subject}, model)
    return applied[0].limits.requests_per_minute if applied else None


def test_a_name_beats_a_pattern_and_a_longer_pattern_a_shorter_one_and_any_of_them_everybody() -> None:
    rules = (rule(1), rule(2, "team-*"), rule(3, "team-a-*"), rule(4, "team-a-1"))
    for order in (rules, rules[::-1]):
        book = RuleBook(order)
        caps = [cap_for(book, subject) for subject in ("bob", "team-b", "team-a-2", "team-a-1")]
        assert caps == [1, 2, 3, 4]


def test_likewise_for_models_and_the_subject_weighs_more() -> None:
    book = RuleBook((
        rule(1), rule(2, models=("gpt-5*",)), rule(3, models=("gpt-5-mini",)),
        rule(4, "alice"), rule(5, "alice", models=("gpt-5*",)), rule(6, "bob", models=("o3",)),
    ))  # fmt: skip
    assert [cap_for(book, "carol", model) for model in ("o3", "gpt-5", "gpt-5-mini")] == [1, 2, 3]
    assert [cap_for(book, "alice", model) for model in ("o3", "gpt-5", "gpt-5-mini")] == [4, 5, 5]
    assert [cap_for(book, "bob", model) for model in ("o3", "gpt-5", "gpt-5-mini")] == [6, 2, 3]


def test_among_equals_the_first_applies() -> None:
    assert cap_for(RuleBook((rule(1, "a*"), rule(2, "*a"))), "aa") == 1


def test_a_rule_speaks_for_each_of_its_subjects_and_models() -> None:
    book = RuleBook((rule(1, "alice", "b*", models=("gpt-5", "o*")),))
    assert [cap_for(book, s, m) for s, m in (("alice", "o3"), ("bob", "gpt-5"), ("carol", "o3"), ("bob", "gpt-4"))] == [
        1, 1, None, None,
    ]  # fmt: skip


def test_a_rule_for_some_models_does_not_meet_a_call_without_a_model() -> None:
    assert cap_for(RuleBook((rule(1, models=("gpt-5",)),)), "alice") is None


def test_each_scope_has_its_own_bucket_and_a_provider_without_rules_has_none() -> None:
    book = RuleBook(tuple(rule(cap, scope=scope) for cap, scope in enumerate(SCOPES)))
    subjects = {Scope.USER: "alice", Scope.ORG: "acme"}
    assert book.match("openai", subjects) == (
        Applied(BucketKey("openai", Scope.USER, "alice"), Limits(requests_per_minute=0), "User *"),
        Applied(BucketKey("openai", Scope.ORG, "acme"), Limits(requests_per_minute=1), "Org *"),
        Applied(BucketKey("openai", Scope.PROJECT, ""), Limits(requests_per_minute=2), "Project *"),
    )
    assert book.match("anthropic", subjects) == ()


def test_a_rule_is_named_by_what_it_matches_and_not_by_its_limits() -> None:
    rules = (rule(1), rule(2, "bob", "alice"), rule(3, models=("o*", "gpt-5")), rule(4, "alice", models=("o*",)))

    assert [each.name for each in rules] == ["User *", "User alice,bob", "User * gpt-5,o*", "User alice o*"]
    assert RuleBook(rules).match("openai", {Scope.USER: "alice"}, "o3")[0].rule == "User alice o*"


def test_models_of_one_rule_share_a_bucket_and_another_rules_models_have_their_own() -> None:
    book = RuleBook((rule(1), rule(2, models=("o*", "gpt-5*"))))

    def bucket(model: str) -> BucketKey:
        return book.match("openai", {Scope.USER: "alice"}, model)[0].key

    assert bucket("gpt-5-mini") == bucket("o3") == BucketKey("openai", Scope.USER, "alice", "gpt-5*,o*")
    assert bucket("gpt-4") == BucketKey("openai", Scope.USER, "alice")


def test_a_rule_that_caps_nothing_is_none() -> None:
    assert cap_for(RuleBook((rule(1), Rule("openai", Scope.USER, Limits(max_wait=5), ("alice",)))), "alice") == 1
    assert RuleBook((Rule("openai", Scope.USER, Limits()),)).match("openai", {}) == ()


@pytest.mark.parametrize(
    ("key", "cap"),
    [
        (BucketKey("openai", Scope.USER, "alice"), 3),
        (BucketKey("openai", Scope.USER, "bob"), 1),
        (BucketKey("openai", Scope.USER, "bob", "gpt-5*"), 2),
        (BucketKey("openai", Scope.USER, "bob", "gone"), None),
        (BucketKey("openai", Scope.ORG, "bob"), None),
        (BucketKey("anthropic", Scope.USER, "bob"), None),
        (BucketKey("openai", Scope.USER, "only", "o*"), 4),
        (BucketKey("openai", Scope.USER, "other", "o*"), None),
    ],
)
def test_the_limits_of_a_bucket_that_exists_are_found_by_its_key(key: BucketKey, cap: int | None) -> None:
    book = RuleBook((rule(1), rule(2, models=("gpt-5*",)), rule(3, "alice"), rule(4, "only", models=("o*",))))
    assert book.limits_of(key).requests_per_minute == cap
