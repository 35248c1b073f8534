"""What a provider says of its own limits, through a real Envoy: heard, heeded, and told apart from what we say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from helpers.envoy import free_port
from helpers.recording import RecordingProvider, post, providing, send
from helpers.system import System, limits, running_system
from sluice.core.limits import Cap
from sluice.core.words import RefusedAs
from sluice_sidecar import clock
from sluice_sidecar.envoy_config import UsageSource

CHAT = "/openai/v1/chat/completions"
WORD = {
    "counters": [
        {
            "of": "requests",
            "limit": "x-ratelimit-limit-requests",
            "remaining": "x-ratelimit-remaining-requests",
            "reset": "x-ratelimit-reset-requests",
        }
    ],
    "refusals": [
        {"status": 429, "codes": ["insufficient_quota", "enforced_spend_limit_reached"], "is": "SpendCap"},
        {"status": 429, "is": "RateLimited"},
        {"status": 503, "is": "Overloaded"},
        {"status": 529, "is": "Overloaded"},
    ],
}
Respond = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Said:
    """An answer as the caller sees it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["error"]["message"])


@dataclass(slots=True)
class Scene:
    """The data plane, with a provider that says what it is told to."""

    system: System
    provider: RecordingProvider
    refused: list[tuple[str, int, RefusedAs]]

    async def call(self, model: str = "m", key: str = "sk-1", **headers: str) -> Said:
        asked = {"x-user-id": "alice", "authorization": f"Bearer {key}", **headers}
        body = {"model": model, "max_tokens": 5, "messages": []}
        async with self.system.client.post(self.system.url + CHAT, json=body, headers=asked) as answer:
            return Said(answer.status, answer.headers, await answer.read())

    async def heard(self, calls: int = 1) -> None:
        """Wait until the gate has heard of so many refusals."""
        await self.system.until(lambda: len(self.refused) >= calls)

    @property
    def paused(self) -> float:
        """Seconds of the longest pause."""
        return max((state.paused / 1e9 for state in self.system.gate.engine.upstreams(clock.now())), default=0.0)


@asynccontextmanager
async def running(
    usage: UsageSource = UsageSource.METADATA,
    changed: Callable[[dict[str, Any]], None] = lambda _: None,
    **caps: Any,
) -> AsyncIterator[Scene]:
    port, provider = free_port(), RecordingProvider()
    refused: list[tuple[str, int, RefusedAs]] = []
    entry = {"requestsPerMinute": 100, "tokensPerMinute": 100_000, **caps}

    def document(_: str) -> str:
        return limits("openai", f"http://127.0.0.1:{port}", entry, profile={"word": WORD})

    hear = [lambda *told: refused.append(told)]
    async with (
        providing(provider, port),
        running_system(document, usage, changed=changed, on_refused=hear) as system,
    ):
        yield Scene(system, provider, refused)


def saying(status: int, body: object = None, **headers: str) -> Respond:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body or {"error": {"message": "no", "type": "x"}}, status=status, headers=named)

    return answer


@pytest.mark.parametrize("usage", [UsageSource.METADATA, UsageSource.BODY])
async def test_a_429_of_theirs_and_a_429_of_ours_are_told_apart(usage: UsageSource) -> None:
    async with running(usage) as scene:
        scene.provider.answer = saying(429, {"error": {"message": "slow down"}}, retry_after="7")
        theirs = await scene.call()
        await scene.heard()
        ours = await scene.call()

        assert (theirs.status, theirs.message) == (429, "slow down")
        assert theirs.headers["x-sluice-refused-by"] == "provider"
        assert "x-sluice-reason" not in theirs.headers
        assert (ours.status, ours.headers["x-sluice-refused-by"]) == (429, "sluice")
        assert ours.headers["x-sluice-reason"] == "ProviderLimit"
        assert ours.message == "openai itself said that its limit for this model is reached. Retry in 7 s."
        assert ours.headers["retry-after"] == "7"
        assert len(scene.provider.received) == 1
        assert scene.refused == [("openai", 429, RefusedAs.RATE_LIMITED)]
        assert scene.system.bucket("alice").windows[Cap.REQUESTS_PER_MINUTE].used == 1


async def test_a_pause_ends_and_who_may_wait_waits_for_it() -> None:
    async with running(maxWait="10s") as scene:
        scene.provider.answer = saying(429, retry_after="1", retry_after_ms="300")
        await scene.call()
        await scene.heard()
        scene.provider.answer = RecordingProvider.ok
        assert (await scene.call()).status == 200


async def test_a_pause_is_for_the_key_and_the_model_that_met_it() -> None:
    async with running() as scene:
        scene.provider.answer = saying(429, retry_after="60")
        await scene.call()
        await scene.heard()
        scene.provider.answer = RecordingProvider.ok
        assert [
            (await scene.call(model, key)).status for model, key in (("m", "sk-1"), ("o", "sk-1"), ("m", "sk-2"))
        ] == [429, 200, 200]


async def test_a_spend_cap_stands_in_the_body_and_stops_the_key() -> None:
    async with running() as scene:
        body = {"error": {"message": "…", "type": "insufficient_quota", "code": "insufficient_quota"}}
        scene.provider.answer = saying(429, body)
        theirs = await scene.call()
        await scene.heard()
        ours = await scene.call("another")

        assert json.loads(theirs.body) == body
        assert scene.refused == [("openai", 429, RefusedAs.SPEND_CAP)]
        assert (ours.status, ours.headers["x-sluice-reason"]) == (429, "ProviderSpendCap")
        assert ours.headers["x-should-retry"] == "false"
        assert (await scene.call(key="sk-2")).headers["x-sluice-refused-by"] == "provider"


@pytest.mark.parametrize("status", [503, 529])
async def test_an_overload_is_no_limit(status: int) -> None:
    async with running() as scene:
        scene.provider.answer = saying(status, retry_after="5")
        theirs = await scene.call()
        await scene.heard()
        ours = await scene.call()

        assert theirs.status == status
        assert scene.refused == [("openai", status, RefusedAs.OVERLOADED)]
        assert (ours.status, ours.headers["x-sluice-reason"]) == (429, "ProviderOverloaded")
        assert ours.message == "openai itself said that it is overloaded. Retry in 5 s."


async def test_a_provider_that_is_away_has_said_nothing() -> None:
    async with running(changed=_nowhere) as scene:
        for _ in range(6):
            answer = await scene.call()
            assert (answer.status, answer.headers.get("x-sluice-refused-by")) == (503, None)
        await scene.system.settled()
        assert (scene.refused, scene.paused) == ([], 0.0)


def _nowhere(bootstrap: dict[str, Any]) -> None:
    for cluster in bootstrap["staticResources"]["clusters"]:
        for endpoint in cluster["loadAssignment"]["endpoints"] if "openai" in cluster["name"] else ():
            for each in endpoint["lbEndpoints"]:
                each["endpoint"]["address"]["socketAddress"]["portValue"] = free_port()


async def test_googles_delay_stands_in_a_body_of_unknown_length() -> None:
    body = {
        "error": {"code": 429, "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "39s"}]}
    }
    text = json.dumps([body | {"note": "é\n"}], ensure_ascii=False, indent=1).encode()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=429, headers={"content-type": "application/json; charset=UTF-8"})
        await response.prepare(request)
        for at in range(0, len(text), 50):
            await response.write(text[at : at + 50])
        await response.write_eof()
        return response

    async with running() as scene:
        scene.provider.answer = answer
        theirs = await scene.call()
        await scene.heard()
        assert theirs.body == text
        assert 30 < scene.paused <= 39


async def test_what_remains_is_what_passes() -> None:
    async with running() as scene:
        told = {"x_ratelimit_limit_requests": "100", "x_ratelimit_remaining_requests": "2"}
        usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
        scene.provider.answer = saying(200, usage, x_ratelimit_reset_requests="10h0m0s", **told)
        assert (await scene.call()).status == 200
        await scene.system.until(lambda: bool(scene.system.gate.engine.upstreams(clock.now())))
        scene.provider.answer = RecordingProvider.ok  # it says no more
        answers = [await scene.call() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        said = "openai itself said that its limit of requests for this model is reached."
        assert answers[-1].message.startswith(said)
        assert "x-sluice-refused-by" not in answers[0].headers


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/plain"])
async def test_a_large_refusal_passes_as_it_is(content_type: str) -> None:
    size, piece = 3 * 1024 * 1024, b"x" * 65536

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=429, headers={"content-type": content_type})
        await response.prepare(request)
        for _ in range(size // len(piece)):
            await response.write(piece)
        await response.write_eof()
        return response

    async with running() as scene:
        scene.provider.answer = answer
        theirs = await scene.call()
        assert (theirs.status, len(theirs.body)) == (429, size)
        await scene.heard()


async def test_our_envoy_never_tries_again() -> None:
    async with running() as scene:
        scene.provider.answer = saying(503)
        retry = {"x-envoy-retry-on": "5xx,gateway-error,reset", "x-envoy-max-retries": "3"}
        assert (await scene.call(**retry)).status == 503
        assert len(scene.provider.received) == 1


async def test_where_a_mesh_tries_again_each_attempt_is_a_request() -> None:
    async with running(changed=_retrying) as scene:
        scene.provider.answer = _third_time_lucky()
        assert (await scene.call()).status == 200
        await scene.system.settled()
        assert len(scene.provider.received) == 3
        bucket = scene.system.bucket("alice")
        assert bucket.windows[Cap.REQUESTS_PER_MINUTE].used == 3
        assert bucket.windows[Cap.TOKENS_PER_MINUTE].used == 7


def _third_time_lucky() -> Respond:
    calls = iter((500, 500))

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0)
        status = next(calls, 200)
        return await RecordingProvider.ok(request) if status == 200 else web.Response(status=status)

    return answer


def _retrying(node: Any) -> None:
    """Routes that retry, and clusters that let them: nothing that our configuration ever has."""
    if isinstance(node, dict):
        if "maxRetries" in node:
            node["maxRetries"] = 100
        if isinstance(node.get("route"), dict) and "cluster" in node["route"]:
            node["route"]["retryPolicy"] = {"retryOn": "5xx", "numRetries": 5}
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _retrying(each)


@pytest.mark.parametrize("key", ["\xff\xfe", "Bearer \xc3(", "", "a" * 8000])
async def test_no_key_however_odd_leads_past_our_limits(key: str) -> None:
    async with running(requestsPerMinute=1) as scene:
        port = int(scene.system.url.rpartition(":")[2])
        asked = post(CHAT, b"{}", "x-user-id: alice", f"authorization: {key}")
        _, second = await send(port, asked), await send(port, asked)
        assert second.headers["x-sluice-reason"] == "WouldExceed"


async def test_a_caller_gains_nothing_by_bringing_a_second_key() -> None:
    async with running() as scene:
        scene.provider.answer = saying(429, retry_after="60")
        await scene.call(**{"api-key": "sk-2"})
        await scene.heard()
        assert (await scene.call(**{"api-key": "sk-3"})).headers["x-sluice-refused-by"] == "sluice"
