"""Responses in each API's documented shape give the same usage however they arrive; no bytes can upset a reader."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codings import CODINGS, encoded, header
from helpers.eventstream import event, exception
from helpers.examples import EVENT_STREAM, EXAMPLES, SHORTEST, WHOLE, Example, read, response_of
from helpers.responses import FOLDER
from sluice.usage.event_stream import MessageSplitter
from sluice.usage.ndjson import LineSplitter
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import Response
from sluice.usage.readers import MAX_EVENT, DecodingReader, JsonReader, StreamReader, is_stream, reader_for
from sluice.usage.tokens import MAX_USED, Usage

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
RESPONSES_API = BUILT_IN.profile("openai").shape("responses").response
OPENAI, ANTHROPIC, GEMINI = (BUILT_IN.profile(name).shapes[-1].response for name in ("openai", "anthropic", "gemini"))
TEXTS = [response for response in EXAMPLES if response.is_text]
every_response = pytest.mark.parametrize("response", EXAMPLES, ids=[response.name for response in EXAMPLES])
every_text = pytest.mark.parametrize("response", TEXTS, ids=[response.name for response in TEXTS])
of_each_form = pytest.mark.parametrize(
    "response",
    [
        pytest.param(response, id=response.name, marks=() if response in SHORTEST else pytest.mark.thorough)
        for response in EXAMPLES
    ],
)
"""What takes long: the quick tests try it with the shortest of each form alone."""


def events(*data: object) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in data)


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_every_recorded_file_is_expected_and_every_expected_one_recorded() -> None:
    assert {path.name for path in FOLDER.glob("*-*")} == {response.name for response in EXAMPLES}


@every_response
def test_a_response_read_whole_gives_its_usage(response: Example) -> None:
    assert read(response.reader(), response.body) == response.usage


@every_response
def test_a_response_read_byte_by_byte_gives_its_usage(response: Example) -> None:
    assert read(response.reader(), response.body, 1) == response.usage


@of_each_form
def test_a_response_read_in_two_parts_gives_its_usage(response: Example) -> None:
    for cut in range(len(response.body)):
        reader = response.reader()
        reader.feed(response.body[:cut])
        assert read(reader, response.body[cut:]) == response.usage


@every_text
@pytest.mark.parametrize("tail", [b"\n", b"\r\n\r\n", b"\n\n: bye\n\n", b'\n{"usage":', b"\n\xff\x00[["], ids=repr)
def test_a_tail_changes_nothing(response: Example, tail: bytes) -> None:
    assert read(response.reader(), response.body + tail) == response.usage
    assert read(response.reader(), response.body + tail, 1) == response.usage


@every_text
def test_a_response_without_its_final_line_end_gives_its_usage(response: Example) -> None:
    assert read(response.reader(), response.body.rstrip()) == response.usage


@every_text
def test_line_ends_change_nothing(response: Example) -> None:
    # To JSON a carriage return alone is white space, and ends no line.
    for line_end in (b"\n", b"\r\n") if response.content_type == NDJSON else (b"\n", b"\r\n", b"\r"):
        body = response.body.replace(b"\r\n", b"\n").replace(b"\n", line_end)
        assert read(response.reader(), body) == response.usage
        assert read(response.reader(), body, 7) == response.usage


@every_text
def test_a_byte_order_mark_and_blank_lines_before_a_response_change_nothing(response: Example) -> None:
    for start in (b"\xef\xbb\xbf", b"\n\n\r\n", b" \n"):
        assert read(response.reader(), start + response.body) == response.usage
        assert read(response.reader(), start + response.body, 1) == response.usage


@of_each_form
def test_a_response_cut_off_anywhere_is_partial_or_told_all(response: Example) -> None:
    for cut in range(len(response.body)):
        reader = response.reader()
        usage = read(reader, response.body[:cut])
        assert usage is None or usage.partial or usage == response.usage
        assert usage is None or response.usage is None or usage.total <= response.usage.total
        assert reader.seen_output <= len(response.output.encode())


@every_response
def test_the_output_that_went_by_is_counted_once(response: Example) -> None:
    reader = response.reader()
    read(reader, response.body)

    assert reader.seen_output == len(response.output.encode())


@every_response
def test_finishing_again_changes_nothing(response: Example) -> None:
    reader = response.reader()
    read(reader, response.body)
    seen = reader.seen_output

    assert reader.finish() == response.usage
    assert reader.usage == response.usage
    assert reader.seen_output == seen


def test_json_and_stream_of_an_api_agree() -> None:
    told: dict[str, set[Usage | None]] = {}
    for response in EXAMPLES:
        told.setdefault(response.name.rpartition(".")[0], set()).add(response.usage)

    assert len(told) < len(EXAMPLES)
    assert [name for name, usages in told.items() if len(usages) > 1] == []


@of_each_form
@pytest.mark.parametrize("coding", CODINGS)
def test_a_response_that_is_encoded_gives_its_usage(response: Example, coding: str) -> None:
    body = encoded(response.body, coding)
    whole, bytewise = response.reader(header(coding)), response.reader(header(coding))

    assert read(whole, body) == response.usage
    assert whole.seen_output == len(response.output.encode()) or not response.content_type.startswith("text/")
    assert read(bytewise, body, 1) == response.usage


@of_each_form
def test_a_response_that_is_encoded_twice_gives_its_usage_wherever_it_is_cut(response: Example) -> None:
    codings = (CODINGS[len(response.name) % len(CODINGS)], CODINGS[len(response.body) % len(CODINGS)])
    body = encoded(response.body, *codings)
    for cut in range(len(body)):
        reader = response.reader(header(*codings))
        reader.feed(body[:cut])
        assert read(reader, body[cut:]) == response.usage


@every_response
def test_a_response_in_an_encoded_body_that_is_broken_off_is_partial_or_told_all(response: Example) -> None:
    body = encoded(response.body, "gzip")
    for cut in range(0, len(body), 13):
        usage = read(response.reader("gzip"), body[:cut])
        assert usage is None or usage.partial or usage == response.usage


def test_usage_told_before_a_body_turned_out_to_be_a_bomb_is_partial() -> None:
    body = encoded(b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}' + bytes(20_000_000), "gzip")
    reader = reader_for(OPENAI, "application/json", "gzip")

    assert read(reader, body) == Usage(3, 4, partial=True)
    assert reader is not None
    assert reader.stopped


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "kind"),
    [
        ("application/json", None, JsonReader),
        ("application/json; charset=utf-8", "", JsonReader),
        (" Application/JSON ;x", "Identity", JsonReader),
        ("application/problem+json", None, JsonReader),
        ("text/event-stream", None, StreamReader),
        ("text/event-stream;charset=UTF-8", "identity", StreamReader),
        ("application/x-ndjson", None, StreamReader),
        ("application/vnd.amazon.eventstream", None, StreamReader),
        ("application/json", "gzip", DecodingReader),
        ("text/event-stream", "identity, br, zstd", DecodingReader),
    ],
)
def test_json_and_streams_are_read_encoded_or_not(content_type: str, content_encoding: str | None, kind: type) -> None:
    assert isinstance(reader_for(OPENAI, content_type, content_encoding), kind)


@pytest.mark.parametrize(
    ("content_type", "content_encoding"),
    [
        ("application/json", "compress"),
        ("text/event-stream", "br, dcb"),
        ("application/json", "gzip, gzip, gzip"),
        ("text/html", None),
        ("text/html", "gzip"),
        ("audio/mpeg", None),
        ("application/jsonl", None),
        ("", None),
        (None, None),
        (";" * 65536, "x" * 65536),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_other_types_and_codings_are_not_read(content_type: str | None, content_encoding: str | None) -> None:
    assert reader_for(OPENAI, content_type, content_encoding) is None


@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        ("text/event-stream; charset=utf-8", True),
        ("application/x-ndjson", True),
        ("Application/vnd.amazon.EventStream", True),
        ("application/json", False),
        (None, False),
    ],
)
def test_a_stream_is_known_by_its_media_type(content_type: str | None, told: bool) -> None:
    assert is_stream(content_type) == told


def test_usage_of_the_request_side_is_known_before_the_stream_has_stopped() -> None:
    reader = StreamReader(ANTHROPIC)
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}}
    reader.feed(events(start, text))

    assert reader.usage == Usage(25, 1, partial=True)
    assert reader.seen_output == len("Hello")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_a_stream_that_tells_no_usage_has_none(usage: object) -> None:
    assert read(StreamReader(OPENAI), events({"choices": [], "usage": usage}, STOP)) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (r"abc", 3),
        ("grüße 🌊", 12),
        (r"gr\u00fc\u00DFe \ud83c\udf0a", 12),
        (r"\"\\\n\/", 4),
        (r"\u4e16\u754c", 6),
        (r"\u003c\u00e9", 3),
        (r"\ud83c", 3),
        (r"\ud83c\ud83c\udf0a\udf0a", 10),
        (r"\\ud83c\udf0a", 9),
    ],
)
def test_an_escape_counts_as_the_character_that_it_stands_for(text: str, size: int) -> None:
    reader = StreamReader(OPENAI)
    read(reader, b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode())

    assert reader.seen_output == size


def test_usage_told_again_and_again_is_not_added_up() -> None:
    reports = [{"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": n}} for n in range(5)]

    assert read(StreamReader(OPENAI), events(*reports, STOP)) == Usage(8, 4)


def test_data_over_several_lines_is_one_event() -> None:
    stream = events(STOP) + b'data: {"usage":\ndata: {"prompt_tokens": 3,\ndata:  "completion_tokens": 4}}\n\n'

    assert read(StreamReader(OPENAI), stream) == Usage(3, 4)


def test_what_a_model_says_is_not_taken_for_usage() -> None:
    said = '{"usage": {"prompt_tokens": 1}}\n\ndata: {"usage": {"prompt_tokens": 1}, "finish_reason": "stop"}'
    saying = {"choices": [{"delta": {"content": said}}]}

    assert read(StreamReader(OPENAI), events(saying, saying, STOP)) is None
    assert read(JsonReader(OPENAI), json.dumps(saying).encode()) is None


@pytest.mark.parametrize("size", [1000, MAX_EVENT, WHOLE])
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

    assert read(StreamReader(RESPONSES_API), openai, size) == Usage(3)
    assert read(StreamReader(RESPONSES_API), in_lines, size) == Usage(3)
    assert read(StreamReader(GEMINI), gemini, size) == Usage(3)


OLLAMA = response_of("ollama", "/api/chat")
CONVERSE = response_of("bedrock", "/model/m/converse-stream")
METADATA = {"metrics": {"latencyMs": 7}, "usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11}}


@pytest.mark.parametrize("size", [1, 7, WHOLE])
def test_usage_in_the_last_line_of_many_documents_is_final_once_the_model_is_done(size: int) -> None:
    said = b'{"message":{"content":"Hi \\"done\\":true"},"done":false}\r\n\n'
    done = b'{"message":{"content":""},"done":true,"context":[%s1],"prompt_eval_count":5,"eval_count":6}' % (
        b"1," * 20_000
    )

    assert read(StreamReader(OLLAMA, LineSplitter), said * 3 + done, size) == Usage(5, 6)
    assert read(StreamReader(OLLAMA, LineSplitter), said * 3 + done[:-1], size) in {None, Usage(5, partial=True)}


@pytest.mark.parametrize("size", [1, 7, WHOLE])
def test_usage_in_a_stream_of_messages_is_final_once_the_model_has_stopped(size: int) -> None:
    said = event("contentBlockDelta", {"delta": {"text": "Hello"}})
    stop, told = event("messageStop", {"stopReason": "end_turn"}), event("metadata", METADATA)
    reader = StreamReader(CONVERSE, MessageSplitter)

    assert read(reader, said + stop + told, size) == Usage(5, 6, 11)
    assert reader.seen_output == len("Hello")
    assert read(StreamReader(CONVERSE, MessageSplitter), said + told, size) == Usage(5, 6, 11, partial=True)


def test_an_exception_in_a_stream_of_messages_leaves_what_was_told_partial() -> None:
    stream = event("metadata", METADATA) + exception("modelStreamErrorException", '"stopReason":"x"')

    assert read(StreamReader(CONVERSE, MessageSplitter), stream) == Usage(5, 6, 11, partial=True)


def test_a_stream_of_messages_that_is_broken_leaves_what_was_told_partial() -> None:
    sound = event("messageStop", {"stopReason": "end_turn"}) + event("metadata", METADATA)
    reader = StreamReader(CONVERSE, MessageSplitter)

    assert read(reader, sound) == Usage(5, 6, 11)
    assert read(reader, b"\xff" * 12 + sound) == Usage(5, 6, 11, partial=True)
    assert reader.stopped


def test_usage_in_a_message_that_was_changed_on_the_way_is_not_read() -> None:
    told = bytearray(event("metadata", METADATA))
    told[-20] ^= 1

    assert read(StreamReader(CONVERSE, MessageSplitter), bytes(told)) is None


@pytest.mark.parametrize("size", [1, 7, WHOLE])
def test_events_of_a_model_that_are_wrapped_in_chunks_are_read(size: int) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
    reader = StreamReader(ANTHROPIC, MessageSplitter)

    assert read(reader, event("chunk", start) + event("chunk", text) + event("chunk", stop), size) == Usage(25, 7)
    assert reader.seen_output == len("Hello")


def test_the_event_after_a_large_one_is_read() -> None:
    large = b": %s\n\ndata: %s\n\n" % (b"x" * (2 * MAX_EVENT), b"y" * (2 * MAX_EVENT))

    assert read(StreamReader(OPENAI), large + events(STOP, {"usage": {"prompt_tokens": 3}}), 1000) == Usage(3)


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
        str(MAX_USED + 1),
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
    assert read(StreamReader(OPENAI), b"data: " + body) == usage


@pytest.mark.parametrize(
    "usage",
    [
        b"7",
        b'"none"',
        b"[1]",
        b"{,}",
        b'{"prompt_tokens": 01}',
        b'{"prompt_tokens": "\xff"}',
        b'{"prompt_tokens": 1, "prompt_tokens": 1}',
        b'{"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1, "cached_tokens": 0}}',
        b"[" * 9000 + b"]" * 9000,
    ],
    ids=lambda usage: repr(usage)[:40],
)
def test_a_usage_that_cannot_be_read_makes_it_partial(usage: bytes) -> None:
    body = b'{"finish_reason": "stop", "usage": %s, "z": 1}' % usage

    assert read(JsonReader(OPENAI), body) == Usage(partial=True)
    assert read(StreamReader(OPENAI), b"data: " + body) == Usage(partial=True)


def test_of_two_reports_in_one_document_the_last_one_counts() -> None:
    body = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "usage": {"completion_tokens": 3}}'

    assert read(JsonReader(OPENAI), body) == Usage(1, 3)


def test_deep_nesting_anywhere_does_no_harm() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    body = b'{"finish_reason": "stop", "deep": %s, "usage": {"prompt_tokens": 3, "deep": 1}, "more": %s}' % (deep, deep)

    assert read(JsonReader(OPENAI), body) == Usage(3)
    assert read(StreamReader(OPENAI), b"data: " + body) == Usage(3)


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
    for response in dict.fromkeys(response.response for response in EXAMPLES)
    for reader in ((response, "application/json"), (response, SSE), (response, NDJSON), (response, EVENT_STREAM))
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
NDJSON_UNITS = [b"x", b"\n", b'"content":"aaaaaaaaaaaaaaaa', b"{}\n"]


@pytest.mark.parametrize(
    ("content_type", "start", "unit"),
    [("application/json", start, unit) for start in (b"", b'{"usage": {"a": "') for unit in JSON_UNITS]
    + [(SSE, start, unit) for start in (b"", b'data: {"usage": "') for unit in SSE_UNITS]
    + [(NDJSON, start, unit) for start in (b"", b'{"usage": "') for unit in NDJSON_UNITS]
    + [
        pytest.param(kind, start, unit, marks=pytest.mark.thorough)
        for kind, start, units in (("application/json", b'{"a": "', JSON_UNITS), (SSE, b"data: ", SSE_UNITS))
        for unit in units
    ]
    + [(EVENT_STREAM, b"", event("delta", {"text": "x" * size})) for size in (0, 1000, 20_000)],
)
def test_memory_is_bounded_whatever_comes(content_type: str, start: bytes, unit: bytes) -> None:
    piece = unit * (MAX_EVENT // 4 // len(unit))
    reader = reader_for(OPENAI, content_type)
    assert reader is not None
    tracemalloc.start()
    reader.feed(start)
    for _ in range(16):
        reader.feed(piece)
    reader.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * MAX_EVENT
