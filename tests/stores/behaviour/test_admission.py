"""What is admitted, what is refused, and what either leaves behind."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.house import Build
from helpers.ledger import org, project, user
from sluice.core.buckets import NO_CHARGE
from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import CAPS_BY_LENGTH, HOUR, MINUTE, SECOND, Cap, Limits, Mode
from sluice.core.rules import Rule
from sluice.core.windows import MAX_AMOUNT

RULES_OF = {Scope.USER: user, Scope.ORG: org, Scope.PROJECT: project}
SUBJECTS = {Scope.USER: "alice", Scope.ORG: "acme", Scope.PROJECT: "web"}
WINDOW_CAPS = [cap for caps in CAPS_BY_LENGTH for cap in caps.values()]


def asked_of(cap: Cap, amount: int) -> dict[str, Any]:
    """A call that asks so much of that cap, and nothing of the others."""
    what: dict[str, Any] = {"tokens": 0, "requests": 0, "parts": (0, 0)}
    if cap in CAPS_BY_LENGTH[0].values():
        return {**what, "requests": amount}
    if cap in CAPS_BY_LENGTH[1].values():
        return {**what, "tokens": amount}
    return {**what, "parts": (amount, 0) if cap in CAPS_BY_LENGTH[2].values() else (0, amount)}


@pytest.mark.parametrize("scope", RULES_OF)
@pytest.mark.parametrize("cap", WINDOW_CAPS)
async def test_a_window_is_filled_up_to_its_cap_and_not_one_more(build: Build, cap: Cap, scope: Scope) -> None:
    ten: dict[str, Any] = {cap.attribute: 10}
    house = await build(RULES_OF[scope](limits=Limits(**ten)))

    for number, amount in enumerate((3, 1, 6)):
        await house.admit(gate=number, **asked_of(cap, amount))
    refusal = await house.refuse(gate=3, **asked_of(cap, 1))

    assert (refusal.reason, refusal.key.scope, refusal.cap) == (Reason.WOULD_EXCEED, scope, cap)
    assert (refusal.limit, refusal.used, refusal.requested) == (10, 10, 1)


@pytest.mark.parametrize("scope", RULES_OF)
async def test_as_many_calls_at_a_time_as_the_cap_says_and_not_one_more(build: Build, scope: Scope) -> None:
    house = await build(RULES_OF[scope](limits=Limits(max_concurrent=3)))

    permits = [await house.admit(gate=number) for number in range(3)]
    refusal = await house.refuse(gate=3)
    await house.release(permits[1])
    await house.admit(gate=4)

    assert (refusal.reason, refusal.cap, refusal.limit) == (Reason.NO_FREE_SLOT, Cap.MAX_CONCURRENT, 3)
    assert (refusal.used, refusal.requested, refusal.retry_after) == (3, 1, None)
    assert await house.in_flight(SUBJECTS[scope], scope) == 3


async def test_a_call_that_one_of_its_buckets_refuses_is_counted_in_none(build: Build) -> None:
    house = await build(
        user(limits=Limits(requests_per_minute=9, tokens_per_day=900, max_concurrent=9)),
        org(limits=Limits(requests_per_hour=9)),
        project(limits=Limits(tokens_per_minute=25, input_tokens_per_hour=70)),
    )
    await house.admit(10, gate=0, parts=(20, 0))
    before = await house.states()

    refusal = await house.refuse(16, gate=0, parts=(20, 0))

    after = await house.states()
    assert refusal.key == BucketKey("openai", Scope.PROJECT, "web")
    assert {key: (state.windows, state.in_flight, state.admitted) for key, state in after.items()} == {
        key: (state.windows, state.in_flight, state.admitted) for key, state in before.items()
    }


DENYING = {
    "a window of requests": Limits(requests_per_minute=1),
    "a window of tokens": Limits(tokens_per_day=19),
    "a window of parts": Limits(output_tokens_per_hour=5),
    "calls at a time": Limits(max_concurrent=1),
    "a cap of 0": Limits(requests_per_hour=0),
}


@pytest.mark.parametrize("denying", DENYING)
@pytest.mark.parametrize("patience", [0, 30 * SECOND])
async def test_a_denial_leaves_everything_as_it_was(build: Build, denying: str, patience: int) -> None:
    house = await build(
        user(limits=Limits(requests_per_day=50, tokens_per_hour=1000, max_concurrent=9)),
        project(limits=Limits(requests_per_minute=40)),
        org(limits=DENYING[denying]),
    )
    await house.ask(10, parts=(3, 5))
    await house.ask(10, parts=(3, 5), org="other")
    before = house.contents()

    # Its patience is shorter than what it would have to wait; where only the end of a call makes room, nobody waits.
    for gate in range(3):
        await house.refuse(10, gate=gate, parts=(3, 5), patience=patience)

    assert house.contents() == before


async def test_a_window_of_a_minute_gives_back_what_was_counted_a_minute_and_a_slot_ago(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=2)))
    await house.admit(gate=0)
    await house.pass_time(30 * SECOND)
    await house.admit(gate=1)

    refusal = await house.refuse(gate=2)
    assert refusal.retry_after == 31 * SECOND
    await house.pass_time(31 * SECOND - 1000)
    assert (await house.refuse(gate=0)).retry_after == 1000
    await house.pass_time(1000)
    await house.admit(gate=1)
    assert (await house.refuse(gate=2)).retry_after == 30 * SECOND


async def test_a_call_that_could_never_fit_is_refused_as_that(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))

    refusal = await house.refuse(101, gate=1)

    assert refusal == Refusal(
        Reason.OVERSIZED_REQUEST, BucketKey("openai", Scope.USER, "alice"), Cap.TOKENS_PER_MINUTE, 100, 0, 101, None
    )


async def test_of_several_buckets_without_room_the_one_that_holds_longest_is_named(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=1)), org(limits=Limits(requests_per_hour=1)))
    await house.admit(gate=0)

    refusal = await house.refuse(gate=1)

    assert (refusal.key.scope, refusal.cap) == (Scope.ORG, Cap.REQUESTS_PER_HOUR)
    assert refusal.retry_after == HOUR + MINUTE


async def test_a_limit_in_shadow_mode_lets_everything_pass_counts_it_and_says_so(build: Build) -> None:
    house = await build(
        user(limits=Limits(requests_per_minute=1, max_concurrent=1, mode=Mode.SHADOW)),
        org(limits=Limits(requests_per_minute=9)),
    )

    for _ in range(3):
        await house.admit(gate=0)

    state = await house.state()
    assert (state.windows[Cap.REQUESTS_PER_MINUTE].used, state.in_flight, state.would_reject) == (3, 3, 2)
    assert state.last_refusal is not None
    assert (state.last_refusal.reason, state.last_refusal.cap) == (Reason.WOULD_EXCEED, Cap.REQUESTS_PER_MINUTE)


async def test_a_limit_in_shadow_mode_consumes_nothing_of_a_call_that_another_one_refuses(build: Build) -> None:
    house = await build(
        user(limits=Limits(requests_per_minute=1, mode=Mode.SHADOW)), org(limits=Limits(requests_per_minute=1))
    )
    await house.admit(gate=0)
    before = house.contents()

    refusal = await house.refuse(gate=0)

    assert refusal.key.scope is Scope.ORG
    assert house.contents() == before


async def test_what_one_call_can_count_for_adds_up_far_beyond_itself(build: Build) -> None:
    cap = 2**53 - 1
    house = await build(user(limits=Limits(tokens_per_day=cap, input_tokens_per_day=cap)))
    for number in range(8):
        await house.admit(2**40, gate=number, parts=(2**63, 7))
    permit = await house.admit(5, gate=1)
    await house.commit(permit, MAX_AMOUNT - 1, (1, 0))

    assert await house.used(Cap.TOKENS_PER_DAY) == 9 * MAX_AMOUNT - 1
    assert await house.used(Cap.INPUT_TOKENS_PER_DAY) == 8 * MAX_AMOUNT + 1


async def test_the_last_of_a_huge_cap_is_counted_to_the_token(build: Build) -> None:
    cap = 3 * MAX_AMOUNT + 5
    house = await build(user(limits=Limits(tokens_per_hour=cap)))
    for number in range(3):
        await house.admit(MAX_AMOUNT, gate=number)

    refusal = await house.refuse(6, gate=0)
    await house.admit(5, gate=1)

    assert (refusal.used, refusal.limit) == (3 * MAX_AMOUNT, cap)
    assert (await house.refuse(1, gate=2)).used == cap


@pytest.mark.parametrize("rules", [(), (org("other", limits=Limits(requests_per_minute=1)),)])
async def test_a_call_that_no_limit_speaks_of_passes_and_is_counted_nowhere(
    build: Build, rules: tuple[Rule, ...]
) -> None:
    house = await build(*rules)
    before = house.contents()

    permits = [await house.admit(gate=number) for number in range(4)]

    assert [permit.commit_tokens(NO_CHARGE, house.now) for permit in permits] == [False] * 4
    await house.settled()
    assert {permit.buckets for permit in permits} == {()}
    if house.place is not None:
        assert house.contents() == before
