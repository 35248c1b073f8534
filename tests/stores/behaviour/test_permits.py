"""Calls in flight in a store: their places are renewed while they live, and free in time when their gate does not."""

from __future__ import annotations

import pytest

from helpers.house import House, Place, move_in, shared_house
from helpers.ledger import PROVIDER, user
from sluice.core.limits import HOUR, MILLISECOND, SECOND, Limits
from sluice_sidecar.stores.shared.keyspace import LIFE

LIMITS = Limits(max_concurrent=2, max_wait=HOUR)
DEADLINE = LIFE * MILLISECOND


async def pass_seconds(house: House, seconds: int) -> None:
    """One after the other, so that nothing is made up for."""
    for _ in range(seconds):
        await house.pass_time(SECOND)


async def die(house: House, number: int) -> None:
    """The gate is gone: nothing it would say later is said, and its calls have not ended."""
    store, gate = house.stores.pop(number), house.gates.pop(number)
    await store.close()  # which sends what is owed, and nothing is
    await gate.close()


async def test_the_places_of_calls_that_go_on_are_kept_for_as_long_as_they_take(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 2) as house:
        permits = [await house.admit(gate=number) for number in range(2)]

        await pass_seconds(house, 5 * DEADLINE // SECOND)

        assert await house.in_flight() == 2
        assert (await house.refuse(gate=0, patience=0)).used == 2
        await house.release(*permits)
        assert await house.in_flight() == 0


async def test_the_places_of_a_gate_that_died_are_free_at_their_deadline_and_not_before(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 2) as house:
        await house.admit(gate=0)
        kept = await house.admit(gate=1)
        await die(house, 0)

        await pass_seconds(house, DEADLINE // SECOND - 1)
        assert (await house.refuse(gate=0, patience=0)).used == 2
        await pass_seconds(house, 1)

        assert await house.in_flight() == 1
        await house.admit(gate=0)
        await house.release(kept)
        assert await house.in_flight() == 1


async def test_who_waits_gets_the_place_of_a_gate_that_died(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 2) as house:
        for _ in range(2):
            await house.admit(gate=0)
        await die(house, 0)
        task = await house.queue(gate=0)

        await pass_seconds(house, DEADLINE // SECOND - 1)
        assert not task.done()
        await pass_seconds(house, 2)

        assert task.done()


async def test_who_waited_at_a_gate_that_died_holds_up_nobody(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 2) as house:
        permits = [await house.admit(gate=1) for _ in range(2)]
        lost = await house.queue(gate=0)
        behind = await house.queue(gate=1)
        await die(house, 0)
        await pass_seconds(house, 4)

        await house.release(permits[0])

        assert behind.done()
        lost.cancel()


async def test_places_are_given_back_by_a_gate_that_ends(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 2) as house:
        permits = [await house.admit(gate=0) for _ in range(2)]
        for permit in permits:
            permit.release(house.now)
        ending, _ = house.stores.pop(0), house.gates.pop(0)

        await ending.close()

        await house.admit(gate=0)
        assert await house.in_flight() == 1


async def test_another_gate_sees_what_was_used_before_it_came(place: Place) -> None:
    async with shared_house(place, [user(limits=LIMITS)], 1) as house:
        for _ in range(2):
            await house.admit(gate=0)

        store = await move_in(house, "late")
        await house.swap(user(limits=LIMITS))
        await store.start()
        await house.settled()

        assert (await house.refuse(gate=1, patience=0)).used == 2
        assert {each.health.gates for each in house.stores} == {1, 2}


@pytest.mark.parametrize("gates", [1, 3])
async def test_every_gate_that_lives_is_counted(place: Place, gates: int) -> None:
    async with shared_house(place, [user(limits=LIMITS)], gates) as house:
        await house.pass_time(SECOND)
        assert [store.keyspaces[PROVIDER].gates for store in house.stores] == [gates] * gates
