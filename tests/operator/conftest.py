"""One control plane for all of these tests, and a namespace for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from helpers.envoy import ROOT
from helpers.kube.client import LIMITS, NAMESPACES, PODS, Client, client
from helpers.kube.control_plane import ControlPlane, running

CRD = ROOT / "crds/providerlimits.yaml"
numbers = count(1)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running(tmp_path_factory.mktemp("control-plane")) as plane:
        _install(plane)
        yield plane


@pytest.fixture(scope="module")
def own_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One that its module's tests may break; whoever breaks it mends it."""
    with running(tmp_path_factory.mktemp("own-control-plane")) as plane:
        _install(plane)
        yield plane


@pytest.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """The administrator, in a namespace that is new."""
    name = f"team-{next(numbers)}"
    async with client(control_plane) as user:
        await user.create(NAMESPACES, {"metadata": {"name": name}})
        inside = user.inside(name)
        yield inside
        # Nobody empties a namespace here, and operators of later tests may look into all of them.
        for kind in (LIMITS, PODS) if CRD.exists() else (PODS,):
            await inside.delete_all(kind)
        await user.delete(NAMESPACES, name)


@pytest.fixture
def namespace(admin: Client) -> str:
    return admin.namespace


def _install(plane: ControlPlane) -> None:
    if CRD.exists():
        plane.kubectl("create", "-f", str(CRD))
        plane.kubectl("wait", "--for=condition=Established", "crd/providerlimits.sluice.dev", "--timeout=20s")
