"""Envoy's access log of cut calls over a real channel: it ends a call at once, its stream opened or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy_data_plane.envoy.data.accesslog import v3 as accesslog
from envoy_data_plane.envoy.service.accesslog import v3 as als

from helpers.channel import (
    ACCESS_LOG,
    OK,
    Served,
    cut_call,
    descriptor,
    ended,
    log_message,
    request_headers,
    response_headers,
    response_trailers,
    serving,
    settled,
    token_usage,
    unreached_call,
)
from helpers.system import limits
from sluice.core.engine import EngineSettings
from sluice.core.limits import MINUTE

LIMITS = limits("openai", "http://127.0.0.1:9", {"tokensPerMinute": 1_000_000, "maxConcurrent": 600})
ASKED = {"user": "alice", "bytes": "400", "max_tokens": "50"}
INPUT, RESERVED = 100, 100
USAGE = token_usage(input_tokens=30, output_tokens=12)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(LIMITS, settings=EngineSettings(lease=MINUTE)) as running:
        yield running


async def tell(served: Served, *messages: als.StreamAccessLogsMessage) -> None:
    """Send a log, and wait until the gate has read all of it."""
    log = served.log()
    for message in messages:
        await log.write(message)
    await log.done_writing()
    assert await log == als.StreamAccessLogsResponse()


async def test_a_cut_call_ends_at_once_and_is_charged_its_input(served: Served) -> None:
    lease = await served.admit(**ASKED)
    stream = await served.claimed(lease)
    await stream.write(response_headers())
    await tell(served, log_message(cut_call(lease, 200)))
    assert settled(served) == (INPUT, 0, 1, 0)
    await stream.write(response_trailers(USAGE))
    await ended(stream)
    assert settled(served) == (INPUT, 0, 1, 0)


async def test_a_call_that_was_cut_before_its_stream_was_opened_ends_all_the_same(served: Served) -> None:
    lease = await served.admit(**ASKED)
    await tell(served, log_message(cut_call(lease)))
    assert settled(served) == (INPUT, 0, 1, 0)
    stream = served.watch()
    await stream.write(request_headers(lease))
    await ended(stream)
    assert settled(served) == (INPUT, 0, 1, 0)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_call_that_envoy_answered_itself_costs_no_tokens_though_its_stream_has_not_said_so(
    served: Served, status: int
) -> None:
    lease = await served.admit(**ASKED)
    await served.claimed(lease)
    await tell(served, log_message(cut_call(lease, status)))
    assert settled(served) == (0, 0, 0, 1)


async def test_a_call_that_is_settled_already_stays_so(served: Served) -> None:
    lease = await served.admit(**ASKED)
    stream = await served.claimed(lease)
    await stream.write(response_trailers(USAGE))
    await ended(stream)
    await tell(served, log_message(cut_call(lease)), log_message(cut_call(lease)))
    assert settled(served) == (42, 1, 0, 0)


async def test_many_entries_end_many_calls_and_leases_of_others_end_none(served: Served) -> None:
    leases = [await served.admit(**ASKED) for _ in range(500)]
    mine, others = leases[:400], leases[400:]
    entries = [cut_call(lease) for lease in mine]
    foreign = [cut_call(lease) for lease in ("", "0", "unknown", "\x00", "x" * 65536, *mine)]
    await tell(served, log_message(*entries), log_message(*foreign), log_message())
    state = served.bucket("alice")
    assert (state.in_flight, state.estimated) == (len(others), len(mine))
    assert served.used("alice")["tokensPerMinute"] == len(mine) * INPUT + len(others) * RESERVED


@pytest.mark.parametrize(
    "message",
    [
        als.StreamAccessLogsMessage(),
        als.StreamAccessLogsMessage(tcp_logs=als.StreamAccessLogsMessageTcpAccessLogEntries()),
        log_message(accesslog.HttpAccessLogEntry()),
        log_message(accesslog.HttpAccessLogEntry(common_properties=accesslog.AccessLogCommon())),
    ],
    ids=["empty", "of TCP", "an empty entry", "no metadata"],
)
async def test_a_log_of_nothing_useful_breaks_nothing(served: Served, message: als.StreamAccessLogsMessage) -> None:
    lease = await served.admit(**ASKED)
    await tell(served, message, log_message(cut_call(lease)))
    assert settled(served) == (INPUT, 0, 1, 0)


async def test_bytes_that_are_no_message_are_logged_without_their_content_and_the_log_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await served.admit(**ASKED)
    log: Any = served.channel.stream_unary(f"/{ACCESS_LOG}/StreamAccessLogs")()
    await log.write(b"\xff secret")
    await log.write(bytes(log_message(cut_call(lease))))
    await log.done_writing()
    assert await log == b""
    assert settled(served) == (INPUT, 0, 1, 0)
    (record,) = caplog.records
    assert record.message.startswith("a message of the access log could not be read: DecodeError at ")
    assert "secret" not in caplog.text


async def test_a_log_that_is_reset_breaks_nothing(served: Served) -> None:
    log = served.log()
    await log.write(log_message(cut_call("unknown")))
    log.cancel()
    assert (await served.ask(descriptor(user="alice"))).overall_code is OK


async def test_a_provider_that_cannot_be_reached_is_logged_and_only_what_is_configured_is_named(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    no_address = accesslog.ResponseFlags(no_healthy_upstream=True)
    no_connection = accesslog.ResponseFlags(upstream_connection_failure=True)
    await tell(
        served,
        log_message(cut_call("unknown"), unreached_call("somebody's word", no_address)),
        log_message(unreached_call("openai", no_connection, "delayed connect error: 111\n\x1b[2J")),
        log_message(unreached_call("openai", no_address)),
    )
    told = "openai cannot be reached: no connection, or none that is trusted, could be made"
    assert caplog.messages == [f"{told} (delayed connect error: 111??[2J)"]
