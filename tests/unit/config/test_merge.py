"""Many documents as one configuration, and the difference between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from sluice.config.merge import Claims, Configuration, Provider, conflicts, diff, merge
from sluice.config.types import FailurePolicy, LimitEntry, ProviderLimits, SubjectKind, SubjectSource
from sluice.core.keys import Scope
from sluice.core.limits import SECOND, Limits, Mode, Sharing, StoreFailure
from sluice.core.rules import Rule
from sluice.errors import InvalidDocument, Problem
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import BUILT_IN, Api
from sluice.usage.profiles.profile import EstimationMode

HEADER = SubjectSource(SubjectKind.HEADER, "x-user-id")
TEAM = SubjectSource(SubjectKind.CONSTANT, "team-a")


def limit(
    requests: int | None = 60,
    scope: Scope = Scope.USER,
    subject: SubjectSource = HEADER,
    subjects: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
) -> LimitEntry:
    return LimitEntry(scope, subject, subjects, models, Limits(requests_per_minute=requests))


def document(*limits: LimitEntry, name: str = "openai") -> ProviderLimits:
    return ProviderLimits(
        name,
        "openai",
        Api.OPENAI,
        "https://api.openai.com",
        FailurePolicy.ALLOW,
        Estimation(),
        limits,
        source=f"{name}.yaml",
    )


def test_documents_of_one_provider_become_one_provider() -> None:
    first = document(limit(), name="users")
    second = document(limit(subjects=("alice",)), limit(600, Scope.ORG, TEAM), name="orgs")

    configuration = merge([first, second])

    assert configuration.documents == (first, second)
    assert configuration.providers == {
        "openai": Provider(
            "openai",
            BUILT_IN.profile("openai"),
            "https://api.openai.com",
            FailurePolicy.ALLOW,
            Estimation(EstimationMode.DECLARED),
            {Scope.USER: HEADER, Scope.ORG: TEAM},
        )
    }
    assert configuration.rules.rules == (
        Rule("openai", Scope.USER, Limits(requests_per_minute=60)),
        Rule("openai", Scope.USER, Limits(requests_per_minute=60), subjects=("alice",)),
        Rule("openai", Scope.ORG, Limits(requests_per_minute=600)),
    )


@pytest.mark.parametrize(
    ("said", "profiles", "mode"),
    [
        (None, {}, EstimationMode.DECLARED),
        (None, {"counting": {"mode": "Learned"}}, EstimationMode.LEARNED),
        (EstimationMode.FIXED, {"counting": {"mode": "Learned"}}, EstimationMode.FIXED),
    ],
)
def test_the_profile_says_how_calls_are_estimated_where_the_document_does_not(
    said: EstimationMode | None, profiles: Mapping[str, Any], mode: EstimationMode
) -> None:
    configuration = merge([replace(document(), estimation=Estimation(said, quantile=75), profile=profiles)])

    assert configuration.providers["openai"].estimation == Estimation(mode, quantile=75)


def test_no_documents_are_a_configuration_that_limits_nothing() -> None:
    configuration = merge([])

    assert configuration.providers == {}
    assert configuration.rules.match("openai", {Scope.USER: "alice"}) == ()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (
            lambda d: replace(d, name="openai"),
            "metadata.name",
            "is the name of ProviderLimits/openai in openai.yaml too: give each its own",
        ),
        (
            lambda d: replace(d, api=Api.GEMINI),
            "spec.api",
            "is Gemini, and ProviderLimits/openai in openai.yaml says OpenAI: a provider has one",
        ),
        (
            lambda d: replace(d, upstream="http://llm"),
            "spec.upstream",
            "is http://llm, and ProviderLimits/openai in openai.yaml says https://api.openai.com: a provider has one",
        ),
        (
            lambda d: replace(d, failure_policy=FailurePolicy.DENY),
            "spec.failurePolicy",
            "is Deny, and ProviderLimits/openai in openai.yaml says Allow: a provider has one",
        ),
        (
            lambda d: replace(d, estimation=Estimation(EstimationMode.LEARNED)),
            "spec.estimation.mode",
            "is Learned, and ProviderLimits/openai in openai.yaml says unset: a provider has one",
        ),
        (
            lambda d: replace(d, estimation=Estimation(bytes_per_token=3)),
            "spec.estimation.charsPerToken",
            "is 3, and ProviderLimits/openai in openai.yaml says 4: a provider has one",
        ),
        (
            lambda d: replace(d, estimation=Estimation(quantile=50)),
            "spec.estimation.quantile",
            "is 50, and ProviderLimits/openai in openai.yaml says 90: a provider has one",
        ),
        (
            lambda d: replace(d, estimation=Estimation(default_output_tokens=1)),
            "spec.estimation.defaultOutputTokens",
            "is 1, and ProviderLimits/openai in openai.yaml says 256: a provider has one",
        ),
        (
            lambda d: replace(d, limits=(limit(subject=TEAM, subjects=("bob",)),)),
            "spec.limits",
            (
                "reads the User from constant team-a, and ProviderLimits/openai in openai.yaml "
                "from header x-user-id: use one source"
            ),
        ),
        (
            lambda d: replace(d, limits=(limit(subjects=("bob",)), limit(subjects=("carol", "alice")))),
            "spec.limits[1]",
            "is for the same calls as spec.limits[1] of ProviderLimits/openai in openai.yaml: keep one of them",
        ),
        (
            lambda d: replace(d, limits=(limit(subjects=("*",)),)),
            "spec.limits[0]",
            "is for the same calls as spec.limits[0] of ProviderLimits/openai in openai.yaml: keep one of them",
        ),
    ],
)
def test_a_document_that_contradicts_an_earlier_one_is_refused_and_names_it(
    change: Callable[[ProviderLimits], ProviderLimits], field: str, message: str
) -> None:
    first = document(limit(), limit(subjects=("alice",)))
    second = change(document(name="second"))

    with pytest.raises(InvalidDocument) as raised:
        merge([first, second])

    assert raised.value.problems == (Problem("second.yaml", f"ProviderLimits/{second.name}", field, message),)


def test_the_same_entry_for_other_models_or_another_provider_is_no_conflict() -> None:
    first = document(limit(), limit(models=("gpt-5*",)))
    second = document(limit(models=("gpt-4*",)), limit(subjects=("alice",)), name="second")
    third = replace(document(limit(subject=TEAM), name="third"), provider="acme")

    assert list(conflicts([first, second, third])) == []


def test_all_conflicts_are_reported_at_once() -> None:
    second = replace(document(limit(subject=TEAM)), failure_policy=FailurePolicy.DENY)

    fields = {problem.field for problem in conflicts([document(limit()), second])}

    assert fields == {"metadata.name", "spec.failurePolicy", "spec.limits", "spec.limits[0]"}


def configuration(*limits: LimitEntry) -> Configuration:
    return merge([document(*limits)])


def test_a_changed_cap_is_one_line() -> None:
    assert diff(configuration(limit(60)), configuration(limit(100))) == ("openai User *: requestsPerMinute 60 -> 100",)


def test_the_same_configuration_differs_in_nothing() -> None:
    assert diff(configuration(limit()), configuration(limit())) == ()
    assert diff(configuration(limit(subjects=("a", "b"))), configuration(limit(subjects=("b", "a")))) == ()


def test_every_kind_of_change_is_told() -> None:
    old = merge([document(limit(), limit(5, subjects=("alice",), models=("gpt-5*",)))])
    changed = LimitEntry(
        Scope.USER,
        SubjectSource(SubjectKind.API_KEY),
        (),
        (),
        Limits(max_concurrent=3, max_wait=SECOND, mode=Mode.SHADOW, failure_policy=StoreFailure.DENY),
    )
    new = merge(
        [
            replace(document(changed, limit(9, Scope.ORG, TEAM)), failure_policy=FailurePolicy.DENY),
            ProviderLimits(
                "acme", "acme", Api.OPENAI, "http://llm", FailurePolicy.ALLOW, Estimation(default_output_tokens=9), ()
            ),
        ]
    )

    assert diff(old, new) == (
        (
            "acme: added (api OpenAI, upstream http://llm, failurePolicy Allow, streamUsage Estimate, "
            "estimation.charsPerToken 4, estimation.defaultOutputTokens 9, estimation.quantile 90)"
        ),
        "openai: failurePolicy Allow -> Deny",
        "openai: User from header x-user-id -> apiKey",
        "openai: Org from unset -> constant team-a",
        "openai Org *: added (requestsPerMinute 9, maxWait 0s, mode Enforce, failurePolicy LocalShare, sharing Exact)",
        "openai User *: requestsPerMinute 60 -> unset",
        "openai User *: maxWait 0s -> 1s",
        "openai User *: mode Enforce -> Shadow",
        "openai User *: failurePolicy LocalShare -> Deny",
        "openai User *: maxConcurrent unset -> 3",
        "openai User alice gpt-5*: removed",
    )
    assert diff(new, merge([]))[0] == "acme: removed"


def test_the_sharing_of_a_document_is_told_of_each_of_its_limits_and_of_no_other() -> None:
    one, other = document(limit(), limit(subjects=("bob",))), document(limit(9, Scope.ORG, TEAM), name="second")

    leased = merge([replace(one, sharing=Sharing.LEASED), other])

    assert [rule.limits.sharing for rule in leased.rules.rules] == [Sharing.LEASED, Sharing.LEASED, Sharing.EXACT]
    assert diff(merge([one, other]), leased) == (
        "openai User *: sharing Exact -> Leased",
        "openai User bob: sharing Exact -> Leased",
    )


def test_what_was_claimed_first_stays_with_its_document() -> None:
    first, second = document(limit()), document(limit(), limit(subjects=("alice",)), name="second")
    third = document(limit(subjects=("alice",)), name="third")
    claims = Claims()
    claims.add(first)
    claims.add(second)

    assert [problem.field for problem in claims.against(second)] == [
        "metadata.name",
        "spec.limits[0]",
        "spec.limits[1]",
    ]
    assert [problem.message for problem in claims.against(third)] == [
        "is for the same calls as spec.limits[1] of ProviderLimits/second in second.yaml: keep one of them"
    ]


def test_a_document_that_was_only_asked_about_claims_nothing() -> None:
    claims = Claims()

    assert list(claims.against(document(limit()))) == []
    assert list(claims.against(document(limit(), name="second"))) == []
