"""No bytes whatever upset a reader: it never raises, keeps little, and is told the same however they are cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from struct import pack
from zlib import crc32

import pytest

from helpers.codings import CODINGS, encoded, header
from helpers.eventstream import event, exception
from helpers.examples import EVENT_STREAM, EXAMPLES, WHOLE, read, response_of
from helpers.fuzzing import SECONDS, fuzz
from sluice.core.limits import MAX_COUNT
from sluice.usage.decoding import BLOCK, BYTES_AHEAD, RATIO, Decoder, codings_in
from sluice.usage.headers import USAGE_HEADERS, usage_from_headers
from sluice.usage.profiles.profile import Response
from sluice.usage.readers import MAX_EVENT, UsageReader, reader_for
from sluice.usage.tokens import MAX_USED, Usage

pytestmark = pytest.mark.timeout(60 + 3 * SECONDS)

JSON, SSE, NDJSON = "application/json", "text/event-stream", "application/x-ndjson"
MEMORY = 5 * MAX_EVENT
"""Bytes that a reader may hold, with the piece that it is fed."""
WORDS = [
    *(b"%c" % byte for byte in b'{}[]",:\\\r\n \0\xff'),
    b'"usage":{',
    b'"usage":null',
    b'"usageMetadata":{',
    b'"message":{"usage":{',
    b'"response":{"usage":{',
    b'"prompt_tokens":1',
    b'"input_tokens":1',
    b'"output_tokens":1',
    b'"promptTokenCount":1',
    b'"prompt_eval_count":1',
    b'"inputTokens":1',
    b'"finish_reason":"stop"',
    b'"stop_reason":"end_turn"',
    b'"done":true',
    b'"content":"',
    b'"delta":{"text":"',
    b"\\ud83c\\udf0a",
    b"data:",
    b"\n\ndata: ",
    b": keep-alive\n\n",
    b"event: x\n",
    b"\r\n\r\n",
    b"\xef\xbb\xbf",
    b"[" * 200,
    b'{"a":' * 100,
    b'"' * 7,
    b"\\" * 7,
]


SHAPES = [
    response_of(provider, path)
    for provider, path in (
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/responses"),
        ("anthropic", "/v1/messages"),
        ("gemini", "/v1beta/models/m:streamGenerateContent"),
        ("bedrock", "/model/m/converse-stream"),
        ("bedrock", "/model/m/invoke-with-response-stream"),
        ("cohere", "/v2/chat"),
        ("ollama", "/api/chat"),
    )
]
"""The shapes that differ most. The first byte of an input says which one the rest should have."""


def shaped(data: bytes) -> tuple[Response, bytes]:
    """The shape, and the body."""
    return SHAPES[data[0] % len(SHAPES) if data else 0], data[1:]


def seeds(content_type: str) -> list[bytes]:
    """The recorded responses of this type, as inputs."""
    found = []
    for example in EXAMPLES:
        if example.content_type == content_type:
            shape = SHAPES.index(example.response) if example.response in SHAPES else 0
            found.append(bytes([shape]) + example.body)
    return found


def in_range(usage: Usage | None) -> bool:
    """True if a call may be charged so."""
    if usage is None:
        return True
    counts = (*usage[:3], *usage[4:])
    # A count is a sum of a few fields, each of them one that is believed.
    return all(count is None or 0 <= count <= 8 * MAX_USED for count in counts) and 0 <= usage.total <= MAX_COUNT


def agree(new: Callable[[], UsageReader | None], body: bytes) -> UsageReader:
    """Feed it whole, in pieces and byte by byte. Returns the reader that was fed whole."""
    whole = new()
    assert whole is not None
    usage = read(whole, body)
    assert in_range(usage)
    assert 0 <= whole.seen_output <= len(body)
    assert whole.finish() == whole.usage == usage
    for size in (1 if len(body) < 1000 else 17, len(body) % 97 + 1):
        cut = new()
        assert read(cut, body, size) == usage
        assert cut is not None
        assert cut.stopped == whole.stopped
    return whole


def keeps_little(reader: UsageReader, body: bytes) -> None:
    """Feed it so often that whatever it kept of each would be seen."""
    piece = body * (MAX_EVENT // 4 // max(1, len(body)))
    tracemalloc.start()
    try:
        for _ in range(32):
            reader.feed(piece)
        reader.finish()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def repaired(data: bytes) -> bytes:
    """A stream of messages in which the lengths and checksums are right again."""
    shape, rest, stream = data[:1], data[1:], b""
    while len(rest) > 16:
        total = min(max(16, int.from_bytes(rest[2:4])), len(rest))
        headers = min(int.from_bytes(rest[6:8]), total - 16)
        prelude = pack("!II", total, headers)
        body = prelude + pack("!I", crc32(prelude)) + rest[12 : total - 4]
        stream += body + pack("!I", crc32(body))
        rest = rest[total:]
    return shape + stream + rest


@pytest.mark.parametrize(
    ("name", "content_type"), [("json", JSON), ("sse", SSE), ("ndjson", NDJSON), ("event-stream", EVENT_STREAM)]
)
def test_a_reader_of_any_bytes(name: str, content_type: str) -> None:
    extra = [event("metadata", {"usage": {"inputTokens": 1}}), exception("x", "y")] if name == "event-stream" else []
    runs = 0

    def check(data: bytes) -> None:
        nonlocal runs
        runs += 1
        response, body = shaped(data)
        agree(lambda: reader_for(response, content_type), body)
        if runs % 100 == 0:
            reader = reader_for(response, content_type)
            assert reader is not None
            keeps_little(reader, body)

    def traced(data: bytes) -> None:
        response, body = shaped(data)
        read(reader_for(response, content_type), body)

    fuzz(
        name,
        check,
        [*seeds(content_type), *(b"\0" + each for each in extra)],
        WORDS + extra,
        traced=traced,
        repair=repaired if name == "event-stream" else None,
    )


CODING_NAMES = [(), *((coding,) for coding in CODINGS), ("gzip", "gzip"), ("br", "zstd"), ("deflate", "br")]


def test_decoders_of_any_bytes() -> None:
    example = next(each for each in EXAMPLES if each.content_type == JSON)

    def unpacked(data: bytes) -> tuple[tuple[str, ...], bytes]:
        """The first byte of an input names the codings, and says whether they are still to be applied to the rest."""
        kind, body = data[0] if data else 0, data[1:]
        codings = CODING_NAMES[kind // 2 % len(CODING_NAMES)]
        return codings, encoded(body, *codings) if kind % 2 else body

    def check(data: bytes) -> None:
        codings, body = unpacked(data)
        named = codings_in(header(*codings))
        assert named is not None
        out, stopped = decoded(named, body, WHOLE)
        for size in (1, 13, BLOCK + 1):
            pieces, also_stopped = decoded(named, body, size)
            assert stopped or also_stopped or pieces == out
        assert len(out) <= len(codings) * BYTES_AHEAD + RATIO * (len(body) + BLOCK) + len(body)
        if data[:1] and data[0] % 2:
            assert out == data[1:]
            assert not stopped
        usage = read(example.reader(header(*codings)), body)
        assert in_range(usage)
        assert usage is None or usage.partial or not stopped

    def traced(data: bytes) -> None:
        codings, body = unpacked(data)
        decoded(codings_in(header(*codings)) or (), body, WHOLE)

    texts = [example.body, b"", bytes(3000), b"[" * 3000]
    fuzz(
        "decoders",
        check,
        [
            bytes([2 * at + (1 - raw)]) + (encoded(text, *codings) if raw else text)
            for at, codings in enumerate(CODING_NAMES)
            for text in texts
            for raw in (0, 1)
        ],
        [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\0\0\xff\xff", bytes(64), b"\x0b\x02\x80", b'"usage":{'],
        traced=traced,
    )


def decoded(codings: tuple[str, ...], body: bytes, size: int) -> tuple[bytes, bool]:
    decoder = Decoder(codings)
    out = b"".join(piece for start in range(0, len(body), size) for piece in decoder.feed(body[start : start + size]))
    return out, decoder.stopped


BEDROCK_HEADERS = response_of("bedrock", "/model/m/invoke").headers


def test_usage_headers_of_any_bytes() -> None:
    def check(data: bytes) -> None:
        lines = [line.partition(b":") for line in data.split(b"\n")]
        headers = [(name.decode("latin-1"), value) for name, _, value in lines]
        for fields in (USAGE_HEADERS, BEDROCK_HEADERS):
            usage = usage_from_headers(headers, fields)
            assert in_range(usage)
            assert usage == usage_from_headers(((name, value.decode("latin-1")) for name, value in headers), fields)
        told = {name: value.decode("latin-1") for name, value in headers}
        reader = reader_for(EXAMPLES[0].response, told.get("content-type"), told.get("content-encoding"))
        assert reader is None or in_range(read(reader, data))

    told = b"x-usage-input-tokens:19\nx-usage-output-tokens:10\nx-usage-total-tokens:29"
    of_bedrock = b"x-amzn-bedrock-input-token-count:1\nx-amzn-bedrock-cache-read-input-token-count:2"
    kind = b"content-type:text/event-stream; charset=utf-8\ncontent-encoding:gzip, br"
    words = [*(told + b"\n" + of_bedrock + b"\n" + kind).split(b"\n"), b":", b",", b";", b"\n", b"-", b"+json", b"\xb2"]
    fuzz("headers", check, [told, of_bedrock, kind], words)
