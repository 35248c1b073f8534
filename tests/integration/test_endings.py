"""Every ending of a call, through a real Envoy, with both sources of usage: the endings table of ARCHITECTURE.md."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from helpers.envoy import free_port
from helpers.system import SUM, System, limits, running_system
from sluice_sidecar.envoy_config import UsageSource

PROMPT = "How many tokens does this question cost?"
CAPS = {"requestsPerMinute": 100, "tokensPerMinute": 100_000, "maxConcurrent": 4}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API, called for a whole answer or a stream."""

    name: str
    path: str
    body: Mapping[str, Any]


CHAT = Endpoint(
    "chat",
    "/openai/v1/chat/completions",
    {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": PROMPT}]},
)
CHAT_STREAM = Endpoint(
    "chat stream", CHAT.path, {**CHAT.body, "stream": True, "stream_options": {"include_usage": True}}
)
RESPONSES = Endpoint("responses", "/openai/v1/responses", {"model": "m", "max_output_tokens": 50, "input": PROMPT})
MESSAGES = Endpoint(
    "messages",
    "/anthropic/v1/messages",
    {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": PROMPT}]},
)
GENERATE = Endpoint(
    "generateContent",
    "/gemini/v1beta/models/m:generateContent",
    {"contents": [{"parts": [{"text": PROMPT}]}], "generationConfig": {"maxOutputTokens": 50}},
)
ENDPOINTS = (
    CHAT,
    CHAT_STREAM,
    Endpoint("completions", "/openai/v1/completions", {"model": "m", "max_tokens": 50, "prompt": PROMPT}),
    Endpoint("embeddings", "/openai/v1/embeddings", {"model": "m", "input": PROMPT}),
    RESPONSES,
    Endpoint("responses stream", RESPONSES.path, {**RESPONSES.body, "stream": True}),
    MESSAGES,
    Endpoint("messages stream", MESSAGES.path, {**MESSAGES.body, "stream": True}),
    GENERATE,
    Endpoint("streamGenerateContent", "/gemini/v1beta/models/m:streamGenerateContent?alt=sse", GENERATE.body),
)


@pytest.fixture(params=list(UsageSource))
async def system(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    def documents(upstream: str) -> str:
        names = ("openai", "anthropic", "gemini")
        return "\n---\n".join(
            limits(name, upstream, CAPS, profile=SUM) for name in names
        )  # a call that is cut may cost both

    async with running_system(documents, request.param) as running:
        yield running


async def call(system: System, endpoint: Endpoint, user: str, **script: object) -> int:
    """The status of a whole answer. `script` says how the provider behaves."""
    headers = {"x-user-id": user}
    headers |= {f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()}
    async with system.client.post(system.url + endpoint.path, json=endpoint.body, headers=headers) as answer:
        await answer.read()
        return answer.status


def used(system: System, user: str) -> tuple[int, int]:
    """The requests and tokens counted for a user."""
    windows = {cap.value: state for cap, state in system.bucket(user).windows.items()}
    return windows["requestsPerMinute"].used, windows["tokensPerMinute"].used


async def test_a_whole_answer_is_charged_what_its_provider_says(system: System) -> None:
    for endpoint in ENDPOINTS:
        assert await call(system, endpoint, endpoint.name, input_tokens=30, output_tokens=12) == 200
    await system.settled()
    charged = {endpoint.name: used(system, endpoint.name) for endpoint in ENDPOINTS}
    # Embeddings bring no output, and Gemini's own limit on tokens does not count it.
    input_only = {"embeddings", "generateContent", "streamGenerateContent"}
    expected = {endpoint.name: (1, 30 if endpoint.name in input_only else 42) for endpoint in ENDPOINTS}
    assert charged == expected
    assert system.snapshot().totals.committed == len(ENDPOINTS)


async def test_cached_and_reasoning_tokens_are_charged_once(system: System) -> None:
    script = {"input_tokens": 30, "output_tokens": 12, "cached_tokens": 20, "reasoning_tokens": 5}
    for endpoint in (CHAT, CHAT_STREAM, RESPONSES, MESSAGES, GENERATE):
        assert await call(system, endpoint, endpoint.name, **script) == 200
    await system.settled()
    charged = {
        endpoint.name: used(system, endpoint.name)[1] for endpoint in (CHAT, CHAT_STREAM, RESPONSES, MESSAGES, GENERATE)
    }
    assert charged == {
        **dict.fromkeys((CHAT.name, CHAT_STREAM.name, RESPONSES.name), 42),
        MESSAGES.name: 22,  # what comes from a cache does not count there
        GENERATE.name: 30,  # nor does output here
    }


async def test_usage_in_the_response_headers_comes_first(system: System) -> None:
    told = '{"x-usage-total-tokens": "77"}'
    assert await call(system, CHAT, "headers", input_tokens=30, output_tokens=12, answer_headers=told) == 200
    await system.settled()
    assert used(system, "headers") == (1, 77)


@pytest.mark.parametrize(
    ("endpoint", "script"),
    [
        (CHAT, {"omit_usage": True}),
        (CHAT, {"gzip": True, "omit_usage": True}),
        (CHAT_STREAM, {"usage_count": "-1"}),
        (CHAT, {"usage_count": "1e999"}),
    ],
    ids=["json", "gzip", "negative", "huge"],
)
async def test_the_estimate_stands_where_usage_is_not_told(
    system: System, endpoint: Endpoint, script: Mapping[str, object]
) -> None:
    assert await call(system, endpoint, "untold", output_tokens=12, **script) == 200
    await system.settled()
    requests, tokens = used(system, "untold")
    state = system.bucket("untold")
    assert (requests, state.estimated, state.committed) == (1, 1, 0)
    assert 50 < tokens < 110  # the declared 50 of output, and the body's bytes over four


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_a_failed_call_costs_a_request_and_no_tokens(system: System, status: int) -> None:
    for endpoint in (CHAT, MESSAGES, GENERATE):
        assert await call(system, endpoint, endpoint.name, status=status) == status
    await system.settled()
    for endpoint in (CHAT, MESSAGES, GENERATE):
        assert used(system, endpoint.name) == (1, 0)
    assert system.snapshot().totals.refunded == 3


async def test_a_client_that_leaves_in_mid_stream_is_charged_its_input_and_frees_its_slot(system: System) -> None:
    for endpoint in (CHAT_STREAM, ENDPOINTS[7]):
        async with system.client.post(
            system.url + endpoint.path,
            json=endpoint.body,
            headers={"x-user-id": endpoint.name, "x-standin-hold": "middle", "x-standin-input-tokens": "30"},
        ) as answer:
            await answer.content.readany()
            assert system.bucket(endpoint.name).in_flight == 1
            _, reserved = used(system, endpoint.name)
            answer.close()
        await system.until(lambda name=endpoint.name: system.bucket(name).in_flight == 0, seconds=1)  # type: ignore[misc]
        requests, tokens = used(system, endpoint.name)
        assert requests == 1
        assert 20 <= tokens <= reserved  # its input, and what was seen of the output
    assert system.snapshot().totals.estimated == 2


async def test_a_client_that_leaves_before_the_answer_is_charged_its_input(system: System) -> None:
    task = asyncio.create_task(call(system, CHAT, "early", hold="start"))
    await system.provider.until(lambda provider: provider.held == 1)
    task.cancel()
    await system.until(lambda: system.bucket("early").in_flight == 0, seconds=1)
    requests, tokens = used(system, "early")
    assert requests == 1
    assert 20 <= tokens < 50


async def test_a_stream_that_the_provider_breaks_off_is_charged(system: System) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await call(system, CHAT_STREAM, "broken", cut="middle")
    await system.until(lambda: system.bucket("broken").in_flight == 0, seconds=1)
    requests, tokens = used(system, "broken")
    assert requests == 1
    assert tokens >= 20
    assert system.bucket("broken").estimated == 1


async def test_a_provider_that_hangs_up_without_an_answer_costs_no_tokens(system: System) -> None:
    assert await call(system, CHAT, "hung up", cut="start") == 503
    await system.settled()
    assert used(system, "hung up") == (1, 0)


async def test_a_killed_envoy_frees_its_slots_and_leaves_the_estimates(system: System) -> None:
    task = asyncio.create_task(call(system, CHAT, "orphan", hold="start"))
    await system.provider.until(lambda provider: provider.held == 1)
    estimate = used(system, "orphan")
    system.envoy.process.send_signal(signal.SIGKILL)
    await system.until(lambda: system.bucket("orphan").in_flight == 0)
    with pytest.raises(aiohttp.ClientError):
        await task
    assert used(system, "orphan") == estimate


async def test_a_client_that_leaves_the_queue_has_consumed_nothing() -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"maxConcurrent": 1, "requestsPerMinute": 100, "maxWait": "30s"})

    async with running_system(document) as system:
        holder = asyncio.create_task(call(system, CHAT, "alice", hold="start"))
        await system.provider.until(lambda provider: provider.held == 1)
        waiting = asyncio.create_task(call(system, CHAT, "alice"))
        await system.until(lambda: system.snapshot().queued == 1)
        waiting.cancel()
        await system.until(lambda: system.snapshot().queued == 0)
        system.provider.let_go()
        assert await holder == 200
        await system.settled()
        assert system.bucket("alice").admitted == 1
        assert len(system.provider.seen) == 1


async def test_a_provider_that_takes_no_connection_is_refunded_and_said_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nowhere = limits("openai", f"http://127.0.0.1:{free_port()}", CAPS)
    async with running_system(lambda _: nowhere) as system:
        for _ in range(3):
            async with system.client.post(system.url + CHAT.path, json=CHAT.body, headers={"x-user-id": "a"}) as answer:
                assert answer.status == 503
        await system.settled()
        await system.until(lambda: system.snapshot().totals.refunded == 3)
        await system.until(lambda: bool(caplog.messages))
    (said,) = caplog.messages
    assert said.startswith("openai cannot be reached: no connection, or none that is trusted, could be made")
