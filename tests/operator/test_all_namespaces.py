"""One operator for every namespace, with no more rights than `examples/operator-all-namespaces.yaml` gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from helpers.envoy import ROOT
from helpers.kube.client import CONFIG_MAPS, LIMITS, NAMESPACES, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import operating
from helpers.kube.scene import provider_limits

RIGHTS = ROOT / "examples/operator-all-namespaces.yaml"
HOME = "sluice-system"


@pytest.fixture
async def account(control_plane: ControlPlane, admin: Client) -> Path:
    """A kubeconfig that is the account of those rights."""
    if await admin.find(NAMESPACES, HOME) is None:
        await admin.create(NAMESPACES, {"metadata": {"name": HOME}})
    control_plane.kubectl("apply", "-f", str(RIGHTS))
    return control_plane.kubeconfig(f"system:serviceaccount:{HOME}:sluice-operator")


async def in_force(admin: Client, *words: str) -> None:
    """Wait until the limits text of the namespace has these words in it."""
    async with asyncio.timeout(30), admin.watch(CONFIG_MAPS, fieldSelector="metadata.name=sluice-limits") as changes:
        async for _, found in changes:
            if all(word in found["data"]["limits.yaml"] for word in words):
                return
    raise AssertionError("the watch has ended")


async def test_it_serves_namespaces_that_are_there_and_those_that_come(account: Path, admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai", 41))
    made = await admin.create(NAMESPACES, {"metadata": {"generateName": "late-"}})
    late = admin.inside(made["metadata"]["name"])
    async with operating(account, "--all-namespaces", "--lease-namespace", HOME, alone=False) as operator:
        await operator.line("leading")
        await in_force(admin, "requestsPerMinute: 41")
        await late.create(LIMITS, provider_limits("openai", 42))
        await in_force(late, "requestsPerMinute: 42")
        assert "requestsPerMinute: 42" not in (await admin.get(CONFIG_MAPS, "sluice-limits"))["data"]["limits.yaml"]
        assert await operator.end() == 0
    await late.delete_all(LIMITS)
    await admin.delete(NAMESPACES, late.namespace)
