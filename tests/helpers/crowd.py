"""A gate in a process of its own, and many clients of it: what they saw, for `helpers.history`.

`python -m helpers.crowd` says `ready` once its store decides, waits for a line, and then tells what each call was.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from helpers.history import Call as Seen
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import Charge, Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.permits import Call, Permit
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import StoreHealth, StoreMode
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import Client
from sluice_sidecar.stores.shared.scripts import Scripts
from sluice_sidecar.stores.shared.store import SharedStore

TOKENS = 100
HELD_SECONDS = 0.002
AWAY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Crowd:
    """What the process is told."""

    name: str
    address: str
    document: str
    provider: str
    users: tuple[str, ...]
    clients: int
    calls: int
    """Of each client."""


async def crowded(crowd: Crowd) -> list[Seen]:
    """What the clients saw, once all of them have made their calls."""
    gate = Gate(Engine(settings=EngineSettings(name=f"{crowd.name}-")), clock.now)
    address = StoreAddress.parse(crowd.address)
    health = StoreHealth(address=str(address), prefix="crowd", clock=clock.now)
    gate.store = store = SharedStore(gate, Client(address), health, crowd.name, clock.wall_now, Scripts())
    gate.apply(merge(parse(crowd.document, "test")), {})
    gate.start()
    await store.start()
    assert health.mode is StoreMode.SHARED, health
    print("ready", flush=True)  # noqa: T201 - whoever started it waits for that
    await asyncio.to_thread(sys.stdin.readline)
    seen = await asyncio.gather(*[_keep_calling(gate, crowd, number) for number in range(crowd.clients)])
    await store.close()
    await gate.close()
    return [call for of_client in seen for call in of_client]


async def _keep_calling(gate: Gate, crowd: Crowd, client: int) -> list[Seen]:
    rng = random.Random(f"{crowd.name}/{client}")
    return [
        await _call(gate, crowd, rng.choice(crowd.users), client * crowd.calls + number)
        for number in range(crowd.calls)
    ]


async def _call(gate: Gate, crowd: Crowd, user: str, number: int) -> Seen:
    applied = gate.engine.rules.match(crowd.provider, {Scope.USER: user})
    asked, outcome = clock.now(), await gate.acquire(Call(applied, Demand(1, 1, TOKENS)))
    while isinstance(outcome, Refusal) and outcome.reason is Reason.STORE_UNAVAILABLE:
        await asyncio.sleep(AWAY_SECONDS)  # the machine was too busy to answer in time
        asked, outcome = clock.now(), await gate.acquire(Call(applied, Demand(1, 1, TOKENS)))
    answered, ended, used = clock.now(), None, None
    if isinstance(outcome, Permit):
        gate.engine.claim(outcome.lease, clock.now())
        await asyncio.sleep(HELD_SECONDS)
        ended, used = clock.now(), TOKENS // 2
        outcome.commit_tokens(Charge(used), clock.now())
        outcome.release(clock.now())
    return Seen(crowd.name, number, asked, answered, isinstance(outcome, Permit), (user,), TOKENS, ended, used)


async def all_crowds(crowds: list[Crowd]) -> list[Seen]:
    """What the clients of all saw, each crowd in a process of its own, and all of them at once."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "helpers.crowd",
            json.dumps(asdict(crowd)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for crowd in crowds
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        told = await asyncio.gather(*[process.communicate(b"go\n") for process in processes])
        return [seen for out, _ in told for seen in _read(out)]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _read(out: bytes) -> Iterator[Seen]:
    for call in json.loads(out):
        yield Seen(**{**call, "buckets": tuple(call["buckets"])})


if __name__ == "__main__":
    print(json.dumps([asdict(each) for each in asyncio.run(crowded(Crowd(**json.loads(sys.argv[1]))))]))  # noqa: T201
