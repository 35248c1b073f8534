"""A gate's user on Redis: the rights that docs/shared-state.md gives do, none is too much, and what if one lacks.

The tests of `behaviour` hold the same where time is driven; here the server's own clock counts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

import pytest

from helpers.gates import Gates, sharing
from helpers.house import GATES_PASSWORD, GATES_USER, gates_rights
from helpers.program import eventually
from helpers.redis import RedisServer, running_redis
from helpers.redis_groups import SERVICE, running_sentinel
from helpers.system import limits
from sluice.core.keys import BucketKey, Scope
from sluice.core.permits import Permit
from sluice_sidecar.health import StoreMode

PREFIX = "team-a"
OTHER = "team-ab"
"""A prefix that begins alike."""
SERVERS = pytest.mark.parametrize("oldest", [False, True], ids=["newest", "oldest"])
CAPS = {"requestsPerMinute": 100, "tokensPerMinute": 100_000, "maxConcurrent": 1, "maxWait": "30s"}
ALICE = BucketKey("openai", Scope.USER, "alice", "")
DOCUMENT = limits("openai", "http://127.0.0.1:1", CAPS)

pytestmark = pytest.mark.timeout(90)  # a cluster takes seconds to start, on a machine that may be busy with others


@asynccontextmanager
async def two_gates(address: str, prefix: str = PREFIX, *, away: bool = False) -> AsyncIterator[Gates]:
    """Two gates of the user, whose store decides unless it is `away`."""
    address = address.replace("://", f"://{GATES_USER}@")
    async with sharing(address, DOCUMENT, gates=2, password=lambda: GATES_PASSWORD, prefix=prefix) as gates:
        if not away:
            await gates.know_each_other()
        yield gates


async def play(gates: Gates) -> None:
    """All that gates ask of a store: to decide, to let somebody wait and wake him, to be told, and to tell."""
    first, second = gates.each
    held = await first.acquire("openai", "alice", 10)
    assert isinstance(held, Permit)
    waiting = [asyncio.create_task(second.acquire("openai", "alice", 10)) for _ in range(2)]
    await eventually(lambda: waits(gates, 2))
    waiting.pop().cancel()
    held.release(first.gate.clock())
    got_on = await waiting[0]
    assert isinstance(got_on, Permit)
    got_on.release(second.gate.clock())
    await gates.settled()
    state = first.gate.engine.current_state(ALICE, first.gate.clock())
    assert state is not None
    assert (await first.store.pictures([state]))[0].in_flight == 0
    for each in gates.each:
        for keyspace in each.store.keyspaces.values():
            await each.client.publish(keyspace.keys.word, b"nothing")
    await gates.beaten(1)
    assert [each.mode for each in gates.each] == [StoreMode.SHARED] * 2


async def waits(gates: Gates, number: int) -> bool:
    return sum(each.store.queued for each in gates.each) == number


async def denied(server: RedisServer) -> list[str]:
    """What the server denied to the user: what it was, and in what context."""
    told = await server.ask("ACL", "LOG")
    entries = [dict(zip(each[::2], each[1::2], strict=True)) if isinstance(each, list) else each for each in told]
    return [f"{entry['object']} ({entry['context']})" for entry in entries]


@SERVERS
@pytest.mark.parametrize("database", ["", "/1"])
async def test_the_documented_rights_do_for_all_that_gates_do(database: str, *, oldest: bool) -> None:
    async with running_redis(oldest=oldest, users={GATES_USER: gates_rights(PREFIX)}) as redis:
        async with two_gates(redis.url + database) as gates:
            await play(gates)
        assert await denied(redis) == []


@SERVERS
async def test_they_do_behind_sentinels(*, oldest: bool) -> None:
    async with running_sentinel(oldest=oldest, users={GATES_USER: gates_rights(PREFIX)}) as watched:
        async with two_gates(f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/{SERVICE}") as gates:
            await play(gates)
        assert await denied(watched.master) == []


def test_no_command_is_permitted_that_no_script_and_no_gate_uses() -> None:
    folder = files("sluice_sidecar.stores.shared") / "scripts"
    called = {word for file in folder.iterdir() for word in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())}
    of_gates = {"eval", "evalsha", "publish", "subscribe", "select", "info"}
    of_a_cluster = {"command", "cluster|slots", "asking"}

    permitted = {word[1:] for word in gates_rights(PREFIX).split() if word.startswith("+")}

    assert permitted == {word.lower() for word in called} | of_gates | of_a_cluster


async def test_two_namespaces_on_one_store_do_not_touch_each_other() -> None:
    users = {GATES_USER: gates_rights(PREFIX), "other": gates_rights(OTHER)}
    async with (
        running_redis(users=users) as redis,
        two_gates(redis.url) as gates,
        sharing(
            redis.url.replace("//", "//other@"), DOCUMENT, gates=1, password=lambda: GATES_PASSWORD, prefix=OTHER
        ) as others,
    ):
        await others.know_each_other()
        held = await gates.each[0].acquire("openai", "alice", 10)
        theirs = await others.each[0].acquire("openai", "alice", 10)
        await gates.beaten(1)

        assert isinstance(held, Permit)
        assert isinstance(theirs, Permit)  # of theirs nobody was in flight
        assert [each.health.gates for each in (*gates.each, *others.each)] == [2, 2, 1]
        assert {key.partition("}")[0] for key in await redis.ask("KEYS", "*")} == {
            f"{{{PREFIX}/openai",
            f"{{{OTHER}/openai",
        }


LACKS = "does not permit its user {}: docs/shared-state.md has the rights that it needs"
KEYS_AND_CHANNELS = LACKS.format("the keys and channels of the prefix")


@SERVERS
@pytest.mark.parametrize(
    ("word", "trouble"),
    [
        ("+evalsha", LACKS.format("the command EVALSHA")),
        ("+eval", LACKS.format("the command EVAL")),
        ("+publish", LACKS.format("the command PUBLISH")),
        ("+zcount", LACKS.format("what a script does")),
        ("+time", LACKS.format("what a script does")),
        ("~{team-a/*", KEYS_AND_CHANNELS),
        ("&{team-a/*", KEYS_AND_CHANNELS),
    ],
)
async def test_a_right_that_lacks_is_told_and_once_it_is_given_the_store_decides(
    word: str, trouble: str, *, oldest: bool
) -> None:
    without = " ".join(each for each in gates_rights(PREFIX).split() if each != word)
    async with (
        running_redis(oldest=oldest, users={GATES_USER: without}) as redis,
        two_gates(redis.url, away=True) as gates,
    ):
        assert {each.health.problem for each in gates.each} == {trouble}
        assert isinstance(await gates.each[0].acquire("openai", "alice", 10), Permit)  # by the gate alone
        await redis.ask("ACL", "SETUSER", GATES_USER, word)
        await gates.until(StoreMode.SHARED)
