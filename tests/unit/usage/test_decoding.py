"""What an encoded body holds comes out however it is cut; a bomb, and what is no such body, comes to nothing soon."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codings import CODINGS, deflated, encoded, header
from sluice.usage.decoding import BYTES_AHEAD, MARKS_AHEAD, MAX_CODINGS, PIECE, Decoder, codings_in

BOMB = Path(__file__).parents[2] / "data" / "bombs" / "256-mib-of-zeros.br"
WHOLE = 1 << 30
TEXT = "".join(random.Random(5).choices('abc \n"{}[]ü🌊', k=20_000)).encode()
PAIRS = [(first, second) for first in CODINGS for second in CODINGS]
every_coding = pytest.mark.parametrize("coding", CODINGS)


def decoded(body: bytes, *codings: str, size: int = WHOLE) -> tuple[bytes, bool]:
    """What the body holds, and whether it was read to its end."""
    named = codings_in(header(*codings))
    assert named is not None
    decoder = Decoder(named)
    pieces = [piece for start in range(0, len(body), size) for piece in decoder.feed(body[start : start + size])]
    return b"".join(pieces), not decoder.stopped


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, WHOLE])
@pytest.mark.parametrize("codings", [(), *((coding,) for coding in CODINGS), *PAIRS], ids=" then ".join)
def test_a_body_comes_out_however_it_is_cut(codings: tuple[str, ...], size: int) -> None:
    assert decoded(encoded(TEXT, *codings), *codings, size=size) == (TEXT, True)


@every_coding
def test_a_small_body_comes_out_wherever_it_is_cut(coding: str) -> None:
    body = encoded(TEXT[:100], coding)
    for cut in range(len(body)):
        decoder = Decoder(codings_in(header(coding)) or ())
        assert b"".join([*decoder.feed(body[:cut]), *decoder.feed(body[cut:])]) == TEXT[:100]
        assert not decoder.stopped


@every_coding
def test_nothing_comes_out_as_nothing(coding: str) -> None:
    assert decoded(encoded(b"", coding), coding, size=1) == (b"", True)
    assert decoded(b"", coding) == (b"", True)


@every_coding
def test_what_was_sent_before_a_body_was_cut_off_comes_out(coding: str) -> None:
    body = encoded(random.Random(1).randbytes(1_000_000), coding)
    out, read = decoded(body[:-1000], coding)

    assert read
    assert len(out) > 500_000


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_one_after_the_other_come_out(coding: str) -> None:
    body = encoded(b"one", coding) + encoded(b"", coding) + encoded(b"two", coding)

    assert decoded(body, coding) == decoded(body, coding, size=1) == (b"onetwo", True)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_that_hold_nothing_come_to_an_end(coding: str) -> None:
    empty = encoded(b"", coding)

    assert decoded(empty * 100, coding) == (b"", True)
    assert decoded(empty * 10_000, coding) == decoded(empty * 10_000, coding, size=100) == (b"", False)


@every_coding
def test_what_follows_the_end_stops_the_reading(coding: str) -> None:
    body = encoded(b"text", coding)

    assert not decoded(body + b"no member", coding)[1]
    assert decoded(body + b"no member", coding, size=1) == (b"text", False)


@every_coding
def test_what_is_not_of_the_coding_stops_the_reading(coding: str) -> None:
    body = b'{"usage":{"prompt_tokens":1}}'

    assert decoded(body, coding) == (b"", False)
    assert not decoded(body, coding, size=1)[1]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_checksum_that_is_wrong_stops_the_reading(coding: str) -> None:
    body = bytearray(encoded(b"text", coding))
    body[-1 if coding == "deflate" else -8] ^= 1

    assert decoded(bytes(body), coding, size=1) == (b"text", False)


@pytest.mark.parametrize(
    ("name", "codings"),
    [
        (None, ()),
        ("", ()),
        (" , ", ()),
        ("identity", ()),
        ("Identity, identity,", ()),
        ("gzip", ("gzip",)),
        ("X-GZip", ("x-gzip",)),
        ("deflate , br", ("deflate", "br")),
        ("identity,gzip,identity,gzip", ("gzip", "gzip")),
        ("gzip,gzip,gzip", None),
        ("compress", None),
        ("gzip;q=1", None),
        ("gzip br", None),
        ("dcb", None),
        ("aws-chunked", None),
        ("x" * 65536, None),
        ("," * 65536, ()),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_codings_of_a_header_are_known_or_not(name: str | None, codings: tuple[str, ...] | None) -> None:
    assert codings_in(name) == codings


def test_a_server_may_compress_twice() -> None:
    assert MAX_CODINGS == 2
    assert decoded(encoded(TEXT, "gzip", "gzip"), "gzip", "gzip") == (TEXT, True)
    assert b"".join(Decoder(("x-gzip",)).feed(encoded(TEXT, "gzip"))) == TEXT


# -- bombs ---------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Bodies that hold far more than they weigh, and their codings."""
    zeros, brackets = bytes(32 << 20), b"[" * (32 << 20)
    found: dict[str, tuple[bytes, tuple[str, ...]]] = {"256 MiB in brotli": (BOMB.read_bytes(), ("br",))}
    for coding in CODINGS:
        found[f"zeros, {coding}"] = (encoded(zeros, coding), (coding,))
        found[f"brackets, {coding}"] = (encoded(brackets, coding), (coding,))
    for first, second in (("br", "br"), ("br", "gzip"), ("gzip", "gzip"), ("zstd", "zstd"), ("gzip", "zstd")):
        inner = BOMB.read_bytes() if first == "br" else encoded(zeros, first)
        found[f"zeros, {header(first, second)}"] = (encoded(inner, second), (first, second))
        found[f"zeros under gibberish, {header(first, second)}"] = (encoded(zeros, second), (first, second))
    return found


MEASURE = """
import resource, sys, time
from sluice.usage.decoding import Decoder, codings_in
from sluice.usage.json_scan import JsonScanner

body = sys.stdin.buffer.read()
decoder = Decoder(codings_in(sys.argv[1]))
[*Decoder(codings_in(sys.argv[1])).feed(body[:1])]  # what is imported and made ready once is not the bomb's
scanner = JsonScanner({}, print)
size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = size(), time.process_time()
for piece in decoder.feed(body):
    scanner.feed(piece)
print(int(decoder.stopped), size() - before, time.process_time() - start)
"""
MOST_MEMORY = 8 * 1024
"""KiB."""
MOST_SECONDS = 0.050


def measured(body: bytes, codings: tuple[str, ...]) -> tuple[bool, int, float]:
    """Whether it was given up, and the KiB of memory and the seconds that it took, in a process of its own."""
    program = [sys.executable, "-c", MEASURE, header(*codings)]
    stopped, memory, seconds = subprocess.run(program, input=body, capture_output=True, check=True).stdout.split()
    return stopped == b"1", int(memory), float(seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_a_bomb_costs_little_memory_and_time_and_is_not_read_on() -> None:
    for name, (body, codings) in bombs().items():
        stopped, memory, seconds = measured(body, codings)
        for _ in range(2):  # what else the machine has to do is not the bomb's
            if memory >= MOST_MEMORY or seconds >= MOST_SECONDS:
                stopped, memory, seconds = measured(body, codings)
        assert stopped, name
        assert memory < MOST_MEMORY, name
        assert seconds < MOST_SECONDS, name


@every_coding
def test_how_much_comes_out_of_a_bomb_is_bounded_however_it_is_cut(coding: str) -> None:
    body = encoded(bytes(8 << 20), coding)[:5000]
    for size in (1, 100, WHOLE):
        out, read = decoded(body, coding, size=size)
        assert not read
        assert len(out) <= BYTES_AHEAD + len(body) * 200 + PIECE


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_a_window_that_nobody_needs_is_not_made(coding: str) -> None:
    large = {"br": b"\x0f" + bytes(100), "zstd": b"\x28\xb5\x2f\xfd\x00\xff" + bytes(100)}

    assert decoded(large[coding], coding) == (b"", False)


# -- what is plausible ---------------------------------------------------------------------------------------------


def chat(tokens: list[str]) -> bytes:
    """A stream as OpenAI writes it."""
    events = (
        {
            "id": "chatcmpl-9lMgfsdf8uR",
            "object": "chat.completion.chunk",
            "created": 1720000000,
            "model": "gpt-4o-mini-2024-07-18",
            "system_fingerprint": "fp_44709d6fcb",
            "choices": [{"index": 0, "delta": {"content": token}, "logprobs": None, "finish_reason": None}],
            "usage": None,
        }
        for token in tokens
    )
    return b"".join(b"data: %s\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in events)


@every_coding
def test_a_stream_that_compresses_well_is_read_however_long_it_is(coding: str) -> None:
    source = random.Random(3)
    words = ["".join(source.choices("abcdefghij", k=source.randint(1, 9))) for _ in range(2000)]
    body = chat(source.choices(words, k=50_000))
    small = encoded(body, coding)

    assert len(body) > 3 * BYTES_AHEAD > 20 * len(small)
    assert decoded(small, coding) == (body, True)


@every_coding
def test_an_answer_that_says_the_same_word_for_ever_is_read_while_it_is_short(coding: str) -> None:
    body = chat([" the"] * 250)

    assert len(body) > MARKS_AHEAD
    assert decoded(encoded(body, coding), coding) == (body, True)


def test_a_long_gzip_body_is_decoded_in_linear_time_and_whole() -> None:
    words = random.Random(4)
    pieces = [chat([str(words.random())]) for _ in range(20_000)]
    body = b"".join(deflated(pieces))

    assert decoded(body, "gzip") == (b"".join(pieces), True)


# -- no cut changes what is told ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([(coding,) for coding in CODINGS] + PAIRS),
    st.sampled_from([b"", b"x", TEXT[:3000], b"[" * 300_000, bytes(5_000_000)]),
    st.integers(1, 700),
)
def test_no_cut_changes_what_a_sound_body_holds_nor_whether_it_is_plausible(
    codings: tuple[str, ...], body: bytes, size: int
) -> None:
    small = encoded(body, *codings)
    whole, cut = decoded(small, *codings), decoded(small, *codings, size=size)

    assert whole[1] == cut[1]
    assert whole[0] == cut[0] or not whole[1]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(CODINGS), st.binary(max_size=40), st.integers(0, 200), st.binary(max_size=40), st.integers(1, 99)
)
def test_any_bytes_that_can_be_decoded_are_decoded_alike_however_they_are_cut(
    coding: str, start: bytes, kept: int, tail: bytes, size: int
) -> None:
    body = start + encoded(TEXT[:300], coding)[:kept] + tail
    (whole, read), (cut, also_read) = decoded(body, coding), decoded(body, coding, size=size)

    assert whole == cut or not (read and also_read)


def test_what_follows_a_body_that_came_out_in_pieces_is_looked_at_once() -> None:
    # Found by fuzzing: at the end zlib still shows the last bytes that it had left over, and once more each time.
    body = encoded(bytes(PIECE + 1), "deflate") + b"x" * 100

    assert decoded(body, "deflate") == decoded(body, "deflate", size=1) == (bytes(PIECE + 1), False)
