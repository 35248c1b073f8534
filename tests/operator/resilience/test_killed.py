"""An operator that is killed at any call leaves nothing that the next one does not put right."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.kube.client import LIMITS, PODS, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import Operator
from helpers.kube.proxy import Call
from helpers.kube.scene import SOON_SECONDS, Scene, Seen, Version, following_gate, provider_limits, scene

AT_A_TIME = 4
READS = 9
"""Until all has been read: once to see that the kind is served, and four times in either turn of a namespace."""
KOPF = "application/octet-stream"
"""By what its calls differ from ours. All are reads, before anything is written or beside it."""


class Step(NamedTuple):
    """Something that people do, and how it shows that the operator has done its part."""

    do: Callable[[Scene], Awaitable[object]]
    is_done: Callable[[Seen], bool]


class Kill(NamedTuple):
    """When the operator is killed in each step: at the n-th read or write from the step's beginning on."""

    writes: bool
    number: int
    is_after: bool = False
    """Once the API server has done it, of which nobody hears; else before it hears of it."""

    def meets(self, call: Call) -> bool:
        return call.writes == self.writes and call.content_type != KOPF


@dataclass(slots=True)
class Run:
    """What came of all steps."""

    seen: list[Seen] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    """Every state of the ConfigMap."""
    calls: list[Sequence[Call]] = field(default_factory=list)
    """Those of each step."""
    deaths: int = 0

    @property
    def lasting(self) -> list[Seen]:
        """What does not depend on when the gate was asked: whether it has followed by then is told, or is not."""
        return [seen.without("Programmed") for seen in self.seen]


async def nothing(_: Scene) -> None:
    """Two objects that contradict each other are there already, and a gate: the operator starts."""


STEPS = (
    Step(nothing, lambda seen: (seen.reason("a", "Ready"), seen.reason("b", "Accepted")) == ("Ready", "Conflicted")),
    Step(
        lambda there: there.change("a", 70),
        lambda seen: (seen.statuses["a"]["inForce"], seen.reason("a", "Ready")) == ({"generation": 2}, "Ready"),
    ),
    Step(lambda there: there.admin.delete(LIMITS, "a"), lambda seen: seen.reason("b", "Ready") == "Ready"),
    Step(
        lambda there: there.admin.delete(PODS, "gate-0", gracePeriodSeconds=0),
        lambda seen: seen.reason("b", "Programmed") == "NoGates",
    ),
    Step(lambda there: there.admin.delete(LIMITS, "b"), lambda seen: seen.limits is None),
)


@pytest.mark.timeout(900)  # a hundred operators are started and killed
async def test_killed_at_any_call_it_converges_to_the_same_state(
    control_plane: ControlPlane, admin: Client, tmp_path: Path
) -> None:
    expected = await run(control_plane, admin, tmp_path)
    assert [version.generation for version in expected.versions] == ["1", "2", "3", ""]
    writes = max(sum(call.writes for call in calls) for calls in expected.calls)
    kills = [
        *(Kill(False, number) for number in range(1, READS + 1)),
        *(Kill(True, number, is_after) for number in range(1, writes + 1) for is_after in (False, True)),
    ]
    slots = asyncio.Semaphore(AT_A_TIME)

    async def disturbed(kill: Kill) -> Run:
        async with slots:
            return await run(control_plane, admin, tmp_path, kill, expected.calls)

    runs = dict(zip(kills, await asyncio.gather(*map(disturbed, kills)), strict=True))
    assert {kill: each.versions for kill, each in runs.items() if each.versions != expected.versions} == {}
    assert {kill: each.lasting for kill, each in runs.items() if each.lasting != expected.lasting} == {}
    assert [kill for kill, each in runs.items() if any(seen.doubled for seen in each.seen)] == []
    assert [kill for kill, each in runs.items() if not each.deaths] == []


async def run(
    plane: ControlPlane, admin: Client, folder: Path, kill: Kill | None = None, expected: Sequence[Sequence[Call]] = ()
) -> Run:
    """Go through all steps in a new namespace. The operator is killed in those that are `expected` to get that far."""
    done = Run()
    async with stage(plane, admin, folder) as there, AsyncExitStack() as stack:
        following = asyncio.create_task(there.follow(done.versions))
        seat = Seat(there, stack)
        for number, step in enumerate(STEPS):
            first = len(there.proxy.calls)
            if kill is not None and sum(map(kill.meets, expected[number])) >= kill.number:
                seat.plan(kill)
            if number == 0:
                await seat.fill()
            await step.do(there)
            done.seen.append(await seat.survive(step.is_done))
            done.calls.append(there.proxy.calls[first:])
        following.cancel()
        done.deaths = seat.deaths
    return done


@pytest.mark.timeout(180)  # a killed leader is waited for, and then the other does its work
async def test_killed_at_any_call_for_the_lease_another_leads(control_plane: ControlPlane, admin: Client) -> None:
    kills = [(method, is_after) for method in ("GET", "POST", "PUT") for is_after in (False, True)]
    await asyncio.gather(*(handed_over(control_plane, admin, *kill) for kill in kills))


async def handed_over(plane: ControlPlane, admin: Client, method: str, is_after: bool) -> None:
    """An operator is killed at its first such call for the Lease, and another does what is to be done."""

    def meets(call: Call) -> bool:
        return call.method == method and "leases" in call.path.split("/")

    async with scene(plane, admin) as there, AsyncExitStack() as stack:
        seat = Seat(there, stack)
        (there.proxy.lose_answer if is_after else there.proxy.lose)(meets, 1, seat.kill)
        seat.operator = await stack.enter_async_context(there.operator("--identity", "first", alone=False))
        async with asyncio.timeout(SOON_SECONDS):
            await seat.killed.wait()
        await there.create(provider_limits("a"))
        second = await stack.enter_async_context(there.operator("--identity", "second", alone=False))
        await second.line("leading")
        await there.until(lambda seen: seen.reason("a", "Ready") == "NoGates")


@asynccontextmanager
async def stage(plane: ControlPlane, admin: Client, folder: Path) -> AsyncIterator[Scene]:
    """A new namespace with two objects that contradict each other, and a gate."""
    async with scene(plane, admin) as there, following_gate(there.admin, folder / there.admin.namespace):
        for each in ("a", "b"):
            await there.create(provider_limits(each))
        yield there


@dataclass(slots=True)
class Seat:
    """For one operator at a time; whoever is killed has a successor."""

    there: Scene
    stack: AsyncExitStack
    operator: Operator | None = None
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: int = 0

    async def fill(self) -> None:
        self.operator = await self.stack.enter_async_context(self.there.operator())

    def plan(self, kill: Kill) -> None:
        proxy = self.there.proxy
        (proxy.lose_answer if kill.is_after else proxy.lose)(kill.meets, kill.number, self.kill)

    def kill(self) -> None:
        assert self.operator is not None
        self.operator.send(signal.SIGKILL)
        self.killed.set()

    async def survive(self, is_done: Callable[[Seen], bool]) -> Seen:
        """What there is when it is done, whoever did it. A kill that has not come by then is called off: how often a
        status is written depends on when its gate was asked."""
        seen = await self.there.until(lambda seen: self.killed.is_set() or is_done(seen))
        self.there.proxy.faults.clear()
        if not self.killed.is_set():
            return seen
        self.killed.clear()
        self.deaths += 1
        await self.fill()
        return await self.there.until(is_done)
