"""What a leader had sent when it lost the Lease arrives late, and changes nothing."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest

from helpers.kube.client import CONFIG_MAPS, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.proxy import Call
from helpers.kube.scene import Scene, provider_limits, scene


@pytest.fixture
async def there(control_plane: ControlPlane, admin: Client) -> AsyncIterator[Scene]:
    async with scene(control_plane, admin) as found:
        yield found


def applies(call: Call) -> bool:
    return call.method == "PATCH" and call.path.endswith("/configmaps/sluice-limits")


@pytest.mark.parametrize("is_first", [True, False], ids=["the first one", "a later one"])
async def test_a_config_map_applied_by_a_leader_that_was_stopped_meanwhile(there: Scene, is_first: bool) -> None:
    async with there.operator("--identity", "first", alone=False) as first:
        await first.line("leading")
        if not is_first:
            await there.create(provider_limits("a"))
            await there.until(lambda seen: seen.limits is not None)
        held = there.proxy.hold(applies, 1)
        late = len(there.proxy.calls)
        await (there.create(provider_limits("a")) if is_first else there.change("a", 70))
        await there.proxy.until(lambda calls: any(map(applies, calls[late:])))
        first.send(signal.SIGSTOP)
        await there.change("a", 80)
        async with there.operator("--identity", "second", alone=False) as second:
            await second.line("leading")
            await there.until(lambda seen: seen.limits is not None and "requestsPerMinute: 80" in seen.limits.text)
            before = await there.admin.get(CONFIG_MAPS, "sluice-limits")
            held.set()
            first.send(signal.SIGCONT)
            await first.line("standing by: second leads")
            assert await there.admin.get(CONFIG_MAPS, "sluice-limits") == before
