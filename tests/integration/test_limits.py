"""Limits through a real Envoy: for calls side by side, for the official SDKs, and against callers who cheat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from io import BytesIO
from typing import Any

import anthropic
import openai
import pytest

from helpers.envoy import free_port
from helpers.ledger import Journal
from helpers.system import SUM, System, limits, running_system
from sluice.core.keys import BucketKey, Scope
from sluice_sidecar.envoy_config import UsageSource

CHAT = "/openai/v1/chat/completions"
MESSAGES = "/anthropic/v1/messages"
GENERATE = "/gemini/v1beta/models/{}:generateContent"
ASKED = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
TO_GEMINI = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 20}}


async def call(
    system: System,
    path: str = CHAT,
    body: Mapping[str, Any] = ASKED,
    headers: Mapping[str, str] | None = None,
    user: str = "alice",
    **script: object,
) -> tuple[int, Any]:
    """The status and the body of an answer. `script` says how the provider behaves."""
    sent = {"x-user-id": user, **(headers or {})}
    sent |= {f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()}
    async with system.client.post(system.url + path, json=body, headers=sent) as answer:
        return answer.status, await answer.json()


async def statuses(*calls: Coroutine[Any, Any, tuple[int, Any]]) -> list[int]:
    return [status for status, _ in await asyncio.gather(*calls)]


def used(system: System, subject: str = "alice") -> dict[str, int]:
    return {cap.value: window.used for cap, window in system.bucket(subject).windows.items()}


# -- calls side by side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", list(UsageSource))
async def test_of_five_calls_side_by_side_those_run_that_fit_and_no_more_is_consumed_than_the_limit(
    usage: UsageSource,
) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"tokensPerMinute": 100}, profile=SUM)

    async with running_system(document, usage) as system:
        calls = asyncio.gather(*(call(system, input_tokens=22, output_tokens=20, delay_ms=500) for _ in range(5)))
        most = 0
        while not calls.done():
            most = max([most, *(used(system)["tokensPerMinute"] for _ in system.snapshot().buckets)])
            await asyncio.sleep(0.01)
        answered = sorted(status for status, _ in await calls)
        await system.settled()
        admitted = answered.count(200)
        assert answered == [200] * admitted + [429] * (5 - admitted)
        assert admitted >= 2
        assert used(system) == {"tokensPerMinute": 42 * admitted}
        assert most <= 100
        assert len(system.provider.seen) == admitted


@pytest.mark.parametrize("usage", list(UsageSource))
async def test_calls_wait_for_the_one_slot_and_what_they_used_is_counted(usage: UsageSource) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"maxConcurrent": 1, "tokensPerMinute": 1000, "maxWait": "30s"})

    async with running_system(document, usage) as system:
        first = call(system, input_tokens=30, output_tokens=12, delay_ms=100)
        second = call(system, input_tokens=11, output_tokens=7, delay_ms=100)
        assert await statuses(first, second) == [200, 200]
        await system.settled()
        assert system.provider.peak == 1
        assert used(system) == {"tokensPerMinute": 30 + 12 + 11 + 7}
        assert system.snapshot().totals.committed_tokens == 60


@pytest.mark.parametrize("usage", list(UsageSource))
async def test_input_and_output_are_limited_apart(usage: UsageSource) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"inputTokensPerMinute": 1000, "outputTokensPerMinute": 50})

    async with running_system(document, usage) as system:
        assert (await call(system, input_tokens=300, output_tokens=12))[0] == 200
        assert (await call(system, input_tokens=400, output_tokens=19))[0] == 200
        await system.settled()
        status, refused = await call(system)  # it may bring 20 tokens more
        assert used(system) == {"inputTokensPerMinute": 700, "outputTokensPerMinute": 31}
        assert (await call(system, body=ASKED | {"max_tokens": 19}))[0] == 200
    assert status == 429
    assert "Limit of 50 output tokens per minute reached" in refused["error"]["message"]
    assert refused["error"]["type"] == "tokens"


async def test_telemetry_tells_of_every_call_from_end_to_end() -> None:
    journal = Journal()

    def document(upstream: str) -> str:
        return limits("openai", upstream, {"requestsPerMinute": 2, "maxConcurrent": 1, "maxWait": "30s"})

    async with running_system(document, telemetry=journal) as system:
        waited = [call(system, input_tokens=30, output_tokens=12, delay_ms=100) for _ in range(2)]
        assert await statuses(*waited) == [200, 200]
        await system.settled()
        assert (await call(system))[0] == 429
    key = BucketKey("openai", Scope.USER, "alice")
    assert [event.name for event in journal.events] == [*["acquired", "committed", "released"] * 2, "rejected"]
    assert all(event.keys == (key,) for event in journal.events)
    first, second = journal.named("acquired")
    assert (first.wait, first.actual) == (0, first.estimate)
    assert second.wait >= 100_000_000
    assert [(event.actual, event.reason) for event in journal.named("committed")] == [(42, "committed")] * 2
    (rejected,) = journal.named("rejected")
    assert (rejected.reason, rejected.wait) == ("WouldExceed", 0)


# -- what a refused caller hears -----------------------------------------------------------------------------------

REACHED = 'Limit of 1 request per minute reached for user "alice" at {}: 1 used, 1 request more asked for. Retry in '


@pytest.fixture
async def strict() -> AsyncIterator[System]:
    """One request a minute at each of the three providers."""

    def documents(upstream: str) -> str:
        names = ("openai", "anthropic", "gemini")
        return "\n---\n".join(limits(name, upstream, {"requestsPerMinute": 1}) for name in names)

    async with running_system(documents) as running:
        yield running


async def test_the_openai_sdk_raises_its_own_error_with_our_message(strict: System) -> None:
    client = openai.AsyncOpenAI(
        base_url=strict.url + "/openai/v1", api_key="x", max_retries=0, default_headers={"x-user-id": "alice"}
    )
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with client:
        await client.chat.completions.create(**asked)
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(**asked)
    error = raised.value
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert REACHED.format("openai") in error.message
    assert 59 <= int(error.response.headers["retry-after"]) <= 61


async def test_the_anthropic_sdk_raises_its_own_error_with_our_message(strict: System) -> None:
    client = anthropic.AsyncAnthropic(
        base_url=strict.url + "/anthropic", api_key="x", max_retries=0, default_headers={"x-user-id": "alice"}
    )
    asked: Any = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
    async with client:
        await client.messages.create(**asked)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await client.messages.create(**asked)
    error = raised.value
    assert (error.status_code, error.type) == (429, "rate_limit_error")
    assert REACHED.format("anthropic") in error.message
    assert 59 <= int(error.response.headers["retry-after"]) <= 61


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        (CHAT, ASKED, {"error": {"type": "requests", "param": None, "code": "rate_limit_exceeded"}}),
        (MESSAGES, ASKED, {"type": "error", "error": {"type": "rate_limit_error"}}),
        (GENERATE.format("m"), TO_GEMINI, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}),
    ],
    ids=["openai", "anthropic", "gemini"],
)
async def test_a_refusal_reaches_its_caller_in_the_dialect_of_the_api(
    strict: System, path: str, body: Mapping[str, Any], shape: Mapping[str, Any]
) -> None:
    assert (await call(strict, path, body))[0] == 200
    async with strict.client.post(strict.url + path, json=body, headers={"x-user-id": "alice"}) as answer:
        status, headers, told = answer.status, answer.headers, await answer.json()
    assert (status, headers["content-type"], headers["x-sluice-reason"]) == (429, "application/json", "WouldExceed")
    assert 59 <= int(headers["retry-after"]) <= 61
    message, details = told["error"].pop("message"), told["error"].pop("details", [])
    assert message.startswith(REACHED.format(path.split("/")[1]))
    assert told == shape
    assert [detail["retryDelay"] for detail in details] in ([], [headers["retry-after"] + "s"])
    assert len(strict.provider.seen) == 1


async def test_every_answer_tells_the_limit_what_is_left_of_it_and_when_it_is_whole_again(strict: System) -> None:
    for remaining in ("0", "0"):
        async with strict.client.post(strict.url + CHAT, json=ASKED, headers={"x-user-id": "alice"}) as answer:
            headers = answer.headers
        assert headers["x-ratelimit-limit"] == '1, 1;w=60;name="User/requestsPerMinute"'
        assert headers["x-ratelimit-remaining"] == remaining
        assert 58 <= int(headers["x-ratelimit-reset"]) <= 61


# -- which limit ---------------------------------------------------------------------------------------------------


async def test_a_limit_in_shadow_counts_and_lets_pass() -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"requestsPerMinute": 1, "mode": "Shadow"})

    async with running_system(document) as system:
        assert await statuses(*(call(system) for _ in range(3))) == [200, 200, 200]
        await system.settled()
        totals = system.snapshot().totals
        assert (totals.admitted, totals.rejected, totals.would_reject) == (3, 0, 2)
        assert used(system) == {"requestsPerMinute": 3}


async def test_the_model_in_the_body_or_the_path_chooses_the_limit() -> None:
    def documents(upstream: str) -> str:
        wide = {"requestsPerMinute": 100}
        narrow = {"requestsPerMinute": 1, "match": {"models": ["big-*"]}}
        return "\n---\n".join(limits(name, upstream, wide, narrow) for name in ("openai", "gemini"))

    async with running_system(documents) as system:
        big, small = {**ASKED, "model": "big-1"}, {**ASKED, "model": "small-1"}
        for body, expected in ((big, 200), (big, 429), (small, 200), ({**big, "model": "big-2"}, 429), (small, 200)):
            assert (await call(system, body=body))[0] == expected
        for model, expected in (("big-1", 200), ("big-1", 429), ("small-1", 200), ("big-2", 429), ("small-1", 200)):
            assert (await call(system, GENERATE.format(model), TO_GEMINI))[0] == expected


# -- callers who cheat ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [{"constant": "team-a"}, {"apiKey": True}], ids=["constant", "apiKey"])
async def test_a_name_that_the_caller_gives_itself_widens_nothing(source: Mapping[str, Any]) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"requestsPerMinute": 2, "subject": source})

    async with running_system(document) as system:
        key = {"authorization": "Bearer sk-one"}
        assert (await call(system, user="mallory-1", headers=key))[0] == 200
        assert (await call(system, user="mallory-2", headers={**key, "x-user-id": "z", "user": "y"}))[0] == 200
        assert (await call(system, user="mallory-3", headers={**key, "lease": "1"}))[0] == 429
        assert len(system.snapshot().buckets) == 1


async def test_two_keys_have_two_buckets_and_one_key_has_one_however_it_is_written() -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"requestsPerMinute": 2, "subject": {"apiKey": True}})

    async with running_system(document) as system:
        for key in ("Bearer sk-one", "bearer  sk-one"):
            assert (await call(system, headers={"authorization": key}))[0] == 200
        assert (await call(system, headers={"authorization": "BEARER sk-one"}))[0] == 429
        assert (await call(system, headers={"authorization": "Bearer sk-two"}))[0] == 200
        assert all("sk-" not in bucket.key.subject for bucket in system.snapshot().buckets)


async def test_headers_cannot_name_a_lease_nor_free_a_slot() -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"maxConcurrent": 1})

    async with running_system(document) as system:
        holder = asyncio.create_task(call(system, hold="start"))
        await system.provider.until(lambda provider: provider.held == 1)
        forged = {
            "lease": "1",
            "x-lease": "1",
            "envoy.filters.http.ratelimit": '{"lease": "1"}',
            "x-envoy-dynamic-metadata": "envoy.filters.http.ratelimit:lease=1",
            "x-envoy-ratelimited": "false",
        }
        body = {**ASKED, "lease": "1", "envoy.filters.http.ratelimit": {"lease": "1"}}
        for _ in range(3):
            assert (await call(system, body=body, headers=forged))[0] == 429
            assert (await call(system, body=body, headers=forged, user="bob"))[0] == 200
        assert system.bucket("alice").in_flight == 1
        system.provider.let_go()
        assert (await holder)[0] == 200


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x80" * 5000], ids=lambda name: name[:3].hex()
)
async def test_a_name_that_is_no_text_is_no_way_past_the_limit(strict: System, name: bytes) -> None:
    answered = [await call_with_bytes(strict, name) for _ in range(3)]
    assert answered in ([400] * 3, [200, 429, 429])
    assert strict.envoy.stat("cluster.provider/openai.ratelimit.error") == 0


async def call_with_bytes(system: System, name: bytes) -> int:
    """The status of a call with a header that no HTTP client would send."""
    body = json.dumps(ASKED).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: envoy\r\ncontent-length: {len(body)}\r\nconnection: close\r\nx-user-id: "
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(system.url.rpartition(":")[2]))
    writer.write(head + name + b"\r\n\r\n" + body)
    status_line = await reader.readline()
    writer.close()
    return int(status_line.split()[1])


async def test_the_provider_never_sees_who_called(strict: System) -> None:
    assert (await call(strict, user="alice"))[0] == 200
    (seen,) = strict.provider.seen
    assert "content-length" in seen.header_names
    assert not {name for name in seen.header_names if "user" in name and name != "user-agent"}
    assert not {name for name in seen.header_names if name.startswith(("x-envoy", "x-sluice", "x-forwarded"))}


@pytest.mark.parametrize("declared", [{"max_tokens": 2000}, {}])
@pytest.mark.parametrize("usage", list(UsageSource))
async def test_who_hangs_up_before_the_usage_pays_for_the_output_that_went_by(
    usage: UsageSource, declared: dict[str, int]
) -> None:
    def documents(upstream: str) -> str:
        return "\n---\n".join(limits(name, upstream, {"tokensPerMinute": 10_000}) for name in ("openai", "anthropic"))

    async with running_system(documents, usage) as system:
        for path in (CHAT, MESSAGES):
            body = {"model": "m", "messages": ASKED["messages"], "stream": True, **declared}
            headers = {"x-user-id": path, "x-standin-output-tokens": "4000", "x-standin-hold": "middle"}
            headers |= {"x-standin-chunks": "1000"}
            async with system.client.post(system.url + path, json=body, headers=headers) as answer:
                await answer.content.readexactly(60_000)
                answer.close()
            await system.settled()
            assert 450 < used(system, path)["tokensPerMinute"] < 2800, path


@pytest.mark.parametrize("junk", [b"0,", b"[],", b'{"a":0},', b'"\\u0061",'])
async def test_no_body_takes_so_long_to_read_that_the_call_passes_unasked(junk: bytes) -> None:
    async with running_system(lambda upstream: limits("openai", upstream, {"requestsPerMinute": 1})) as system:
        assert (await call(system))[0] == 200
        body = b'{"model": "m", "x": [' + junk * (20_000_000 // len(junk)) + b"0]}"
        async with system.client.post(system.url + CHAT, data=BytesIO(body), headers={"x-user-id": "alice"}) as answer:
            assert answer.status == 429


# -- a gate that is not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "expected"), [("Allow", 200), ("Deny", 503)])
async def test_without_the_gate_the_failure_policy_decides_and_a_gate_that_is_back_is_asked_again(
    policy: str, expected: int
) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, {"requestsPerMinute": 1, "maxConcurrent": 5}, failurePolicy=policy)

    async with running_system(document) as system:
        assert (await call(system))[0] == 200
        await system.settled()
        await system.stop_gate()
        assert [await status_alone(system) for _ in range(3)] == [expected] * 3
        await system.start_gate()
        assert (await call(system))[0] == 429
        assert used(system) == {"requestsPerMinute": 1}
        assert system.snapshot().in_flight == 0


async def status_alone(system: System) -> int:
    """The status of an answer that may be Envoy's own."""
    async with system.client.post(system.url + CHAT, json=ASKED, headers={"x-user-id": "alice"}) as answer:
        return answer.status


async def test_a_provider_out_of_reach_costs_no_tokens() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with running_system(lambda _: limits("openai", nobody, {"tokensPerMinute": 10_000})) as system:
        assert [await status_alone(system) for _ in range(20)] == [503] * 20
        await system.settled()
        state = system.bucket("alice")
        assert (state.admitted, state.refunded, used(system)) == (20, 20, {"tokensPerMinute": 0})
