"""Redis servers that belong together: a cluster, and a master with a replica that a sentinel watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from helpers.envoy import short_folder
from helpers.process import lasting_ports
from helpers.program import eventually
from helpers.redis import ADMIN, OPTIONS, SOON_SECONDS, RedisServer, laid_out, running_redis, until_linked

SLOTS = 16384
BUS = 10_000
"""How far above a node's port the one is where it talks to the others."""
SILENT_MS = 1000
"""After how long a node, or a master that a sentinel watches, is taken for dead."""
SERVICE = "sluice"


class Shard(NamedTuple):
    """A range of slots, and the ports of the nodes that hold it."""

    first: int
    last: int
    master: int
    replicas: tuple[int, ...]


@dataclass(slots=True)
class RedisCluster:
    """Its nodes: at first the masters, then a replica of each, a second one of each, and so on."""

    nodes: list[RedisServer]

    @property
    def hosts(self) -> str:
        """The nodes as an address names them."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    async def master_of(self, key: str) -> RedisServer:
        """The node that answers for the key, by what the first node says that answers."""
        return self._node((await self._shard(key)).master)

    async def replica_of(self, key: str) -> RedisServer:
        """A replica of that node. Raises `IndexError` if there is none."""
        return self._node((await self._shard(key)).replicas[0])

    async def until_ok(self) -> None:
        """Wait until all nodes that answer find every slot served."""
        await self._until("cluster_state", "ok")

    async def until_master_of(self, key: str, holds: Callable[[RedisServer], bool]) -> RedisServer:
        """Wait until this is true of the node that answers for the key, as after a failover, and return it."""
        found: list[RedisServer] = []

        async def is_so() -> bool:
            found[:] = [await self.master_of(key)]
            return holds(found[0])

        await eventually(is_so, self._log, SOON_SECONDS)
        return found[0]

    async def join(self, masters: int) -> None:
        """Make one cluster of nodes that do not know each other yet: the first so many share the slots."""
        first, *others = self.nodes
        bounds = [SLOTS * number // masters for number in range(masters + 1)]
        for number, node in enumerate(self.nodes):
            # Else two nodes could claim one epoch, and settle that first.
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < masters:  # ADDSLOTSRANGE is newer than the oldest version
                await node.ask("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for node in others:
            await first.ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        await self._until("cluster_known_nodes", str(len(self.nodes)))
        for number, node in enumerate(self.nodes[masters:]):
            await node.ask("CLUSTER", "REPLICATE", await self.nodes[number % masters].ask("CLUSTER", "MYID"))
        for node in self.nodes[masters:]:
            await until_linked(node)
        await self.until_ok()
        await self._until_all_see(len(self.nodes) - masters)

    async def _until(self, field: str, value: str) -> None:
        async def all_say_so() -> bool:
            said = [await node.ask("CLUSTER", "INFO") for node in self._answering]
            return all(f"{field}:{value}" in text.split() for text in said)

        await eventually(all_say_so, self._log, SOON_SECONDS)

    async def _until_all_see(self, replicas: int) -> None:
        async def all_see_them() -> bool:
            seen = [await _shards(node) for node in self._answering]
            return all(sum(len(shard.replicas) for shard in shards) == replicas for shards in seen)

        await eventually(all_see_them, self._log, SOON_SECONDS)

    async def _shard(self, key: str) -> Shard:
        speaker = self._answering[0]
        slot = int(await speaker.ask("CLUSTER", "KEYSLOT", key))
        return next(shard for shard in await _shards(speaker) if shard.first <= slot <= shard.last)

    def _node(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.port == port)

    @property
    def _answering(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.answers]

    def _log(self) -> str:
        return "\n".join(node.log for node in self.nodes)


@asynccontextmanager
async def running_cluster(
    masters: int = 3,
    replicas: int = 0,
    *,
    oldest: bool = False,
    users: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
) -> AsyncIterator[RedisCluster]:
    """A cluster whose slots are all served, with so many replicas of each master.

    Takes two and a half seconds: a master waits two before it trusts that no other has its slots.
    """
    options = {
        **OPTIONS,
        "appendonly": "no",
        "cluster-enabled": "yes",
        "cluster-node-timeout": SILENT_MS,
        **(config or {}),
    }
    with ExitStack() as stack:
        nodes = []
        for port in lasting_ports(masters * (1 + replicas), beside=BUS):
            node = laid_out(stack.enter_context(short_folder()), port, options, users, oldest=oldest)
            stack.callback(node.kill)
            nodes.append(node)
        await asyncio.gather(*(node.start() for node in nodes))
        cluster = RedisCluster(nodes)
        await cluster.join(masters)
        yield cluster


@dataclass(slots=True)
class Watched:
    """A master and its replica, and the sentinel that makes the replica the master when the master is silent."""

    master: RedisServer
    """The first one."""
    replica: RedisServer
    sentinel: RedisServer
    service: str = SERVICE

    async def master_now(self) -> RedisServer:
        """The master, by what the sentinel says."""
        # It gives the new address to whoever asks for the address alone a moment before it is done.
        port = int(_fields(await self.sentinel.ask("SENTINEL", "MASTER", self.service))["port"])
        return next(server for server in (self.master, self.replica) if server.port == port)

    async def fail_over(self) -> RedisServer:
        """Let the other one be the master, without a fault; return it once it is."""
        before = await self.master_now()
        await self.sentinel.ask("SENTINEL", "FAILOVER", self.service)
        return await self.until_other_than(before)

    async def until_other_than(self, before: RedisServer) -> RedisServer:
        """Wait until another one is the master, and return it."""

        async def is_another() -> bool:
            return await self.master_now() is not before

        await eventually(is_another, lambda: self.sentinel.log, SOON_SECONDS)
        return await self.master_now()


@asynccontextmanager
async def running_sentinel(
    *,
    oldest: bool = False,
    users: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
) -> AsyncIterator[Watched]:
    """A master with a replica, and one sentinel that may decide alone. `users` and `config` are the servers'."""
    async with (
        running_redis(oldest=oldest, users=users, config=config) as master,
        running_redis(oldest=oldest, users=users, config=config, replica_of=master) as replica,
    ):
        options = {
            "bind": "127.0.0.1",
            "sentinel monitor": f"{SERVICE} 127.0.0.1 {master.port} 1",
            "sentinel auth-user": f"{SERVICE} {ADMIN}",
            "sentinel auth-pass": f"{SERVICE} {ADMIN}",
            "sentinel down-after-milliseconds": f"{SERVICE} {SILENT_MS}",
            "sentinel failover-timeout": f"{SERVICE} {10 * SILENT_MS}",
        }
        with short_folder() as folder:
            sentinel = laid_out(folder, lasting_ports(1)[0], options, oldest=oldest, name="sentinel")
            try:
                await sentinel.start()
                watched = Watched(master, replica, sentinel)
                await _until_known(watched)
                yield watched
            finally:
                sentinel.kill()


async def _until_known(watched: Watched) -> None:
    async def is_known() -> bool:
        known = await watched.sentinel.ask("SENTINEL", "REPLICAS", SERVICE)
        return [_fields(replica)["flags"] for replica in known] == ["slave"]

    await eventually(is_known, lambda: watched.sentinel.log, SOON_SECONDS)


def _fields(told: list[str] | dict[str, str]) -> dict[str, str]:
    return told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))


async def _shards(node: RedisServer) -> list[Shard]:
    return [
        Shard(int(first), int(last), int(master[1]), tuple(int(replica[1]) for replica in replicas))
        for first, last, master, *replicas in await node.ask("CLUSTER", "SLOTS")
    ]
