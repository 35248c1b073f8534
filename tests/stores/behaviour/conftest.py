"""Every test here runs in driven time, in each kind of house that it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from helpers.driven import DrivenLoop
from helpers.house import GATES_PASSWORD, GATES_USER, SETTINGS, TAG, Build, House, Place, memory_house, shared_house
from helpers.pki import Authority
from helpers.redis import ADMIN, RedisServer
from helpers.redis_groups import RedisCluster
from helpers.relay import behind_tls
from sluice.core.engine import EngineSettings
from sluice.core.rules import Rule
from sluice.core.telemetry import Telemetry
from sluice_sidecar.stores.address import StoreAddress

MEMORY = "memory"
PLACES = {
    "one gate": ("place", 1),
    "three gates": ("place", 3),
    "oldest": ("oldest_place", 2),
    "cluster": ("cluster_place", 2),
    "TLS": ("tls_place", 2),
    "socket": ("socket_place", 2),
}
"""Where the kinds of houses with a store have it, and how many gates they have."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"driven": DrivenLoop}


def secret() -> str:
    return GATES_PASSWORD


@pytest.fixture
def place(server: RedisServer) -> Iterable[Place]:
    with _client(server) as client:
        yield Place(StoreAddress.parse(server.url), client)


@pytest.fixture
def oldest_place(oldest: RedisServer) -> Iterable[Place]:
    with _client(oldest) as client:
        yield Place(_with_user(oldest.url), client, secret)


@pytest.fixture
def cluster_place(cluster: RedisCluster) -> Iterable[Place]:
    for node in cluster.nodes:
        with _client(node) as client:
            try:
                client.get(TAG)
            except ResponseError:
                continue  # another node has that slot
            yield Place(_with_user(f"redis+cluster://{cluster.hosts}"), client, secret)


@pytest.fixture
async def tls_place(server: RedisServer, authority: Authority) -> AsyncIterator[Place]:
    with _client(server) as client:
        async with behind_tls(server.port, authority) as relay:
            yield Place(_with_user(f"rediss://127.0.0.1:{relay.port}"), client, secret, authority.file)


@pytest.fixture
def socket_place(server: RedisServer) -> Iterable[Place]:
    with _client(server) as client:
        yield Place(StoreAddress.parse(f"unix://{server.socket}"), client)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every kind of house; but TLS, which is slow here and changes no count, only where time matters most."""
    if "kind" in metafunc.fixturenames and not any(
        "kind" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        kinds = [MEMORY, *PLACES]
        if metafunc.definition.path.name != "test_waiting.py":
            kinds.remove("TLS")
        metafunc.parametrize("kind", kinds)


@pytest.fixture
def place_if_any(kind: str, request: pytest.FixtureRequest) -> Place | None:
    found: Place | None = None if kind == MEMORY else request.getfixturevalue(PLACES[kind][0])
    return found


@pytest.fixture
async def build(kind: str, place_if_any: Place | None) -> AsyncIterator[Build]:
    async with AsyncExitStack() as houses:

        async def build(*rules: Rule, settings: EngineSettings = SETTINGS, telemetry: Telemetry | None = None) -> House:
            if place_if_any is None:
                return await houses.enter_async_context(memory_house(rules, settings, telemetry))
            _, gates = PLACES[kind]
            return await houses.enter_async_context(shared_house(place_if_any, rules, gates, settings, telemetry))

        yield build


def _client(server: RedisServer) -> Redis:
    return Redis(port=server.port, username=ADMIN, password=ADMIN)


def _with_user(url: str) -> StoreAddress:
    return StoreAddress.parse(url.replace("://", f"://{GATES_USER}@"))
