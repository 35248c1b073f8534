"""Whatever is deleted is gone: with the operator there or away, with gates or without, and nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from helpers.kube.client import CONFIG_MAPS, LIMITS, NAMESPACES, PODS, Client, Kind, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.scene import Scene, following_gate, provider_limits, scene
from sluice.config.render import NO_LIMITS

SOON_SECONDS = 30


@pytest.fixture
async def there(own_control_plane: ControlPlane) -> AsyncIterator[Scene]:
    """A namespace with two objects, under a control plane that collects garbage."""
    with own_control_plane.collecting_garbage():
        async with client(own_control_plane) as admin, scene(own_control_plane, admin) as found:
            await found.create(provider_limits("a"))
            await found.create(provider_limits("b", provider="anthropic"))
            yield found


async def gone(api: Client, kind: Kind, name: str) -> None:
    """Return once there is no such object."""
    async with asyncio.timeout(SOON_SECONDS):
        while await api.find(kind, name) is not None:  # noqa: ASYNC110  it may be gone before a watch begins
            await asyncio.sleep(0.1)


async def test_objects_deleted_while_the_operator_is_away_take_the_config_map_with_them(there: Scene) -> None:
    async with there.operator():
        await there.until(lambda seen: seen.owners == ("a", "b"))
    await there.admin.delete(LIMITS, "a")
    await gone(there.admin, LIMITS, "a")
    assert await there.admin.find(CONFIG_MAPS, "sluice-limits") is not None
    await there.admin.delete(LIMITS, "b")
    await gone(there.admin, CONFIG_MAPS, "sluice-limits")


async def test_an_object_deleted_in_the_foreground_is_gone_although_its_operator_is(there: Scene) -> None:
    async with there.operator():
        await there.until(lambda seen: seen.owners == ("a", "b"))
    await there.admin.delete(LIMITS, "a", propagationPolicy="Foreground")
    await there.admin.delete(LIMITS, "b", propagationPolicy="Foreground")
    for name in ("a", "b"):
        await gone(there.admin, LIMITS, name)
    await gone(there.admin, CONFIG_MAPS, "sluice-limits")


async def test_objects_orphaned_by_kubectl_leave_a_config_map_that_the_next_operator_deletes(there: Scene) -> None:
    async with there.operator():
        await there.until(lambda seen: seen.owners == ("a", "b"))
    for name in ("a", "b"):
        await there.admin.delete(LIMITS, name, propagationPolicy="Orphan")
        await gone(there.admin, LIMITS, name)
    assert await there.admin.find(CONFIG_MAPS, "sluice-limits") is not None
    async with there.operator():
        await gone(there.admin, CONFIG_MAPS, "sluice-limits")


async def test_a_namespace_is_deleted_with_its_operator_at_work(there: Scene) -> None:
    async with there.operator() as operator:
        await there.until(lambda seen: seen.owners == ("a", "b"))
        await there.admin.delete(NAMESPACES, there.admin.namespace)
        await gone(there.admin, NAMESPACES, there.admin.namespace)
        assert (await operator.get("/healthz"))[0] == 200


async def test_a_namespace_is_deleted_without_an_operator(there: Scene) -> None:
    async with there.operator():
        await there.until(lambda seen: seen.owners == ("a", "b"))
    await there.admin.delete(NAMESPACES, there.admin.namespace)
    await gone(there.admin, NAMESPACES, there.admin.namespace)


async def test_with_gates_the_last_deletion_is_told_to_them_as_an_empty_list(there: Scene, tmp_path: Path) -> None:
    async with following_gate(there.admin, tmp_path / "gates"), there.operator():
        await there.until(lambda seen: (seen.reason("a", "Ready"), seen.reason("b", "Ready")) == ("Ready", "Ready"))
        for name in ("a", "b"):
            await there.admin.delete(LIMITS, name)
        seen = await there.until(lambda seen: seen.limits is not None and seen.limits.text == NO_LIMITS)
        await there.until(lambda seen: seen.told == {"current"})
        assert seen.owners == ()
        file = tmp_path / "gates/gate-0/limits.yaml"
        async with asyncio.timeout(SOON_SECONDS):
            while file.read_text() != NO_LIMITS:  # noqa: ASYNC110  a kubelet tells nobody
                await asyncio.sleep(0.05)
        await there.admin.delete(PODS, "gate-0", gracePeriodSeconds=0)
        await gone(there.admin, CONFIG_MAPS, "sluice-limits")
