"""What a provider says of its own limits at one gate is heeded by all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from helpers.house import TAG, House
from helpers.ledger import PROVIDER, admitted, user
from helpers.shared import Open
from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MINUTE, SECOND, Limits
from sluice.core.permits import Permit
from sluice.core.words import Amount, Feedback, Quota, RefusedAs
from sluice_sidecar.health import StoreMode

ACCOUNT = BucketKey(PROVIDER, Scope.PROVIDER, "key-1", "gpt")
MANY = user(limits=Limits(requests_per_minute=1000))
PATIENT = user(limits=Limits(requests_per_minute=1000, max_wait=MINUTE))
REFUSED = Feedback((), RefusedAs.RATE_LIMITED, 7 * SECOND)
CHANNEL = f"{TAG}word"


def left(remaining: int) -> Feedback:
    return Feedback((Quota("left", Amount.REQUESTS, remaining, None, 30 * SECOND),))


async def ask(house: House, gate: int, account: BucketKey = ACCOUNT) -> Permit | Refusal:
    return await house.gate(gate).acquire(house.call(gate=gate)._replace(upstream=account))


async def answered(house: House, gate: int, feedback: Feedback, account: BucketKey = ACCOUNT) -> None:
    """A call of that gate, and what the provider says in its answer."""
    house.gate(gate).hear(admitted(await ask(house, gate, account)), feedback)
    await house.settled()


async def publish(house: House, message: bytes | str, channel: str = CHANNEL) -> int:
    """By somebody who may; returns how many have heard it."""
    assert house.place is not None
    heard: int = house.place.node.publish(channel, message)
    await house.settled()
    return heard


async def reasons(house: House, account: BucketKey = ACCOUNT) -> list[Reason | None]:
    """Why each gate refuses a call of that account now."""
    outcomes = [await ask(house, gate, account) for gate in range(len(house.gates))]
    return [outcome.reason if isinstance(outcome, Refusal) else None for outcome in outcomes]


def known(house: House) -> list[object]:
    """What every gate knows of every account."""
    return [gate.engine.upstreams(house.now) for gate in house.gates]


# -- what the others heed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        (REFUSED, Reason.PROVIDER_LIMIT),
        (Feedback((), RefusedAs.OVERLOADED, 7 * SECOND), Reason.PROVIDER_OVERLOADED),
        (Feedback((), RefusedAs.RATE_LIMITED), Reason.PROVIDER_LIMIT),  # names no time: a second
    ],
    ids=str,
)
async def test_a_refusal_at_one_gate_pauses_all_of_them(open_house: Open, feedback: Feedback, reason: Reason) -> None:
    house = await open_house(MANY, gates=3)
    length = feedback.retry_after or SECOND

    await answered(house, 1, feedback)

    assert await reasons(house) == [reason] * 3
    await house.pass_time(length - 1000)
    assert await reasons(house) == [reason] * 3
    await house.pass_time(1000)
    assert await reasons(house) == [None] * 3


async def test_a_refusal_concerns_its_own_account_and_model_alone(open_house: Open) -> None:
    house = await open_house(MANY)

    await answered(house, 0, REFUSED)

    assert await reasons(house, ACCOUNT._replace(subject="key-2")) == [None] * 2
    assert await reasons(house, ACCOUNT._replace(models="o3")) == [None] * 2


async def test_a_spend_cap_pauses_every_model_of_the_account_at_every_gate(open_house: Open) -> None:
    house = await open_house(MANY)

    await answered(house, 0, Feedback((), RefusedAs.SPEND_CAP))

    for model in ("gpt", "o3", ""):
        assert await reasons(house, ACCOUNT._replace(models=model)) == [Reason.PROVIDER_SPEND_CAP] * 2
    await house.pass_time(5 * MINUTE)
    assert await reasons(house) == [None] * 2


async def test_what_is_left_of_a_quota_is_heeded_by_all(open_house: Open) -> None:
    house = await open_house(MANY)
    await answered(house, 0, left(2))

    outcomes = [await ask(house, 1) for _ in range(3)]

    assert [isinstance(outcome, Permit) for outcome in outcomes] == [True, True, False]


async def test_a_gate_does_not_take_its_own_word_for_that_of_another(open_house: Open) -> None:
    house = await open_house(MANY)
    first, second = admitted(await ask(house, 0)), admitted(await ask(house, 0))
    await house.pass_time(SECOND)
    house.gate(0).hear(first, left(1))
    await house.settled()
    house.gate(0).hear(second, left(5))  # as this gate knows, a later word; another one cannot know
    await house.settled()

    outcomes = [[isinstance(await ask(house, gate), Permit) for _ in range(6)] for gate in range(2)]

    assert outcomes == [[True] * 5 + [False], [True] + [False] * 5]


async def test_a_pause_is_told_once_and_not_again_by_those_who_hear_it(open_house: Open) -> None:
    house = await open_house(MANY, gates=3)
    assert house.place is not None
    told = house.place.node.pubsub()
    told.subscribe(CHANNEL)

    await answered(house, 0, REFUSED)

    messages = [message["data"] for message in _received(told) if message["type"] == "message"]
    told.close()
    assert len(messages) == 1


async def test_who_waits_for_room_learns_of_a_pause_that_it_cannot_wait_for(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_minute=1000, max_wait=5 * SECOND)))
    await answered(house, 0, Feedback((), RefusedAs.RATE_LIMITED, 2 * SECOND))
    waiting = asyncio.create_task(ask(house, 1))
    await house.settled()
    assert not waiting.done()

    await publish(house, json.dumps(_said(pause=MINUTE)))

    outcome = await waiting
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.PROVIDER_LIMIT


async def test_who_waits_for_the_end_of_a_pause_that_another_gate_heard_of_gets_on_then(open_house: Open) -> None:
    house = await open_house(PATIENT)
    await answered(house, 0, REFUSED)
    waiting = asyncio.create_task(ask(house, 1))

    await house.pass_time(7 * SECOND - 1000)
    assert not waiting.done()
    await house.pass_time(SECOND)

    admitted(await waiting)


async def test_while_the_store_is_away_each_gate_hears_the_provider_alone(open_house: Open) -> None:
    house = await open_house(MANY)
    permit = admitted(await ask(house, 0))
    house.stores[0].go_local("in a test")

    house.gate(0).hear(permit, REFUSED)
    await house.place.until_answered()  # type: ignore[union-attr]

    assert house.stores[0].health.mode is StoreMode.LOCAL
    assert await reasons(house) == [Reason.PROVIDER_LIMIT, None]


async def test_a_provider_whose_calls_nothing_limits_pauses_nobody(open_house: Open) -> None:
    house = await open_house(MANY)
    await answered(house, 0, REFUSED)

    for gate in house.gates:
        outcome = await gate.acquire(house.call()._replace(applied=(), upstream=ACCOUNT))
        assert isinstance(outcome, Permit)


# -- what nobody should have said ----------------------------------------------------------------------------------


def _said(**changes: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "gate": "somebody", "subject": "key-1", "model": "gpt", "quotas": [["left", "requests", 0, None, 30 * SECOND]],
        "refused": "RateLimited", "pause": 7 * SECOND,
    }  # fmt: skip
    return {**whole, **changes}


def _received(told: object) -> Iterator[dict[str, object]]:
    while (message := told.get_message(timeout=0.2)) is not None:  # type: ignore[attr-defined]
        yield message


HOSTILE = {
    "nothing": b"",
    "no JSON": b"\x00\xff{",
    "a number": b"7",
    "a list": b"[]",
    "no fields": b"{}",
    "deep nesting": b"[" * 16_000,
    "deep nesting of a field": json.dumps(_said()).replace('"gpt"', "[" * 15_000).encode(),
    "a megabyte": json.dumps(_said(subject="x" * 2**20)).encode(),
    "a megabyte of quotas": json.dumps(_said(quotas=[["left", "requests", 0, None, 1]] * 40_000)).encode(),
    "a huge number": json.dumps(_said()).replace("7000000000", "9" * 10_000).encode(),
    "a huge pause": json.dumps(_said(pause=10**30)).encode(),
    "a pause in the past": json.dumps(_said(pause=-1)).encode(),
    "no end of a pause": json.dumps(_said(pause=float("inf"))).encode(),
    "a refusal of no kind": json.dumps(_said(refused="Tired")).encode(),
    "a quota of nothing": json.dumps(_said(quotas=[["left", "bananas", 0, None, 1]])).encode(),
    "an account that is none": json.dumps(_said(subject=["key-1"])).encode(),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
async def test_a_message_that_no_gate_sent_changes_nothing_and_the_next_one_is_heard(
    open_house: Open, message: bytes
) -> None:
    house = await open_house(MANY)
    await answered(house, 0, left(50))
    before = known(house)

    assert await publish(house, message) == 2

    assert known(house) == before
    assert await reasons(house) == [None] * 2
    assert {store.health.mode for store in house.stores} == {StoreMode.SHARED}
    await publish(house, json.dumps(_said()))
    assert await reasons(house) == [Reason.PROVIDER_LIMIT] * 2


async def test_a_message_can_pause_a_provider_for_so_long_and_no_longer(open_house: Open) -> None:
    house = await open_house(MANY)
    await publish(house, json.dumps(_said(pause=2**53 - 1, quotas=[["left", "requests", 0, None, 2**53 - 1]])))

    assert await reasons(house) == [Reason.PROVIDER_LIMIT] * 2
    await house.pass_time(10 * MINUTE)
    assert await reasons(house) == [None] * 2


@pytest.mark.parametrize("message", [b"", b"x", b"-1", b"\xff", "٣".encode(), b"9" * 5000, b"0", b"7" * 16])
async def test_a_wake_that_no_script_sent_wakes_nobody_and_the_next_one_does(open_house: Open, message: bytes) -> None:
    house = await open_house(user(limits=Limits(max_concurrent=1, max_wait=MINUTE)))
    first = await house.admit(gate=0)
    waiting = await house.queue(gate=1)

    assert await publish(house, message, f"{TAG}wake:gate-1") == 1

    assert not waiting.done()
    await house.release(first)
    admitted(await waiting)
