"""The control plane under the other tests is a real one."""

from __future__ import annotations

import pytest

from helpers.kube.client import CONFIG_MAPS, ApiError, Client, client
from helpers.kube.control_plane import ControlPlane


async def test_a_user_without_rights_is_refused(control_plane: ControlPlane, admin: Client) -> None:
    control_plane.kubeconfig("nobody")
    async with client(control_plane, "nobody") as nobody:
        with pytest.raises(ApiError, match='User "nobody" cannot list resource "configmaps"') as refused:
            await nobody.inside(admin.namespace).list(CONFIG_MAPS)
    assert refused.value.code == 403


async def test_every_write_is_in_the_audit_log(control_plane: ControlPlane, admin: Client) -> None:
    await admin.create(CONFIG_MAPS, {"metadata": {"name": "written"}})
    told = [
        (event["verb"], event["user"]["username"], event["responseStatus"]["code"])
        for event in control_plane.audit()
        if event.get("objectRef", {}).get("name") == "written"
    ]
    assert told == [("create", "admin", 201)]
