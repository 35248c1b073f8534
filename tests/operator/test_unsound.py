"""What the API server should have refused, and did not: an older CRD, say. And an API server that was away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from helpers.kube.client import CONFIG_MAPS, LIMITS, NAMESPACES, Client, Object, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import operating

ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


@pytest.fixture
async def admin(own_control_plane: ControlPlane) -> AsyncIterator[Client]:
    """The administrator of a cluster whose CRD lets everything pass."""
    change = [{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": ANYTHING}]
    own_control_plane.kubectl("patch", "crd/providerlimits.sluice.dev", "--type=json", "-p", json.dumps(change))
    async with client(own_control_plane) as user:
        created = await user.create(NAMESPACES, {"metadata": {"generateName": "team-"}})
        yield user.inside(created["metadata"]["name"])


def limits(name: str, per_minute: object) -> Object:
    entry = {"scope": "User", "subject": {"header": "x-user-id"}, "requestsPerMinute": per_minute}
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": name},
        "spec": {"provider": "openai" if name == "good" else "gemini", "limits": [entry]},
    }


async def once_in_force(admin: Client, *words: str) -> str:
    async with asyncio.timeout(30), admin.watch(CONFIG_MAPS, fieldSelector="metadata.name=sluice-limits") as changes:
        async for _, found in changes:
            text = str(found["data"]["limits.yaml"])
            if all(word in text for word in words):
                return text
    raise AssertionError("the watch has ended")


async def once_not_accepted(admin: Client, name: str) -> str:
    """What its condition says."""
    async with asyncio.timeout(30), admin.watch(LIMITS, fieldSelector=f"metadata.name={name}") as changes:
        async for _, found in changes:
            for each in found.get("status", {}).get("conditions", ()):
                if (each["type"], each["status"], each["reason"]) == ("Accepted", "False", "Invalid"):
                    return str(each["message"])
    raise AssertionError("the watch has ended")


async def test_an_object_gone_bad_keeps_its_last_good_form_and_costs_the_others_nothing(
    own_control_plane: ControlPlane, admin: Client
) -> None:
    async with operating(own_control_plane.admin, "-n", admin.namespace, "--interval", "1s"):
        await admin.create(LIMITS, limits("good", 41))
        await admin.create(LIMITS, limits("bad", 31))
        await once_in_force(admin, "requestsPerMinute: 41", "requestsPerMinute: 31")
        await admin.apply(LIMITS, limits("bad", "plenty"))
        message = await once_not_accepted(admin, "bad")
        await admin.apply(LIMITS, limits("good", 42))
        text = await once_in_force(admin, "requestsPerMinute: 42", "requestsPerMinute: 31")
    assert "plenty" not in text
    assert "generation 1" in message.lower()


async def test_what_changes_around_an_outage_of_the_api_server_is_in_force_after_it(
    own_control_plane: ControlPlane, admin: Client
) -> None:
    async with operating(own_control_plane.admin, "-n", admin.namespace) as operator:
        await admin.create(LIMITS, limits("good", 41))
        await once_in_force(admin, "requestsPerMinute: 41")
        own_control_plane.api_server.kill()
        await operator.line(f"{admin.namespace}: the API server cannot be reached")
        assert (await operator.get("/healthz"))[0] == 200
        own_control_plane.api_server.start()
        await asyncio.to_thread(own_control_plane.wait_until_ready)
        await admin.apply(LIMITS, limits("good", 42))
        await once_in_force(admin, "requestsPerMinute: 42")
        assert await operator.end() == 0
