"""One control plane for all of these tests, and a namespace for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from helpers.envoy import ROOT, short_folder
from helpers.kube.client import LIMITS, NAMESPACES, PODS, Client, client
from helpers.kube.control_plane import ControlPlane, running
from helpers.kube.kubelet import Kubelet, kubelet
from helpers.kube.operator import Operator, grant, operating
from helpers.kube.person import Person

CRD = ROOT / "crds/providerlimits.yaml"
ESTABLISHED = '--for=jsonpath={.status.conditions[?(@.type=="Established")].status}=True'
"""`--for=condition=Established` fails at once where the conditions are still null."""
numbers = count(1)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running(tmp_path_factory.mktemp("control-plane")) as plane:
        _install(plane)
        yield plane


@pytest.fixture(scope="module")
def _spare_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running(tmp_path_factory.mktemp("own-control-plane")) as plane:
        _install(plane)
        yield plane


@pytest.fixture
def own_control_plane(_spare_control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """One that a test may break: its module's own, mended after each test."""
    yield _spare_control_plane
    _spare_control_plane.mend()


@pytest.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """The administrator, in a namespace that is new."""
    async with _new_namespace(control_plane) as user:
        yield user


@pytest.fixture
async def own_admin(own_control_plane: ControlPlane) -> AsyncIterator[Client]:
    """The administrator of the control plane that may be broken, in a namespace that is new."""
    async with _new_namespace(own_control_plane) as user:
        yield user
        own_control_plane.mend()


@pytest.fixture
def namespace(admin: Client) -> str:
    return admin.namespace


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
async def operator(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Operator]:
    """One that serves the namespace, as its service account; it looks at the gates each second."""
    account = grant(control_plane, namespace)
    async with operating(account, "--namespace", namespace, "--interval", "1s") as operator:
        yield operator


@pytest.fixture
async def node(admin: Client, folder: Path) -> AsyncIterator[Kubelet]:
    async with kubelet(admin, folder) as node:
        yield node


@pytest.fixture
def person(control_plane: ControlPlane, namespace: str) -> Person:
    return Person(control_plane, namespace)


@asynccontextmanager
async def _new_namespace(plane: ControlPlane) -> AsyncIterator[Client]:
    name = f"team-{next(numbers)}"
    async with client(plane) as user:
        await user.create(NAMESPACES, {"metadata": {"name": name}})
        inside = user.inside(name)
        yield inside
        # Nobody empties a namespace here, and operators of later tests may look into all of them.
        for kind in (LIMITS, PODS):
            await inside.delete_all(kind)
        await user.delete(NAMESPACES, name)


def _install(plane: ControlPlane) -> None:
    plane.kubectl("create", "-f", str(CRD))
    plane.kubectl("wait", ESTABLISHED, "crd/providerlimits.sluice.dev", "--timeout=20s")
