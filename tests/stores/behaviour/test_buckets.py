"""Which calls share a bucket: every subject and every set of models has its own, whatever characters it holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from helpers.house import SETTINGS, Build
from helpers.ledger import PROVIDER, org, project, user
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import Cap, Limits
from sluice.core.rules import Rule

ONE = Limits(requests_per_minute=1, max_concurrent=1)
LIKE_EACH_OTHER = [
    ["a", "A", "a ", " a", "a\n", "a\x00", "a\x00b", "a:", ":a", "a:b", "a::b", "a/b", "a,b"],
    ["{a}", "}a{", "{", "}", "{}", "{ours/openai}b:User::a", "a}b:User::a", "%", "%3A", "%253A", "*", "?", "[a]", "\\"],
    [
        "é",
        "e\u0301",
        "É",
        "ё",
        "\u0435",
        "e",
        "ﬁ",
        "fi",
        "\u200b",
        "\u202ea",
        "a\ufeff",
        "\ufeffa",
        "\uff41",
        "\U0001d41a",
        "ß",
        "ss",
    ],
    ["\udcc3\udca9", "\udcc3", "\ud800", "\udfff", "\U00010000", "\ud800\udc00", "Ã©"],
    ["x" * 65_536, "x" * 65_535, "x" * 65_535 + "y", "é" * 32_768],
    ["-1", "0", "1", "1.0", "new", "inf", "nil", "None", "gates", "tickets", "epoch", "b", "p", "q"],
]


@pytest.mark.parametrize("subjects", LIKE_EACH_OTHER, ids=[repr(group[0][:4]) for group in LIKE_EACH_OTHER])
@pytest.mark.parametrize("scope", ["user", "org", "project"])
async def test_no_two_subjects_share_a_bucket(build: Build, scope: str, subjects: list[str]) -> None:
    rule = {"user": user, "org": org, "project": project}[scope]
    house = await build(rule(limits=ONE))

    for subject in subjects:
        await house.admit(gate=0, **_named(scope, subject))

    for subject in subjects:
        refusal = await house.refuse(gate=1, **_named(scope, subject))
        assert (refusal.key.subject, refusal.used) == (subject, 1)


async def test_a_subject_of_one_scope_is_no_subject_of_another(build: Build) -> None:
    house = await build(user(limits=ONE), org(limits=ONE), project(limits=ONE))

    await house.admit(gate=0, user="a", org="b", project="c")
    await house.admit(gate=1, user="b", org="c", project="a")

    assert (await house.refuse(gate=2, user="c", org="b", project="x")).key == BucketKey(PROVIDER, Scope.ORG, "b")


async def test_callers_without_a_name_share_a_bucket(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=2)))

    await house.admit(gate=0, user="")
    await house.admit(gate=1, user="")
    await house.admit(gate=1, user="ann")

    assert (await house.refuse(gate=2, user="")).key.subject == ""


def of_models(*models: str, limits: Limits = ONE) -> Rule:
    return Rule(PROVIDER, Scope.USER, limits, (), models)


@pytest.mark.parametrize(
    "patterns",
    [
        [(), ("gpt-5*",), ("gpt-5",), ("gpt-4*", "o3")],
        [("a:b",), ("a",), ("a,b",), ("a%3Ab",), ("a%b",)],
        [("é*",), ("e*",), ("m" * 200,)],
    ],
)
async def test_models_with_a_limit_of_their_own_have_a_bucket_of_their_own(
    build: Build, patterns: list[tuple[str, ...]]
) -> None:
    house = await build(*[of_models(*models) for models in patterns])
    called = [models[0].replace("*", "x") if models else "other" for models in patterns]

    for model in called:
        await house.admit(gate=0, model=model)

    refusals = [await house.refuse(gate=1, model=model) for model in called]
    assert [refusal.key.models for refusal in refusals] == [",".join(sorted(models)) for models in patterns]


async def test_models_and_subjects_do_not_run_into_each_other(build: Build) -> None:
    house = await build(of_models("a"), of_models("a:b"))
    calls = [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("a:b", ""), ("a", ":b:c"), ("a", "")]

    for model, subject in calls:
        await house.admit(gate=0, model=model, user=subject)

    assert [(await house.refuse(gate=1, model=model, user=subject)).key for model, subject in calls] == [
        BucketKey(PROVIDER, Scope.USER, subject, model) for model, subject in calls
    ]


async def test_newcomers_past_the_cap_on_keys_share_a_bucket_and_others_keep_theirs(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=2)), settings=replace(SETTINGS, max_keys=3))
    names = ["ann", "bob", "carl", "dave", "eve"]

    for name in names:
        await house.admit(gate=0, user=name)

    refusals = [await house.refuse(gate=0, user=name) for name in ("dave", "eve", "fay")]
    assert [refusal.used for refusal in refusals] == [2, 2, 2]
    await house.admit(gate=0, user="ann")
    assert await house.used(Cap.REQUESTS_PER_MINUTE, OVERFLOW) == 2
    assert await house.used(Cap.REQUESTS_PER_MINUTE, "bob") == 1


async def test_nobody_can_name_the_bucket_of_another_kind(build: Build) -> None:
    house = await build(user(limits=ONE))
    before = house.contents()

    for name in ("\x00overflow", "(overflow)", "Org::acme", "User::alice", "m", "ms"):
        await house.admit(gate=0, user=name)
        await house.admit(gate=0, user=f"{name}2")

    assert before != house.contents()
    await house.admit(gate=0)


def _named(scope: str, subject: str) -> dict[str, Any]:
    return {scope: subject}


def test_the_groups_hold_no_subject_twice() -> None:
    every = sorted(subject for group in LIKE_EACH_OTHER for subject in group)
    assert [one for one, other in pairwise(every) if one == other] == []
