"""What the operator reads and writes in the cluster, call by call."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from sluice.config.crd import GROUP, PLURAL, VERSION
from sluice.config.declaration import API_VERSION, KIND
from sluice.config.render import MANAGER
from sluice_operator import clock
from sluice_operator.api import APPLY, MERGE, Api, Conflict, Json, Lane, NotFound, Request
from sluice_operator.planning.plan import TOLD, EmitEvent

GATE_LABEL: Final = "sluice.dev/gate=true"
ADMIN_PORT_NAME: Final = "sluice-admin"
ADMIN_PORT: Final = 10001

NO_VERSION: Final = "1"
"""The version of no object: etcd counts from 1, and the first write is 2. An apply over it makes an object, and fails
if there is one."""
TELLING_RATE: Final = 50.0
TELLING_BURST: Final = 100
"""Statuses and events written in a second, and at once: a thousand objects take 20 s and no more than their share."""


@dataclass(frozen=True, slots=True)
class GatePod:
    """A pod that holds a gate."""

    name: str
    uid: str
    ip: str
    """Empty until it has one."""
    port: int
    """Of the gate's admin server."""
    told: str
    """The value of the annotation `sluice.dev/limits`; empty without one."""


class Pace:
    """Lets `rate` callers pass in a second, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._gap = 1 / rate
        self._slack = burst / rate
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until it is the caller's turn."""
        now = clock.now()
        self._next = max(self._next, now - self._slack) + self._gap
        if self._next > now:
            await asyncio.sleep(self._next - now)


class Cluster:
    """The Kubernetes API, as far as the operator uses it. Methods raise `ClusterError`s and nothing else."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._pace = Pace(TELLING_RATE, TELLING_BURST)

    # -- read ----------------------------------------------------------------------------------------------------

    async def provider_limits(self, namespace: str | None) -> list[Json]:
        """All objects of a namespace, or of the cluster for None, without their `managedFields`."""
        return await self._api.pages(_custom(namespace), PLURAL, {})

    async def check_served(self, namespace: str | None) -> None:
        """Raises what stands against listing the objects, if anything does."""
        await self._api.call(Request("GET", _custom(namespace), "list", PLURAL, {"limit": "1"}))

    async def config_map(self, namespace: str, name: str) -> Json | None:
        """A ConfigMap; None if it is not there."""
        try:
            found = await self._api.call(Request("GET", _core(namespace, "configmaps", name), "get", "configmaps", {}))
        except NotFound:
            return None
        found["metadata"].pop("managedFields", None)
        return found

    async def gate_pods(self, namespace: str) -> list[GatePod]:
        """The pods of a namespace that hold a gate and are not ending."""
        pods = await self._api.pages(_core(namespace, "pods"), "pods", {"labelSelector": GATE_LABEL})
        return [_gate_pod(pod) for pod in pods if _is_alive(pod)]

    async def gate_namespaces(self) -> set[str]:
        """The namespaces, of the whole cluster, that hold pods with gates."""
        pods = await self._api.pages("/api/v1/pods", "pods", {"labelSelector": GATE_LABEL})
        return {str(pod["metadata"]["namespace"]) for pod in pods}

    # -- write ---------------------------------------------------------------------------------------------------

    async def apply_config_map(self, namespace: str, manifest: Mapping[str, Any], resource_version: str) -> None:
        """Server-side apply; raises `Conflict` if there is another version by now than that one ("" for none)."""
        metadata = {**manifest["metadata"], "resourceVersion": resource_version or NO_VERSION}
        path = _core(namespace, "configmaps", metadata["name"])
        await self._apply(path, "configmaps", {**manifest, "metadata": metadata})

    async def delete_config_map(self, namespace: str, name: str, uid: str, resource_version: str) -> None:
        """Delete it if it is still that one, and as it was read; it is all the same if it is gone."""
        path = _core(namespace, "configmaps", name)
        as_read = {"uid": uid, "resourceVersion": resource_version}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": as_read}
        with contextlib.suppress(NotFound):
            await self._api.call(Request("DELETE", path, "delete", "configmaps", {}, body))

    async def annotate_pod(self, namespace: str, name: str, uid: str, value: str) -> None:
        """Tell the kubelet of a pod, if it is still that one, that its files are old.

        By way of the pod's status: that takes metadata too, and nobody changes a pod's images with such a right.
        """
        body = {"metadata": {"uid": uid, "annotations": {TOLD: value}}}
        path, query = _core(namespace, "pods", f"{name}/status"), {"fieldManager": MANAGER}
        await self._api.call(Request("PATCH", path, "patch", "pods/status", query, body, MERGE))

    async def apply_status(self, namespace: str, name: str, uid: str, status: Mapping[str, Any]) -> None:
        """Make this the status of an object, if it is still that object. Conditions of other types stay."""
        await self._pace.turn()
        path, resource = f"{_custom(namespace)}/{quote(name)}/status", f"{PLURAL}/status"
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "uid": uid},
            "status": status,
        }
        applied = await self._apply(path, resource, body, Lane.TELL)
        # What somebody else wrote there, and this status leaves out, is not removed by an apply.
        if surplus := _surplus(applied.get("status") or {}, status):
            change = {"metadata": {"uid": uid}, "status": surplus}
            query = {"fieldManager": MANAGER}
            await self._api.call(Request("PATCH", path, "patch", resource, query, change, MERGE, Lane.TELL))

    async def create_event(self, namespace: str, event: EmitEvent, version: str) -> None:
        """Tell an event, which was true of this version of its object; it is all the same if it was told before."""
        await self._pace.turn()
        body = _event(event, namespace, version)
        with contextlib.suppress(Conflict):
            await self._api.call(
                Request("POST", _core(namespace, "events"), "create", "events", {}, body, lane=Lane.TELL)
            )

    # -- leases --------------------------------------------------------------------------------------------------

    async def lease(self, namespace: str, name: str) -> Json | None:
        """A Lease; None if it is not there."""
        try:
            return await self._api.call(Request("GET", _leases(namespace, name), "get", "leases", {}, lane=Lane.LEAD))
        except NotFound:
            return None

    async def create_lease(self, namespace: str, lease: Mapping[str, Any]) -> Json:
        """Raises `Conflict` if there is one by now."""
        return await self._api.call(Request("POST", _leases(namespace), "create", "leases", {}, lease, lane=Lane.LEAD))

    async def update_lease(self, namespace: str, lease: Mapping[str, Any]) -> Json:
        """Raises `Conflict` if its resourceVersion is another by now."""
        path = _leases(namespace, lease["metadata"]["name"])
        return await self._api.call(Request("PUT", path, "update", "leases", {}, lease, lane=Lane.LEAD))

    async def _apply(self, path: str, resource: str, body: Mapping[str, Any], lane: Lane = Lane.WORK) -> Json:
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._api.call(Request("PATCH", path, "patch", resource, query, body, APPLY, lane))


def _surplus(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> Json:
    """A merge patch that removes every field that is there and not wanted; lists are left as they are."""
    patch: Json = {name: None for name in there if name not in wanted}
    for name, value in wanted.items():
        # What the CRD of the cluster does not know is not there, though it was applied.
        if isinstance(value, Mapping) and (inner := _surplus(there.get(name) or {}, value)):
            patch[name] = inner
    return patch


def _event(event: EmitEvent, namespace: str, version: str) -> Json:
    """Named by what it says and the version of the object that it was true of: written twice, it is one event."""
    said = f"{event.uid}\n{event.reason}\n{version}\n{event.message}"
    now = datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{event.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": namespace,
            "name": event.name,
            "uid": event.uid,
        },
        "type": event.kind,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "sluice-operator"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _custom(namespace: str | None) -> str:
    where = "" if namespace is None else f"/namespaces/{quote(namespace)}"
    return f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}"


def _core(namespace: str, resource: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/{resource}" + (f"/{quote(name)}" if name else "")


def _leases(namespace: str, name: str = "") -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"
    return path + (f"/{quote(name)}" if name else "")


def _is_alive(pod: Json) -> bool:
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not ended and "deletionTimestamp" not in pod["metadata"]


def _gate_pod(pod: Json) -> GatePod:
    metadata, spec = pod["metadata"], pod["spec"]
    containers: Sequence[Json] = [*spec.get("initContainers", ()), *spec["containers"]]
    ports = [
        int(port["containerPort"])
        for container in containers
        for port in container.get("ports", ())
        if port.get("name") == ADMIN_PORT_NAME
    ]
    told = metadata.get("annotations", {}).get(TOLD, "")
    ip = pod.get("status", {}).get("podIP", "")
    return GatePod(metadata["name"], metadata["uid"], ip, ports[0] if ports else ADMIN_PORT, told)
