"""Counts across the ends of a real gate: killed under load, told to end, damaged, and without room on its disk."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.service.ratelimit import v3 as rls

from helpers.channel import OK, RATE_LIMIT, descriptor
from helpers.program import Program, running, sluice
from helpers.system import limits

USERS = tuple(f"user-{number}" for number in range(20))
CAPS = {"requestsPerDay": 10_000_000, "tokensPerDay": 10**12}

# Each starts the program more than once, on a machine that is busy with others.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "limits.yaml", CAPS)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def written(file: Path, caps: dict[str, int]) -> Path:
    file.write_text(limits("openai", "http://127.0.0.1:9", caps))
    return file


class Admitted(NamedTuple):
    """One call that the gate has let through."""

    at: float
    """When that was heard, by the monotonic clock."""
    user: str


class Client:
    """Asks a gate, as Envoy does, without ever ending a call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ask: Any = channel.unary_unary(
            f"/{RATE_LIMIT}/ShouldRateLimit", response_deserializer=rls.RateLimitResponse.parse
        )
        self.admitted: list[Admitted] = []

    async def ask(self, user: str = "alice") -> bool:
        request = rls.RateLimitRequest(domain="sluice", descriptors=[descriptor(user=user)])
        answer = await self._ask(bytes(request), timeout=10)
        if answer.overall_code is OK:
            self.admitted.append(Admitted(time.monotonic(), user))
            return True
        return False

    async def ask_until_it_is_gone(self) -> None:
        number = 0
        try:
            while True:
                await self.ask(USERS[number % len(USERS)])
                number += 1
        except grpc.aio.AioRpcError:
            return

    def by_user(self, until: float = float("inf")) -> dict[str, int]:
        counts = dict.fromkeys(USERS, 0)
        for call in self.admitted:
            if call.at <= until:
                counts[call.user] = counts.get(call.user, 0) + 1
        return counts


@asynccontextmanager
async def gate(file: Path, state: Path, *arguments: object) -> AsyncIterator[tuple[Program, Client]]:
    async with running("-f", file, "--grpc", "127.0.0.1:0", "--state-dir", state, *arguments) as program:
        address = (await program.line("ready:")).rpartition("gRPC at ")[2].partition(";")[0]
        async with grpc.aio.insecure_channel(address) as channel:
            yield program, Client(channel)


async def used(program: Program, cap: str = "requestsPerDay") -> dict[str, int]:
    status = await program.status()
    return {bucket["subject"]: bucket["windows"][cap]["used"] for bucket in status["buckets"]}


async def saved(program: Program) -> None:
    """Wait until all that was counted before is on disk."""
    asked = time.monotonic()
    await program.until(lambda told: told["store"]["savedSecondsAgo"] < time.monotonic() - asked)


async def test_a_gate_that_is_killed_under_load_forgets_at_most_what_came_after_its_last_save(
    file: Path, state: Path
) -> None:
    lives: list[dict[str, int]] = []
    heard: list[tuple[dict[str, int], dict[str, int]]] = []
    for _ in range(3):
        async with gate(file, state) as (program, client):
            lives.append(await used(program))
            load = [asyncio.create_task(client.ask_until_it_is_gone()) for _ in range(8)]
            on_disk = 0.0
            while sum(client.by_user(on_disk).values()) < 200:
                asked = time.monotonic()
                on_disk = asked - (await program.status())["store"]["savedSecondsAgo"]
            await program.end(signal.SIGKILL)
            await asyncio.gather(*load)
            heard.append((client.by_user(on_disk), client.by_user()))
    async with gate(file, state) as (program, _):
        lives.append(await used(program))

    assert lives[0] == {}
    for number, (at_least, at_most) in enumerate(heard):
        for user in USERS:
            gained = lives[number + 1].get(user, 0) - lives[number].get(user, 0)
            # A call that was admitted as the gate was killed was perhaps saved and never heard of, one a client.
            assert at_least[user] <= gained <= at_most[user] + 8


async def test_a_gate_that_is_told_to_end_forgets_nothing(file: Path, state: Path) -> None:
    async with gate(file, state) as (program, client):
        for user in USERS:
            await client.ask(user)
        assert await program.end() == 0
    async with gate(file, state) as (program, _):
        assert await used(program) == dict.fromkeys(USERS, 1)
        assert (await program.status())["totals"]["admitted"] == 0
        assert f"restored the counts of {len(USERS)} buckets" in await program.line("restored")


async def test_a_minute_that_is_used_up_stays_used_up_and_comes_back_when_it_would_have(
    tmp_path: Path, state: Path
) -> None:
    file = written(tmp_path / "limits.yaml", {"requestsPerMinute": 2})
    async with gate(file, state) as (program, client):
        assert [await client.ask() for _ in range(3)] == [True, True, False]
        before = (await program.status())["buckets"][0]["windows"]["requestsPerMinute"]["resetSeconds"]
        asked = time.monotonic()
        await saved(program)
        await program.end(signal.SIGKILL)
    async with gate(file, state) as (program, client):
        assert not await client.ask()
        after = (await program.status())["buckets"][0]["windows"]["requestsPerMinute"]["resetSeconds"]
        assert abs(before - after - (time.monotonic() - asked)) < 0.5


async def test_two_gates_do_not_share_a_folder(file: Path, state: Path) -> None:
    async with gate(file, state):
        second = await sluice(
            "run", "-f", file, "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--state-dir", state
        )

    assert second.code == 1
    assert second.err == f"sluice: --state-dir {state}: another gate keeps its counts there\n"


async def test_damage_is_said_and_set_aside_and_the_start_is_as_cautious_as_it_is_told(
    tmp_path: Path, state: Path
) -> None:
    file = written(tmp_path / "limits.yaml", {"requestsPerMinute": 12})
    async with gate(file, state, "--start", "empty") as (program, client):
        assert await client.ask()
        await program.end()
    (state / "counts").write_bytes(b"\0" * 1000)
    async with gate(file, state, "--start", "empty") as (program, client):
        assert not await client.ask()
        assert f"{state}/counts: is no file of counts" in await program.line("set aside")
        assert "as if its limits had been used up evenly until now" in await program.line("has counted here before")
    assert (state / "counts.damaged").read_bytes() == b"\0" * 1000


async def test_a_disk_without_room_is_told_everywhere_and_calls_go_on(file: Path, state: Path) -> None:
    async with gate(file, state) as (program, client):
        await client.ask()
        await saved(program)
        room = resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (64, room[1]))
        assert await client.ask()
        told = await program.until(lambda told: not told["store"]["healthy"])
        assert await client.ask()
        _, metrics = await program.get("/metrics")
        table = await sluice("status", "--admin", program.admin)
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, room)
        await program.line("the counts are saved in")
        await saved(program)
        assert (await program.status())["store"]["healthy"]
        await program.end(signal.SIGKILL)

    assert told["store"]["problem"] == f"{state}/counts: File too large"
    assert "sluice_state_healthy 0.0\n" in metrics
    assert "sluice_state_saves_failed_total" in metrics
    assert "the counts have not been saved for" in table.out
    assert len([line for line in program.lines if "cannot be saved" in line]) == 1
    async with gate(file, state) as (program, _):
        assert await used(program) == {"alice": 3}


async def test_a_folder_that_is_none_does_not_keep_the_gate_from_starting(file: Path, state: Path) -> None:
    written(state, {})
    async with gate(file, state) as (program, client):
        assert await client.ask()
        assert (await program.status())["store"]["problem"] == f"{state}/lock: Not a directory"
        assert await program.end() == 0


async def test_how_to_start_is_nothing_to_say_without_a_folder(file: Path) -> None:
    ended = await sluice("run", "-f", file, "--grpc", "127.0.0.1:0", "--start", "empty")

    assert ended.code == 2
    assert "--start is about the counts of --state-dir, and there is none" in ended.err
