"""Who is calling: what a caller has no say in, and what is made of the rest."""

from __future__ import annotations

import hashlib

import pytest

from sluice.config.merge import Provider
from sluice.config.types import FailurePolicy, SubjectKind, SubjectSource
from sluice.core.keys import Scope
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import BUILT_IN
from sluice_sidecar.identity import LONGEST, account, fixed_subjects, subject, told_subjects

HEADER = SubjectSource(SubjectKind.HEADER, "x-user-id")
KEY = SubjectSource(SubjectKind.API_KEY)


def provider(**sources: SubjectSource) -> Provider:
    subjects = {Scope(scope.capitalize()): source for scope, source in sources.items()}
    return Provider(
        "openai", BUILT_IN.profile("openai"), "http://127.0.0.1:9", FailurePolicy.ALLOW, Estimation(), subjects
    )


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_constants_and_variables_are_fixed_and_all_else_is_told_with_the_call() -> None:
    sources = {
        "user": HEADER,
        "org": SubjectSource(SubjectKind.ENV, "POD_NAMESPACE"),
        "project": SubjectSource(SubjectKind.CONSTANT, "web"),
    }
    environ = {"POD_NAMESPACE": "shop", "USER": "root"}
    assert fixed_subjects(provider(**sources), environ) == {Scope.ORG: "shop", Scope.PROJECT: "web"}
    assert told_subjects(provider(**sources)) == (("user", Scope.USER, HEADER),)


def test_a_variable_that_is_not_set_names_nobody() -> None:
    assert fixed_subjects(provider(org=SubjectSource(SubjectKind.ENV, "NOT_SET")), {}) == {Scope.ORG: ""}


def test_each_scope_has_an_entry_of_its_own_and_one_that_is_not_limited_has_none() -> None:
    assert told_subjects(provider(user=KEY, org=HEADER, project=KEY)) == (
        ("user", Scope.USER, KEY),
        ("org", Scope.ORG, HEADER),
        ("project", Scope.PROJECT, KEY),
    )
    assert told_subjects(provider()) == ()


@pytest.mark.parametrize("text", ["", "alice", "Bearer alice", " alice ", "ünï", "\x00", "a" * LONGEST])
def test_a_name_is_kept_as_it_is(text: str) -> None:
    assert subject(HEADER, text) == text


def test_a_long_name_is_known_by_its_hash_so_that_two_stay_two() -> None:
    one, other = "a" * 65536, "a" * 65535 + "b"
    assert subject(HEADER, one) == "sha256-" + sha256(one.encode())
    assert subject(HEADER, other) != subject(HEADER, one)
    assert subject(HEADER, "a" * (LONGEST + 1)).startswith("sha256-")


def test_a_long_name_may_hold_a_lone_surrogate() -> None:
    assert subject(HEADER, "\ud800" * 300).startswith("sha256-")


@pytest.mark.parametrize(
    "text", ["sk-123", "Bearer sk-123", "bearer sk-123", "BEARER  sk-123 ", "Bearer\tsk-123", " sk-123"]
)
def test_a_key_is_the_same_key_however_it_is_written_and_known_by_its_hash(text: str) -> None:
    assert subject(KEY, text) == "key-" + sha256(b"sk-123")[:16]


@pytest.mark.parametrize("text", ["", " ", "Bearer", "bearer ", "Bearer \t "])
def test_no_key_is_nobody(text: str) -> None:
    assert subject(KEY, text) == ""


def test_other_schemes_and_what_follows_a_key_are_part_of_it() -> None:
    texts = ["sk-123", "Basic sk-123", "Bearer sk-123 x", "Bearer Bearer sk-123", "bearersk-123", "SK-123"]
    assert len({subject(KEY, text) for text in texts}) == len(texts)


def test_a_key_that_signs_is_known_by_its_name_whatever_it_signs() -> None:
    one = "AWS4-HMAC-SHA256 Credential=AKID/20261124/eu-west-1/bedrock/aws4_request, SignedHeaders=host, Signature=aa"
    other = "AWS4-HMAC-SHA256 Credential=AKID/20261125/eu-west-1/bedrock/aws4_request,SignedHeaders=host,Signature=bb"
    assert account(one) == account(other) == account("AKID") != account(one.replace("AKID", "OTHER"))
