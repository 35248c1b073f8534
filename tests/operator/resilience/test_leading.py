"""Two operators for one namespace: one writes. Each is a user of its own, so that the audit log tells them apart."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from helpers.kube.client import LEASES, LIMITS, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import Operator, grant, operating
from sluice_operator.lead import DEADLINE, LEASE, TERM


class Pair(NamedTuple):
    leader: Operator
    other: Operator


@pytest.fixture
async def pair(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Pair]:
    grant(control_plane, namespace)
    binding = "rolebinding/sluice-operator"
    for name in ("first", "second"):
        control_plane.kubectl(
            "patch", binding, "-n", namespace, "--type=json",
            "-p", f'[{{"op":"add","path":"/subjects/-","value":{{"kind":"User","name":"{namespace}-{name}"}}}}]',
        )  # fmt: skip
    async with AsyncExitStack() as stack:

        async def start(name: str) -> Operator:
            user = control_plane.kubeconfig(f"{namespace}-{name}")
            arguments = ("-n", namespace, "--interval", "1s", "--identity", name)
            return await stack.enter_async_context(operating(user, *arguments, alone=False))

        first = await start("first")
        await first.line("leading")
        second = await start("second")
        await second.line("standing by: first leads")
        yield Pair(first, second)


def limits(per_minute: int) -> dict[str, object]:
    entry = {"scope": "User", "subject": {"header": "x-user-id"}, "requestsPerMinute": per_minute}
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": "openai"},
        "spec": {"provider": "openai", "limits": [entry]},
    }


def writes(plane: ControlPlane, user: str) -> int:
    return sum(call.user == user and call.writes for call in plane.audit())


async def test_only_the_leader_writes(control_plane: ControlPlane, pair: Pair, admin: Client, namespace: str) -> None:
    await admin.create(LIMITS, limits(1))
    await pair.leader.line("limits generation 1")
    assert (await pair.other.get("/readyz")) == (200, "ready\n")
    assert writes(control_plane, f"{namespace}-second") == 0


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(pair: Pair, admin: Client) -> None:
    assert await pair.leader.end() == 0
    async with asyncio.timeout(DEADLINE):
        await pair.other.line("leading")
    await admin.create(LIMITS, limits(1))
    await pair.other.line("limits generation 1")
    lease = await admin.get(LEASES, LEASE)
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("second", 1)


async def test_a_leader_that_is_killed_is_replaced_when_its_term_is_over(pair: Pair, admin: Client) -> None:
    await admin.create(LIMITS, limits(1))
    await pair.leader.line("limits generation 1")
    await pair.leader.end(signal.SIGKILL)
    await admin.apply(LIMITS, limits(2))
    async with asyncio.timeout(TERM + 5):
        await pair.other.line("limits generation 2")


async def test_a_leader_that_was_stopped_writes_nothing_when_it_wakes_up(
    control_plane: ControlPlane, pair: Pair, admin: Client, namespace: str
) -> None:
    await admin.create(LIMITS, limits(1))
    await pair.leader.line("limits generation 1")
    pair.leader.send(signal.SIGSTOP)
    await pair.other.line("leading")
    before = writes(control_plane, f"{namespace}-first")
    await admin.apply(LIMITS, limits(2))
    await pair.other.line("limits generation 2")
    pair.leader.send(signal.SIGCONT)
    await pair.leader.line("standing by: second leads")
    await admin.apply(LIMITS, limits(3))
    await pair.other.line("limits generation 3")
    assert writes(control_plane, f"{namespace}-first") == before
