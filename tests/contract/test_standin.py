"""The stand-in provider against the official SDKs: they parse its answers, and raise their own errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from standin import Ending, Point, Recording, Script, StandIn, main

ASK: Any = [{"role": "user", "content": "How many tokens are in this sentence?"}]


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with StandIn(Script(input_tokens=30, output_tokens=12), keep=["X-Request-Tag"]) as server:
        yield server


@pytest.fixture
async def gpt(stand_in: StandIn) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{stand_in.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(stand_in: StandIn) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key="none", base_url=stand_in.url, max_retries=0) as client:
        yield client


async def post(url: str, body: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a plain HTTP call; underscores in header names stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=named) as response:
        return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()


async def drain(stream: AsyncIterator[Any], into: list[Any]) -> None:
    """Read a stream to its end; what came before an error is kept."""
    async for chunk in stream:
        into.append(chunk)  # noqa: PERF401 - a comprehension loses what came before the error


async def test_chat_reports_its_usage_with_details(stand_in: StandIn, gpt: openai.AsyncOpenAI) -> None:
    stand_in.script = Script(input_tokens=30, output_tokens=12, cached_tokens=10, reasoning_tokens=5)
    answer = await gpt.chat.completions.create(model="gpt-x", messages=ASK)
    assert answer.choices[0].finish_reason == "stop"
    assert len((answer.choices[0].message.content or "").split()) == 12 - 5
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (30, 12, 42)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 10
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5


async def test_a_cap_of_the_request_bounds_what_is_derived_from_it(gpt: openai.AsyncOpenAI, stand_in: StandIn) -> None:
    stand_in.script = Script()
    answer = await gpt.chat.completions.create(model="gpt-x", messages=ASK, max_tokens=3, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * 3


async def test_a_chat_stream_ends_with_usage_when_it_is_asked_for(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.chat.completions.create(
        model="gpt-x", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 42


async def test_a_chat_stream_tells_no_usage_when_nobody_asks(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.chat.completions.create(model="gpt-x", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all("usage" not in chunk.model_fields_set and chunk.choices for chunk in chunks)


async def test_older_completions_and_embeddings_are_spoken_too(gpt: openai.AsyncOpenAI) -> None:
    completion = await gpt.completions.create(model="gpt-x", prompt="Say it")
    embeddings = await gpt.embeddings.create(model="embed-x", input=["one", "two"], dimensions=3)
    models = await gpt.models.list()
    assert completion.usage is not None
    assert completion.usage.total_tokens == 42
    assert [len(entry.embedding) for entry in embeddings.data] == [3, 3]
    assert embeddings.usage.total_tokens == 30
    assert [model.id for model in models.data] == ["standin-model"]


async def test_responses_report_usage_whole_and_streamed(gpt: openai.AsyncOpenAI) -> None:
    whole = await gpt.responses.create(model="gpt-x", input="Hello")
    async with gpt.responses.stream(model="gpt-x", input="Hello") as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert streamed.output_text == whole.output_text
    assert whole.usage is not None
    assert whole.usage.total_tokens == 42
    assert streamed.usage == whole.usage


async def test_a_response_that_meets_its_cap_is_incomplete(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.responses.create(model="gpt-x", input="Hello", max_output_tokens=12)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_messages_report_usage_without_what_the_cache_gave(
    stand_in: StandIn, claude: anthropic.AsyncAnthropic
) -> None:
    stand_in.script = Script(input_tokens=30, output_tokens=12, cached_tokens=10)
    whole = await claude.messages.create(model="claude-x", max_tokens=50, messages=ASK)
    async with claude.messages.stream(model="claude-x", max_tokens=50, messages=ASK) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert message.usage.input_tokens == 20
        assert message.usage.cache_read_input_tokens == 10
        assert message.usage.output_tokens == 12
        assert message.stop_reason == "end_turn"
    assert streamed.content[0].model_dump()["text"] == whole.content[0].model_dump()["text"]


@pytest.mark.parametrize("query", ["", "?alt=sse"])
async def test_gemini_counts_reasoning_beside_the_candidates(stand_in: StandIn, query: str) -> None:
    stand_in.script = Script(input_tokens=30, output_tokens=12, reasoning_tokens=4)
    url = f"{stand_in.url}/v1beta/models/gemini-x:streamGenerateContent{query}"
    _, headers, body = await post(url, {"contents": [{"parts": [{"text": "Hello"}]}]})
    text = body.decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\r\n\r\n") if line] if query else None
    chunks = events or json.loads(text)
    assert headers["content-type"].startswith("text/event-stream" if query else "application/json")
    usages = [chunk["usageMetadata"] for chunk in chunks]
    assert [usage["candidatesTokenCount"] for usage in usages] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert usages[-1]["thoughtsTokenCount"] == 4
    assert usages[-1]["totalTokenCount"] == 42
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_gemini_takes_its_cap_and_its_candidates_from_the_generation_config(stand_in: StandIn) -> None:
    stand_in.script = Script()
    body = {
        "contents": [{"parts": [{"text": "Hello"}]}],
        "generationConfig": {"maxOutputTokens": 4, "candidateCount": 2},
    }
    _, _, answer = await post(f"{stand_in.url}/v1beta/models/gemini-x:generateContent", body)
    assert json.loads(answer)["usageMetadata"]["candidatesTokenCount"] == 8


async def test_failures_become_the_errors_of_the_sdks(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, stand_in: StandIn
) -> None:
    limited = {"x-standin-status": "429"}
    with pytest.raises(openai.RateLimitError) as by_openai:
        await gpt.chat.completions.create(model="gpt-x", messages=ASK, extra_headers=limited)
    with pytest.raises(anthropic.RateLimitError) as by_anthropic:
        await claude.messages.create(model="claude-x", max_tokens=5, messages=ASK, extra_headers=limited)
    with pytest.raises(anthropic.InternalServerError, match="overloaded_error"):
        await claude.messages.create(
            model="claude-x", max_tokens=5, messages=ASK, extra_headers={"x-standin-status": "529"}
        )
    assert by_openai.value.code == "rate_limit_exceeded"
    assert by_openai.value.response.headers["retry-after"] == "1"
    assert by_anthropic.value.response.headers["retry-after"] == "1"
    url = f"{stand_in.url}/v1beta/models/gemini-x:generateContent"
    status, _, body = await post(url, {"contents": []}, x_standin_status="429")
    assert (status, json.loads(body)["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")


async def test_a_cut_stream_breaks_off_before_its_usage(gpt: openai.AsyncOpenAI, stand_in: StandIn) -> None:
    stream = await gpt.chat.completions.create(
        model="gpt-x",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-standin-cut": "middle"},
    )
    seen: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await drain(stream, seen)
    assert seen
    assert all(chunk.usage is None for chunk in seen)
    assert stand_in.seen[0].ending is Ending.CUT


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_cut_at_the_start_answers_nothing(
    gpt: openai.AsyncOpenAI, stand_in: StandIn, *, streaming: bool
) -> None:
    with pytest.raises(openai.APIConnectionError):
        await gpt.chat.completions.create(
            model="gpt-x", messages=ASK, stream=streaming, extra_headers={"x-standin-cut": "start"}
        )
    assert stand_in.seen[0].ending is Ending.CUT


async def test_calls_are_held_until_they_are_let_go(gpt: openai.AsyncOpenAI, stand_in: StandIn) -> None:
    stand_in.script = Script(hold=Point.START)
    calls = [asyncio.create_task(gpt.chat.completions.create(model="gpt-x", messages=ASK)) for _ in range(3)]
    await stand_in.until(lambda s: s.held == 3)
    assert not any(call.done() for call in calls)
    stand_in.let_go()
    await asyncio.gather(*calls)
    await stand_in.until(lambda s: s.in_flight == 0)
    assert stand_in.peak == 3
    assert {seen.ending for seen in stand_in.seen} == {Ending.COMPLETE}


async def test_a_client_that_leaves_is_noticed(gpt: openai.AsyncOpenAI, stand_in: StandIn) -> None:
    call = asyncio.create_task(
        gpt.chat.completions.create(model="gpt-x", messages=ASK, extra_headers={"x-standin-hold": "start"})
    )
    await stand_in.until(lambda s: s.held == 1)
    call.cancel()
    await stand_in.until(lambda s: s.in_flight == 0)
    assert stand_in.seen[0].ending is Ending.LEFT


@pytest.mark.parametrize(
    ("header", "value", "usage"),
    [("omit-usage", "1", None), ("usage-count", "1e999", float("inf")), ("usage-count", '"12"', "12")],
)
async def test_usage_is_left_out_or_malformed_on_demand(
    stand_in: StandIn, header: str, value: str, usage: object
) -> None:
    _, _, body = await post(
        f"{stand_in.url}/v1/chat/completions",
        {"model": "m", "messages": []},
        **{f"x_standin_{header.replace('-', '_')}": value},
    )
    assert json.loads(body).get("usage", {}).get("total_tokens") == usage


async def test_answer_headers_are_what_the_script_says(stand_in: StandIn) -> None:
    _, headers, _ = await post(
        f"{stand_in.url}/v1/responses",
        {"model": "m", "input": "Hi"},
        x_standin_answer_headers='{"x-usage-total-tokens": "42"}',
    )
    assert headers["x-usage-total-tokens"] == "42"


async def test_a_misspelt_header_is_refused_with_the_ones_it_knows(stand_in: StandIn) -> None:
    status, _, body = await post(f"{stand_in.url}/v1/messages", {"model": "m"}, x_standin_delay="5")
    message = json.loads(body)["error"]["message"]
    assert status == 400
    assert "x-standin-delay" in message
    assert "x-standin-delay-ms" in message


async def test_a_status_that_is_none_is_refused(stand_in: StandIn) -> None:
    status, _, body = await post(f"{stand_in.url}/v1/chat/completions", {"model": "m"}, x_standin_status="600")
    assert status == 400
    assert b"no answer has the status 600: give one from 200 to 599" in body


def test_a_port_that_is_taken_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["standin.py", "--port", str(port)])
        with pytest.raises(SystemExit, match=f"^the stand-in cannot listen on port {port}: Address already in use$"):
            main()


async def test_it_keeps_header_names_and_only_the_values_it_was_told_to_keep(stand_in: StandIn) -> None:
    await post(f"{stand_in.url}/v1/responses?key=secret", {"model": "m"}, authorization="secret", x_request_tag="blue")
    seen = stand_in.seen[0]
    assert {"authorization", "x-request-tag"} <= seen.header_names
    assert seen.values == {"x-request-tag": "blue"}
    assert "secret" not in repr(seen)


async def test_json_is_compressed_for_those_who_take_it(gpt: openai.AsyncOpenAI, stand_in: StandIn) -> None:
    stand_in.script = Script(gzip=True)
    raw = await gpt.chat.completions.with_raw_response.create(model="gpt-x", messages=ASK)
    assert raw.headers["content-encoding"] == "gzip"
    assert raw.parse().usage is not None


async def test_a_recording_is_given_out_as_it_is_whatever_is_asked() -> None:
    recorded = Recording({"content-type": "application/x-ndjson", "x-told": "7"}, b'{"a": 1}\n{"b": 2}\n')
    async with StandIn(recordings={"one": recorded}) as server:
        status, headers, body = await post(f"{server.url}/any/path", {}, x_standin_recording="one")
        assert (status, headers["content-type"], headers["x-told"], body) == (
            200,
            "application/x-ndjson",
            "7",
            recorded.body,
        )
        status, _, body = await post(f"{server.url}/any/path", {}, x_standin_recording="two")
        assert (status, b"no such recording: two" in body) == (400, True)
