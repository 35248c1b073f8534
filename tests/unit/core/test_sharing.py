"""What a gate enforces alone, of limits that it shares with other gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.documents import limits
from sluice.core.keys import Scope
from sluice.core.limits import SECOND, Limits, Mode, Sharing, StoreFailure
from sluice.core.rules import Rule, RuleBook
from sluice.core.sharing import local_share

EVERY_CAP = Limits(
    *(60, 1000, 10_000),
    *(90_000, 1_000_000, 2**53 - 1),
    *(80_000, 800_000, 4_000_000),
    *(16_000, 160_000, 800_000),
    max_concurrent=7,
    max_wait=SECOND,
    sharing=Sharing.LEASED,
)


def alone(limits: Limits, gates: int) -> Limits:
    (rule,) = local_share(RuleBook((Rule("openai", Scope.USER, limits),)), gates).rules
    return rule.limits


def test_a_gate_has_an_even_share_of_every_cap_rounded_down() -> None:
    assert alone(EVERY_CAP, 3) == Limits(
        *(20, 333, 3333),
        *(30_000, 333_333, 3_002_399_751_580_330),
        *(26_666, 266_666, 1_333_333),
        *(5333, 53_333, 266_666),
        max_concurrent=2,
        max_wait=SECOND,
        sharing=Sharing.LEASED,
    )


def test_of_a_cap_below_the_number_of_gates_nothing_is_left_and_it_stays_a_cap() -> None:
    share = alone(Limits(requests_per_minute=3, max_concurrent=0), 4)

    assert share == Limits(requests_per_minute=0, max_concurrent=0)
    assert not share.is_unset


def test_with_allow_every_call_passes_and_what_would_have_been_refused_is_told() -> None:
    limits = replace(EVERY_CAP, failure_policy=StoreFailure.ALLOW)

    assert alone(limits, 3) == replace(limits, mode=Mode.SHADOW)


def test_with_deny_the_limits_are_left_as_they_are() -> None:
    limits = replace(EVERY_CAP, failure_policy=StoreFailure.DENY)

    assert alone(limits, 3) == limits


@pytest.mark.parametrize("policy", list(StoreFailure))
def test_limits_in_shadow_stay_in_shadow(policy: StoreFailure) -> None:
    assert alone(replace(EVERY_CAP, mode=Mode.SHADOW, failure_policy=policy), 3).mode is Mode.SHADOW


def test_the_same_calls_meet_the_same_buckets() -> None:
    caps = Limits(requests_per_minute=60)
    book = RuleBook(
        (
            Rule("openai", Scope.USER, caps, subjects=("alice", "team-*"), models=("o3", "gpt-5*")),
            Rule("openai", Scope.USER, replace(caps, failure_policy=StoreFailure.ALLOW)),
            Rule("openai", Scope.ORG, replace(caps, failure_policy=StoreFailure.DENY)),
            Rule("acme", Scope.ORG, caps),
            Rule("acme", Scope.USER, Limits()),
        )
    )
    share = local_share(book, 7)

    assert [rule.name for rule in share.rules] == [rule.name for rule in book.rules]
    for provider in ("openai", "acme"):
        for subject in ("alice", "team-a", "bob", ""):
            call = (provider, {Scope.USER: subject, Scope.ORG: "acme"}, "gpt-5-mini")
            assert [(each.key, each.rule) for each in share.match(*call)] == [
                (each.key, each.rule) for each in book.match(*call)
            ]


@given(limits(), st.integers(1, 10**9))
def test_the_shares_of_all_gates_are_within_the_cap_and_none_is_lost_but_by_rounding(caps: Limits, gates: int) -> None:
    share = alone(replace(caps, failure_policy=StoreFailure.LOCAL_SHARE), gates)

    assert share.caps.keys() == caps.caps.keys()
    assert all(0 <= caps.caps[cap] - count * gates < gates for cap, count in share.caps.items())


@given(limits())
def test_a_gate_that_is_alone_has_all_of_it(caps: Limits) -> None:
    everything = replace(caps, failure_policy=StoreFailure.LOCAL_SHARE)

    assert alone(everything, 1) == everything
