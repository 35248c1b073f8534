"""From objects to the ConfigMap and back to their status, with no more rights than `examples/operator.yaml` gives."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from helpers.kube.audit import Audited
from helpers.kube.client import CONFIG_MAPS, EVENTS, LIMITS, PODS, Client, Kind, Object
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import gate_pod
from helpers.kube.operator import Operator, grant, operating
from helpers.kube.scene import provider_limits
from helpers.kube.standin_gate import report, serving
from sluice.config.document import parse, to_manifest
from sluice.config.render import CONTENT_HASH, ENVOY, GENERATION, LIMITS_KEY
from sluice.config.render import LIMITS as CONFIG_MAP


@pytest.fixture
async def operator(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Operator]:
    """Alone in the namespace, with a look at the gates each second."""
    async with operating(grant(control_plane, namespace), "-n", namespace, "--interval", "1s") as running:
        await running.line("serving")
        yield running


async def once(admin: Client, kind: Kind, name: str, holds: Callable[[Object], bool]) -> Object:
    """The object of this name, as soon as it is so."""
    async with asyncio.timeout(30), admin.watch(kind, fieldSelector=f"metadata.name={name}") as changes:
        async for change, found in changes:
            if change != "DELETED" and holds(found):
                return found
    raise AssertionError("the watch has ended")


async def gone(admin: Client, kind: Kind, name: str) -> None:
    async with asyncio.timeout(30), admin.watch(kind, fieldSelector=f"metadata.name={name}") as changes:
        if await admin.find(kind, name) is None:
            return
        async for change, _ in changes:
            if change == "DELETED":
                return


def text(config_map: Object) -> str:
    return str(config_map["data"][LIMITS_KEY])


def says(*words: str) -> Callable[[Object], bool]:
    return lambda config_map: all(word in text(config_map) for word in words)


def condition(kind: str, status: str, reason: str = "") -> Callable[[Object], bool]:
    def holds(found: Object) -> bool:
        return any(
            (each["type"], each["status"]) == (kind, status) and reason in {"", each["reason"]}
            for each in found.get("status", {}).get("conditions", ())
        )

    return holds


async def turns(operator: Operator, loop: str) -> int:
    """How many turns of a loop have been done."""
    _, metrics = await operator.get("/metrics")
    found = re.search(rf'sluice_operator_turns_total{{loop="{loop}",result="done"}} (\d+)', metrics)
    return int(found.group(1)) if found else 0


async def after_ticks(operator: Operator, number: int) -> None:
    """Wait until so many looks have begun and ended."""
    target = await turns(operator, "tell") + number + 1
    async with asyncio.timeout(30):
        while await turns(operator, "tell") < target:  # noqa: ASYNC110  another process: nobody tells us
            await asyncio.sleep(0.05)


def writes(plane: ControlPlane, namespace: str) -> list[Audited]:
    """What the operator of a namespace has written, as the API server saw it."""
    account = f"system:serviceaccount:{namespace}:sluice-operator"
    return [call for call in plane.audit() if call.user == account and call.writes]


@asynccontextmanager
async def gate(admin: Client, name: str) -> AsyncIterator[dict[str, Any]]:
    """A pod whose gate answers with this report."""
    told = report()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(told)

    async with serving(answer) as port:
        await admin.create(PODS, gate_pod(name, port))
        await admin.patch(PODS, name, {"status": {"phase": "Running", "podIP": "127.0.0.1"}}, part="/status")
        yield told


async def test_an_applied_object_becomes_a_document_that_the_gate_reads(operator: Operator, admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai", 41))
    found = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("openai"))
    (document,) = parse(text(found), "limits.yaml")
    assert (document.name, document.provider) == ("openai", "openai")
    assert to_manifest(document)["spec"]["limits"][0]["requestsPerMinute"] == 41
    annotations = found["metadata"]["annotations"]
    assert annotations[CONTENT_HASH] == hashlib.sha256(text(found).encode()).hexdigest()
    assert annotations[GENERATION] == "1"
    assert "limits generation 1: 1 object in force, told 0 gates" in await operator.line("generation 1")


async def test_every_edit_is_a_generation_and_the_last_deletion_leaves_nothing(
    operator: Operator, admin: Client
) -> None:
    await admin.create(LIMITS, provider_limits("openai", 41))
    await once(admin, CONFIG_MAPS, CONFIG_MAP, says("requestsPerMinute: 41"))
    await admin.apply(LIMITS, provider_limits("openai", 42))
    found = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("requestsPerMinute: 42"))
    assert found["metadata"]["annotations"][GENERATION] == "2"
    await admin.delete(LIMITS, "openai")
    await gone(admin, CONFIG_MAPS, CONFIG_MAP)
    await operator.line("sluice-limits deleted")
    assert [each["metadata"]["name"] for each in await admin.list(CONFIG_MAPS)] == []
    assert await admin.find(CONFIG_MAPS, ENVOY) is None


async def test_what_has_converged_is_not_written_again(
    control_plane: ControlPlane, operator: Operator, admin: Client, namespace: str
) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    await admin.create(LIMITS, provider_limits("anthropic", provider="anthropic"))
    async with gate(admin, "gate-0") as told:
        found = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("openai", "anthropic"))
        told["configuration"]["files"] = {"/etc/sluice/limits.yaml": found["metadata"]["annotations"][CONTENT_HASH]}
        for name in ("openai", "anthropic"):
            await once(admin, LIMITS, name, condition("Ready", "True"))
        await after_ticks(operator, 6)  # longer than a status may be held back
        before = writes(control_plane, namespace)
        await after_ticks(operator, 3)
        assert writes(control_plane, namespace) == before


async def test_a_status_that_changes_all_the_time_is_written_every_five_seconds(
    control_plane: ControlPlane, operator: Operator, admin: Client, namespace: str
) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    async with gate(admin, "gate-0") as told:
        for number in range(10):
            told["recent"] = {"providers": {"openai": {"admitted": number}}}
            await after_ticks(operator, 1)
    calls = [call for call in writes(control_plane, namespace) if call.resource == "providerlimits/status"]
    waited = [later.received - earlier.received for earlier, later in pairwise(calls)]
    assert len(waited) >= 2
    assert min(waited) >= 5


async def test_a_restart_writes_nothing(
    control_plane: ControlPlane, operator: Operator, admin: Client, namespace: str
) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    await once(admin, LIMITS, "openai", condition("Accepted", "True"))
    await operator.end()
    before = writes(control_plane, namespace)
    account = grant(control_plane, namespace)
    async with operating(account, "-n", namespace, "--interval", "1s") as again:
        await after_ticks(again, 2)
    assert writes(control_plane, namespace) == before


@pytest.mark.usefixtures("operator")
async def test_a_hand_edited_config_map_is_repaired(admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai", 41))
    first = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("requestsPerMinute: 41"))
    edited = text(first).replace("41", "9999")
    await admin.patch(CONFIG_MAPS, CONFIG_MAP, {"data": {LIMITS_KEY: edited}})
    repaired = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("requestsPerMinute: 41"))
    assert text(repaired) == text(first)


async def test_a_gates_pod_is_told_once_for_each_generation(
    control_plane: ControlPlane, operator: Operator, admin: Client, namespace: str
) -> None:
    async with gate(admin, "gate-0"):
        await admin.create(LIMITS, provider_limits("openai"))
        found = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("openai"))
        digest = found["metadata"]["annotations"][CONTENT_HASH]

        def is_told(pod: Object) -> bool:
            return bool(pod["metadata"].get("annotations", {}).get("sluice.dev/limits") == digest[:16])

        await once(admin, PODS, "gate-0", is_told)
        await after_ticks(operator, 2)
    patched = [each for each in writes(control_plane, namespace) if each.resource == "pods/status"]
    # Once with no limits in force, if the pod was seen before the object, and once with them.
    assert {(each.verb, each.name, each.code) for each in patched} == {("patch", "gate-0", 200)}
    assert len(patched) <= 2


@pytest.mark.usefixtures("operator")
async def test_status_says_how_many_gates_run_what_is_in_force(control_plane: ControlPlane, admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    async with gate(admin, "gate-0") as told, gate(admin, "gate-1"):
        found = await once(admin, CONFIG_MAPS, CONFIG_MAP, says("openai"))
        told["configuration"]["files"] = {"/etc/sluice/limits.yaml": found["metadata"]["annotations"][CONTENT_HASH]}
        await once(admin, LIMITS, "openai", lambda each: each.get("status", {}).get("sidecars") == "1/2")
        header, row = control_plane.kubectl("get", "plim", "-n", admin.namespace).splitlines()
    assert header.split() == ["NAME", "PROVIDER", "READY", "SIDECARS", "RPM", "TPM", "IN-FLIGHT", "REJECTED", "AGE"]
    assert row.split()[:4] == ["openai", "openai", "False", "1/2"]


@pytest.mark.usefixtures("operator")
async def test_what_happens_to_an_object_is_an_event(admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    await once(admin, LIMITS, "openai", condition("Accepted", "True"))
    events = await admin.list(EVENTS)
    assert [each["involvedObject"]["name"] for each in events if each["reason"] == "Accepted"] == ["openai"]


@pytest.mark.usefixtures("operator")
async def test_objects_are_left_as_they_were_written(admin: Client) -> None:
    await admin.create(LIMITS, provider_limits("openai"))
    found = await once(admin, LIMITS, "openai", condition("Accepted", "True"))
    metadata = found["metadata"]
    assert (metadata.get("finalizers"), metadata.get("annotations"), metadata["generation"]) == (None, None, 1)


async def test_nothing_of_an_object_stands_in_the_log(operator: Operator, admin: Client) -> None:
    manifest = provider_limits("openai")
    manifest["spec"]["upstream"] = "https://secret.example"
    await admin.create(LIMITS, manifest)
    await once(admin, LIMITS, "openai", condition("Accepted", "True"))
    await operator.end()
    assert "secret.example" not in "\n".join(operator.lines)
