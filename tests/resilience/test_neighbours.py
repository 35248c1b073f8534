"""Somebody else writes into the store, or sets its clock: no gate crashes, none stops limiting, and the log says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from helpers.faults import Bench
from helpers.gates import Gates, Sharer, sharing
from helpers.program import eventually
from helpers.redis import running_redis
from helpers.relay import relayed
from helpers.system import limits
from sluice.core.decisions import Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice.core.permits import Permit
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.shared.scripts import Scripts

LIMIT = 10
GATES = 2
ALICE = BucketKey("openai", Scope.USER, "alice")
OURS = "{test/openai}"
BUCKET = ":User::alice"
DAY_US = 86_400_000_000
UPSTREAM = "http://127.0.0.1:9"
DOCUMENT = limits("openai", UPSTREAM, {"requestsPerDay": LIMIT, "maxConcurrent": 5, "maxWait": "5s"})

pytestmark = pytest.mark.timeout(120)  # some wait for the store's return


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_redis() as server, relayed(server.port) as relay:
        yield Bench(server, relay)


def warnings(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [message for record in caplog.records if words in (message := record.getMessage())]


async def admitted(gates: Gates, times: int) -> int:
    """How many calls of alice are, of so many at each gate."""
    return sum([await each.admitted("openai", "alice") for _ in range(times) for each in gates.each])


GARBAGE = {
    "counts that are a string": [("SET", f"b{BUCKET}", "x")],
    "counts that are too short": [("HSET", f"b{BUCKET}", "d", "x")],
    "counts of another version": [("HSET", f"b{BUCKET}", "d", "x" * 56)],
    "older counts that are too short": [("HSET", f"b{BUCKET}", "ds", "x")],
    "calls in flight that are a string": [("SET", f"p{BUCKET}", "x")],
    "a queue that is a list": [("RPUSH", f"q{BUCKET}", "x")],
    "a queue of something else": [("ZADD", f"q{BUCKET}", 1, "x")],
    "gates that are a hash": [("HSET", "gates", "gate-0", "x")],
    "tickets that are no number": [("SET", "tickets", "x")],
    "an epoch that is a list": [("RPUSH", "epoch", "x")],
    "an epoch of somebody else": [("SET", "epoch", "x")],
    "a recovery that never ends": [("SET", "recovery", "x")],
    "batches that are no number": [("SET", "batch:gate-0", "x")],
}


@pytest.mark.parametrize("commands", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_in_a_key_is_told_and_taken_away_and_limits_hold_on(
    commands: list[tuple[object, ...]], bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with sharing(bench.server.url, DOCUMENT, gates=GATES) as gates:
        await gates.know_each_other()
        assert await admitted(gates, 1) == GATES
        await gates.settled()
        for command, key, *rest in commands:
            await bench.server.ask("DEL", f"{OURS}{key}")
            await bench.server.ask(command, f"{OURS}{key}", *rest)
        changes = gates.changes(StoreMode.LOCAL)
        caplog.clear()
        first = await admitted(gates, LIMIT)
        await gates.beaten(2)
        await gates.until(StoreMode.SHARED)
        more = await admitted(gates, LIMIT)
        again = await admitted(gates, LIMIT)
        stored = await gates.stored(ALICE, Cap.REQUESTS_PER_DAY)

        # What was counted is forgotten at worst, and what each gate admits alone meanwhile comes on top.
        assert first + more <= LIMIT + GATES * (LIMIT // GATES)
        assert again == 0
        assert stored >= LIMIT
        if gates.changes(StoreMode.LOCAL) > changes:
            assert warnings(caplog, "cannot be used") != []
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_message_that_no_gate_sent_wakes_nobody_and_stops_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def waits(gate: Sharer) -> None:
        async def is_waiting() -> bool:
            return gate.store.queued == 1

        await eventually(is_waiting)

    async with sharing(bench.server.url, DOCUMENT, gates=1) as gates:
        (gate,) = gates.each
        held = [await gate.acquire("openai", "alice") for _ in range(5)]
        waiting = asyncio.create_task(gate.acquire("openai", "alice"))
        await waits(gate)
        for message in ("", "x", "-1", "1e9", "99", "9" * 5000, "\x00\xff"):
            await bench.server.ask("PUBLISH", f"{OURS}wake:gate-0", message)
            await bench.server.ask("PUBLISH", f"{OURS}word", message)
        permit = held[0]
        assert isinstance(permit, Permit)
        permit.release(gate.gate.clock())

        assert isinstance(await waiting, Permit)
        assert gate.mode is StoreMode.SHARED
        assert len(warnings(caplog, "brought something that no gate sent")) > 0
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_keys_of_others_with_a_similar_prefix_are_not_touched(bench: Bench) -> None:
    others = {
        "{test/openai2}b:User::alice": "x", "{test/open}gates": "x", "{test2/openai}epoch": "x", "test/openai": "x",
        "{test/openai}": "x",
    }  # fmt: skip
    for key, value in others.items():
        await bench.server.ask("SET", key, value)
    async with sharing(bench.server.url, DOCUMENT, gates=GATES) as gates:
        await gates.know_each_other()
        assert await admitted(gates, LIMIT) == LIMIT
        await gates.settled()

    assert {key: await bench.server.ask("GET", key) for key in others} == others


@pytest.mark.parametrize("days", [2, -1, 400])
async def test_a_clock_that_jumps_by_days_is_told_and_limits_hold_on(
    days: int, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    began = 20_000 * DAY_US
    await bench.server.ask("SET", "now", began)
    scripts = Scripts(clock="local function clock() return tonumber(redis.call('GET', 'now')) end")
    async with sharing(bench.server.url, DOCUMENT, gates=GATES, scripts=scripts, wall=lambda: began * 1000) as gates:
        await gates.know_each_other()
        held = await gates.each[0].acquire("openai", "alice")
        before = await admitted(gates, LIMIT)
        caplog.clear()
        await bench.server.ask("SET", "now", began + days * DAY_US)
        await gates.beaten(2)
        await gates.know_each_other()
        after = await admitted(gates, LIMIT)
        assert isinstance(held, Permit)
        held.release(gates.each[0].gate.clock())
        refused = await gates.each[0].acquire("openai", "alice")

        assert before == LIMIT - 1
        assert after == (LIMIT if days > 0 else 0)  # a day has passed, by the clock there is
        assert isinstance(refused, Refusal)
        assert len(warnings(caplog, "the clock of the store")) == GATES
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
