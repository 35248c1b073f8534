"""What the account of `examples/operator.yaml` may do, cell by cell: this, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from helpers.kube.client import NAMESPACES, Client, Kind, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import grant

REVIEWS = Kind("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews", namespaced=False)
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
    Thing("sluice.dev", "providerlimits"): "get list watch",
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


async def test_its_rights_in_its_namespace_are_the_table(control_plane: ControlPlane, namespace: str) -> None:
    user = user_of(namespace)
    grant(control_plane, namespace)
    async with client(control_plane, user) as account:
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
    async with client(control_plane, user_of(namespace)) as account:
        got = [cell for cell in cells() if await may(account, where, *cell)]
    assert got == []


def user_of(namespace: str) -> str:
    return f"system:serviceaccount:{namespace}:sluice-operator"
