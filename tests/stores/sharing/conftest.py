"""Gates that share a real Redis, in driven time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from helpers.driven import DrivenLoop
from helpers.house import House, Place, shared_house
from helpers.redis import ADMIN, RedisServer
from helpers.shared import Open
from sluice.core.rules import Rule
from sluice_sidecar.stores.address import StoreAddress


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"driven": DrivenLoop}


@pytest.fixture
def place(server: RedisServer) -> Place:
    return Place(StoreAddress.parse(server.url), Redis(port=server.port, username=ADMIN, password=ADMIN))


@pytest.fixture
async def open_house(place: Place) -> AsyncIterator[Open]:
    async with AsyncExitStack() as houses:

        async def open_house(*rules: Rule, gates: int = 2) -> House:
            return await houses.enter_async_context(shared_house(place, rules, gates))

        yield open_house
