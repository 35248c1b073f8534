"""Slices that the store gave, in an answer that came too late or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from redis import Redis

from helpers.driven import driven
from helpers.house import House, Place, shared_house
from helpers.ledger import refused, user
from helpers.redis import ADMIN, RedisServer
from helpers.relay import Relay, Way, relayed
from sluice.core.decisions import Reason
from sluice.core.limits import MILLISECOND, SECOND, Cap, Limits, Sharing, StoreFailure
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.address import StoreAddress

LIMITS = Limits(requests_per_day=1000, max_concurrent=1000, failure_policy=StoreFailure.DENY, sharing=Sharing.LEASED)
BUSY = 50
PER_DAY = Cap.REQUESTS_PER_DAY
LIFE = 16 * SECOND
"""A little more than places are held that nobody renews."""


@dataclass(slots=True)
class Line:
    """One gate, whose store is at the other end of a line that can be bad."""

    house: House
    relay: Relay

    async def until(self, holds: Callable[[], Awaitable[bool]], passing: int = 0) -> None:
        """Let so much time pass again and again, until it is so."""
        assert self.house.place is not None
        for _ in range(2000):
            if await holds():
                return
            driven().now += passing
            self.house.place.set_time(self.house.now)
            await self.house.place.until_answered()
        raise AssertionError("it never was so")

    async def ask_without_an_answer(self, break_it: Callable[[Way], None]) -> None:
        """After a busy second the store gives a slice, and the gate does not hear of it in time."""
        for permit in [await self.house.admit() for _ in range(BUSY)]:
            await self.house.release(permit)
        await self.house.pass_time(SECOND)
        came = self.relay.came[Way.REPLIES]
        break_it(Way.REPLIES)
        task = asyncio.create_task(self.house.ask())

        async def has_answered() -> bool:
            return self.relay.came[Way.REPLIES] > came

        await self.until(has_answered)
        driven().now += 16 * MILLISECOND
        assert refused(await task).reason is Reason.STORE_UNAVAILABLE

    async def come_back(self) -> None:
        (store,) = self.house.stores

        async def is_back() -> bool:
            return store.health.mode is StoreMode.SHARED

        await self.relay.heal()
        await self.until(is_back, passing=SECOND // 10)
        await self.house.pass_time(SECOND)


@pytest.fixture
async def line(server: RedisServer) -> AsyncIterator[Line]:
    async with relayed(server.port) as relay:
        address = StoreAddress.parse(f"redis://127.0.0.1:{relay.port}")
        place = Place(address, Redis(port=server.port, username=ADMIN, password=ADMIN))
        async with shared_house(place, [user(limits=LIMITS)], 1) as house:
            yield Line(house, relay)


async def test_slices_that_come_too_late_go_back(line: Line) -> None:
    await line.ask_without_an_answer(line.relay.hold)
    await line.come_back()

    assert (await line.house.used(PER_DAY), await line.house.in_flight()) == (BUSY, 0)


async def test_slices_that_never_come_stay_counted_and_their_places_are_free_at_the_deadline(line: Line) -> None:
    await line.ask_without_an_answer(line.relay.swallow)
    await line.come_back()
    used, held = await line.house.used(PER_DAY), await line.house.in_flight()
    await line.house.pass_time(LIFE)

    assert BUSY + 1 < used <= 2 * BUSY + 1
    assert held == used - BUSY - 1
    assert (await line.house.used(PER_DAY), await line.house.in_flight()) == (used, 0)
