"""The HTTP side, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from helpers.envoy import short_folder
from sluice.core.buckets import Demand
from sluice.core.engine import Engine
from sluice.core.keys import Scope
from sluice.core.limits import Limits
from sluice.core.permits import Call
from sluice.core.rules import Rule, RuleBook
from sluice_sidecar import clock
from sluice_sidecar.admin import Admin
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import Health
from sluice_sidecar.http_client import fetch
from sluice_sidecar.metrics import EventCounts, GateCollector
from sluice_sidecar.recent import RecentCounts
from sluice_sidecar.settings import Address, Failed, TcpAddress


class Served:
    """An admin server of a gate that nobody calls."""

    def __init__(self) -> None:
        self.health = Health(waiting_for="")
        self.engine = engine = Engine(RuleBook((Rule("openai", Scope.USER, Limits(requests_per_minute=9)),)))
        registry = CollectorRegistry()
        recent = RecentCounts(clock.now)
        commits = CommitWatch(recent)
        registry.register(GateCollector(EventCounts(), engine.summary, self.health, commits))
        self.admin = Admin(self.health, Gate(engine, clock.now), registry, recent, commits)
        self.address: Address = TcpAddress("127.0.0.1", 0)

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(fetch, self.address, path)

    async def json(self, path: str) -> tuple[int, Any]:
        code, text = await self.get(path)
        return code, json.loads(text)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    served.address = await served.admin.start(served.address)
    yield served
    await served.admin.stop()


async def test_its_root_says_what_there_is(served: Served) -> None:
    code, text = await served.get("/")

    assert code == 200
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["/healthz", "/readyz", "/status", "/metrics"]


async def test_it_is_healthy_while_it_answers(served: Served) -> None:
    served.health.waiting_for = "Envoy"

    assert await served.get("/healthz") == (200, "ok\n")


async def test_it_is_ready_once_it_waits_for_nothing(served: Served) -> None:
    assert await served.get("/readyz") == (200, "ready\n")
    served.health.waiting_for = "Envoy"
    assert await served.get("/readyz") == (503, "not ready: Envoy\n")


async def test_status_is_json(served: Served) -> None:
    code, answer = await served.json("/status")

    assert (code, answer["ready"], answer["buckets"]) == (200, True, [])


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("user=x", "unknown parameter 'user': provider, scope, subject select buckets, limit says how many"),
        ("limit=0", "limit is not a number from 1 to 1000"),
        ("limit=1001", "limit is not a number from 1 to 1000"),
        ("limit=999999999999", "limit is not a number from 1 to 1000"),
        ("limit=all", "limit is not a number from 1 to 1000"),
        ("limit=", "limit is not a number from 1 to 1000"),
        ("scope=user", "unknown scope 'user': it is one of User, Org, Project"),
    ],
)
async def test_a_selection_that_cannot_be_meant_is_refused(served: Served, query: str, error: str) -> None:
    assert await served.json(f"/status?{query}") == (400, {"error": error})


async def test_as_many_buckets_are_told_as_are_asked_for(served: Served) -> None:
    for number in range(3):
        applied = served.engine.rules.match("openai", {Scope.USER: f"user-{number}"})
        served.engine.acquire(Call(applied, Demand(1, 1, 1)), clock.now())

    told = [(await served.json(f"/status{query}"))[1] for query in ("", "?limit=2", "?limit=1000")]

    assert [(len(answer["buckets"]), answer["bucketsOmitted"]) for answer in told] == [(3, 0), (2, 1), (3, 0)]


async def test_metrics_are_prometheus_text(served: Served) -> None:
    code, text = await served.get("/metrics")

    assert code == 200
    assert "# TYPE sluice_calls_in_flight gauge\nsluice_calls_in_flight 0.0\n" in text


async def test_it_serves_on_a_unix_socket_too_and_takes_it_away_in_the_end() -> None:
    served = Served()
    with short_folder() as folder:
        served.address = await served.admin.start(folder / "admin.sock")
        try:
            assert await served.get("/healthz") == (200, "ok\n")
        finally:
            await served.admin.stop()
        assert list(folder.iterdir()) == []


async def test_a_port_that_is_taken_is_a_sentence(served: Served) -> None:
    with pytest.raises(Failed, match=r"^--admin 127\.0\.0\.1:\d+: cannot be served: .*in use"):
        await Served().admin.start(served.address)


def test_an_address_where_nobody_answers_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        fetch(tmp_path / "nobody.sock", "/status")
