"""The payloads of sound events are handed on however the stream is cut; after an unsound message nothing is."""

from __future__ import annotations

import json
import tracemalloc
from base64 import b64encode
from collections.abc import Mapping
from struct import pack
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.eventstream import event, exception
from sluice.usage.event_stream import MAX_HEADERS, MessageSplitter

WHOLE = 1 << 30


def strings(headers: Mapping[str, str]) -> bytes:
    """Headers of the type string."""
    return b"".join(
        pack("!B", len(name)) + name.encode() + b"\7" + pack("!H", len(value)) + value.encode()
        for name, value in headers.items()
    )


def message(payload: bytes, headers: bytes) -> bytes:
    """A message with its checksums, whatever its headers are."""
    prelude = pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + pack("!I", crc32(prelude)) + headers + payload
    return body + pack("!I", crc32(body))


EVENT = strings({":message-type": "event"})
CHUNK = strings({":message-type": "event", ":event-type": "chunk"})
OF_EVERY_TYPE = b"".join(
    b"\1" + b"abcdefghij"[kind : kind + 1] + pack("!B", kind) + value
    for kind, value in enumerate(
        [b"", b"", b"1", b"12", b"1234", b"12345678", b"\0\3abc", b"\0\0", b"12345678", b"u" * 16]
    )
)


def split(stream: bytes, size: int = WHOLE) -> tuple[list[bytes], bool]:
    """The payload of each event that came to its end, and whether the stream was broken."""
    events: list[bytes] = []
    held = bytearray()

    def end() -> None:
        events.append(bytes(held))
        held.clear()

    splitter = MessageSplitter(held.extend, end)
    for start in range(0, len(stream), size):
        splitter.feed(stream[start : start + size])
    splitter.finish()
    return events, splitter.broken


def test_a_message_of_the_documentation_is_read() -> None:
    # The bytes that botocore's own tests hold: payload {'foo':'bar'}, without headers; so it is no event.
    stream = b"\0\0\0\x1d\0\0\0\0\xfdR\x8cZ{'foo':'bar'}\xc3e96"

    assert message(b"{'foo':'bar'}", b"") == stream
    assert split(stream) == ([], False)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, WHOLE])
def test_events_are_handed_on_and_what_is_none_is_dropped(size: int) -> None:
    stream = b"".join(
        [
            event("messageStart", {"role": "assistant"}),
            message(b"an error", strings({":message-type": "error", ":error-code": "500"})),
            message(b"of no type", b""),
            message(b"", EVENT),
            message(b"of many headers", OF_EVERY_TYPE + EVENT + OF_EVERY_TYPE),
            event("chunk", {"type": "message_stop"}),
            exception("throttlingException", "Too many requests"),
        ]
    )

    assert split(stream, size) == (
        [b'{"role":"assistant"}', b"", b"of many headers", b'{"type": "message_stop"}'],
        False,
    )


def test_a_payload_is_handed_on_before_it_is_complete() -> None:
    pieces: list[bytes] = []
    splitter = MessageSplitter(pieces.append, lambda: pytest.fail("the event has not ended"))
    splitter.feed(message(b"x" * 100, EVENT)[:-40])

    assert sum(map(len, pieces)) == 64


def test_a_message_that_was_cut_off_is_no_event() -> None:
    stream = event("messageStop", {"stopReason": "end_turn"})
    for cut in range(len(stream)):
        assert split(stream[:cut]) == ([], False)


def test_after_any_byte_that_is_wrong_no_event_is_ended() -> None:
    first, second = event("a", {"n": 1}), event("b", {"n": 2})
    for at in range(len(second)):
        wrong = bytearray(second)
        wrong[at] ^= 0x10
        stream = first + wrong + first
        assert split(stream) == ([b'{"n":1}'], True)
        assert split(stream, 1) == ([b'{"n":1}'], True)


@pytest.mark.parametrize(
    ("total", "headers"),
    [(0, 0), (15, 0), (16, 1), (100, 85), (4, 0xFFFFFFFF), (0xFFFFFFFF, MAX_HEADERS + 1)],
)
def test_lengths_that_cannot_be_break_the_stream(total: int, headers: int) -> None:
    prelude = pack("!II", total, headers)

    assert split(prelude + pack("!I", crc32(prelude)) + b"\0" * 200) == ([], True)


@pytest.mark.parametrize(
    "headers",
    [
        b"\1",
        b"\5abc",
        b"\1a",
        b"\1a\x0a",
        b"\1a\xff",
        b"\1a\7",
        b"\1a\7\0",
        b"\1a\7\0\2x",
        b"\1a\6\xff\xff",
        b"\1a\x05123",
    ],
    ids=repr,
)
def test_headers_that_are_none_break_the_stream(headers: bytes) -> None:
    assert split(message(b"", EVENT + headers)) == ([], True)


def test_headers_up_to_the_specifications_bound_are_read() -> None:
    name = b"\1x\6" + pack("!H", 0x7FFF) + b"y" * 0x7FFF
    headers = EVENT + name * 3

    assert len(headers) < MAX_HEADERS
    assert split(message(b"{}", headers)) == ([b"{}"], False)
    assert split(message(b"{}", headers + name)) == ([], True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, WHOLE])
@pytest.mark.parametrize("length", range(9))
@pytest.mark.parametrize(
    "form",
    [
        '{"bytes":"%s","p":"abc"}',
        '{"p":"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",\n "bytes" : "%s"}',
    ],
    ids=["bytes first", "bytes last"],
)
def test_what_a_chunk_holds_is_decoded_however_it_is_cut(form: str, length: int, size: int) -> None:
    inner = b"\xff\xfe?>{}\0~"[:length]
    payload = (form % b64encode(inner).decode()).encode()

    assert split(message(payload, CHUNK), size) == ([inner], False)


@pytest.mark.parametrize(
    ("payload", "inner"),
    [
        (rb'{"bytes":"ey\/9"}', b"{/\xfd"),
        (b'{"bytes":"e30"', b"{}"),
        (b'{"bytes":"e3', b""),
        (b'{"bytes":"e"}', b""),
        (b'{"bytes":"e30=e30="}', b"{}"),
        (b'{"bytes":"e*3\xff0\n="}', b"{}"),
        (b'{"bytes":null}', b""),
        (b'{"p":"bytes"}', b""),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("size", [1, WHOLE])
def test_a_chunk_that_is_none_does_no_harm(payload: bytes, inner: bytes, size: int) -> None:
    assert split(message(payload, CHUNK), size) == ([inner], False)


def test_memory_is_bounded_whatever_the_payload() -> None:
    inner = json.dumps({"text": "x" * 4_000_000}).encode()
    stream = message(b'{"bytes":"%s"}' % b64encode(inner), CHUNK)
    taken = 0

    def take(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)

    splitter = MessageSplitter(take, lambda: None)
    tracemalloc.start()
    for start in range(0, len(stream), 16_384):
        splitter.feed(stream[start : start + 16_384])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert taken == len(inner)
    assert peak < 256 * 1024


PIECES = [
    event("a", {}),
    event("chunk", {"n": 1}),
    EVENT,
    message(b"xx", EVENT)[:-1],
    b"\0\0\0\x10",
    b"\0",
    pack("!I", crc32(b"")),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=12), st.integers(1, 50))
def test_any_bytes_are_split_alike_however_they_are_cut(pieces: list[bytes], size: int) -> None:
    stream = b"".join(pieces)

    assert split(stream, size) == split(stream, 1) == split(stream)
