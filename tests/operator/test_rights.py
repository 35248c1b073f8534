"""What the accounts of the two examples may do, cell by cell: this, and nothing else, asked as if we were they."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from helpers.envoy import ROOT
from helpers.kube.client import LIMITS, NAMESPACES, PODS, Client, Kind
from helpers.kube.control_plane import ControlPlane
from helpers.kube.kubelet import gate_pod
from helpers.kube.operator import grant, operating
from helpers.kube.scene import provider_limits
from helpers.program import eventually

REVIEWS = Kind("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews", namespaced=False)
CLUSTER_RIGHTS = ROOT / "examples/operator-all-namespaces.yaml"
HOME = "sluice-system"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


class Thing(NamedTuple):
    """What a right may be to."""

    group: str
    resource: str
    name: str = ""
    """Empty for all of them."""

    @property
    def attributes(self) -> dict[str, str]:
        resource, _, subresource = self.resource.partition("/")
        return {"group": self.group, "resource": resource, "subresource": subresource, "name": self.name}


ALLOWED = {
    Thing("sluice.dev", "providerlimits"): "list watch",
    Thing("sluice.dev", "providerlimits/status"): "patch",
    Thing("sluice.dev", "providerlimits/scale"): "",
    Thing("", "configmaps"): "create",
    Thing("", "configmaps", "sluice-limits"): "get create patch delete",
    Thing("", "configmaps", "sluice-envoy"): "get create patch delete",
    Thing("", "configmaps", "kube-root-ca.crt"): "create",
    Thing("", "secrets"): "",
    Thing("", "secrets", "sluice-limits"): "",
    Thing("", "serviceaccounts"): "",
    Thing("", "serviceaccounts/token", "sluice-operator"): "",
    Thing("", "pods"): "list",
    Thing("", "pods/status"): "patch",
    Thing("", "pods/exec"): "",
    Thing("", "pods/log"): "",
    Thing("", "pods/portforward"): "",
    Thing("", "pods/proxy"): "",
    Thing("", "pods/ephemeralcontainers"): "",
    Thing("", "pods/binding"): "",
    Thing("", "services"): "",
    Thing("", "services/proxy"): "",
    Thing("", "events"): "create",
    Thing("events.k8s.io", "events"): "",
    Thing("coordination.k8s.io", "leases"): "create",
    Thing("coordination.k8s.io", "leases", "sluice-operator"): "get create update",
    Thing("coordination.k8s.io", "leases", "another"): "create",
    Thing("apps", "deployments"): "",
    Thing("apps", "replicasets"): "",
    Thing("batch", "jobs"): "",
    Thing("rbac.authorization.k8s.io", "roles"): "",
    Thing("rbac.authorization.k8s.io", "rolebindings"): "",
    Thing("", "namespaces"): "",
    Thing("", "nodes"): "",
    Thing("", "nodes/proxy"): "",
    Thing("apiextensions.k8s.io", "customresourcedefinitions"): "",
    Thing("admissionregistration.k8s.io", "validatingwebhookconfigurations"): "",
    Thing("*", "*"): "",
}
"""The verbs of each. `create` cannot be bound to a name: who may create one ConfigMap may create any."""


def allowed(verb: str, thing: Thing) -> bool:
    return verb in ALLOWED[thing].split()


def cells() -> Iterator[tuple[str, Thing]]:
    return ((verb, thing) for thing in ALLOWED for verb in VERBS)


async def may(account: Client, namespace: str, verb: str, thing: Thing) -> bool:
    """What the API server says of a right, to whom it is about."""
    attributes = {**thing.attributes, "verb": verb, "namespace": namespace}
    review = await account.create(REVIEWS, {"spec": {"resourceAttributes": attributes}})
    return bool(review["status"]["allowed"])


async def test_its_rights_in_its_namespace_are_the_table(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    grant(control_plane, namespace)
    account = admin.as_user(user_of(namespace))
    got = {cell: await may(account, namespace, *cell) for cell in cells()}
    assert got == {cell: allowed(*cell) for cell in cells()}


@pytest.mark.parametrize("elsewhere", ["another", ""], ids=["another namespace", "all namespaces"])
async def test_it_has_none_elsewhere(
    control_plane: ControlPlane, admin: Client, namespace: str, elsewhere: str
) -> None:
    grant(control_plane, namespace)
    where = ""
    if elsewhere:
        where = (await admin.create(NAMESPACES, {"metadata": {"generateName": "another-"}}))["metadata"]["name"]
    account = admin.as_user(user_of(namespace))
    assert [cell for cell in cells() if await may(account, where, *cell)] == []


@pytest.mark.parametrize("where", ["", "default", HOME], ids=["all namespaces", "one of them", "its own"])
async def test_for_all_namespaces_its_rights_are_the_table_and_the_lease_is_at_home(
    control_plane: ControlPlane, admin: Client, where: str
) -> None:
    if await admin.find(NAMESPACES, HOME) is None:
        await admin.create(NAMESPACES, {"metadata": {"name": HOME}})
    control_plane.kubectl("apply", "-f", str(CLUSTER_RIGHTS))
    account = admin.as_user(user_of(HOME))
    got = {cell: await may(account, where, *cell) for cell in cells()}
    assert got == {cell: allowed(*cell) and (where == HOME or cell[1].resource != "leases") for cell in cells()}


async def test_it_uses_every_right_and_lacks_none(control_plane: ControlPlane, admin: Client, namespace: str) -> None:
    async def is_told() -> bool:
        return "status" in await admin.get(LIMITS, "openai")

    account = grant(control_plane, namespace)
    async with operating(account, "--namespace", namespace, "--interval", "1s", alone=False) as operator:
        await admin.create(PODS, gate_pod("gate", 1))
        await admin.create(LIMITS, provider_limits("openai"))
        await eventually(is_told)
        await admin.delete(PODS, "gate", gracePeriodSeconds=0)
        await admin.delete(LIMITS, "openai")
        await operator.line("sluice-limits deleted")
        assert await operator.end() == 0
    calls = [call for call in control_plane.audit() if call.user == user_of(namespace) and call.resource]
    # An apply that makes a ConfigMap takes the right to create one, and is a patch in the log.
    assert {(call.verb, call.resource) for call in calls} | {("create", "configmaps")} == {
        (verb, thing.resource) for thing, verbs in ALLOWED.items() for verb in verbs.split()
    }
    assert [call for call in calls if call.code == 403] == []


def user_of(namespace: str) -> str:
    return f"system:serviceaccount:{namespace}:sluice-operator"
