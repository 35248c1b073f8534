"""What can become of a store: each fault breaks a real server, or the way to it, and mends it again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from helpers.process import lasting_ports
from helpers.redis import RedisServer, running_redis
from helpers.relay import Relay, relayed

KEPT: Mapping[str, object] = MappingProxyType({"appendfsync": "always"})
"""What is acknowledged is on disk."""
PASSWORD = "old-secret"
NEW_PASSWORD = "new-secret"


@dataclass(slots=True)
class Bench:
    """A store that can be broken."""

    server: RedisServer
    relay: Relay
    password: str = ""
    """What the gates believe it to be."""

    @property
    def address(self) -> str:
        """Where the gates find it: behind a relay."""
        return f"redis://127.0.0.1:{self.relay.port}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    name: str
    break_it: Callable[[Bench], Awaitable[None]]
    mend_it: Callable[[Bench], Awaitable[None]]
    problem: str
    """What the gates say of it."""
    loses_answers: bool = True
    """The store may have carried out what it could not answer."""
    lasts: bool = True
    """Until it is mended."""
    oldest: bool = False
    """With the oldest Redis that is supported."""
    persists: bool = False
    password: str = ""
    config: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@asynccontextmanager
async def bench_for(fault: Fault) -> AsyncIterator[Bench]:
    """A store that works so far."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            running_redis(oldest=fault.oldest, password=fault.password, persists=fault.persists, config=fault.config)
        )
        relay = await stack.enter_async_context(relayed(server.port))
        yield Bench(server, relay, fault.password)


async def _kill(bench: Bench) -> None:
    bench.server.kill()


async def _start(bench: Bench) -> None:
    await bench.server.start()


async def _pause(bench: Bench) -> None:
    bench.server.pause()


async def _resume(bench: Bench) -> None:
    bench.server.resume()


async def _swallow(bench: Bench) -> None:
    bench.relay.swallow()


async def _hold(bench: Bench) -> None:
    bench.relay.hold()


async def _refuse(bench: Bench) -> None:
    bench.relay.refuse()


async def _slow_down(bench: Bench) -> None:
    bench.relay.delay(0.025)  # each way


async def _heal(bench: Bench) -> None:
    await bench.relay.heal()


async def _flush(bench: Bench) -> None:
    await bench.server.ask("FLUSHALL")


async def _nothing(_: Bench) -> None:
    """It mends itself."""


async def _fill(bench: Bench) -> None:
    await bench.server.ask("CONFIG", "SET", "maxmemory", 1)


async def _empty(bench: Bench) -> None:
    await bench.server.ask("CONFIG", "SET", "maxmemory", 0)


async def _demote(bench: Bench) -> None:
    await bench.server.ask("REPLICAOF", "127.0.0.1", lasting_ports(1)[0])  # of a master that is not there


async def _promote(bench: Bench) -> None:
    await bench.server.ask("REPLICAOF", "NO", "ONE")


async def _lock(bench: Bench) -> None:
    await bench.server.ask("CONFIG", "SET", "requirepass", NEW_PASSWORD)
    await bench.server.ask("CLIENT", "KILL", "USER", "default")


async def _tell_password(bench: Bench) -> None:
    bench.password = NEW_PASSWORD


FAULTS = (
    Fault("killed, and started empty", _kill, _start, "cannot be reached"),
    Fault("killed, and started with its data", _kill, _start, "cannot be reached", persists=True, config=KEPT),
    Fault("stopped and resumed", _pause, _resume, "did not answer within"),
    Fault("black-holed", _swallow, _heal, "did not answer within"),
    Fault("cut off, with nothing lost", _hold, _heal, "did not answer within"),
    Fault("refusing connections", _refuse, _heal, "cannot be reached"),
    Fault("slow by 50 ms", _slow_down, _heal, "is too slow"),
    Fault("flushed", _flush, _nothing, "has lost its memory", loses_answers=False, lasts=False),
    Fault("full", _fill, _empty, "is full", loses_answers=False),
    Fault("full, the oldest Redis", _fill, _empty, "is full", loses_answers=False, oldest=True),
    Fault("a replica", _demote, _promote, "cannot be written to", loses_answers=False),
    Fault("a replica, the oldest Redis", _demote, _promote, "cannot be written to", loses_answers=False, oldest=True),
    Fault("locked by another password", _lock, _tell_password, "refuses the user or the password", password=PASSWORD),
)
