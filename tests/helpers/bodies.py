"""Answers of any size, in each of the forms that are read: the long ones of real providers."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from itertools import count
from random import Random
from typing import NamedTuple

from helpers.codings import deflated
from helpers.eventstream import event
from helpers.examples import EVENT_STREAM, response_of
from sluice.usage.profiles.profile import Response
from sluice.usage.readers import UsageReader, reader_for
from sluice.usage.tokens import Usage

MB = 1_000_000
PIECE = 16 * 1024
"""Bytes in which a body comes, as over a network."""
_BLOCK = 256 * 1024


class Body(NamedTuple):
    """A body of a kind, as long as is wanted: a start, a block again and again, and an end that tells the usage."""

    name: str
    response: Response
    content_type: str
    start: bytes
    block: bytes
    end: bytes
    usage: Usage
    coding: str | None = None

    def pieces(self, size: int) -> Iterator[bytes]:
        """The body in pieces, `size` bytes of it before it is encoded, and a little more."""
        plain = _cut(self._blocks(size))
        return _cut(deflated(plain)) if self.coding else plain

    def reader(self) -> UsageReader:
        reader = reader_for(self.response, self.content_type, self.coding)
        assert reader is not None
        return reader

    def _blocks(self, size: int) -> Iterator[bytes]:
        yield self.start
        for _ in range(0, size, len(self.block)):
            yield self.block
        yield self.end


def _cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        held += block
        whole = len(held) // PIECE * PIECE
        for start in range(0, whole, PIECE):
            yield held[start : start + PIECE]
        held = held[whole:]
    yield held


def _block(parts: Iterator[bytes]) -> bytes:
    block = bytearray()
    while len(block) < _BLOCK:
        block += next(parts)
    return bytes(block)


def _words() -> Iterator[str]:
    random = Random(1)
    words = ["".join(random.choices("abcdefghijklmnopqrst", k=random.randint(1, 9))) for _ in range(2000)]
    while True:
        yield " " + random.choice(words)


def _sse(data: object) -> bytes:
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


def _chunk(choices: list[object], usage: object = None) -> bytes:
    return _sse(
        {
            "id": "chatcmpl-9lMgfsdf8uR",
            "object": "chat.completion.chunk",
            "created": 1720000000,
            "model": "gpt-4o-mini-2024-07-18",
            "system_fingerprint": "fp_44709d6fcb",
            "choices": choices,
            "usage": usage,
        }
    )


def _choice(word: str, stop: str | None = None) -> list[object]:
    return [{"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": stop}]


def _embeddings() -> Body:
    random = Random(2)
    return Body(
        "JSON: embeddings",
        response_of("openai", "/v1/embeddings"),
        "application/json",
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0',
        _block(b",%.8f" % random.gauss(0, 0.02) for _ in count()),
        b']}],"model":"text-embedding-3-large","usage":{"prompt_tokens":8,"total_tokens":8}}',
        Usage(8, None, 8),
    )


def _image() -> Body:
    return Body(
        "JSON: an image",
        response_of("openai", "/v1/chat/completions"),
        "application/json",
        b'{"data":[{"b64_json":"',
        b64encode(Random(3).randbytes(_BLOCK)),
        b'"}],"usage":{"input_tokens":50,"output_tokens":4160,"total_tokens":4210}}',
        Usage(50, 4160, 4210),
    )


def _chat(coding: str | None = None) -> Body:
    told = {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
    return Body(
        f"SSE: chat{' in ' + coding if coding else ''}",
        response_of("openai", "/v1/chat/completions"),
        "text/event-stream",
        b"",
        _block(_chunk(_choice(word)) for word in _words()),
        _chunk(_choice("", "stop")) + _chunk([], told) + b"data: [DONE]\n\n",
        Usage(19, 10, 29),
        coding,
    )


def _lines() -> Body:
    def line(word: str, **more: object) -> bytes:
        told = {"model": "llama3.2", "created_at": "2026-08-04T08:52:19.385406455-07:00"}
        message = {"role": "assistant", "content": word}
        return json.dumps({**told, "message": message, "done": bool(more), **more}).encode() + b"\n"

    return Body(
        "NDJSON: chat",
        response_of("ollama", "/api/chat"),
        "application/x-ndjson",
        b"",
        _block(line(word) for word in _words()),
        line("", done_reason="stop", prompt_eval_count=26, eval_count=259),
        Usage(26, 259),
    )


def _messages() -> Body:
    told = {"inputTokens": 25, "outputTokens": 15, "totalTokens": 40}
    return Body(
        "AWS event stream: converse",
        response_of("bedrock", "/model/m/converse-stream"),
        EVENT_STREAM,
        b"",
        _block(
            event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}, "p": "abcdefghij"})
            for word in _words()
        ),
        event("messageStop", {"stopReason": "end_turn"}) + event("metadata", {"usage": told}),
        Usage(25, 15, 40),
    )


BODIES = (_embeddings(), _image(), _chat(), _lines(), _messages(), _chat("gzip"))
