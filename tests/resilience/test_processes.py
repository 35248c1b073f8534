"""A gate is killed, paused or told to end while others share its store: real programs, with real signals."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.service.ratelimit import v3 as rls

from helpers.channel import (
    ENDED,
    EXT_PROC,
    OK,
    RATE_LIMIT,
    descriptor,
    lease_of,
    request_headers,
    response_headers,
    response_trailers,
    token_usage,
)  # fmt: skip
from helpers.program import Program, eventually, running
from helpers.redis import running_redis
from helpers.system import limits

USED = 42
USAGE = token_usage(input_tokens=USED // 2, output_tokens=USED // 2)
ESTIMATE = 110
"""Tokens that a call is admitted with: its answer may have 100, and its request is said to have 10."""
ASKED = {"api": "openai-chat", "model": "gpt-5", "bytes": "30", "max_output_tokens": "100"}
LIFE_SECONDS = 15
"""Of a permit that nobody renews."""
RENEWED_SECONDS = 5
LATE_SECONDS = 3
CAPS = {"requestsPerDay": 10**6, "tokensPerDay": 10**9, "failurePolicy": "Deny"}
"""Nothing is admitted that the store has not counted."""

pytestmark = pytest.mark.timeout(120)  # programs start, and a permit lives for fifteen seconds


@dataclass(slots=True)
class Running:
    """A gate as a program."""

    program: Program
    channel: grpc.aio.Channel

    async def ask(self) -> str:
        """The lease of a call that is admitted; empty if it is not."""
        method: Any = self.channel.unary_unary(
            f"/{RATE_LIMIT}/ShouldRateLimit", response_deserializer=rls.RateLimitResponse.parse
        )
        request = rls.RateLimitRequest(domain="sluice", descriptors=[descriptor(user="alice", **ASKED)])
        answer = await method(bytes(request), timeout=10)
        return lease_of(answer) if answer.overall_code is OK else ""

    async def call(self) -> None:
        """One call from its admission to its commit."""
        lease = await self.ask()
        assert lease
        stream: Any = self.channel.stream_stream(
            f"/{EXT_PROC}/Process", request_serializer=bytes, response_deserializer=ext_proc.ProcessingResponse.parse
        )()
        for message in (request_headers(lease), response_headers(), response_trailers(USAGE)):
            await stream.write(message)
        assert await stream.read() is ENDED

    async def used(self) -> tuple[int, int]:
        """Alice's requests and tokens, as the store counts them."""
        (bucket,) = (await self.program.status())["buckets"]
        return bucket["windows"]["requestsPerDay"]["used"], bucket["windows"]["tokensPerDay"]["used"]

    async def knows(self, gates: int) -> None:
        await self.program.until(lambda told: told["store"]["mode"] == "Shared" and told["store"]["gates"] == gates)

    async def owes_nothing(self) -> None:
        await self.program.until(lambda told: not told["store"].get("unsentSeconds"))


@asynccontextmanager
async def two_gates(folder: Path, **caps: int) -> AsyncIterator[tuple[Running, Running]]:
    file = folder / "limits.yaml"
    file.write_text(limits("openai", "http://127.0.0.1:9", {**CAPS, **caps}))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_redis())
        gates = []
        for _ in range(2):
            program = await stack.enter_async_context(
                running("-f", file, "--grpc", "127.0.0.1:0", "--store", server.url, "--lease", "60s")
            )
            address = (await program.line("ready:")).rpartition("gRPC at ")[2].partition(";")[0]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            gates.append(Running(program, channel))
        for gate in gates:
            await gate.knows(2)
        first, second = gates
        yield first, second


async def test_the_places_of_a_gate_that_is_killed_are_free_when_its_permits_end(tmp_path: Path) -> None:
    async with two_gates(tmp_path, maxConcurrent=2) as (first, second):
        held = [bool(await first.ask()) for _ in range(2)]
        before = await second.ask()
        await first.program.end(signal.SIGKILL)
        killed = time.monotonic()

        async def is_admitted() -> bool:
            return bool(await second.ask())

        await eventually(is_admitted, seconds=LIFE_SECONDS + LATE_SECONDS)
        seconds = time.monotonic() - killed

        assert (held, before) == ([True, True], "")
        assert seconds >= LIFE_SECONDS - RENEWED_SECONDS - LATE_SECONDS


async def test_the_places_of_a_gate_that_lives_are_renewed(tmp_path: Path) -> None:
    async with two_gates(tmp_path, maxConcurrent=1) as (first, second):
        assert await first.ask()
        until = time.monotonic() + LIFE_SECONDS + LATE_SECONDS
        admitted = []
        while time.monotonic() < until:
            admitted.append(await second.ask())
            await asyncio.sleep(0.1)  # often enough to see a gap of a second

        assert set(admitted) == {""}


async def test_a_gate_that_is_told_to_end_tells_the_store_all_that_was_committed(tmp_path: Path) -> None:
    calls = 200
    async with two_gates(tmp_path) as (first, second):
        await second.call()
        await asyncio.gather(*[first.call() for _ in range(calls)])
        code = await first.program.end(signal.SIGTERM)
        await second.owes_nothing()

        assert code == 0
        assert await second.used() == (calls + 1, (calls + 1) * USED)


async def test_a_gate_that_is_killed_loses_at_most_what_was_not_acknowledged_and_never_counts_too_little(
    tmp_path: Path,
) -> None:
    calls, last = 100, 20
    async with two_gates(tmp_path) as (first, second):
        await second.call()
        await asyncio.gather(*[first.call() for _ in range(calls)])
        await first.owes_nothing()
        await asyncio.gather(*[first.call() for _ in range(last)])
        await first.program.end(signal.SIGKILL)
        await second.owes_nothing()
        requests, tokens = await second.used()

        assert requests == calls + last + 1
        assert (calls + last + 1) * USED <= tokens <= (calls + 1) * USED + last * ESTIMATE


async def test_a_gate_that_is_paused_holds_up_nobody_and_counts_with_the_others_again(tmp_path: Path) -> None:
    async with two_gates(tmp_path, maxConcurrent=3) as (first, second):
        assert await first.ask()
        first.program.process.send_signal(signal.SIGSTOP)
        await second.knows(1)
        await second.call()
        first.program.process.send_signal(signal.SIGCONT)
        await first.knows(2)
        await second.knows(2)
        more = [bool(await gate.ask()) for gate in (first, second, first, second)]
        await second.owes_nothing()

        assert more == [True, True, False, False]
        assert (await second.used())[0] == 4
