"""The object that watches one call, fed by hand: what the wire cannot time."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from helpers.codings import encoded
from helpers.ledger import Journal
from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MINUTE
from sluice.core.permits import Permit
from sluice.core.states import BucketState
from sluice.core.upstream import SPEND_PAUSE
from sluice.core.words import Amount, RefusedAs
from sluice.usage.profiles.profile import Response
from sluice_sidecar.extproc import WatchedCalls
from sluice_sidecar.gate import Gate
from sluice_sidecar.protos import (
    COMPLETE,
    LEASE_NAMESPACE,
    REFUSAL_NAMESPACE,
    SAID,
    STREAM_NAMESPACE,
    USAGE_NAMESPACE,
    ProcessingRequest,
    RateLimitRequest,
    StreamAccessLogsMessage,
    TokenUsage,
)
from sluice_sidecar.rls import RateLimitService

EVENT_BYTES = Response().event_bytes

ALICE = BucketKey("openai", Scope.USER, "alice")
INPUT, ESTIMATE = 100, 150
EVENT = b'data: {"choices": [{"delta": {"content": "' + b"x" * 40 + b'"}}]}\n\n'


class Broken(Journal):
    """Telemetry that fails where a call is settled."""

    def committed(self, permit: Permit) -> None:
        raise RuntimeError


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
        {"status": 429, "codes": ["insufficient_quota"], "is": "SpendCap"},
        {"status": 429, "is": "RateLimited"},
        {"status": 529, "is": "Overloaded"},
    ],
}


class Calls:
    """A gate at a moment that does not pass, and the calls it watches."""

    def __init__(
        self,
        caps: Mapping[str, int] = MappingProxyType({"tokensPerMinute": 10_000, "maxConcurrent": 10}),
        telemetry: Journal | None = None,
        profile: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.gate = Gate(Engine(telemetry=telemetry), lambda: 0)
        document = limits("openai", "http://127.0.0.1:9", caps, profile={"word": WORD, **profile})
        self.gate.apply(merge(parse(document, "test")), {})
        self.refused: list[tuple[str, int, RefusedAs]] = []
        self.untold: list[str] = []
        self.watched = WatchedCalls(
            self.gate, on_refused=[lambda *told: self.refused.append(told)], on_untold=[self.untold.append]
        )

    async def admit(self, **facts: str) -> str:
        request = RateLimitRequest()
        descriptor = request.descriptors.add()
        for key, value in {"provider": "openai", "user": "alice", "bytes": "400", "max_tokens": "50", **facts}.items():
            descriptor.entries.add(key=key, value=value)
        response = await RateLimitService(self.gate).should_rate_limit(request)
        return str(response.dynamic_metadata["lease"])

    async def answered(self, message: ProcessingRequest, **facts: str) -> None:
        """A call whose answer begins like that."""
        lease = await self.admit(**facts)
        stream = self.watched.open()
        stream.feed(beginning(lease))
        stream.feed(message)
        stream.close()

    @property
    def alice(self) -> BucketState:
        state = self.gate.engine.current_state(ALICE, 0)
        assert state is not None
        return state

    @property
    def tokens(self) -> int:
        (window,) = self.alice.windows.values()
        return window.used


def beginning(lease: str) -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_headers.SetInParent()
    message.metadata_context.filter_metadata[LEASE_NAMESPACE].fields["lease"].string_value = lease
    return message


def answer(content_type: str, status: int = 200, content_encoding: str = "") -> ProcessingRequest:
    message = ProcessingRequest()
    told = {":status": str(status), "content-type": content_type, "content-encoding": content_encoding}
    for key, value in ((key, value.encode()) for key, value in told.items()):
        message.response_headers.headers.headers.add(key=key, raw_value=value)
    return message


def piece(body: bytes) -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_body.body = body
    return message


def told(**counts: int) -> ProcessingRequest:
    """The end of an answer whose usage Envoy has read."""
    usage = TokenUsage(extraction_status=COMPLETE)
    for name, count in counts.items():
        getattr(usage, name).value = count
    message = ProcessingRequest()
    message.response_trailers.SetInParent()
    message.metadata_context.typed_filter_metadata[USAGE_NAMESPACE].value = usage.SerializeToString()
    return message


def log_of(lease: str, said: int, *, cut: bool = False, sent: int = 0) -> StreamAccessLogsMessage:
    """What Envoy's log says of a stream in which it has counted."""
    message = StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    entry.response.response_code.value, entry.response.response_body_bytes = 200, sent
    metadata = entry.common_properties.metadata.filter_metadata
    metadata[LEASE_NAMESPACE].fields["lease"].string_value = lease
    metadata[STREAM_NAMESPACE].fields[SAID].number_value = said
    entry.common_properties.response_flags.downstream_connection_termination = cut
    return message


async def test_a_cut_call_is_charged_its_input_and_what_was_seen_of_it() -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    assert not stream.feed(beginning(lease))
    assert not stream.feed(answer("text/event-stream"))
    assert not stream.feed(piece(EVENT))
    stream.cut(lease, 200, len(EVENT))
    assert (calls.tokens, calls.alice.in_flight, calls.alice.estimated) == (INPUT + 10, 0, 1)
    stream.close()
    assert stream.feed(beginning(lease))
    assert calls.tokens == INPUT + 10


@pytest.mark.parametrize("events", [1, 100])
async def test_a_stream_that_told_no_usage_is_charged_what_went_by(events: int) -> None:
    calls = Calls()
    stream = calls.watched.open()
    stream.feed(beginning(await calls.admit()))
    stream.feed(answer("text/event-stream"))
    for _ in range(events):
        stream.feed(piece(EVENT))
    last = piece(b"data: [DONE]\n\n")
    last.response_body.end_of_stream = True
    assert stream.feed(last)
    assert (calls.tokens, calls.alice.in_flight, calls.alice.estimated) == (INPUT + 10 * events, 0, 1)


@pytest.mark.parametrize(("said", "charged"), [(40, INPUT + 10), (4000, INPUT + 1000), (0, ESTIMATE)])
async def test_a_stream_that_envoy_has_counted_is_charged_that_and_ends_at_once(said: int, charged: int) -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    stream.feed(answer("text/event-stream"))
    calls.watched.feed_log(log_of(lease, said))
    assert (calls.tokens, calls.alice.in_flight, calls.alice.estimated) == (charged, 0, 1)
    calls.watched.feed_log(log_of(lease, 10**9))
    stream.close()
    assert calls.tokens == charged


async def test_a_stream_that_was_cut_is_charged_what_envoy_has_counted_and_not_its_bytes() -> None:
    calls = Calls()
    lease = await calls.admit()
    calls.watched.feed_log(log_of(lease, 40, cut=True, sent=10**9))
    assert (calls.tokens, calls.alice.in_flight, calls.alice.estimated) == (INPUT + 10, 0, 1)


async def test_a_usage_that_is_told_after_all_replaces_what_was_counted() -> None:
    for usage_first in (True, False):
        calls = Calls()
        lease = await calls.admit()
        stream = calls.watched.open()
        stream.feed(beginning(lease))
        stream.feed(answer("text/event-stream"))
        for turn in (usage_first, not usage_first):
            if turn:
                assert stream.feed(told(input_tokens=3, output_tokens=4))
            else:
                calls.watched.feed_log(log_of(lease, 4000))
        assert (calls.tokens, calls.alice.in_flight, calls.alice.committed) == (7, 0, 1)


async def test_a_stream_of_nothing_that_could_be_read_leaves_its_estimate() -> None:
    calls = Calls()
    stream = calls.watched.open()
    stream.feed(beginning(await calls.admit()))
    stream.feed(answer("text/event-stream"))
    last = piece(b"data: {}\n\n")
    last.response_body.end_of_stream = True
    assert stream.feed(last)
    assert (calls.tokens, calls.alice.estimated) == (ESTIMATE, 1)


@pytest.mark.parametrize(
    ("content_type", "sent", "charged"),
    [
        ("text/event-stream", 0, INPUT),
        ("text/event-stream", 20 * EVENT_BYTES, INPUT + 20),
        ("text/event-stream", 2**40, ESTIMATE),
        ("application/json", 80, INPUT + 20),
    ],
)
async def test_what_a_cut_call_brought_unseen_is_judged_by_its_bytes_up_to_the_estimate(
    content_type: str, sent: int, charged: int
) -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    stream.feed(answer(content_type))
    stream.cut(lease, 200, sent)
    assert (calls.tokens, calls.alice.estimated) == (charged, 1)


async def test_a_log_that_comes_before_the_answers_headers_says_itself_what_its_bytes_are() -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    stream.cut(lease, 200, 20 * EVENT_BYTES, content_type="text/event-stream")
    assert calls.tokens == INPUT + 20


async def test_what_the_log_knows_of_and_the_stream_has_not_told_yet_is_added_to_what_was_seen() -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    for message in (beginning(lease), answer("text/event-stream"), piece(EVENT)):
        stream.feed(message)
    stream.cut(lease, 200, len(EVENT) + 20 * EVENT_BYTES)
    assert calls.tokens == INPUT + 10 + 20


async def test_an_answer_that_is_encoded_is_read() -> None:
    calls = Calls()
    stream = calls.watched.open()
    stop = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    last = piece(encoded(EVENT + stop, "gzip"))
    last.response_body.end_of_stream = True
    for message in (beginning(await calls.admit()), answer("text/event-stream", content_encoding="gzip"), last):
        stream.feed(message)
    assert (calls.tokens, calls.alice.committed) == (7, 1)


async def test_usage_in_headers_that_the_profile_names_is_read() -> None:
    told = {"name": "completions", "response": {"headers": {"input": ["x-in"], "output": ["x-out"]}}}
    calls = Calls(profile={"apis": [told]})
    message = answer("application/json")
    for name, value in (("x-in", b"3"), ("x-out", b"4")):
        message.response_headers.headers.headers.add(key=name, raw_value=value)
    await calls.answered(message)

    assert (calls.tokens, calls.alice.committed) == (7, 1)


@pytest.mark.parametrize(("coding", "body"), [("compress", b"x" * EVENT_BYTES), ("gzip", b"x" * EVENT_BYTES)])
async def test_what_a_cut_call_brought_in_a_form_that_cannot_be_read_is_judged_by_its_bytes(
    coding: str, body: bytes
) -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    messages = (
        beginning(lease),
        answer("text/event-stream", content_encoding=coding),
        *(piece(body) for _ in range(9)),
    )
    for message in messages:
        stream.feed(message)
    stream.cut(lease, 200, 9 * EVENT_BYTES)
    # Of what came in gzip the first piece was looked at.
    assert calls.tokens == INPUT + (9 if coding == "compress" else 8)


async def test_a_status_that_the_stream_has_told_is_believed_before_the_logs() -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    stream.feed(answer("application/json"))
    stream.cut(lease, 503, 0)
    assert (calls.alice.estimated, calls.alice.refunded) == (1, 0)


async def test_nothing_is_kept_of_a_call_that_is_over() -> None:
    calls = Calls()
    for ending in ("close", "cut", "trailers"):
        lease = await calls.admit()
        stream = calls.watched.open()
        stream.feed(beginning(lease))
        assert list(calls.watched.streams) == [lease]
        if ending == "close":
            stream.close()
        elif ending == "cut":
            stream.cut(lease, 0, 0)
        else:
            end = ProcessingRequest()
            end.response_trailers.SetInParent()
            assert stream.feed(end)
        assert calls.watched.streams == {}
    assert calls.alice.in_flight == 0


async def test_a_call_whose_settling_fails_still_frees_its_slot() -> None:
    calls = Calls(telemetry=Broken())
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    with pytest.raises(RuntimeError):
        stream.cut(lease, 0, 0)
    assert (calls.alice.in_flight, calls.watched.streams) == (0, {})


RATE_LIMITED = ("openai", 429, RefusedAs.RATE_LIMITED)
OVERLOADED = ("openai", 529, RefusedAs.OVERLOADED)


@pytest.mark.parametrize(
    ("status", "told"), [(200, []), (429, [RATE_LIMITED]), (529, [OVERLOADED]), (500, []), (400, [])]
)
async def test_an_answer_by_which_the_provider_refuses_is_told(
    status: int, told: list[tuple[str, int, RefusedAs]]
) -> None:
    calls = Calls()
    await calls.answered(answer("application/json", status))

    assert calls.refused == told


@pytest.mark.parametrize("first", ["the stream", "the log"])
async def test_a_refused_call_that_is_cut_as_well_is_told_once(first: str) -> None:
    calls = Calls()
    lease = await calls.admit()
    stream = calls.watched.open()
    stream.feed(beginning(lease))
    if first == "the log":
        stream.cut(lease, 429, 0)
    stream.feed(answer("application/json", 429))
    stream.cut(lease, 429, 0)
    stream.close()

    assert calls.refused == [RATE_LIMITED]


async def test_the_body_of_a_refusal_tells_why_and_its_header_how_long() -> None:
    calls = Calls()
    message = answer("application/json", 429)
    message.response_headers.headers.headers.add(key="retry-after", raw_value=b"7")
    said = '{"error": {"message": "no money", "code": "insufficient_quota"}}'
    message.metadata_context.filter_metadata[REFUSAL_NAMESPACE].fields["body"].string_value = said
    await calls.answered(message)

    assert calls.refused == [("openai", 429, RefusedAs.SPEND_CAP)]
    (state,) = calls.gate.engine.upstreams(0)
    assert (state.paused_for, state.key) == (RefusedAs.SPEND_CAP, BucketKey("openai", Scope.PROVIDER, "", ""))
    assert state.paused == SPEND_PAUSE


async def test_what_is_left_of_the_providers_quotas_is_heard() -> None:
    calls = Calls()
    message = answer("application/json")
    for name, value in (("limit", b"100"), ("remaining", b"3"), ("reset", b"6m0s")):
        message.response_headers.headers.headers.add(key=f"x-ratelimit-{name}-requests", raw_value=value)
    await calls.answered(message)

    (state,) = calls.gate.engine.upstreams(0)
    (quota,) = state.quotas
    assert (quota.of, quota.remaining, quota.limit, quota.reset) == (Amount.REQUESTS, 3, 100, 6 * MINUTE)


async def test_an_answer_that_envoy_made_up_is_no_word_of_the_providers() -> None:
    calls = Calls()
    message = answer("application/json", 529)
    attributes = message.attributes["envoy.filters.http.ext_proc"].fields
    attributes["response.code_details"].string_value = "no_healthy_upstream"
    await calls.answered(message)

    assert (calls.refused, calls.gate.engine.upstreams(0)) == ([], ())


async def test_attempts_that_failed_are_requests_of_their_own() -> None:
    calls = Calls({"requestsPerMinute": 100})
    message = answer("application/json")
    attributes = message.attributes["envoy.filters.http.ext_proc"].fields
    attributes["upstream.request_attempt_count"].number_value = 3
    await calls.answered(message)

    assert calls.tokens == 3


async def test_attempts_that_failed_cost_tokens_where_the_provider_counts_them() -> None:
    charged, reserved = {}, 0
    for attempts in (1, 3):
        calls = Calls(profile={"counting": {"failedRequests": "Counted"}})
        lease = await calls.admit()
        reserved = calls.tokens
        stream = calls.watched.open()
        stream.feed(beginning(lease))
        stream.see_attempts(attempts)
        stream.close()
        charged[attempts] = calls.tokens

    assert charged[3] == charged[1] + 2 * reserved


async def test_nobody_misses_usage_where_there_is_no_place_for_it() -> None:
    calls = Calls()
    await calls.answered(answer("application/json"), model="gpt")
    assert calls.untold == ["openai"]
    await calls.answered(answer("audio/mpeg"), model="tts")
    await calls.answered(answer("Image/png"), model="pictures")
    await calls.answered(answer("application/json"), model="omni-moderation", api="free")
    assert calls.untold == ["openai"]
