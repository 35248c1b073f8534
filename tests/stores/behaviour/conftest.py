"""Every test here runs in driven time, in each kind of house that it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from helpers.driven import DrivenLoop
from helpers.house import SETTINGS, Build, House, Place, memory_house, shared_house
from helpers.redis import ADMIN, RedisServer
from sluice.core.engine import EngineSettings
from sluice.core.rules import Rule
from sluice.core.telemetry import Telemetry
from sluice_sidecar.stores.address import StoreAddress

MEMORY = "memory"
GATES = {"one gate": 1, "three gates": 3}


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"driven": DrivenLoop}


@pytest.fixture
def place(server: RedisServer) -> Place:
    return Place(StoreAddress.parse(server.url), Redis(port=server.port, username=ADMIN, password=ADMIN))


@pytest.fixture(params=[MEMORY, *GATES])
def kind(request: pytest.FixtureRequest) -> str:
    """Of house."""
    return str(request.param)


@pytest.fixture
def place_if_any(kind: str, request: pytest.FixtureRequest) -> Place | None:
    found: Place | None = None if kind == MEMORY else request.getfixturevalue("place")
    return found


@pytest.fixture
async def build(kind: str, place_if_any: Place | None) -> AsyncIterator[Build]:
    async with AsyncExitStack() as houses:

        async def build(*rules: Rule, settings: EngineSettings = SETTINGS, telemetry: Telemetry | None = None) -> House:
            if place_if_any is None:
                return await houses.enter_async_context(memory_house(rules, settings, telemetry))
            return await houses.enter_async_context(shared_house(place_if_any, rules, GATES[kind], settings, telemetry))

        yield build
