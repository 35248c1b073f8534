"""The control plane under the other tests is a real one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers.kube.client import CONFIG_MAPS, PODS, ApiError, Client, Watched, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import DELAY, kubelet
from helpers.kube.proxy import proxied
from helpers.program import eventually


async def test_a_user_without_rights_is_refused(control_plane: ControlPlane, admin: Client) -> None:
    control_plane.kubeconfig("nobody")
    async with client(control_plane, "nobody") as nobody:
        with pytest.raises(ApiError, match='User "nobody" cannot list resource "configmaps"') as refused:
            await nobody.inside(admin.namespace).list(CONFIG_MAPS)
    assert refused.value.code == 403


async def test_every_write_is_in_the_audit_log(control_plane: ControlPlane, admin: Client) -> None:
    await admin.create(CONFIG_MAPS, {"metadata": {"name": "written"}})
    told = [
        (event["verb"], event["user"]["username"], event["responseStatus"]["code"])
        for event in control_plane.audit()
        if event.get("objectRef", {}).get("name") == "written"
    ]
    assert told == [("create", "admin", 201)]


async def test_objects_outlive_an_api_server_that_is_killed(own_control_plane: ControlPlane) -> None:
    async with client(own_control_plane) as user:
        await user.create(CONFIG_MAPS, {"metadata": {"name": "kept"}})
    own_control_plane.api_server.kill()
    own_control_plane.api_server.start()
    own_control_plane.wait_until_ready()
    async with client(own_control_plane) as user:
        assert (await user.get(CONFIG_MAPS, "kept"))["metadata"]["name"] == "kept"


async def test_what_has_lost_its_owner_is_collected(own_control_plane: ControlPlane) -> None:
    async with client(own_control_plane) as user:
        owner = await user.create(CONFIG_MAPS, {"metadata": {"name": "owner"}})
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
        await user.create(CONFIG_MAPS, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
        async with user.watch(CONFIG_MAPS) as changes:
            await user.delete(CONFIG_MAPS, "owner")
            gone = [seen.object["metadata"]["name"] async for seen in until(changes, "owned")]
    assert gone[-1] == "owned"


async def test_a_kubelet_projects_a_config_map_soon_after_the_pod_is_annotated(admin: Client, tmp_path: Path) -> None:
    def limits(text: str) -> dict[str, Any]:
        return {"metadata": {"name": "sluice-limits"}, "data": {"limits.yaml": text}}

    await admin.create(CONFIG_MAPS, limits("first"))
    async with kubelet(admin, tmp_path) as running:
        file = await running.run_pod("gate-0", 10001) / "limits.yaml"
        assert file.read_text() == "first"
        await admin.patch(CONFIG_MAPS, "sluice-limits", limits("second"))
        started = time.monotonic()
        await admin.patch(PODS, "gate-0", {"metadata": {"annotations": {"sluice.dev/limits": "second"}}})
        await eventually(lambda: projected(file, "second"))
    assert DELAY <= time.monotonic() - started < 2


async def test_a_proxy_records_refuses_and_lets_through(control_plane: ControlPlane, admin: Client) -> None:
    async with proxied(control_plane, "admin") as (proxy, _), aiohttp.ClientSession() as session:
        user = Client(session, proxy.url, admin.namespace)
        proxy.answer(409, lambda call: call.writes)
        with pytest.raises(ApiError, match="409"):
            await user.create(CONFIG_MAPS, {"metadata": {"name": "twice"}})
        await user.create(CONFIG_MAPS, {"metadata": {"name": "twice"}})
        assert [each["metadata"]["name"] for each in await admin.list(CONFIG_MAPS)] == ["twice"]
        assert [call.method for call in proxy.calls] == ["POST", "POST"]


async def test_a_proxy_ends_watches_as_expired(control_plane: ControlPlane, admin: Client) -> None:
    async with proxied(control_plane, "admin") as (proxy, _), aiohttp.ClientSession() as session:
        user = Client(session, proxy.url, admin.namespace)
        await admin.create(CONFIG_MAPS, {"metadata": {"name": "one"}})
        async with user.watch(CONFIG_MAPS) as changes:
            assert (await anext(changes)).object["metadata"]["name"] == "one"
            await proxy.expire_watches()
            with pytest.raises(ApiError, match="410: too old resource version"):
                await anext(changes)


async def projected(file: Path, text: str) -> bool:
    return file.read_text() == text  # noqa: ASYNC240  a small file


async def until(changes: AsyncIterator[Watched], name: str) -> AsyncIterator[Watched]:
    """What is deleted, up to the object of this name."""
    async for seen in changes:
        if seen.change == "DELETED":
            yield seen
            if seen.object["metadata"]["name"] == name:
                return
