"""The control plane under the other tests is a real one, and what misbehaves round it does so as planned."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers.envoy import ROOT
from helpers.kube.audit import Audited
from helpers.kube.client import CONFIG_MAPS, PODS, ApiError, Client, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import CONFIG_MAP, DELAY, kubelet
from helpers.kube.proxy import ApiProxy, Call, proxied
from helpers.program import eventually, has_ended


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def writes(call: Call) -> bool:
    return call.writes


async def names(user: Client) -> list[str]:
    return [each["metadata"]["name"] for each in await user.list(CONFIG_MAPS)]


@asynccontextmanager
async def through_proxy(plane: ControlPlane, namespace: str) -> AsyncIterator[tuple[ApiProxy, Client]]:
    async with proxied(plane, "admin") as (proxy, _), aiohttp.ClientSession() as session:
        yield proxy, Client(session, proxy.url, namespace)


##### API server


async def test_a_user_without_rights_is_refused(control_plane: ControlPlane, admin: Client) -> None:
    control_plane.kubeconfig("nobody")
    async with client(control_plane, "nobody") as nobody:
        with pytest.raises(ApiError, match='User "nobody" cannot list resource "configmaps"') as refused:
            await nobody.inside(admin.namespace).list(CONFIG_MAPS)
    assert refused.value.code == 403


async def test_an_administrator_acts_as_another_user_with_that_ones_rights(admin: Client) -> None:
    with pytest.raises(ApiError, match='User "alice" cannot create resource "configmaps"'):
        await admin.as_user("alice", "developers").create(CONFIG_MAPS, config_map("hers"))


async def test_every_call_is_in_the_audit_log(control_plane: ControlPlane, admin: Client) -> None:
    await admin.create(CONFIG_MAPS, config_map("written"))
    with pytest.raises(ApiError, match="403"):
        await admin.as_user("alice").patch(CONFIG_MAPS, "written", {})
    there = admin.namespace
    assert [call for call in control_plane.audit() if call.name == "written"] == [
        Audited("admin", "create", "configmaps", there, "written", 201, sent=None),
        Audited("alice", "patch", "configmaps", there, "written", 403, sent=None),
    ]


def test_a_kubeconfig_is_for_its_owner_only(control_plane: ControlPlane) -> None:
    kubeconfig = control_plane.kubeconfig("system:serviceaccount:a:b", ["developers"])
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
    identity = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", user=kubeconfig))["status"]["userInfo"]
    assert identity["username"] == "system:serviceaccount:a:b"
    assert identity["groups"] == ["developers", "system:authenticated"]


async def test_the_namespace_of_a_test_is_empty(admin: Client) -> None:
    assert await names(admin) == []


async def test_objects_and_the_address_outlive_an_api_server_that_is_killed(
    own_control_plane: ControlPlane, own_admin: Client
) -> None:
    await own_admin.create(CONFIG_MAPS, config_map("kept"))
    own_control_plane.api_server.kill()
    with pytest.raises(aiohttp.ClientConnectionError):
        await own_admin.list(CONFIG_MAPS)
    own_control_plane.api_server.start()
    await own_control_plane.until_ready()
    assert await names(own_admin) == ["kept"]


async def test_an_api_server_that_is_paused_answers_when_it_goes_on(
    own_control_plane: ControlPlane, own_admin: Client
) -> None:
    own_control_plane.api_server.pause()
    answer = asyncio.create_task(own_admin.create(CONFIG_MAPS, config_map("late")))
    done, _ = await asyncio.wait({answer}, timeout=0.5)
    own_control_plane.api_server.resume()
    assert not done
    assert (await answer)["metadata"]["name"] == "late"


async def test_what_a_test_breaks_is_mended(own_control_plane: ControlPlane, own_admin: Client) -> None:
    own_control_plane.api_server.kill()
    own_control_plane.etcd.pause()
    own_control_plane.mend()
    assert await names(own_admin) == []


async def test_what_has_lost_its_owner_is_collected(control_plane: ControlPlane, admin: Client) -> None:
    owner = await admin.create(CONFIG_MAPS, config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    await admin.create(CONFIG_MAPS, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    await admin.delete(CONFIG_MAPS, "owner")
    assert await names(admin) == ["owned"]
    async with admin.watch(CONFIG_MAPS) as changes:
        with control_plane.collecting_garbage():
            assert [(await anext(changes)).change for _ in range(2)] == ["ADDED", "DELETED"]


START = """
import pathlib, sys
from helpers.kube.control_plane import ControlPlane
plane = ControlPlane(pathlib.Path(sys.argv[1]))
plane.start()
print(plane.etcd.pid, plane.api_server.pid, flush=True)
sys.stdin.read()
"""


async def all_have_ended(pids: list[int]) -> bool:
    return all([await has_ended(pid) for pid in pids])


async def test_nothing_is_left_of_a_test_run_that_is_killed(tmp_path: Path) -> None:
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, str(tmp_path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip
    assert run.stdout is not None
    children = [int(pid) for pid in (await run.stdout.readline()).split()]
    run.send_signal(signal.SIGKILL)
    await run.wait()
    assert len(children) == 2
    await eventually(lambda: all_have_ended(children))


def test_a_control_plane_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    (tmp_path / "audit-policy.json").write_text("{}")
    try:
        with pytest.raises(AssertionError, match=r"(?s)kube-apiserver has ended:.*audit policy"):
            plane.start()
    finally:
        plane.stop()


##### Kubelet


async def holds(file: Path, text: str | None) -> bool:
    """True if this is in the file, or there is none."""
    return (file.read_text() if file.exists() else None) == text  # noqa: ASYNC240  a small file


async def test_a_kubelet_projects_a_config_map_soon_after_the_pod_is_annotated(admin: Client, tmp_path: Path) -> None:
    await admin.create(CONFIG_MAPS, config_map(CONFIG_MAP, limits="first", more=""))
    async with kubelet(admin, tmp_path) as running:
        volume = await running.run_pod("gate-0", 10001)
        assert await holds(volume / "limits", "first")
        await admin.patch(CONFIG_MAPS, CONFIG_MAP, {"data": {"limits": "second", "more": None}})
        started = time.monotonic()
        await admin.patch(PODS, "gate-0", {"metadata": {"annotations": {"sluice.dev/limits": "second"}}})
        await eventually(lambda: holds(volume / "limits", "second"))
        assert DELAY <= time.monotonic() - started < 2
        await eventually(lambda: holds(volume / "more", None))


async def test_a_kubelet_goes_on_after_an_api_server_that_was_killed(
    own_control_plane: ControlPlane, own_admin: Client, tmp_path: Path
) -> None:
    async with kubelet(own_admin, tmp_path) as running:
        file = await running.run_pod("gate-0", 10001) / "limits"
        own_control_plane.api_server.kill()
        own_control_plane.api_server.start()
        await own_control_plane.until_ready()
        await own_admin.create(CONFIG_MAPS, config_map(CONFIG_MAP, limits="new"))
        await own_admin.patch(PODS, "gate-0", {"metadata": {"annotations": {"sluice.dev/limits": "new"}}})
        await eventually(lambda: holds(file, "new"))


async def test_a_pod_runs_then_ends_then_is_gone(admin: Client, tmp_path: Path) -> None:
    async with kubelet(admin, tmp_path) as running:
        await running.run_pod("gate-0", 10001)
        assert (await admin.get(PODS, "gate-0"))["status"]["podIP"] == "127.0.0.1"
        await running.end_pod("gate-0")
        assert "deletionTimestamp" in (await admin.get(PODS, "gate-0"))["metadata"]
        await running.remove_pod("gate-0")
        assert await admin.find(PODS, "gate-0") is None


##### Proxy


async def test_a_proxy_records_refuses_and_lets_through(control_plane: ControlPlane, admin: Client) -> None:
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        proxy.answer(409, writes)
        with pytest.raises(ApiError, match="409"):
            await user.create(CONFIG_MAPS, config_map("twice"))
        await user.create(CONFIG_MAPS, config_map("twice"))
        assert await names(admin) == ["twice"]
        assert [call.method for call in proxy.calls] == ["POST", "POST"]


async def test_a_proxy_does_something_round_the_nth_call(control_plane: ControlPlane, admin: Client) -> None:
    told: list[str] = []
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        proxy.before(lambda: told.append("before"), writes, nth=2)
        proxy.after(lambda: told.append("after"), writes, nth=2)
        for number in range(4):
            await user.create(CONFIG_MAPS, config_map(f"map-{number}"))
            told.append(f"map-{number}")
    assert told == ["map-0", "before", "map-1", "after", "map-2", "map-3"]


@pytest.mark.parametrize(("loses", "arrived"), [(ApiProxy.lose, []), (ApiProxy.lose_answer, ["lost"])])
async def test_a_proxy_loses_a_call_or_its_answer(
    control_plane: ControlPlane, admin: Client, loses: Any, arrived: list[str]
) -> None:
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        loses(proxy, writes)
        with pytest.raises(aiohttp.ClientConnectionError):
            await user.create(CONFIG_MAPS, config_map("lost"))
    assert await names(admin) == arrived


async def test_a_call_that_is_held_arrives_late_even_without_its_client(
    control_plane: ControlPlane, admin: Client
) -> None:
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        gate = proxy.hold(writes, times=1)
        call = asyncio.create_task(user.create(CONFIG_MAPS, config_map("late")))
        await proxy.until(lambda calls: len(calls) == 1)
        call.cancel()
        assert await names(admin) == []
        async with admin.watch(CONFIG_MAPS) as changes:
            gate.set()
            assert (await anext(changes)).object["metadata"]["name"] == "late"


async def test_a_proxy_ends_watches_as_expired(control_plane: ControlPlane, admin: Client) -> None:
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        await admin.create(CONFIG_MAPS, config_map("one"))
        async with user.watch(CONFIG_MAPS) as changes:
            assert (await anext(changes)).object["metadata"]["name"] == "one"
            await proxy.expire_watches()
            with pytest.raises(ApiError, match="410: too old resource version"):
                await anext(changes)


async def test_a_proxy_cuts_watches_and_refuses_new_ones(control_plane: ControlPlane, admin: Client) -> None:
    async with through_proxy(control_plane, admin.namespace) as (proxy, user):
        await admin.create(CONFIG_MAPS, config_map("one"))
        async with user.watch(CONFIG_MAPS) as changes:
            await anext(changes)
            await proxy.cut_watches()
            with pytest.raises(aiohttp.ClientError):
                await anext(changes)
        proxy.answer(410, lambda call: call.watch)
        with pytest.raises(ApiError, match="410"):
            await user.watch(CONFIG_MAPS).__aenter__()


async def test_a_kubeconfig_leads_kubectl_through_the_proxy(control_plane: ControlPlane, admin: Client) -> None:
    await admin.create(CONFIG_MAPS, config_map("one"))
    async with proxied(control_plane, "admin") as (proxy, kubeconfig):
        command = [str(control_plane.assets / "kubectl"), "--kubeconfig", str(kubeconfig), "-n", admin.namespace]
        kubectl = await asyncio.create_subprocess_exec(*command, "get", "cm", "-o", "name", stdout=subprocess.PIPE)
        out, _ = await kubectl.communicate()
        assert out.decode().split() == ["configmap/one"]
        assert f"/api/v1/namespaces/{admin.namespace}/configmaps" in [call.path for call in proxy.calls]
