"""A namespace with an operator of its own: what is put there, and what the operator has made of it.

Runs are compared by what they made. Names of our own stand where the API server invents them anew each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from helpers.kube.client import CONFIG_MAPS, EVENTS, LIMITS, NAMESPACES, PODS, Client, Kind, Object
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import Kubelet, gate_pod, kubelet
from helpers.kube.operator import RIGHTS, Operator, operating
from helpers.kube.proxy import ApiProxy, Call, proxied
from helpers.kube.standin_gate import follower, serving
from sluice.config.document import parse
from sluice.config.render import CONTENT_HASH, GENERATION, LIMITS_KEY, content_hash
from sluice.config.render import LIMITS as CONFIG_MAP

ACCOUNT = "sluice-operator"
SOON_SECONDS = 30
TOLD = "sluice.dev/limits"
ROLES = Kind("/apis/rbac.authorization.k8s.io/v1", "roles")
BINDINGS = Kind("/apis/rbac.authorization.k8s.io/v1", "rolebindings")
ACCOUNTS = Kind("/api/v1", "serviceaccounts")


def provider_limits(name: str, requests: int = 60, provider: str = "openai") -> Object:
    """An object that lets each user make so many requests a minute."""
    entry = {"scope": "User", "subject": {"header": "x-user-id"}, "requestsPerMinute": requests}
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": name},
        "spec": {"provider": provider, "limits": [entry]},
    }


def is_a_look(call: Call) -> bool:
    """True of the call by which a turn of the operator ends its reading."""
    return call.method == "GET" and call.path.endswith("/providerlimits") and call.content_type == "application/json"


class Version(NamedTuple):
    """One state that the ConfigMap was in."""

    generation: str
    text: str
    """With the objects' names for their uids; empty once it was deleted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the operator has made of a namespace, without times."""

    limits: Version | None
    owners: tuple[str, ...]
    told: frozenset[str]
    """Of each gate's pod: what its annotation says of the ConfigMap, `current` or `old`."""
    statuses: dict[str, dict[str, Any]]
    events: tuple[tuple[str, str, str, int], ...]
    """(object, reason, message, count), in order."""

    @property
    def doubled(self) -> list[tuple[str, str, str, int]]:
        """Events that were told more than once."""
        return [each for each in set(self.events) if self.events.count(each) > 1 or each[3] > 1]

    def without(self, reason: str) -> Seen:
        """The same but for the events of this reason."""
        return replace(self, events=tuple(each for each in self.events if each[1] != reason))

    def reason(self, name: str, condition: str) -> str:
        """Of a condition of an object; empty if it is not there."""
        return self._condition(name, condition)["reason"]

    def message(self, name: str, condition: str) -> str:
        """Of a condition of an object; empty if it is not there."""
        return self._condition(name, condition)["message"]

    def _condition(self, name: str, condition: str) -> dict[str, str]:
        conditions = self.statuses.get(name, {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == condition), {"reason": "", "message": ""})


@dataclass(slots=True)
class Scene:
    """One namespace; `admin` acts in it as the administrator, operators as the account that has their rights."""

    plane: ControlPlane
    admin: Client
    proxy: ApiProxy
    """What stands between the operators and the API server."""
    kubeconfig: Path
    """For operators: leads through the proxy."""
    names: dict[str, str]
    """uid -> name of every object there was."""

    def operator(self, *arguments: object, alone: bool = True) -> AbstractAsyncContextManager[Operator]:
        """An operator for this namespace that looks at it every second."""
        return operating(
            self.kubeconfig, "--namespace", self.admin.namespace, "--interval", "1s", *arguments, alone=alone
        )

    async def create(self, manifest: Object) -> Object:
        made = await self.admin.create(LIMITS, manifest)
        self.names[made["metadata"]["uid"]] = made["metadata"]["name"]
        return made

    async def change(self, name: str, requests: int) -> Object:
        """Give an object another cap."""
        return await self.admin.patch(LIMITS, name, {"spec": provider_limits(name, requests)["spec"]})

    async def pretend(self, name: str, port: int) -> None:
        """A pod that says it is a gate, and that its gate serves there."""
        await self.admin.create(PODS, gate_pod(name, port))
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        await self.admin.patch(PODS, name, {"status": status}, part="/status")

    async def turns(self, number: int) -> None:
        """Wait until the operator has looked at everything so many times more."""
        began = len(self.proxy.calls)
        await self.proxy.until(lambda calls: sum(map(is_a_look, calls[began:])) > number)

    async def seen(self) -> Seen:
        config_map = await self.admin.find(CONFIG_MAPS, CONFIG_MAP)
        objects = await self.admin.list(LIMITS)
        pods = await self.admin.list(PODS)
        events = await self.admin.list(EVENTS)
        value = "" if config_map is None else content_hash(config_map["data"][LIMITS_KEY])[:16]
        return Seen(
            limits=None if config_map is None else self.version(config_map),
            owners=tuple(sorted(self._owners(config_map))),
            told=frozenset(_told(pod, value) for pod in pods),
            statuses={each["metadata"]["name"]: _timeless(each.get("status", {})) for each in objects},
            events=tuple(sorted(map(_event, events))),
        )

    async def until(self, holds: Callable[[Seen], bool], seconds: float = SOON_SECONDS) -> Seen:
        """What there is, once it is so."""
        seen = await self.seen()
        try:
            async with asyncio.timeout(seconds):
                while not holds(seen):  # several kinds: no watch tells of them all
                    await asyncio.sleep(0.1)
                    seen = await self.seen()
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s; now: {seen}") from None
        return seen

    def version(self, config_map: Object) -> Version:
        """This state of the ConfigMap. It is whole: the gate's parser reads it, and its hash is that of its text."""
        text, annotations = config_map["data"][LIMITS_KEY], config_map["metadata"]["annotations"]
        parse(text, LIMITS_KEY)
        assert annotations[CONTENT_HASH] == content_hash(text)
        for uid, name in self.names.items():
            text = text.replace(uid, f"uid-of-{name}")
        return Version(annotations[GENERATION], text)

    async def follow(self, versions: list[Version]) -> None:
        """Collect every state of the ConfigMap, repeated ones once, until cancelled."""
        async with self.admin.watch(CONFIG_MAPS, fieldSelector=f"metadata.name={CONFIG_MAP}") as changes:
            async for change, config_map in changes:
                version = Version("", "") if change == "DELETED" else self.version(config_map)
                if versions[-1:] != [version]:
                    versions.append(version)

    def _owners(self, config_map: Object | None) -> list[str]:
        metadata = {} if config_map is None else config_map["metadata"]
        return [self.names.get(each["uid"], "a stranger") for each in metadata.get("ownerReferences", [])]


@asynccontextmanager
async def scene(plane: ControlPlane, admin: Client) -> AsyncIterator[Scene]:
    """A new namespace with the operator's account and its rights."""
    made = await admin.create(NAMESPACES, {"metadata": {"generateName": "scene-"}})
    namespace = made["metadata"]["name"]
    inside = admin.inside(namespace)
    await grant(inside)
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    plane.kubeconfig(user)
    async with proxied(plane, user) as (proxy, kubeconfig):
        yield Scene(plane, inside, proxy, kubeconfig, {})
    if await admin.find(NAMESPACES, namespace) is not None:
        for kind in (LIMITS, PODS):  # without a controller manager nobody empties a namespace
            await inside.delete_all(kind)
        await admin.delete(NAMESPACES, namespace)


async def grant(admin: Client) -> None:
    """Give the rights of `examples/operator.yaml` to the operator's account in this namespace."""
    kinds = {"ServiceAccount": ACCOUNTS, "Role": ROLES, "RoleBinding": BINDINGS}
    for manifest in yaml.safe_load_all(RIGHTS.read_text()):
        await admin.apply(kinds[manifest["kind"]], manifest)


@asynccontextmanager
async def following_gate(api: Client, folder: Path, name: str = "gate-0") -> AsyncIterator[Kubelet]:
    """A pod whose gate runs what its volume holds, in `folder`; yields its kubelet."""
    async with serving(follower(folder / name)) as port, kubelet(api, folder) as running:
        await running.run_pod(name, port)
        yield running


def _told(pod: Object, value: str) -> str:
    return "current" if pod["metadata"].get("annotations", {}).get(TOLD) == value else "old"


def _timeless(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [{**each, "lastTransitionTime": ""} for each in status.get("conditions", [])]
    return {**status, "conditions": conditions}


def _event(event: Object) -> tuple[str, str, str, int]:
    return event["involvedObject"]["name"], event["reason"], event["message"], event["count"]
