"""What a tenant can forge, a gate's pod or a status, troubles nobody else."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from helpers.kube.client import LIMITS, Client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.operator import Operator
from helpers.kube.scene import Scene, Seen, following_gate, provider_limits, scene
from helpers.kube.standin_gate import Answer, report, saying, serving
from sluice_operator.collect import LARGEST

MIB = 1024 * 1024
FORGERIES = 64
MOST_MEMORY = 200 * MIB
"""Of an operator that is asked to hold a thousand objects."""


@pytest.fixture
async def there(control_plane: ControlPlane, admin: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    """A namespace with an object and one gate that does as it should."""
    async with (
        scene(control_plane, admin) as found,
        following_gate(found.admin, tmp_path),
    ):
        await found.create(provider_limits("a"))
        yield found


async def slow(request: web.Request) -> web.StreamResponse:
    """A byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.2)


async def endless(request: web.Request) -> web.StreamResponse:
    """As much as the other side takes."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"[" * 65536)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


FORGED: dict[str, Answer] = {
    "slow": slow,
    "silent": silent,
    "endless": endless,
    "deep": saying("[" * MIB),
    "not-a-number": saying('{"buckets": NaN}'),
    "a-million-digits": saying("9" * MIB),
    "no-text": saying(b"\xff\xfe"),
    "compressed": saying(b"\x1f\x8b", content_encoding="gzip"),
    "another-shape": saying({"configuration": []}),
    "too-many-buckets": saying(report("", buckets=[{}] * 100_000)),
    "failing": saying("{}", status=500),
}


async def test_forged_gates_keep_nobody_from_being_heard_and_told(there: Scene) -> None:
    async with AsyncExitStack() as stack:
        for name, answer in FORGED.items():
            await there.pretend(name, await stack.enter_async_context(serving(answer)))
        await stack.enter_async_context(there.operator())
        sidecars = f"1/{len(FORGED) + 1}"
        await there.until(lambda seen: shown(seen) == (sidecars, "0/60"))
        await there.change("a", 70)
        await there.until(lambda seen: shown(seen) == (sidecars, "0/70"))


async def test_a_redirection_is_not_followed(there: Scene) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response(report())

    async with serving(note) as elsewhere:
        answer = saying("", status=302, location=f"http://127.0.0.1:{elsewhere}/secret")
        async with serving(answer) as port, there.operator():
            await there.pretend("redirecting", port)
            await there.until(lambda seen: "redirecting (answers 302)" in seen.message("a", "Programmed"))
    assert asked == []


async def test_memory_is_bounded_however_much_forged_gates_tell(there: Scene) -> None:
    fat = {"provider": "openai", "scope": "User", "subject": "x" * 500, "models": ["m" * 500] * 2, "inFlight": 0}
    body = report("", buckets=[fat | {"subject": f"{number:0500}"} for number in range(250)])
    assert LARGEST / 2 < len(json.dumps(body)) < LARGEST
    async with serving(saying(body)) as port, there.operator() as operator:
        for number in range(FORGERIES):
            await there.pretend(f"fat-{number}", port)
        await there.until(lambda seen: shown(seen) == (f"1/{FORGERIES + 1}", "0/60"))
        await there.turns(6)
        assert memory(operator) < MOST_MEMORY


async def test_what_a_tenant_writes_into_a_status_is_put_right(there: Scene) -> None:
    lies = {
        "sidecars": "9/9",
        "provider": {"throttled": 99, "lastStatus": 429},
        "usage": {"tokensPerMinute": "66%"},
        "hottest": [
            {"scope": "User", "subject": "eve", "cap": "requestsPerMinute", "used": 1, "limit": 1, "percent": 100}
        ],
        "pressure": [{"scope": "User", "subject": "eve", "cap": "requestsPerMinute", "level": "Full"}],
        "conditions": [condition("Ready", "False"), condition("Blessed", "True")],
    }
    async with there.operator():
        before = await there.until(lambda seen: seen.reason("a", "Ready") == "Ready")
        told = {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "ProviderLimits",
            "metadata": {"name": "a"},
            "status": lies,
        }
        await there.admin.apply(LIMITS, told, manager="a-tenant", part="/status")
        after = await there.until(lambda seen: without(seen, "Blessed") == without(before, ""))
        assert (after.reason("a", "Blessed"), after.events) == ("ATenant", before.events)
        quiet = len(there.proxy.calls)
        await there.turns(6)  # seconds, and a status may be written every five
        assert [call for call in there.proxy.calls[quiet:] if call.writes] == []


def shown(seen: Seen) -> tuple[str, str]:
    """What the object's columns say of its gates and of its use."""
    status = seen.statuses["a"]
    return status.get("sidecars", ""), status.get("usage", {}).get("requestsPerMinute", "")


def condition(kind: str, status: str) -> dict[str, str]:
    """One as a tenant writes it."""
    time = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": "ATenant", "message": "", "lastTransitionTime": time}


def without(seen: Seen, kind: str) -> dict[str, Any]:
    """The object's status but for one condition."""
    status = seen.statuses["a"]
    return status | {"conditions": [each for each in status["conditions"] if each["type"] != kind]}


def memory(operator: Operator) -> int:
    """Bytes that it has resident."""
    pages = int(Path(f"/proc/{operator.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
