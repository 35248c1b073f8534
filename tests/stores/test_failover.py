"""The store moves to another server, as sentinels or a cluster have it: the gates follow, and go on counting."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from helpers.gates import RETURN_SECONDS, Gates, sharing
from helpers.pki import Authority
from helpers.program import eventually
from helpers.redis import SOON_SECONDS, RedisServer
from helpers.redis_groups import Watched, running_cluster, running_sentinel
from helpers.relay import Way, behind_tls
from helpers.system import limits
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import Client, StoreError
from sluice_sidecar.stores.shared.scripts import Scripts

LIMIT = 10
DOCUMENT = limits("openai", "http://127.0.0.1:1", {"requestsPerDay": LIMIT, "failurePolicy": "Deny"})
ALICE = BucketKey("openai", Scope.USER, "alice")
TAG = "{test/openai}"


async def until_copied(master: RedisServer, replica: RedisServer) -> None:
    """Wait until the replica has all that the master has written."""

    async def is_so() -> bool:
        said = (await master.info("replication"))["master_repl_offset"]
        return bool((await replica.info("replication"))["slave_repl_offset"] >= said)

    await eventually(is_so)


async def until_replica(server: RedisServer) -> None:
    """Wait until it does as it is told: a sentinel takes some ten seconds to tell a master that lives."""

    async def is_so() -> bool:
        try:
            return bool((await server.info("replication"))["role"] == "slave")
        except RedisError:  # it drops its clients then
            return False

    await eventually(is_so, lambda: server.log, SOON_SECONDS)


async def admit_some(gates: Gates, times: int) -> int:
    return sum([await gates.each[number % 2].admitted("openai", "alice") for number in range(times)])


async def until_there(gates: Gates, server: RedisServer) -> float:
    """Wait until that server decides for all gates; returns the seconds."""
    began, moment = time.monotonic(), time.time() * 1e6

    async def all_are() -> bool:
        async with server.client() as client:
            heard = [float(await client.zscore(f"{TAG}gates", each.name) or 0) for each in gates.each]
        return min(heard) > moment and all(each.mode is StoreMode.SHARED for each in gates.each)

    await eventually(all_are, lambda: str([each.health for each in gates.each]), RETURN_SECONDS)
    return time.monotonic() - began


async def some_counted(gates: Gates) -> None:
    await gates.know_each_other()
    assert await admit_some(gates, 4) == 4
    await gates.settled()


async def assert_that_they_go_on(gates: Gates, admitted: int) -> None:
    """What is left of the limit is there within five seconds, also where a replica has to be told what it lacks."""

    async def is_used_up() -> bool:
        nonlocal admitted
        admitted += await admit_some(gates, 2)
        return admitted >= LIMIT

    await eventually(is_used_up, lambda: f"{admitted}, {[each.health for each in gates.each]}", RETURN_SECONDS)
    await gates.until(StoreMode.SHARED)
    assert admitted + await admit_some(gates, LIMIT) == LIMIT
    assert await gates.stored(ALICE, Cap.REQUESTS_PER_DAY) == LIMIT


async def test_gates_follow_their_sentinel_to_the_replica_of_a_dead_master() -> None:
    async with running_sentinel() as watched, watched_by_gates(watched) as gates:
        watched.master.kill()
        new = await watched.until_other_than(watched.master)

        assert new is watched.replica
        assert await until_there(gates, new) < RETURN_SECONDS
        await assert_that_they_go_on(gates, 4)


async def test_gates_follow_their_sentinel_that_moves_the_service() -> None:
    async with running_sentinel() as watched, watched_by_gates(watched) as gates:
        new = await watched.fail_over()
        admitted = 4 + await admit_some(gates, 2)  # by the old master, which does not know yet that it is none
        await until_replica(watched.master)

        assert await until_there(gates, new) < RETURN_SECONDS
        # The new one has an old memory by then, and is told everything again: it may count too much, never too little.
        await gates.beaten(2)
        await gates.until(StoreMode.SHARED)
        admitted += await admit_some(gates, 2 * LIMIT)
        assert 6 <= admitted <= LIMIT
        assert await gates.stored(ALICE, Cap.REQUESTS_PER_DAY) >= LIMIT


@asynccontextmanager
async def watched_by_gates(watched: Watched) -> AsyncIterator[Gates]:
    """Two gates that have admitted four calls, of which the replica knows."""
    address = f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/{watched.service}"
    async with sharing(address, DOCUMENT, gates=2, known=2) as gates:
        await some_counted(gates)
        await until_copied(watched.master, watched.replica)
        yield gates


async def test_gates_follow_their_cluster_to_the_replica() -> None:
    async with (
        running_cluster(replicas=1) as cluster,
        sharing(f"redis+cluster://{cluster.hosts}", DOCUMENT, gates=2, known=2) as gates,
    ):
        await some_counted(gates)
        master, replica = await cluster.master_of(TAG), await cluster.replica_of(TAG)
        await until_copied(master, replica)

        master.kill()
        await cluster.until_master_of(TAG, lambda node: node is replica)

        assert await until_there(gates, replica) < RETURN_SECONDS
        await assert_that_they_go_on(gates, 4)


async def test_sentinels_are_spoken_with_over_tls_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with running_sentinel() as watched, behind_tls(watched.sentinel.port, authority) as relay:
        client = Client(StoreAddress.parse(f"rediss+sentinel://127.0.0.1:{relay.port}/sluice"), ca=authority.file)
        with pytest.raises(StoreError):  # for the server itself does not speak it
            await client.run(Scripts().peek, (), ())
        await client.close()

        assert relay.passed[Way.REPLIES] > 0
