"""The store has decided, and its answer comes late or never: nobody waits for it, and nothing keeps a place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from helpers.faults import Bench
from helpers.gates import DECISION_SECONDS, Gates, sharing
from helpers.program import eventually
from helpers.redis import running_redis
from helpers.relay import Way, relayed
from helpers.system import limits
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice.core.permits import Permit
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import MOST_PIPELINES, Ask, Client, StoreError
from sluice_sidecar.stores.shared.scripts import Scripts

ALICE = BucketKey("openai", Scope.USER, "alice")
DOCUMENT = limits("openai", "http://127.0.0.1:9", {"requestsPerDay": 1000, "tokensPerDay": 10**6, "maxConcurrent": 2})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_redis() as server, relayed(server.port) as relay:
        yield Bench(server, relay)


async def held(gates: Gates) -> tuple[int, int]:
    """Calls of alice in flight, by what the store says and by what the gates themselves know."""
    await gates.settled()
    told = []
    for each in gates.each:
        state = each.gate.engine.current_state(ALICE, each.gate.clock())
        if state is not None:
            told.append((state, each))
    (shown,) = await told[0][1].store.pictures([told[0][0]])
    return shown.in_flight, sum(state.in_flight for state, _ in told)


async def test_whoever_asks_while_every_connection_hangs_is_told_in_time(bench: Bench) -> None:
    client, scripts = Client(StoreAddress.parse(bench.address)), Scripts()
    try:
        await client.run(scripts.peek, [], [])
        bench.relay.hold()
        hanging = []
        for _ in range(MOST_PIPELINES + 1):
            hanging.append(client.ask(Ask(scripts.peek, [], [])))
            await asyncio.sleep(0)  # each in a pipeline of its own
        await asyncio.gather(*hanging, return_exceptions=True)
        asked = time.monotonic()
        with pytest.raises(StoreError, match="did not answer within 15 ms"):
            await client.ask(Ask(scripts.peek, [], []))
        assert time.monotonic() - asked < 10 * DECISION_SECONDS  # it was a second
    finally:
        await bench.relay.heal()
        await client.close()


async def test_a_late_answer_is_given_back(bench: Bench) -> None:
    async with sharing(bench.address, DOCUMENT, gates=1) as gates:
        (gate,) = gates.each
        assert await gate.admitted("openai", "alice", 10) == 1
        bench.relay.hold(Way.REPLIES)
        assert await gate.admitted("openai", "alice", 10) == 1
        assert gate.mode is StoreMode.LOCAL
        await bench.relay.heal()
        await gates.until(StoreMode.SHARED)

        counts = [await gates.stored(ALICE, cap) for cap in (Cap.REQUESTS_PER_DAY, Cap.TOKENS_PER_DAY)]
        assert (counts, await held(gates)) == ([2, 20], (0, 0))


async def test_an_answer_that_comes_in_the_turn_in_which_patience_ends_is_given_back(bench: Bench) -> None:
    async with sharing(bench.server.url, DOCUMENT, gates=1) as gates:
        (gate,) = gates.each
        assert await gate.admitted("openai", "alice", 10) == 1
        asking = asyncio.create_task(gate.admitted("openai", "alice", 10))
        for _ in range(5):  # turns in which it is sent
            await asyncio.sleep(0)
        time.sleep(2 * DECISION_SECONDS)  # noqa: ASYNC251  the loop is busy: answer and end of patience find it so together
        assert await asking == 1
        await gates.until(StoreMode.SHARED)

        counts = [await gates.stored(ALICE, cap) for cap in (Cap.REQUESTS_PER_DAY, Cap.TOKENS_PER_DAY)]
        assert (counts, await held(gates)) == ([2, 20], (0, 0))


async def test_a_call_whose_answer_is_lost_holds_no_place_once_the_store_is_back(bench: Bench) -> None:
    async with sharing(bench.address, DOCUMENT, gates=1) as gates:
        (gate,) = gates.each
        assert await gate.admitted("openai", "alice", 10) == 1
        bench.relay.swallow(Way.REPLIES)
        permits = [await gate.acquire("openai", "alice", 10) for _ in range(2)]
        await bench.relay.heal()
        await gates.until(StoreMode.SHARED)

        assert [type(permit) for permit in permits] == [Permit, Permit]
        assert await held(gates) == (2, 2)


async def test_what_is_owed_to_a_store_that_is_away_can_be_seen(bench: Bench) -> None:
    async with sharing(bench.address, DOCUMENT, gates=1) as gates:
        (gate,) = gates.each
        bench.relay.refuse()
        await gates.until(StoreMode.LOCAL)
        assert await gate.admitted("openai", "alice", 10) == 1
        await gates.beaten(1)

        async def is_seen() -> bool:
            return gate.health.unsent_since is not None

        await eventually(is_seen)
        await bench.relay.heal()
        await gates.until(StoreMode.SHARED)
        await gates.settled()
        assert gate.health.unsent == 0.0
