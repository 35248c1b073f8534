"""Limits that change under calls in flight, calls that wait, and what was counted before."""

from __future__ import annotations

import asyncio

import pytest

from helpers.house import Build
from helpers.ledger import admitted, org, refused, user
from sluice.core.decisions import Reason
from sluice.core.keys import Scope
from sluice.core.limits import HOUR, MINUTE, SECOND, Cap, Limits, Mode, Sharing

TURNS_TO_THE_SERVER = 3


async def test_a_cap_that_is_raised_gives_room_at_once(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=1, max_concurrent=9)))
    await house.admit(gate=0)
    await house.refuse(gate=1)

    await house.swap(user(limits=Limits(requests_per_minute=2, max_concurrent=9)))

    await house.admit(gate=1)
    assert (await house.refuse(gate=2)).used == 2


async def test_a_cap_that_is_lowered_counts_what_was_admitted_before(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9, max_concurrent=9)))
    permits = [await house.admit(gate=number) for number in range(3)]

    await house.swap(user(limits=Limits(requests_per_minute=9, max_concurrent=2)))

    refusal = await house.refuse(gate=1)
    await house.release(*permits[:1])
    still = await house.refuse(gate=2)
    await house.release(*permits[1:])
    await house.admit(gate=0)
    assert (refusal.cap, refusal.used, still.used) == (Cap.MAX_CONCURRENT, 3, 2)
    await house.swap(user(limits=Limits(requests_per_minute=2, max_concurrent=9)))
    assert (await house.refuse(gate=1)).used == 4


async def test_a_cap_that_is_removed_and_set_again_has_counted_meanwhile(build: Build) -> None:
    both = Limits(requests_per_minute=5, tokens_per_hour=100)
    house = await build(user(limits=both))
    await house.admit(30, gate=0)
    await house.swap(user(limits=Limits(requests_per_minute=5)))
    await house.admit(30, gate=0)
    await house.admit(30, gate=0)

    await house.swap(user(limits=both))

    assert (await house.refuse(30, gate=0)).used == 90
    assert (await house.refuse(30, gate=1)).used == 90  # which knew nothing of alice before


async def test_a_period_that_is_capped_from_now_on_starts_empty(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9)))
    permit = await house.admit(30, gate=0)

    await house.swap(user(limits=Limits(requests_per_minute=9, tokens_per_hour=50, output_tokens_per_day=50)))
    await house.admit(40, gate=1, parts=(1, 40))
    await house.commit(permit, 20, (0, 20))

    refusal = await house.refuse(20, gate=2)
    assert (refusal.cap, refusal.used) == (Cap.TOKENS_PER_HOUR, 40)
    assert (await house.refuse(1, gate=0, parts=(0, 11))).used == 40


async def test_calls_in_flight_hold_their_places_when_calls_at_a_time_are_capped_only_then(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9)))
    permits = [await house.admit(gate=0) for _ in range(2)]

    await house.swap(user(limits=Limits(requests_per_minute=9, max_concurrent=2)))

    assert (await house.refuse(gate=1)).used == 2
    await house.release(permits[0])
    await house.admit(gate=2)


async def test_places_are_free_when_their_calls_end_while_calls_at_a_time_are_not_capped(build: Build) -> None:
    capped, free = user(limits=Limits(max_concurrent=2, requests_per_day=90)), user(limits=Limits(requests_per_day=90))
    house = await build(capped)
    permits = [await house.admit(gate=number) for number in range(2)]
    await house.swap(free)
    uncapped = await house.admit(gate=0)
    await house.release(permits[0])

    await house.swap(capped)

    assert (await house.refuse(gate=1)).used == 2
    await house.release(permits[1], uncapped)
    assert await house.in_flight() == 0


async def test_who_waits_goes_on_when_the_cap_is_raised(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, max_wait=HOUR)))
    await house.admit(gate=0)
    tasks = [await house.queue(gate=gate) for gate in (1, 2)]

    await house.swap(user(limits=Limits(max_concurrent=2, max_wait=HOUR)))

    assert [task.done() for task in tasks] == [True, False]
    admitted(await tasks[0])


async def test_who_waits_is_refused_when_it_can_never_fit_any_more(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, max_wait=HOUR)))
    await house.admit(60, gate=0)
    task = await house.queue(60, gate=1)

    await house.swap(user(limits=Limits(tokens_per_minute=50, max_wait=HOUR)))

    refusal = refused(await task)
    assert (refusal.reason, refusal.limit, refusal.requested) == (Reason.OVERSIZED_REQUEST, 50, 60)
    assert house.waits == 0


async def test_who_waits_is_refused_when_its_patience_is_cut_short(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, max_wait=HOUR)))
    await house.admit(gate=0)
    task = await house.queue(gate=1)
    await house.pass_time(10 * SECOND)

    await house.swap(user(limits=Limits(max_concurrent=1, max_wait=5 * SECOND)))

    assert refused(await task).reason is Reason.NO_FREE_SLOT


async def test_who_waits_goes_on_when_nothing_limits_it_any_more(build: Build) -> None:
    house = await build(user(limits=Limits(max_concurrent=1, max_wait=HOUR)), org(limits=Limits(requests_per_day=9)))
    await house.admit(gate=0)
    task = await house.queue(gate=1)

    await house.swap(org(limits=Limits(requests_per_day=9)))

    assert isinstance(await task, type(await house.admit(gate=0)))
    assert house.waits == 0


async def test_a_limit_that_comes_out_of_shadow_mode_enforces_what_it_has_counted(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=2, mode=Mode.SHADOW)))
    for number in range(3):
        await house.admit(gate=number)

    await house.swap(user(limits=Limits(requests_per_minute=2)))

    refusal = await house.refuse(gate=0)
    assert (refusal.used, refusal.retry_after) == (3, MINUTE + SECOND)


async def test_a_scope_that_is_limited_from_now_on_is_asked_at_once(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9)))
    await house.admit(gate=0)

    await house.swap(user(limits=Limits(requests_per_minute=9)), org(limits=Limits(requests_per_minute=1)))

    await house.admit(gate=1)
    assert (await house.refuse(gate=2)).key.scope is Scope.ORG


@pytest.mark.parametrize("limits", [Limits(max_concurrent=0), Limits(requests_per_day=0), Limits(tokens_per_minute=0)])
async def test_a_cap_of_0_stops_everything_at_once(build: Build, limits: Limits) -> None:
    house = await build(user(limits=Limits(requests_per_day=9)))
    await house.admit(gate=0)

    await house.swap(user(limits=limits))

    assert (await house.refuse(gate=1)).reason is Reason.OVERSIZED_REQUEST


async def test_a_call_that_was_on_its_way_is_settled_where_it_was_counted(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9)))
    on_its_way = asyncio.create_task(house.ask(50, gate=1))
    for _ in range(TURNS_TO_THE_SERVER):
        await asyncio.sleep(0)
    await house.swap(user(limits=Limits(requests_per_minute=9, tokens_per_hour=100, max_concurrent=2)))
    others = await house.admit(60, gate=1)

    permit = admitted(await on_its_way)
    await house.commit(permit, 1)

    assert await house.used(Cap.TOKENS_PER_HOUR) == 60
    assert await house.in_flight() == 2
    await house.release(permit, others)
    assert await house.in_flight() == 0


async def test_a_slice_that_was_taken_ahead_goes_back_to_where_it_was_taken_from(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=900, sharing=Sharing.LEASED)))
    for _ in range(20):  # the more there are, the more are taken ahead
        await house.admit(10, gate=0)
    await house.swap(user(limits=Limits(requests_per_minute=900, tokens_per_hour=1000, sharing=Sharing.LEASED)))
    await house.admit(70, gate=1)

    await house.pass_time(2 * SECOND)

    assert await house.used(Cap.REQUESTS_PER_MINUTE) == 21
    assert await house.used(Cap.TOKENS_PER_HOUR) == 70


async def test_a_cap_that_is_lowered_is_kept_also_by_slices_that_were_taken_before(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=900, sharing=Sharing.LEASED)))
    for _ in range(20):
        await house.admit(gate=0)

    await house.swap(user(limits=Limits(requests_per_minute=20, sharing=Sharing.LEASED)))

    assert (await house.refuse(gate=0)).used == 20
