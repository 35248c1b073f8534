"""A thousand objects in one namespace: what a change takes, what the operator weighs, and what it leaves alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from helpers.figures import percentile, tell
from helpers.kube.client import CONFIG_MAPS, LIMITS, Client, Object
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import Operator, grant, operating
from helpers.program import eventually

OBJECTS = 1000
CHANGES = 20
SLOWEST = 5.0
"""Seconds from a change to the ConfigMap."""
HEAVIEST = 200
"""MB."""
PATIENCE = 200.0


def limits(number: int, requests: int) -> Object:
    """One of many objects that share a provider, each for a user of its own."""
    entry = {
        "scope": "User",
        "subject": {"header": "x-user-id"},
        "match": {"subjects": [f"user-{number}"]},
        "requestsPerMinute": requests,
        "tokensPerDay": 1_000_000,
    }
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": f"user-{number}"},
        "spec": {"provider": "openai", "limits": [entry]},
    }


def megabytes(operator: Operator, what: str) -> float:
    """`VmRSS`, what it weighs now, or `VmHWM`, the most it ever did."""
    lines = Path(f"/proc/{operator.pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1000


async def create(admin: Client, numbers: range) -> None:
    slots = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        async with slots:
            await admin.create(LIMITS, limits(number, 60))

    await asyncio.gather(*map(one, numbers))


def in_force(config_map: Object) -> dict[str, str]:
    """The document of each object, by its name."""
    documents = config_map["data"]["limits.yaml"].split("---\n")
    return {document.partition("name: ")[2].partition("\n")[0]: document for document in documents}


async def until_in_force(admin: Client, holds: Callable[[dict[str, str]], bool]) -> None:
    """Wait until it is true of what the ConfigMap holds."""
    async with (
        asyncio.timeout(PATIENCE),
        admin.watch(CONFIG_MAPS, fieldSelector="metadata.name=sluice-limits") as changes,
    ):
        async for _, config_map in changes:
            if holds(in_force(config_map)):
                return


async def until_told(admin: Client) -> None:
    """Wait until every object has a status that speaks of it as it is."""

    async def is_so() -> bool:
        return all(
            each.get("status", {}).get("observedGeneration") == each["metadata"]["generation"]
            for each in await admin.list(LIMITS)
        )

    await eventually(is_so, seconds=PATIENCE)


def is_raised(name: str, documents: dict[str, str]) -> bool:
    return "requestsPerMinute: 100\n" in documents[name]


def statuses(plane: ControlPlane, namespace: str) -> Counter[str]:
    """How often the status of each object has been written so far."""
    calls = plane.audit()
    return Counter(
        call.name for call in calls if call.namespace == namespace and call.resource == "providerlimits/status"
    )


@pytest.mark.timeout(400)  # on two quiet cores it takes some 90 s, most of it a status and its events for each object
async def test_a_change_among_a_thousand_objects_is_written_soon_and_touches_no_other(
    control_plane: ControlPlane, admin: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    account = grant(control_plane, admin.namespace)
    await create(admin, range(OBJECTS))
    begun = time.monotonic()
    async with operating(account, "--namespace", admin.namespace) as operator:
        await until_in_force(admin, lambda documents: len(documents) == OBJECTS)
        started = time.monotonic() - begun
        light = megabytes(operator, "VmRSS")
        await until_told(admin)
        told = time.monotonic() - begun
        before, took = statuses(control_plane, admin.namespace), []
        for number in range(CHANGES):
            begun = time.monotonic()
            await admin.apply(LIMITS, limits(number, 100))
            await until_in_force(admin, partial(is_raised, f"user-{number}"))
            took.append(time.monotonic() - begun)
        await until_told(admin)
        rewritten = statuses(control_plane, admin.namespace) - before
        heavy, heaviest = megabytes(operator, "VmRSS"), megabytes(operator, "VmHWM")

    tell(
        capsys,
        f"{OBJECTS} objects: in force {started:.1f} s after the start, all statuses {told:.1f} s; "
        f"change -> ConfigMap p50 {percentile(took, 0.5):.2f} s, p99 {percentile(took, 0.99):.2f} s; "
        f"{light:.0f} MB, after {CHANGES} changes {heavy:.0f} MB, at most {heaviest:.0f} MB",
    )
    assert set(rewritten) == {f"user-{number}" for number in range(CHANGES)}
    assert percentile(took, 0.99) <= SLOWEST
    assert heaviest <= HEAVIEST
