"""What Redis alone takes for a decision: the same commands that the services send, without the services.

What another service sends is heard by `MONITOR` and said again word for word; what a gate sends is made anew each time,
for its calls have ids. It is sent in two ways: together, as many decisions in a write as may be in flight, which never
leaves the server idle; and apart, a write for each, over as many connections, which is what many small gates amount to.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Final

from bench.grpc_load import connected
from bench.redis_server import Command, Redis, Work, packed

TOGETHER: Final = 32
"""Decisions in a write; two writes are on their way."""
APART: Final = 32
"""Connections, where each decision is a write of its own."""
CHUNK: Final = 262_144

Decision = Sequence[Command]


@dataclass(frozen=True, slots=True)
class Run:
    """So many decisions, and what they took."""

    number: int
    seconds: float
    work: Work

    @property
    def rate(self) -> float:
        """Decisions a second."""
        return self.number / self.seconds

    @property
    def cpu(self) -> float:
        """CPU seconds of Redis a decision."""
        return self.work.cpu / self.number


@dataclass(slots=True)
class Kind:
    """Decisions of one kind, and what they took: a run a round."""

    name: str
    task: str
    """What is limited: the same words for what can be compared."""
    decisions: Callable[[int], Iterable[Decision]]
    """So many of them; the first ones are of different subjects."""
    is_peer: bool = False
    setup: Sequence[Command] = ()
    together: list[Run] = field(default_factory=list)
    apart: list[Run] = field(default_factory=list)
    keys: int = 0
    """How many there are after a decision for each subject."""
    bytes: int = 0
    """What `MEMORY USAGE` tells of all of them."""


def heard(commands: Sequence[Command], decisions: int) -> Callable[[int], Iterable[Decision]]:
    """Those that a service was heard to send, over and over."""
    if not decisions or len(commands) % decisions:
        raise RuntimeError(f"{len(commands)} commands for {decisions} decisions: they cannot be told apart")
    each = len(commands) // decisions
    found = [commands[start : start + each] for start in range(0, len(commands), each)]
    return lambda number: islice(cycle(found), number)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it may take."""

    rounds: int
    decisions: int
    """Together, in a round; apart it is a third of them."""


def measure(redis: Redis, kinds: Sequence[Kind], plan: Plan, subjects: int, pool: ProcessPoolExecutor) -> None:
    """Every kind in every round, one after the other; then what each leaves in memory."""
    for _ in range(plan.rounds):
        for kind in kinds:
            kind.together.append(_run(redis, kind, plan.decisions, TOGETHER, 2, pool))
            kind.apart.append(_run(redis, kind, plan.decisions // 3, 1, APART, pool))
    for kind in kinds:
        _run(redis, kind, subjects, TOGETHER, 2, pool)
        sizes = list(redis.sizes())
        kind.keys, kind.bytes = len(sizes), sum(sizes)


def _run(redis: Redis, kind: Kind, number: int, at_once: int, connections: int, pool: ProcessPoolExecutor) -> Run:
    redis.do("FLUSHALL")
    for command in kind.setup:
        redis.do(*command)
    writes = tuple(_writes(kind.decisions(number), at_once))
    before = redis.work()
    seconds = pool.submit(send, redis.address, writes, connections).result()
    return Run(number, seconds, redis.work().since(before))


def _writes(decisions: Iterable[Decision], at_once: int) -> Iterator[bytes]:
    rest = iter(decisions)
    while some := list(islice(rest, at_once)):
        yield b"".join(packed(command) for decision in some for command in decision)


def send(address: str, writes: Sequence[bytes], connections: int) -> float:
    """Seconds until all is answered, over so many connections in turn, a write on its way on each of them.

    An ECHO at the end of each write spares reading the answers, which would take longer than to give them.
    """
    with ExitStack() as stack:
        ways = [stack.enter_context(connected(address)) for _ in range(connections)]
        began = time.monotonic()
        for number, write in enumerate(writes):
            way = ways[number % connections]
            if number >= connections:
                _await(way, number - connections)
            way.sendall(write + packed((b"ECHO", b"%08d" % number)))
        for number in range(max(0, len(writes) - connections), len(writes)):
            _await(ways[number % connections], number)
        return time.monotonic() - began


def _await(way: socket.socket, number: int) -> None:
    """Read until the answer to that write's ECHO: the last one, since nothing else has been asked there."""
    mark, tail = b"$8\r\n%08d\r\n" % number, b""
    while not tail.endswith(mark):
        chunk = way.recv(CHUNK)
        if not chunk:
            raise RuntimeError("Redis has closed the connection")
        tail = tail[-len(mark) :] + chunk
