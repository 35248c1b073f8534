"""An API server that stops answering, answers badly or is gone: gates notice nothing, and the operator catches up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from helpers.kube.client import client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.scene import Scene, following_gate, provider_limits, scene

AWAY_SECONDS = 60
BACK_SECONDS = 30
"""In which a change made right after the API server's return has reached a gate."""


@pytest.fixture
async def there(own_control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Scene]:
    """A namespace with an object and a gate, under an API server that may be broken."""
    async with (
        client(own_control_plane) as admin,
        scene(own_control_plane, admin) as found,
        following_gate(found.admin, tmp_path),
    ):
        await found.create(provider_limits("a"))
        yield found


@pytest.mark.timeout(180)  # the outage alone is a minute
@pytest.mark.parametrize("how", ["paused", "killed"])
async def test_after_a_minute_without_an_api_server_changes_reach_gates_within_30_seconds(
    own_control_plane: ControlPlane, there: Scene, tmp_path: Path, how: str
) -> None:
    server, file = own_control_plane.api_server, tmp_path / "gate-0" / "limits.yaml"
    async with there.operator() as operator:
        await there.until(lambda seen: seen.reason("a", "Ready") == "Ready")
        before = file.stat()
        server.pause() if how == "paused" else server.kill()
        await operator.line("the API server cannot be reached")
        async with asyncio.timeout(AWAY_SECONDS + 5):
            await asyncio.sleep(AWAY_SECONDS)  # what is tested
        assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
        assert (await operator.get("/healthz"))[0] == 200
        server.resume() if how == "paused" else server.start()
        await asyncio.to_thread(own_control_plane.wait_until_ready)
        back = time.monotonic()
        await there.change("a", 70)
        await there.until(lambda seen: seen.statuses["a"].get("usage", {}).get("requestsPerMinute") == "0/70")
        assert "requestsPerMinute: 70" in file.read_text()
        assert time.monotonic() - back < BACK_SECONDS
        assert await operator.end() == 0


async def test_a_slow_api_server_makes_a_change_later_and_costs_nobody_the_lease(there: Scene, tmp_path: Path) -> None:
    there.proxy.delay(1.0, lambda call: not call.watch)
    async with there.operator(alone=False) as operator:
        await there.until(lambda seen: seen.reason("a", "Ready") == "Ready")
        began = time.monotonic()
        await there.change("a", 70)
        await there.until(lambda seen: seen.statuses["a"].get("usage", {}).get("requestsPerMinute") == "0/70")
        assert "requestsPerMinute: 70" in (tmp_path / "gate-0" / "limits.yaml").read_text()
        assert time.monotonic() - began < BACK_SECONDS
        assert [line for line in operator.lines if "standing by" in line] == []


async def test_changes_in_the_gap_of_an_expired_watch_are_seen(there: Scene) -> None:
    async with there.operator("--interval", "10m"):  # so that no look but the watch's finds them
        await there.proxy.until(lambda calls: any(call.watch for call in calls))
        await there.until(lambda seen: seen.limits is not None)
        watches = sum(call.watch for call in there.proxy.calls)
        gap = there.proxy.hold(lambda call: call.path.endswith("/providerlimits"))
        await there.proxy.expire_watches()
        await there.change("a", 70)
        gap.set()
        await there.until(lambda seen: seen.limits is not None and "requestsPerMinute: 70" in seen.limits.text)
        await there.proxy.until(lambda calls: sum(call.watch for call in calls) > watches)
        await there.change("a", 80)
        await there.until(lambda seen: seen.limits is not None and "requestsPerMinute: 80" in seen.limits.text)


async def test_changes_are_found_by_the_next_look_where_a_watch_is_refused_as_expired(there: Scene) -> None:
    async with there.operator():  # kopf's watch may not come back from such an answer: see ADR 0007
        await there.proxy.until(lambda calls: any(call.watch for call in calls))
        await there.until(lambda seen: seen.limits is not None)
        there.proxy.answer(410, lambda call: call.watch)
        await there.proxy.cut_watches()
        await there.change("a", 70)
        await there.until(lambda seen: seen.limits is not None and "requestsPerMinute: 70" in seen.limits.text)
        await there.change("a", 80)
        await there.until(lambda seen: seen.limits is not None and "requestsPerMinute: 80" in seen.limits.text)


@pytest.mark.parametrize("kind", ["configmaps", "pods", "status", "events", "leases"])
async def test_a_storm_of_conflicts_is_ridden_out_in_a_bounded_number_of_calls(there: Scene, kind: str) -> None:
    times = 5
    there.proxy.answer(409, lambda call: call.writes and kind in call.path.split("/"), times)
    async with there.operator(alone=kind != "leases"):
        await there.until(lambda seen: seen.reason("a", "Ready") == "Ready")
        refused = [call for call in there.proxy.calls if call.writes and kind in call.path.split("/")]
        assert len(refused) <= times + 5
        quiet = len(there.proxy.calls)
        await there.turns(4)
        # Its leader renews the Lease every two seconds.
        assert [
            call for call in there.proxy.calls[quiet:] if call.writes and "leases" not in call.path.split("/")
        ] == []


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_api_server_that_refuses_everything_is_asked_less_and_less(there: Scene, status: int) -> None:
    seconds = 10
    there.proxy.answer(status, lambda _: True, 1_000_000)
    async with there.operator() as operator:
        await operator.line("serving")
        await asyncio.sleep(seconds)  # what is tested
        asked = len(there.proxy.calls)
        assert asked < 60
        there.proxy.faults.clear()
        await there.until(lambda seen: seen.reason("a", "Ready") == "Ready")
