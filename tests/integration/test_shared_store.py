"""One quota for two gates, each a program with an Envoy of its own, on a real Redis: what callers and operators see."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.program import Program, running, sluice
from helpers.redis import RedisServer, running_redis
from helpers.system import limits
from standin import StandIn

BODY = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
ASKED = "sluice_store_decision_seconds_count"
"""Decisions that waited for the store."""
SECRET = "the-password-of-the-store"

# Each starts two programs with an Envoy each: seconds, on a machine that is busy with others.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def provider() -> AsyncIterator[StandIn]:
    async with StandIn() as provider:
        yield provider


@asynccontextmanager
async def gates(
    folder: Path, provider: StandIn, store: RedisServer, *arguments: object, spec: dict[str, Any], **caps: object
) -> AsyncIterator[tuple[Program, Program]]:
    """Two gates that share their counts."""
    file = folder / "limits.yaml"
    file.write_text(limits("openai", provider.url, caps, **spec))
    command = ("-f", file, "--envoy", "--listen", "127.0.0.1:0", "--store", store.url, *arguments)
    async with running(*command) as first, running(*command) as second:
        for program in (first, second):
            await program.until(lambda told: told["store"]["mode"] == "Shared" and told["store"]["gates"] == 2)
        yield first, second


async def call(program: Program, user: str = "alice", **script: object) -> tuple[int, dict[str, str], bytes]:
    headers = {"x-user-id": user, "authorization": "Bearer sk-nobody"}
    headers |= {f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()}
    async with program.client.post(f"{program.url}/openai/v1/chat/completions", json=BODY, headers=headers) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


async def test_a_limit_holds_over_both_gates_and_each_tells_what_both_have_used(
    tmp_path: Path, provider: StandIn
) -> None:
    async with (
        running_redis() as redis,
        gates(tmp_path, provider, redis, spec={}, requestsPerMinute=6, tokensPerDay=100_000) as both,
    ):
        answers = [await call(both[number % 2], input_tokens=30, output_tokens=12) for number in range(7)]

        assert [status for status, _, _ in answers] == [200] * 6 + [429]
        assert b"Limit of 6 requests per minute reached" in answers[-1][2]
        for program in both:
            told = await program.until(lambda told: told["buckets"][0]["windows"]["tokensPerDay"]["used"] == 6 * 42)
            assert told["buckets"][0]["windows"]["requestsPerMinute"]["used"] == 6
            assert told["totals"]["admitted"] == 3
        assert await both[0].end() == 0


async def test_who_waits_at_one_gate_gets_on_when_a_call_ends_at_the_other(tmp_path: Path, provider: StandIn) -> None:
    async with (
        running_redis() as redis,
        gates(tmp_path, provider, redis, spec={}, maxConcurrent=1, maxWait="30s") as (first, second),
    ):
        long = asyncio.create_task(call(first, hold="start"))
        await provider.until(lambda p: p.held == 1)
        waiting = asyncio.create_task(call(second))
        await second.until(lambda told: told["totals"]["queued"] == 1)
        provider.let_go()

        assert (await long)[0] == 200
        assert (await waiting)[0] == 200


@pytest.mark.parametrize(("policy", "status"), [("LocalShare", 200), ("Deny", 429), ("Allow", 200)])
async def test_while_the_store_is_away_the_failure_policy_decides_and_what_was_used_is_written_back(
    tmp_path: Path, provider: StandIn, policy: str, status: int
) -> None:
    caps = {"requestsPerHour": 100, "failurePolicy": policy}
    async with (
        running_redis(persists=True) as redis,
        gates(tmp_path, provider, redis, spec={}, **caps) as both,
    ):
        assert (await call(both[0]))[0] == 200
        redis.kill()
        answer = await call(both[1])
        await both[1].until(lambda told: told["store"]["mode"] == "Local")
        assert answer[0] == status
        if policy == "Deny":
            assert b"store" in answer[2]
            assert int(answer[1]["retry-after"]) >= 1

        await redis.restart()
        for program in both:
            told = await program.until(lambda told: told["store"]["mode"] == "Shared")
            used = 1 + (status == 200)
            told = await program.until(lambda told: told["buckets"][0]["windows"]["requestsPerHour"]["used"] == used)  # noqa: B023
            assert told["store"]["healthy"]
        assert sum("cannot be used" in line for line in both[1].lines) == 1


async def test_the_password_is_read_from_a_file_and_stands_nowhere_else(tmp_path: Path, provider: StandIn) -> None:
    secret = tmp_path / "password"
    secret.write_text(SECRET + "\n")
    async with (
        running_redis(password=SECRET) as redis,
        gates(tmp_path, provider, redis, "--store-password-file", secret, spec={}, requestsPerMinute=6) as both,
    ):
        assert (await call(both[0]))[0] == 200
        status = await both[0].status()
        assert status["store"]["address"] == redis.url + "/0" or status["store"]["address"].startswith(redis.url)
        assert SECRET not in json.dumps(status) + "\n".join(both[0].lines)
        code, metrics = await both[0].get("/metrics")
        assert code == 200
        assert "sluice_store_shared 1.0" in metrics
        assert SECRET not in metrics


async def test_a_mistake_is_told_while_calls_go_on_and_mended_without_a_restart(
    tmp_path: Path, provider: StandIn
) -> None:
    file, secret = tmp_path / "limits.yaml", tmp_path / "password"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 6}))
    secret.write_text("another")
    trouble = "refuses the user or the password"
    async with running_redis(password=SECRET) as redis:
        store = ("--store", redis.url, "--store-password-file", secret)
        async with running("-f", file, "--envoy", "--listen", "127.0.0.1:0", *store) as gate:
            assert (await call(gate))[0] == 200
            assert (await gate.status())["store"]["problem"] == trouble
            assert f"the store {redis.url} cannot be used: {trouble}; until it can" in await gate.line("cannot be used")
            shown = (await sluice("status", "--admin", gate.admin)).out
            assert re.search(
                rf"^the store {redis.url} cannot be used for \d+s now: {trouble}; until it can", shown, re.MULTILINE
            )

            secret.write_text(SECRET)
            told = await gate.until(lambda told: told["store"]["mode"] == "Shared")
            assert "problem" not in told["store"]
            shown = (await sluice("status", "--admin", gate.admin)).out
            assert re.search(rf"^the store {redis.url} has decided for \d+s: 1 gate shares it$", shown, re.MULTILINE)
            await gate.until(lambda told: told["buckets"][0]["windows"]["requestsPerMinute"]["used"] == 1)


async def test_leased_slices_admit_without_asking_and_never_more_than_the_limit(
    tmp_path: Path, provider: StandIn
) -> None:
    async with (
        running_redis() as redis,
        gates(tmp_path, provider, redis, spec={"sharing": "Leased"}, requestsPerMinute=300) as both,
    ):

        async def client(program: Program) -> list[int]:
            return [(await call(program))[0] for _ in range(25)]

        clients = [client(program) for program in both for _ in range(8)]
        statuses = [status for told in await asyncio.gather(*clients) for status in told]

        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 300
        asked = 0.0
        for program in both:
            _, metrics = await program.get("/metrics")
            asked += float(next(line.split()[1] for line in metrics.splitlines() if line.startswith(ASKED)))
        assert asked < len(statuses)
