"""Calls that wait for room: what lets them go on, in which order, and when they are refused after all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from helpers.house import SETTINGS, Build, House
from helpers.ledger import admitted, org, refused, user
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import EngineSettings
from sluice.core.limits import HOUR, MILLISECOND, MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Permit

Task = asyncio.Task[Permit | Refusal]
ONE_AT_A_TIME = user(limits=Limits(max_concurrent=1, max_wait=HOUR))
SOON = MILLISECOND
"""A timer of a gate goes off half a millisecond late rather than a rounding error early."""


def over(*tasks: Task) -> list[bool]:
    return [task.done() for task in tasks]


async def give_up(house: House, task: Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await house.settled()


async def test_a_call_waits_for_the_end_of_another_ones_call(build: Build) -> None:
    house = await build(ONE_AT_A_TIME)
    first = await house.admit(gate=0)
    second = await house.queue(gate=1)
    assert (await house.state()).queued == 1

    await house.release(first)

    permit = admitted(await second)
    assert (await house.in_flight(), house.waits) == (1, 0)
    await house.release(permit)
    assert await house.in_flight() == 0


async def test_a_call_waits_for_tokens_that_a_commit_gives_back(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))
    first = await house.admit(90, gate=0)
    second = await house.queue(40, gate=1)

    await house.commit(first, 61)
    assert over(second) == [False]
    await house.pass_time(SECOND)
    third = await house.queue(40, gate=0)
    await give_up(house, third)
    assert over(second) == [False]
    admitted_later = await house.queue(40, gate=2)
    await house.pass_time(MINUTE)

    assert over(second, admitted_later) == [True, True]
    assert await house.used(Cap.TOKENS_PER_MINUTE) == 80


@pytest.mark.parametrize("how", ["commit", "refund", "withdraw"])
async def test_room_that_comes_before_its_time_is_given_on_at_once(build: Build, how: str) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))
    first = await house.admit(90, gate=0)
    second = await house.queue(60, gate=1)

    if how == "commit":
        await house.commit(first, 40)
    elif how == "refund":
        await house.refund(first)
    else:
        await house.withdraw(first, gate=0)

    assert over(second) == [True]


async def test_those_who_wait_go_on_in_the_order_in_which_they_came_whatever_their_gates(build: Build) -> None:
    house = await build(ONE_AT_A_TIME)
    last = await house.admit(gate=0)
    tasks = [await house.queue(gate=gate) for gate in (1, 0, 2, 2, 0, 1)]

    for number, task in enumerate(tasks):
        await house.release(last)
        assert over(*tasks) == [True] * (number + 1) + [False] * (len(tasks) - number - 1)
        last = admitted(await task)


async def test_what_ends_lets_as_many_go_on_as_there_is_room_for(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=4, max_wait=HOUR)))
    *most, last = [await house.admit(gate=gate) for gate in (0, 0, 0, 1)]
    tasks = [await house.queue(gate=gate) for gate in (1, 2, 0, 1)]

    await house.release(*most)

    assert over(*tasks) == [True, True, True, False]
    await house.release(last)
    assert over(*tasks) == [True] * 4


async def test_a_newcomer_does_not_overtake_who_waits_for_the_same_bucket(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))
    await house.admit(50, gate=0)
    large = await house.queue(90, gate=1)

    impatient = await house.refuse(10, gate=0, patience=0)
    small = await house.queue(10, gate=2)

    assert (impatient.reason, impatient.used, impatient.requested, impatient.ahead) == (Reason.WOULD_EXCEED, 50, 10, 90)
    assert over(large, small) == [False, False]


async def test_a_newcomer_passes_where_there_is_room_for_both(build: Build) -> None:
    house = await build(
        user(limits=Limits(tokens_per_minute=1000, max_wait=HOUR)),
        org(limits=Limits(tokens_per_minute=100, max_wait=HOUR)),
    )
    await house.admit(60, gate=0)
    held_up = await house.queue(50, gate=1)  # by the organisation, not by alice

    await house.admit(90, gate=2, org="other")

    assert over(held_up) == [False]


async def test_the_first_in_line_that_needs_room_in_two_buckets_is_not_starved(build: Build) -> None:
    limits = Limits(max_concurrent=1, max_wait=HOUR)
    house = await build(user(limits=limits), org(limits=limits))
    ours = await house.admit(gate=0, user="ann", org="x")
    theirs = await house.admit(gate=1, user="bob", org="y")
    first = await house.queue(gate=2, user="ann", org="y")

    # Either half comes free, again and again; somebody else would like it each time.
    rival_of_user = await house.queue(gate=0, user="ann", org="z")
    await house.release(ours)
    assert over(first, rival_of_user) == [False, False]
    rival_of_org = await house.queue(gate=1, user="carl", org="y")
    await house.release(theirs)

    assert over(first, rival_of_user, rival_of_org) == [True, False, False]
    await house.release(admitted(await first))
    assert over(rival_of_user, rival_of_org) == [True, True]


async def test_a_call_that_is_cancelled_while_it_waits_leaves_its_place_to_the_next(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))
    await house.admit(50, gate=0)
    large = await house.queue(90, gate=1)
    small = await house.queue(50, gate=2)

    await give_up(house, large)

    assert over(small) == [True]
    assert await house.used(Cap.TOKENS_PER_MINUTE) == 100
    assert (house.waits, (await house.state()).queued) == (0, 0)


async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing_behind(build: Build) -> None:
    house = await build(ONE_AT_A_TIME)
    first = await house.admit(gate=0)

    for gate in range(3):
        await give_up(house, await house.queue(gate=gate))

    assert (house.waits, await house.in_flight()) == (0, 1)
    await house.release(first)
    await house.admit(gate=1)


async def test_a_call_that_is_cancelled_as_it_is_admitted_leaves_nothing_behind(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, tokens_per_minute=10_000, max_wait=HOUR)))
    admitted_so_far = 0

    for turns in range(40):  # at every moment between the end of the one call and the admission of the other
        first = await house.admit(gate=0)
        second = await house.queue(gate=1)
        first.release(house.now)
        for _ in range(turns):
            await asyncio.sleep(0)
        await give_up(house, second)
        if not second.cancelled():
            await house.release(admitted(second.result()))
        admitted_so_far += 1 + (not second.cancelled())

        assert (await house.in_flight(), house.waits) == (0, 0)
        assert await house.used(Cap.TOKENS_PER_MINUTE) == 10 * admitted_so_far


async def test_time_makes_room_for_those_who_wait(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=2, max_wait=HOUR)))
    await house.admit(gate=0)
    await house.pass_time(10 * SECOND)
    await house.admit(gate=0)
    first, second = await house.queue(gate=1), await house.queue(gate=2)

    await house.pass_time(51 * SECOND - SOON)
    assert over(first, second) == [False, False]
    await house.pass_time(2 * SOON)
    assert over(first, second) == [True, False]
    await house.pass_time(10 * SECOND)

    assert over(first, second) == [True, True]


async def test_patience_ends_in_a_refusal(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, max_wait=10 * SECOND)))
    await house.admit(gate=0)
    task = await house.queue(gate=1)
    hasty = await house.queue(gate=2, patience=3 * SECOND)

    await house.pass_time(3 * SECOND + SOON)
    assert over(task, hasty) == [False, True]
    await house.pass_time(7 * SECOND - 2 * SOON)
    assert over(task) == [False]
    await house.pass_time(2 * SOON)

    refusal = refused(await task)
    assert (refusal.reason, refusal.cap, refusal.used) == (Reason.NO_FREE_SLOT, Cap.MAX_CONCURRENT, 1)
    assert house.waits == 0
    assert (await house.state()).queued == 0


async def test_who_would_wait_longer_than_its_patience_is_refused_at_once(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=1, max_wait=30 * SECOND)))
    await house.admit(gate=0)
    refusal = await house.refuse(gate=1)
    await house.pass_time(31 * SECOND)
    waiting = await house.queue(gate=2)
    behind = await house.refuse(gate=0)

    assert (refusal.reason, refusal.retry_after, refusal.ahead) == (Reason.WOULD_EXCEED, MINUTE + SECOND, 0)
    assert (behind.reason, behind.retry_after, behind.ahead) == (Reason.WOULD_EXCEED, MINUTE, 1)
    assert over(waiting) == [False]


async def test_a_queue_holds_so_many_and_refuses_the_next(build: Build) -> None:
    house = await build(
        user("ann", limits=Limits(max_concurrent=1, max_wait=HOUR)),
        user("bob", limits=Limits(max_concurrent=1, max_wait=HOUR)),
        settings=_bounded(max_queue=2, max_waiters=3),
    )
    await house.admit(gate=0, user="ann")
    await house.admit(gate=0, user="bob")
    tasks = [await house.queue(gate=0, user="ann") for _ in range(2)]
    of_bucket = await house.refuse(gate=0, user="ann")
    tasks.append(await house.queue(gate=0, user="bob"))
    of_all = await house.refuse(gate=0, user="bob")

    assert [refusal.reason for refusal in (of_bucket, of_all)] == [Reason.QUEUE_FULL] * 2
    assert (of_bucket.used, of_bucket.ahead) == (1, 2)
    await give_up(house, tasks[0])
    assert over(await house.queue(gate=0, user="bob")) == [False]


async def test_of_many_who_come_at_once_no_more_wait_than_may(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, max_wait=HOUR)), settings=_bounded(max_queue=3))
    await house.admit(gate=0)

    tasks = [asyncio.create_task(house.ask(gate=0)) for _ in range(10)]
    await house.settled()

    refusals = [refused(task.result()) for task in tasks if task.done()]
    assert [refusal.reason for refusal in refusals] == [Reason.QUEUE_FULL] * 7
    assert house.waits == 3


async def test_those_who_have_waited_take_up_no_place_any_more(build: Build) -> None:
    house = await build(ONE_AT_A_TIME, settings=_bounded(max_queue=2, max_waiters=2))
    permit = await house.admit(gate=0)

    for _ in range(5):
        task = await house.queue(gate=0)
        await house.release(permit)
        permit = admitted(await task)

    assert house.waits == 0
    assert over(await house.queue(gate=0)) == [False]


def _bounded(max_queue: int = 256, max_waiters: int = 1024) -> EngineSettings:
    return replace(SETTINGS, max_queue=max_queue, max_waiters=max_waiters)
