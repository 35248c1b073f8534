"""What the operator cannot change costs no more than it has to, and keeps nobody else from being served."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from helpers.kube.client import CONFIG_MAPS, PODS, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import CONFIG_MAP, gate_pod
from helpers.kube.proxy import FOR_EVER
from helpers.kube.scene import TOLD, Scene, provider_limits, scene

MOST_ANNOTATIONS = 256 * 1024
PODS_BESIDE = 40
STRANGER = {"apiVersion": "example.com/v1", "kind": "ProviderLimits", "name": "b", "uid": "b"}


@pytest.fixture
async def there(control_plane: ControlPlane, admin: Client) -> AsyncIterator[Scene]:
    """A namespace with an object."""
    async with scene(control_plane, admin) as found:
        await found.create(provider_limits("a"))
        yield found


async def test_an_owner_that_somebody_else_added_is_left_alone_and_statuses_go_on(there: Scene) -> None:
    async with there.operator():
        await there.until(lambda seen: seen.reason("a", "Ready") == "NoGates")
        owners = (await there.admin.get(CONFIG_MAPS, CONFIG_MAP))["metadata"]["ownerReferences"]
        await there.admin.patch(CONFIG_MAPS, CONFIG_MAP, {"metadata": {"ownerReferences": [*owners, STRANGER]}})
        await there.turns(1)
        quiet = len(there.proxy.calls)
        await there.turns(4)
        assert [call for call in there.proxy.calls[quiet:] if call.writes] == []
        generation = (await there.change("a", 70))["metadata"]["generation"]
        await there.until(lambda seen: seen.statuses["a"]["observedGeneration"] == generation)


async def test_a_config_map_that_will_not_go_is_asked_to_go_once(there: Scene) -> None:
    held = {"metadata": {"name": CONFIG_MAP, "finalizers": ["example.com/held"]}, "immutable": True}
    await there.admin.create(CONFIG_MAPS, held)
    async with there.operator():
        await there.turns(6)
        assert sum(call.method == "DELETE" for call in there.proxy.calls) == 1
        await there.admin.patch(CONFIG_MAPS, CONFIG_MAP, {"metadata": {"finalizers": None}})
        await there.until(lambda seen: seen.limits is not None)


async def test_a_pod_that_takes_no_annotation_more_keeps_no_other_from_being_told(there: Scene) -> None:
    full = gate_pod("a", 1)
    full["metadata"]["annotations"] = {"a": "x" * (MOST_ANNOTATIONS - 1)}
    await there.admin.create(PODS, full)
    for number in range(PODS_BESIDE):
        await there.admin.create(PODS, gate_pod(f"b-{number}", 1))

    async def all_are_told() -> bool:
        pods = await there.admin.list(PODS)
        return sum(TOLD in pod["metadata"].get("annotations", {}) for pod in pods) == PODS_BESIDE

    async with there.operator() as operator:
        await operator.line("limits generation 1")
        assert await all_are_told()
        await there.until(lambda seen: seen.statuses["a"].get("sidecars") == f"0/{PODS_BESIDE + 1}")


@pytest.mark.parametrize("status", [422, 500])
async def test_an_object_that_takes_no_status_keeps_no_other_from_being_told(there: Scene, status: int) -> None:
    there.proxy.answer(status, lambda call: call.path.endswith("/providerlimits/a/status"), FOR_EVER)
    await there.create(provider_limits("b", provider="gemini"))
    async with there.operator() as operator:
        seen = await there.until(lambda seen: seen.reason("b", "Ready") == "NoGates")
        assert seen.reason("a", "Ready") == ""
        await operator.line(f"patch providerlimits/status ({status}")
