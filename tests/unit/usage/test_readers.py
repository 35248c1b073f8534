"""Responses in each API's documented shape give the same usage however they arrive; no bytes can upset a reader."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.core.limits import MAX_COUNT
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import Response
from sluice.usage.readers import MAX_EVENT, JsonReader, SseReader, UsageReader, reader_for
from sluice.usage.tokens import Usage

COUNTS = ("input_tokens", "output_tokens", "provider_total", "cache_read", "cache_write", "reasoning")
RESPONSES = Path(__file__).parents[2] / "data" / "responses"
SSE = "text/event-stream"


class Recorded(NamedTuple):
    """One file of `tests/data/responses`, and what `expected.json` says of it."""

    name: str
    response: Response
    content_type: str
    usage: Usage
    output: str
    body: bytes

    def reader(self) -> UsageReader:
        """A fresh reader for this response."""
        reader = reader_for(self.response, self.content_type)
        assert reader is not None
        return reader


def _recorded() -> list[Recorded]:
    expected = json.loads((RESPONSES / "expected.json").read_text("utf-8"))
    return [
        Recorded(
            name=name,
            response=_response(told["provider"], told["path"]),
            content_type=told["content_type"],
            usage=Usage(**{count: told.get(count) for count in COUNTS}),
            output=told["output"],
            body=(RESPONSES / name).read_bytes(),
        )
        for name, told in expected.items()
    ]


def _response(provider: str, path: str) -> Response:
    return next(shape for shape in BUILT_IN.profile(provider).shapes if shape.takes(path)).response


RECORDED = _recorded()
RESPONSES_API = BUILT_IN.profile("openai").shape("responses").response
OPENAI, ANTHROPIC, GEMINI = (BUILT_IN.profile(name).shapes[-1].response for name in ("openai", "anthropic", "gemini"))
every_response = pytest.mark.parametrize("response", RECORDED, ids=[response.name for response in RECORDED])


def read(reader: UsageReader | None, body: bytes, size: int = 1 << 30) -> Usage | None:
    assert reader is not None
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    return reader.finish()


def events(*data: object) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in data)


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_every_recorded_file_is_expected_and_every_expected_one_recorded() -> None:
    assert {path.name for path in RESPONSES.glob("*-*")} == {response.name for response in RECORDED}


@every_response
def test_a_response_read_whole_gives_its_usage(response: Recorded) -> None:
    assert read(response.reader(), response.body) == response.usage


@every_response
def test_a_response_read_byte_by_byte_gives_its_usage(response: Recorded) -> None:
    assert read(response.reader(), response.body, 1) == response.usage


@every_response
def test_a_response_read_in_two_parts_gives_its_usage(response: Recorded) -> None:
    for cut in range(len(response.body)):
        reader = response.reader()
        reader.feed(response.body[:cut])
        assert read(reader, response.body[cut:]) == response.usage


@every_response
@pytest.mark.parametrize("tail", [b"\n", b"\r\n\r\n", b"\n\n: bye\n\n", b'\n{"usage":7}', b"\n\xff\x00[["], ids=repr)
def test_a_tail_changes_nothing(response: Recorded, tail: bytes) -> None:
    assert read(response.reader(), response.body + tail) == response.usage
    assert read(response.reader(), response.body + tail, 1) == response.usage


@every_response
def test_a_response_without_its_final_line_end_gives_its_usage(response: Recorded) -> None:
    assert read(response.reader(), response.body.rstrip()) == response.usage


@every_response
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_line_ends_change_nothing(response: Recorded, line_end: bytes) -> None:
    body = response.body.replace(b"\r\n", b"\n").replace(b"\n", line_end)

    assert read(response.reader(), body) == response.usage
    assert read(response.reader(), body, 7) == response.usage


@every_response
def test_a_response_cut_off_anywhere_is_partial_or_told_all(response: Recorded) -> None:
    for cut in range(len(response.body)):
        reader = response.reader()
        usage = read(reader, response.body[:cut])
        assert usage is None or usage.partial or usage == response.usage
        assert usage is None or usage.total <= response.usage.total
        assert reader.seen_output <= len(response.output)


@every_response
def test_the_output_that_went_by_is_counted_once(response: Recorded) -> None:
    reader = response.reader()
    read(reader, response.body)

    assert reader.seen_output == len(response.output)


@every_response
def test_finishing_again_changes_nothing(response: Recorded) -> None:
    reader = response.reader()
    read(reader, response.body)
    seen = reader.seen_output

    assert reader.finish() == response.usage
    assert reader.usage == response.usage
    assert reader.seen_output == seen


def test_json_and_stream_of_an_api_agree() -> None:
    told = {response.name: response.usage for response in RECORDED}
    pairs = [(name, name.removesuffix(".json") + ".sse") for name in told if name.endswith(".json")]

    assert len([pair for pair in pairs if pair[1] in told]) == 5
    assert all(told[body] == told[stream] for body, stream in pairs if stream in told)


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "kind"),
    [
        ("application/json", None, JsonReader),
        ("application/json; charset=utf-8", "", JsonReader),
        (" Application/JSON ;x", "Identity", JsonReader),
        ("application/problem+json", None, JsonReader),
        ("text/event-stream", None, SseReader),
        ("text/event-stream;charset=UTF-8", "identity", SseReader),
    ],
)
def test_json_and_event_streams_are_read(content_type: str, content_encoding: str | None, kind: type) -> None:
    assert isinstance(reader_for(OPENAI, content_type, content_encoding), kind)


@pytest.mark.parametrize(
    ("content_type", "content_encoding"),
    [
        ("application/json", "gzip"),
        ("text/event-stream", "br"),
        ("application/json", "identity, gzip"),
        ("text/html", None),
        ("audio/mpeg", None),
        ("application/jsonl", None),
        ("", None),
        (None, None),
        (";" * 65536, "x" * 65536),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_other_types_and_compressed_bodies_are_not_read(content_type: str | None, content_encoding: str | None) -> None:
    assert reader_for(OPENAI, content_type, content_encoding) is None


def test_usage_of_the_request_side_is_known_before_the_stream_has_stopped() -> None:
    reader = SseReader(ANTHROPIC)
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}}
    reader.feed(events(start, text))

    assert reader.usage == Usage(25, 1, partial=True)
    assert reader.seen_output == len("Hello")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_a_stream_that_tells_no_usage_has_none(usage: object) -> None:
    assert read(SseReader(OPENAI), events({"choices": [], "usage": usage}, STOP)) is None


def test_usage_told_again_and_again_is_not_added_up() -> None:
    reports = [{"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": n}} for n in range(5)]

    assert read(SseReader(OPENAI), events(*reports, STOP)) == Usage(8, 4)


def test_data_over_several_lines_is_one_event() -> None:
    stream = events(STOP) + b'data: {"usage":\ndata: {"prompt_tokens": 3,\ndata:  "completion_tokens": 4}}\n\n'

    assert read(SseReader(OPENAI), stream) == Usage(3, 4)


def test_what_a_model_says_is_not_taken_for_usage() -> None:
    said = '{"usage": {"prompt_tokens": 1}}\n\ndata: {"usage": {"prompt_tokens": 1}, "finish_reason": "stop"}'
    chunk = {"choices": [{"delta": {"content": said}}]}

    assert read(SseReader(OPENAI), events(chunk, chunk, STOP)) is None
    assert read(JsonReader(OPENAI), json.dumps(chunk).encode()) is None


@pytest.mark.parametrize("size", [1000, MAX_EVENT, 1 << 30])
def test_usage_in_an_event_of_any_size_is_found(size: int) -> None:
    image = "A" * (4 * MAX_EVENT)
    openai = events({"type": "response.completed", "response": {"output": [image], "usage": {"input_tokens": 3}}})
    gemini = events(
        {
            "candidates": [{"content": {"parts": [{"inlineData": {"data": image}}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 3},
        }
    )
    in_lines = b"\ndata:".join(openai[start : start + 1000] for start in range(0, len(openai), 1000))

    assert read(SseReader(RESPONSES_API), openai, size) == Usage(3)
    assert read(SseReader(RESPONSES_API), in_lines, size) == Usage(3)
    assert read(SseReader(GEMINI), gemini, size) == Usage(3)


def test_the_event_after_a_large_one_is_read() -> None:
    large = b": %s\n\ndata: %s\n\n" % (b"x" * (2 * MAX_EVENT), b"y" * (2 * MAX_EVENT))

    assert read(SseReader(OPENAI), large + events(STOP, {"usage": {"prompt_tokens": 3}}), 1000) == Usage(3)


@pytest.mark.parametrize(
    "number",
    [
        "-1",
        "1.5",
        "1e2",
        "1e999",
        "true",
        "NaN",
        "Infinity",
        '"7"',
        "[7]",
        str(MAX_COUNT + 1),
        "9" * 4301,
        "-" + "9" * 4301,
    ],
    ids=lambda number: number[:12],
)
def test_a_hostile_number_makes_the_usage_partial(number: str) -> None:
    told = b'{"prompt_tokens": %s, "completion_tokens": 4}' % number.encode()
    body = b'{"choices": [{"finish_reason": "stop"}], "usage": %s}' % told
    usage = Usage(None, 4, partial=True)

    assert read(JsonReader(OPENAI), body) == usage
    assert read(SseReader(OPENAI), b"data: " + body) == usage


@pytest.mark.parametrize(
    "usage",
    [
        b"7",
        b'"none"',
        b"[1]",
        b"{,}",
        b'{"prompt_tokens": 01}',
        b'{"prompt_tokens": "\xff"}',
        b"[" * 9000 + b"]" * 9000,
    ],
    ids=lambda usage: repr(usage)[:40],
)
def test_a_usage_that_cannot_be_read_makes_it_partial(usage: bytes) -> None:
    body = b'{"finish_reason": "stop", "usage": %s, "z": 1}' % usage

    assert read(JsonReader(OPENAI), body) == Usage(partial=True)
    assert read(SseReader(OPENAI), b"data: " + body) == Usage(partial=True)


def test_of_duplicate_keys_the_last_one_counts() -> None:
    body = b'{"usage": {"prompt_tokens": 1, "prompt_tokens": 2}, "usage": {"completion_tokens": 3}}'

    assert read(JsonReader(OPENAI), body) == Usage(2, 3)


def test_deep_nesting_anywhere_does_no_harm() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    body = b'{"finish_reason": "stop", "deep": %s, "usage": {"prompt_tokens": 3, "deep": 1}, "more": %s}' % (deep, deep)

    assert read(JsonReader(OPENAI), body) == Usage(3)
    assert read(SseReader(OPENAI), b"data: " + body) == Usage(3)


PIECES = [
    b'data: {"usage": {"prompt_tokens": ',
    b'{"usage": {"input_tokens": 1',
    b'"usageMetadata": {"promptTokenCount": -1}',
    b'"message": {"usage": ',
    b'"delta": {"content": "',
    b'"finish_reason": "stop"',
    *(b"%c" % byte for byte in b'{}[]",:\\\r\n \xff\x00'),
    b"\n\ndata:",
    b"NaN",
    b"9" * 400,
    b"[" * 2000,
]
READERS = [
    reader
    for response in dict.fromkeys(response.response for response in RECORDED)
    for reader in ((response, "application/json"), (response, SSE))
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20)), st.sampled_from(READERS), st.integers(1, 50))
def test_no_bytes_make_a_reader_raise_and_no_cut_changes_the_usage(
    pieces: list[bytes], of: tuple[Response, str], size: int
) -> None:
    body = b"".join(pieces)
    whole, cut = reader_for(*of), reader_for(*of)

    assert read(whole, body) == read(cut, body, size)
    assert cut is not None
    assert cut.seen_output >= 0


JSON_UNITS = [
    b"x",
    b'"aaaaaaa',
    b"\\",
    b"[1111111",
    b'{"a":   ',
    b",       ",
    b'"content":"aaaaaaaaaaaaaaaa',
    b'{"usage":{"a":"xxxxxxxx',
]
SSE_UNITS = [b"x", b"data:\n", b"data: x\r", b": comment", b'"content":"aaaaaaaaaaaaaaaa']


@pytest.mark.parametrize(
    ("content_type", "start", "unit"),
    [("application/json", start, unit) for start in (b"", b'{"a": "', b'{"usage": {"a": "') for unit in JSON_UNITS]
    + [(SSE, start, unit) for start in (b"", b"data: ", b'data: {"usage": "') for unit in SSE_UNITS],
)
def test_memory_is_bounded_whatever_comes(content_type: str, start: bytes, unit: bytes) -> None:
    chunk = unit * (MAX_EVENT // 4 // len(unit))
    reader = reader_for(OPENAI, content_type)
    assert reader is not None
    tracemalloc.start()
    reader.feed(start)
    for _ in range(16):
        reader.feed(chunk)
    reader.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * MAX_EVENT
