"""What kubectl tells of gates that share a store: their counts once, and who decides while the store is away.

Real are the API server, the operator, the gates and Redis.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from helpers.kube.gates import GatePod, running_gate
from helpers.kube.kubelet import Kubelet
from helpers.kube.person import Person, became, limits
from helpers.redis import RedisServer, running_redis

# A Redis, an operator and two gates start, on a machine that may be busy with others.
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("operator")]

TOLD_SECONDS = 10
"""In which kubectl says that a store is away: a beat of the gate, a look of the operator, and the five seconds that it
leaves between two writes of a status."""
PLENTY = {"requestsPerMinute": 9_000_000}
NOTHING = {"requestsPerMinute": 0}
AWAY_BEGINS = "The store that gates share cannot be used by gate-"
AWAY = (
    f"{AWAY_BEGINS}a, gate-b: see the gate's log. Until it can, each decides alone, as the failurePolicy of each limit "
    "says."
)
BACK = "Every gate that answers reaches the store of its counts."


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with running_redis() as server:
        yield server


@asynccontextmanager
async def two_gates(node: Kubelet, store: RedisServer) -> AsyncIterator[tuple[GatePod, GatePod]]:
    """Two pods whose gates share the store, and know of each other."""
    async with (
        running_gate(node, "gate-a", "--store", store.url) as first,
        running_gate(node, "gate-b", "--store", store.url) as second,
    ):
        for gate in (first, second):
            await gate.program.until(lambda told: (told["store"]["mode"], told["store"]["gates"]) == ("Shared", 2))
        yield first, second


async def test_kubectl_shows_what_both_gates_have_used_together_and_once(
    person: Person, node: Kubelet, redis: RedisServer
) -> None:
    everybody = {"requestsPerMinute": 100, "tokensPerMinute": 90_000}
    few = {"match": {"subjects": ["bob"]}, "requestsPerMinute": 60, "maxConcurrent": 3}
    await person.apply(limits("openai", everybody, few))
    async with two_gates(node, redis) as (first, second), AsyncExitStack() as calls:
        for _ in range(41):
            await first.ask("alice")
        for _ in range(20):
            await second.ask("alice")
        for gate in (first, first, second):
            await calls.enter_async_context(gate.call("bob"))
        assert await second.refuses("bob")

        # 61 estimates of 256 tokens are 17 % of 90 000. What became of calls each gate tells of its own.
        await person.sees("openai", "openai", "True", "2/2", "61/100", "17%", "3", "1")
        assert (await person.status("openai"))["usage"]["admitted"] == 41 + 20 + 3


async def test_calls_in_flight_that_no_limit_counts_are_added_over_the_gates(
    person: Person, node: Kubelet, redis: RedisServer
) -> None:
    await person.apply(limits("openai", {"requestsPerMinute": 100}))
    async with two_gates(node, redis) as (first, second), AsyncExitStack() as calls:
        for gate in (first, first, second):
            await calls.enter_async_context(gate.call("alice"))

        await person.sees("openai", "openai", "True", "2/2", "3/100", "3", "0")


async def test_a_store_that_goes_away_and_comes_back_is_a_condition_an_event_and_a_metric(
    person: Person, node: Kubelet, redis: RedisServer
) -> None:
    await person.apply(limits("openai", {"requestsPerHour": 1000}))
    async with two_gates(node, redis) as gates:
        await person.reads("openai", "StoreHealthy", "True", "StoreHealthy")
        before = [await entered(gate) for gate in gates]

        redis.kill()
        killed = time.monotonic()
        await person.is_told("openai", "StoreHealthy", "False", "StoreAway", AWAY)
        took = time.monotonic() - killed
        away = [await entered(gate) for gate in gates]

        await redis.restart()
        await person.is_told("openai", "StoreHealthy", "True", "StoreHealthy", BACK)
        back = [await entered(gate) for gate in gates]
        told = [each for each in await person.events("openai") if each[0].startswith("Store")]

    assert took <= TOLD_SECONDS
    for first, second, third in zip(before, away, back, strict=True):
        assert second == {"Shared": first["Shared"], "Local": first["Local"] + 1}
        assert third["Shared"] > second["Shared"]
    # The operator may have seen one of them alone at first.
    assert (told[0][0], told[0][1][: len(AWAY_BEGINS)]) == ("StoreAway", AWAY_BEGINS)
    assert told[-1] == ("StoreHealthy", BACK)


async def test_a_changed_limit_reaches_both_gates_while_the_store_is_away_and_with_it_again(
    person: Person, node: Kubelet, redis: RedisServer
) -> None:
    await person.apply(limits("openai", PLENTY))
    async with two_gates(node, redis) as gates:
        await change(person, gates, NOTHING, mode="Shared")
        redis.kill()
        for gate in gates:
            await gate.program.until(lambda told: told["store"]["mode"] == "Local")
        await change(person, gates, PLENTY, mode="Local")
        await change(person, gates, NOTHING, mode="Local")

        await redis.restart()
        for gate in gates:
            await gate.program.until(lambda told: told["store"]["mode"] == "Shared")
            assert await gate.refuses()
        await change(person, gates, PLENTY, mode="Shared")


async def change(person: Person, gates: tuple[GatePod, GatePod], caps: dict[str, int], mode: str) -> None:
    """Apply other limits, and wait until both gates decide by them; they are in that mode before and after."""
    await person.apply(limits("openai", caps))
    await asyncio.gather(*(became(gate, refuses=caps is NOTHING) for gate in gates))
    assert [(await gate.program.status())["store"]["mode"] for gate in gates] == [mode] * 2


async def entered(gate: GatePod) -> dict[str, int]:
    """How often the gate has come into each mode, by its metrics."""
    _, metrics = await gate.program.get("/metrics")
    found = re.findall(r'^sluice_store_mode_changes_total\{mode="(\w+)"\} ([\d.]+)$', metrics, re.MULTILINE)
    return {mode: int(float(number)) for mode, number in found}
