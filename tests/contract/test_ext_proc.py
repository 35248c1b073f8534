"""The end of a call over a real channel: whatever a stream tells, in whatever order, its call is settled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from itertools import permutations
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc

from helpers.channel import (
    EXT_PROC,
    OK,
    Served,
    Transport,
    descriptor,
    ended,
    metadata,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    serving,
    settled,
    token_usage,
)
from helpers.system import limits
from sluice.core.engine import EngineSettings
from sluice.core.limits import SECOND

CAPS = {"requestsPerMinute": 1000, "tokensPerMinute": 1_000_000, "maxConcurrent": 600}
LIMITS = limits("openai", "http://127.0.0.1:9", CAPS)
ESTIMATE = 100 + 50
RESERVED = 100  # of input and output the larger, as OpenAI does
ASKED = {"user": "alice", "bytes": "400", "max_tokens": "50"}
INPUT = 100
JSON = {":status": "200", "content-type": "application/json"}
USAGE = token_usage(input_tokens=30, output_tokens=12)
JSON_BODY = b'{"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 20, "completion_tokens": 13}}'
MIB = 1024 * 1024


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(LIMITS) as running:
        yield running


async def call(served: Served, *messages: ext_proc.ProcessingRequest) -> None:
    """A call of alice from its admission to its end, and what its stream tells in between."""
    await follow(served, request_headers(await served.admit(**ASKED)), *messages)


async def follow(served: Served, *messages: ext_proc.ProcessingRequest) -> None:
    """Feed a stream and wait for its end, by which the call is settled; the gate may end it before the last message."""
    stream = served.watch()
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for message in messages:
            await stream.write(message)
        await stream.done_writing()
    await stream.code()


# -- how a call ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", list(Transport))
async def test_a_claimed_call_is_in_flight_until_its_trailers_and_then_committed(transport: Transport) -> None:
    async with serving(LIMITS, transport) as served:
        stream = await served.claimed(await served.admit(**ASKED))
        await stream.write(response_headers())
        assert served.bucket("alice").in_flight == 1
        await stream.write(response_trailers(USAGE))
        await ended(stream)
        assert settled(served) == (42, 1, 0, 0)


@pytest.mark.parametrize(
    ("headers", "usage", "tokens"),
    [({**JSON, "x-usage-total-tokens": "77"}, USAGE, 77), (JSON, USAGE, 42), (JSON, None, 33)],
    ids=["headers", "Envoy", "body"],
)
async def test_usage_is_taken_from_the_headers_then_from_envoy_then_from_the_body(
    served: Served, headers: Mapping[str, str], usage: bytes | None, tokens: int
) -> None:
    await call(served, response_headers(headers), response_body(JSON_BODY), response_trailers(usage))
    assert settled(served) == (tokens, 1, 0, 0)


@pytest.mark.parametrize(
    ("headers", "usage", "parts"),
    [
        (JSON, USAGE, (30, 12)),
        (JSON | {"x-usage-input-tokens": "70", "x-usage-output-tokens": "7"}, None, (70, 7)),
        (JSON | {"x-usage-total-tokens": "777"}, None, (INPUT, 677)),
        (JSON, token_usage(input_tokens=30, output_tokens=None), (30, 0)),
        (JSON, token_usage(input_tokens=30, output_tokens=60, status=2), (INPUT, 60)),
        (JSON, None, (INPUT, 50)),
        (JSON | {":status": "500"}, None, (0, 0)),
    ],
    ids=["told", "by headers", "as a sum", "input only", "partial", "never told", "failed"],
)
async def test_input_and_output_are_charged_apart(
    headers: Mapping[str, str], usage: bytes | None, parts: tuple[int, int]
) -> None:
    caps = CAPS | {"inputTokensPerMinute": 1_000_000, "outputTokensPerHour": 1_000_000}
    async with serving(limits("openai", "http://127.0.0.1:9", caps)) as served:
        await call(served, response_headers(headers), response_trailers(usage))
        used = served.used("alice")
    assert (used["inputTokensPerMinute"], used["outputTokensPerHour"]) == parts
    assert used["tokensPerMinute"] == sum(parts)


async def test_a_body_that_ends_without_trailers_ends_the_call(served: Served) -> None:
    await call(served, response_headers(JSON), response_body(JSON_BODY, end_of_stream=True))
    assert settled(served) == (33, 1, 0, 0)


async def test_envoys_last_word_on_the_usage_counts(served: Served) -> None:
    early = token_usage(input_tokens=30, output_tokens=1, status=2)
    await call(served, response_headers(usage=early), response_trailers(USAGE))
    assert settled(served) == (42, 1, 0, 0)


@pytest.mark.parametrize("status", ["300", "400", "429", "500", "529"])
async def test_an_error_ends_the_call_at_its_headers_and_costs_no_tokens(served: Served, status: str) -> None:
    stream = await served.claimed(await served.admit(**ASKED))
    await stream.write(response_headers({":status": status}))
    await ended(stream)
    assert settled(served) == (0, 0, 0, 1)


async def test_a_response_without_a_body_ends_at_its_headers(served: Served) -> None:
    stream = await served.claimed(await served.admit(**ASKED))
    await stream.write(response_headers(end_of_stream=True))
    await ended(stream)
    assert settled(served) == (ESTIMATE, 0, 1, 0)


async def test_headers_are_read_from_either_of_their_fields(served: Served) -> None:
    values = [core.HeaderValue(key=":status", value="200"), core.HeaderValue(key="x-usage-total-tokens", value="77")]
    older = ext_proc.HttpHeaders(headers=core.HeaderMap(headers=values), end_of_stream=True)
    await call(served, ext_proc.ProcessingRequest(response_headers=older))
    assert settled(served) == (77, 1, 0, 0)


@pytest.mark.parametrize(
    ("usage", "tokens", "committed"),
    [
        (token_usage(input_tokens=30, output_tokens=None), 30, 1),
        (token_usage(input_tokens=None, output_tokens=None), 0, 1),
        (token_usage(input_tokens=30, output_tokens=12, status=2), ESTIMATE, 0),
        (token_usage(input_tokens=300, output_tokens=12, status=2), 300 + 50, 0),
        (token_usage(input_tokens=None, output_tokens=None, status=3), ESTIMATE, 0),
        (b"\xff\xff\xff", ESTIMATE, 0),
        (b"", ESTIMATE, 0),
    ],
    ids=["input only", "nothing used", "partial", "partial and more", "failed", "rubbish", "empty"],
)
async def test_only_a_usage_that_was_read_whole_replaces_the_estimate(
    served: Served, usage: bytes, tokens: int, committed: int
) -> None:
    await call(served, response_headers(), response_trailers(usage))
    assert settled(served) == (tokens, committed, 1 - committed, 0)


@pytest.mark.parametrize("count", [2**32, 2**53 - 1, 2**64 - 1])
async def test_an_absurd_usage_is_not_believed_and_the_gate_lives_on(served: Served, count: int) -> None:
    await call(served, response_trailers(token_usage(input_tokens=count, output_tokens=count)))
    assert settled(served) == (ESTIMATE, 0, 1, 0)
    assert (await served.ask(descriptor(user="bob"))).overall_code is OK


# -- leases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease", ["", "999", "1\x00", "x" * 65536])
async def test_a_stream_without_a_live_lease_is_ended_and_changes_nothing(served: Served, lease: str) -> None:
    await served.admit(**ASKED)
    stream = served.watch()
    await stream.write(request_headers(lease))
    await ended(stream)
    assert served.bucket("alice").in_flight == 1


async def test_a_lease_is_claimed_once(served: Served) -> None:
    lease = await served.admit(**ASKED)
    first, second = await served.claimed(lease), served.watch()
    await second.write(request_headers(lease))
    await ended(second)
    assert served.bucket("alice").in_flight == 1
    await first.write(response_trailers(USAGE))
    await ended(first)
    assert settled(served) == (42, 1, 0, 0)


async def test_a_stream_that_names_a_second_lease_keeps_to_its_first(served: Served) -> None:
    mine, other = await served.admit(**ASKED), await served.admit(user="bob")
    await follow(served, request_headers(mine), request_headers(other), response_trailers(USAGE, lease=other))
    assert settled(served) == (42, 1, 0, 0)
    assert served.bucket("bob").in_flight == 1


async def test_the_lease_of_a_client_that_counts_by_itself_is_not_to_be_claimed(served: Served) -> None:
    await served.ask(descriptor(5, user="alice"))
    for lease in ("0", "1", "2"):
        await follow(served, request_headers(lease), response_trailers(USAGE))
    assert served.used("alice") == {"requestsPerMinute": 5, "tokensPerMinute": 0}


async def test_a_call_that_nobody_watches_is_freed_at_its_deadline_and_can_still_be_settled() -> None:
    async with serving(LIMITS, settings=EngineSettings(lease=SECOND // 20)) as served:
        lease = await served.admit(**ASKED)
        await served.until(lambda: served.bucket("alice").in_flight == 0)
        assert settled(served) == (RESERVED, 0, 1, 0)
        await follow(served, request_headers(lease), response_trailers(USAGE))
        assert settled(served) == (42, 1, 0, 0)


# -- streams that behave strangely ---------------------------------------------------------------------------------


async def test_messages_in_any_order_settle_the_call_once(served: Served) -> None:
    orders = list(permutations(range(4)))
    for order in orders:
        lease = await served.admit(**ASKED)
        messages = (
            request_headers(lease),
            response_headers(JSON, lease=lease),
            response_body(JSON_BODY, lease=lease),
            response_trailers(lease=lease),
        )
        await follow(served, *(messages[index] for index in order))
    _, committed, estimated, refunded = settled(served)
    assert committed + estimated + refunded == len(orders)
    assert committed >= 1
    assert served.snapshot().in_flight == 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ext_proc.ProcessingRequest()],
        [ext_proc.ProcessingRequest(metadata_context=metadata("1"))],
        [ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(body=b"x"))],
        [response_headers(), response_trailers(USAGE)],
    ],
    ids=["none", "empty", "lease only", "body of the request", "no lease"],
)
async def test_a_stream_of_nothing_useful_breaks_nothing(
    served: Served, messages: list[ext_proc.ProcessingRequest]
) -> None:
    await served.admit(**ASKED)
    await follow(served, *messages)
    assert (await served.ask(descriptor(user="alice"))).overall_code is OK


async def test_a_stream_that_is_reset_frees_its_slot(served: Served) -> None:
    stream = await served.claimed(await served.admit(**ASKED))
    stream.cancel()
    await served.until(lambda: served.bucket("alice").in_flight == 0)


async def test_bytes_that_are_no_message_free_the_slot_and_are_logged_without_their_content(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await served.admit(**ASKED)
    stream: Any = served.channel.stream_stream(f"/{EXT_PROC}/Process")()
    await stream.write(bytes(request_headers(lease)))
    await stream.write(b"\xff secret")
    await ended(stream)
    assert settled(served) == (ESTIMATE, 0, 1, 0)
    (record,) = caplog.records
    assert record.message.startswith("a call could not be followed to its end: DecodeError at ")
    assert "secret" not in caplog.text


async def test_a_huge_body_is_read_in_pieces(served: Served) -> None:
    beginning = b'{"x": "' + b"y" * (3 * MIB) + b'",'
    await call(
        served, response_headers(JSON), response_body(beginning), response_body(JSON_BODY[1:], end_of_stream=True)
    )
    assert settled(served) == (33, 1, 0, 0)


async def test_a_message_that_is_too_large_ends_the_call(served: Served) -> None:
    stream = await served.claimed(await served.admit(**ASKED))
    await stream.write(response_headers(JSON))
    await stream.write(response_body(b"z" * (5 * MIB)))
    assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await served.until(lambda: served.bucket("alice").in_flight == 0)


async def test_a_body_that_breaks_off_is_charged_its_input_and_what_was_seen(served: Served) -> None:
    event = b'data: {"choices": [{"delta": {"content": "' + b"x" * 40 + b'"}}]}\n\n'
    await call(served, response_headers({":status": "200", "content-type": "text/event-stream"}), response_body(event))
    assert settled(served) == (INPUT + 10, 0, 1, 0)


async def test_five_hundred_silent_streams_are_held_and_hold_up_nobody(served: Served) -> None:
    streams = [await served.claimed(await served.admit(**ASKED)) for _ in range(500)]
    assert served.bucket("alice").in_flight == 500
    lease = await served.admit(user="bob")
    await follow(served, request_headers(lease), response_trailers(USAGE))
    assert served.bucket("bob").committed == 1
    for stream in streams:
        stream.cancel()
    await served.until(lambda: served.bucket("alice").in_flight == 0)
    assert served.snapshot().totals.expired_permits == 0


async def test_a_stopped_gate_ends_its_streams_and_their_estimates_stand(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(LIMITS) as served:
        stream = await served.claimed(await served.admit(**ASKED))
        await served.server.stop(0.05)
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        await served.until(lambda: served.bucket("alice").in_flight == 0)
        assert settled(served) == (ESTIMATE, 0, 1, 0)
    assert caplog.records == []
