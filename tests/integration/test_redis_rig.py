"""The servers that the tests of the shared store run on: each shape starts, answers redis-py, and breaks as told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError

from helpers.pki import Authority
from helpers.program import eventually, has_ended
from helpers.redis import ADMIN, ONCE, redis_binary, running_redis
from helpers.redis_groups import SERVICE, running_cluster, running_sentinel
from helpers.relay import behind_tls


@pytest.fixture(params=[False, True], ids=["pinned", "oldest"])
def oldest(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_server_answers_on_its_port_and_its_socket_and_ends(oldest: bool) -> None:
    async with running_redis(oldest=oldest) as server:
        async with Redis.from_url(server.url) as client:
            assert await client.ping() is True
        async with Redis(unix_socket_path=str(server.socket)) as client:
            assert await client.ping() is True
        pid = server.process.pid

    assert await has_ended(pid)
    assert not server.folder.exists()


async def test_users_have_the_rights_that_the_test_gave_them(oldest: bool) -> None:
    users = {"gate": "on >secret ~ours:* +@all", "default": "off"}
    async with running_redis(oldest=oldest, users=users) as server:
        async with Redis(port=server.port, retry=ONCE) as nobody:
            with pytest.raises(AuthenticationError):
                await nobody.ping()
        async with Redis(port=server.port, username="gate", password="secret") as gate:
            await gate.set("ours:1", "a")
            with pytest.raises(NoPermissionError):
                await gate.set("theirs:1", "a")


async def test_the_default_user_has_the_password_that_the_test_gave(oldest: bool) -> None:
    async with running_redis(oldest=oldest, password="secret") as server:
        async with Redis(port=server.port, password="wrong", retry=ONCE) as client:
            with pytest.raises(AuthenticationError):
                await client.ping()
        async with Redis(port=server.port, password="secret") as client:
            assert await client.ping() is True


async def test_what_a_server_wrote_is_there_after_a_restart_unless_it_is_emptied(oldest: bool) -> None:
    async with running_redis(oldest=oldest, persists=True) as server:
        port = server.port
        await server.ask("SET", "key", "value")
        await server.restart()
        kept = await server.ask("GET", "key")
        await server.restart(emptied=True)
        emptied = await server.ask("GET", "key")

        assert (kept, emptied, server.port) == ("value", None, port)


async def test_a_paused_server_answers_once_it_is_resumed(oldest: bool) -> None:
    async with running_redis(oldest=oldest) as server, server.client(socket_timeout=0.05) as client:
        await client.ping()
        server.pause()
        with pytest.raises(RedisError, match="Timeout reading"):
            await client.ping()
        server.resume()
        assert await server.ask("PING") is True


async def test_a_full_server_refuses_to_write(oldest: bool) -> None:
    async with running_redis(oldest=oldest, config={"maxmemory": 1}) as server:
        with pytest.raises(OutOfMemoryError):
            await server.ask("SET", "key", "value")


async def test_a_replica_holds_what_its_master_holds_and_refuses_to_write(oldest: bool) -> None:
    async with running_redis(oldest=oldest) as master:
        await master.ask("SET", "key", "value")
        async with running_redis(oldest=oldest, replica_of=master) as replica:
            assert await replica.ask("GET", "key") == "value"
            with pytest.raises(ReadOnlyError):
                await replica.ask("SET", "key", "other")


async def test_a_cluster_serves_every_slot_also_without_a_master_that_had_a_replica(oldest: bool) -> None:
    keys = [f"key-{number}" for number in range(20)]
    async with running_cluster(replicas=1, oldest=oldest) as cluster:
        async with RedisCluster("127.0.0.1", cluster.nodes[0].port, username=ADMIN, password=ADMIN) as client:
            assert [await client.set(key, "value") for key in keys] == [True] * len(keys)
        assert len({(await cluster.master_of(key)).port for key in keys}) == 3

        master, replica = await cluster.master_of("key-0"), await cluster.replica_of("key-0")
        master.kill()
        assert await cluster.until_master_of("key-0", lambda node: node is not master) is replica
        await cluster.until_ok()
        assert await replica.ask("SET", "key-0", "other") is True


async def test_a_sentinel_tells_where_the_master_is_before_and_after_a_failover(oldest: bool) -> None:
    async with running_sentinel(oldest=oldest) as watched:
        credentials = {"username": ADMIN, "password": ADMIN}
        sentinel = Sentinel([("127.0.0.1", watched.sentinel.port)], sentinel_kwargs=credentials, **credentials)
        try:
            before = await sentinel.discover_master(SERVICE)
            other = await watched.fail_over()
            after = await sentinel.discover_master(SERVICE)
        finally:
            for client in sentinel.sentinels:
                await client.aclose()

        assert other is watched.replica
        assert [before, after] == [("127.0.0.1", server.port) for server in (watched.master, watched.replica)]


async def test_a_sentinel_replaces_a_master_that_was_killed() -> None:
    async with running_sentinel() as watched:
        watched.master.kill()
        assert await watched.until_other_than(watched.master) is watched.replica


async def test_a_server_is_reached_by_tls_through_a_relay(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with running_redis() as server, behind_tls(server.port, authority) as relay:
        for host in ("localhost", "127.0.0.1"):
            url = f"rediss://{host}:{relay.port}"
            async with Redis.from_url(url, ssl_ca_certs=str(authority.file)) as client:
                assert await client.ping() is True


async def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(AssertionError, match="no-such-word"):
        async with running_redis(config={"no-such-word": 1}):
            pass


def test_a_server_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_REDIS_OLDEST", "/nowhere/redis-server")
    with pytest.raises(FileNotFoundError, match=r"no Redis at /nowhere/redis-server: run `make setup`"):
        redis_binary(oldest=True)


async def test_a_server_that_is_late_is_started_by_the_test() -> None:
    async with running_redis(started=False) as server:
        assert not server.answers
        await asyncio.gather(server.start(), eventually(lambda: asyncio.sleep(0, server.answers)))
