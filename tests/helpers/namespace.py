"""A model of a namespace: what the API server, the kubelet and the gates make of the operator's plans."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sluice.config.render import LIMITS, LIMITS_KEY
from sluice_operator.planning.plan import (
    TOLD,
    AnnotatePod,
    ApplyConfigMap,
    DeleteConfigMap,
    Plan,
    plan,
)
from sluice_operator.planning.reports import Report, Store
from sluice_operator.planning.state import Gate, Observed

START = 1_800_000_000.0

Manifest = dict[str, Any]


def limits_object(
    name: str, *entries: Mapping[str, Any], provider: str = "openai", generation: int = 1, created: int = 0, **spec: Any
) -> Manifest:
    """Return a `ProviderLimits` object as the API server would; `created` in seconds."""
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-of-{name}",
            "generation": generation,
            "creationTimestamp": f"2026-01-01T00:{created // 60:02}:{created % 60:02}Z",
        },
        "spec": {"provider": provider, "limits": [dict(entry) for entry in entries], **spec},
    }


def entry(requests: int = 60, scope: str = "User", **fields: Any) -> Manifest:
    return {"scope": scope, "subject": {"header": "x-user-id"}, "requestsPerMinute": requests, **fields}


def report(*files: str, **fields: Any) -> Report:
    """Return what a gate says that runs files with these contents."""
    hashes = frozenset(hashlib.sha256(file.encode()).hexdigest() for file in files)
    return replace(Report(hashes, 0, Store(), buckets=(), recent={}), **fields)


class Namespace:
    """Objects, ConfigMaps and gates; time passes when it is told to."""

    def __init__(self, *objects: Manifest, gates: Sequence[str] = (), bootstrap: str = "") -> None:
        self.objects = {each["metadata"]["name"]: each for each in objects}
        self.config_maps: dict[str, Manifest] = {}
        self.gates: dict[str, Gate] = {}
        for pod in gates:
            self.add_gate(pod)
        self.history: dict[str, Mapping[str, int]] = {}
        self.written: dict[str, float] = {}
        self.bootstrap = bootstrap
        self.now = START
        self._version = 0

    @property
    def text(self) -> str:
        """The limits text that gates would read."""
        return str(self.config_maps[LIMITS]["data"][LIMITS_KEY])

    def plan(self) -> Plan:
        observed = Observed(
            copy.deepcopy(self.config_maps),
            tuple(self.gates.values()),
            dict(self.history),
            dict(self.written),
            self.bootstrap,
        )
        return plan(list(self.objects.values()), observed, self.now)

    def apply(self, made: Plan) -> None:
        """Do what a plan says."""
        for write in made.writes:
            match write:
                case ApplyConfigMap(manifest, resource_version):
                    there = self.config_maps.get(manifest["metadata"]["name"])
                    assert resource_version == (there["metadata"]["resourceVersion"] if there else "")
                    self._put(manifest)
                case DeleteConfigMap(name, uid, resource_version):
                    gone = self.config_maps.pop(name)["metadata"]
                    assert (gone["uid"], gone["resourceVersion"]) == (uid, resource_version)
                case AnnotatePod(name, _, value):
                    assert value != self.gates[name].told, f"{TOLD} stands there already"
                    self.gates[name] = replace(self.gates[name], told=value)
        for status in made.statuses:
            assert self.now - self.written.get(status.uid, -5.0) >= 5.0
            self.objects[status.name]["status"] = copy.deepcopy(dict(status.status))
            self.written[status.uid] = self.now
        self.history.update([made.found, made.rendered])

    def round(self) -> Plan:
        """Plan, do it, and let six seconds pass."""
        made = self.plan()
        self.apply(made)
        self.now += 6
        return made

    def restart(self) -> None:
        """Another operator takes over: it remembers nothing."""
        self.history.clear()
        self.written.clear()

    def add_gate(self, pod: str) -> None:
        """Start a gate that has not answered yet; one that runs already goes on."""
        self.gates.setdefault(pod, Gate(pod, f"uid-of-{pod}", "", None, "refused the connection"))

    def answer(self, pod: str, **fields: Any) -> None:
        """Let a gate run the limits text as it is now, and answer so."""
        self.gates[pod] = replace(self.gates[pod], report=report(self.text, **fields), failure="")

    def silence(self, pod: str, failure: str = "timed out after 2 s") -> None:
        self.gates[pod] = replace(self.gates[pod], report=None, failure=failure)

    def edit(self, name: str, spec: Any) -> None:
        """Change an object's spec as an apply would."""
        there = self.objects[name]
        if spec != there["spec"]:
            there["spec"] = spec
            there["metadata"]["generation"] += 1

    def condition(self, name: str, kind: str) -> Manifest:
        conditions: list[Manifest] = self.objects[name]["status"]["conditions"]
        (found,) = (each for each in conditions if each["type"] == kind)
        return found

    def verdict(self, name: str, kind: str = "Accepted") -> tuple[str, str]:
        """Return status and reason of a condition."""
        found = self.condition(name, kind)
        return found["status"], found["reason"]

    def _put(self, manifest: Mapping[str, Any]) -> None:
        self._version += 1
        name = manifest["metadata"]["name"]
        there = self.config_maps.get(name, {"metadata": {"uid": f"uid-of-{name}-{self._version}"}})
        put = copy.deepcopy(dict(manifest))
        put["metadata"] |= {"uid": there["metadata"]["uid"], "resourceVersion": str(self._version)}
        self.config_maps[name] = put
