"""A provider that costs next to nothing: one JSON answer, or a stream of events that each say when they were sent."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Final

EVENTS: Final = 300
PAUSE: Final = 0.01
"""Seconds between two events."""
PHASES: Final = 20
"""Streams send in turn, each at its own part of the pause: they do not queue behind one another's events."""

_USAGE: Final = {"prompt_tokens": 20, "completion_tokens": 22, "total_tokens": 42}
_ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
).encode()
_WHOLE: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER)
) + _ANSWER
_BEGIN: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"sent":%d,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
)
_END: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[],'
    b'"usage":%s}\n\ndata: [DONE]\n\n'
) % json.dumps(_USAGE).encode()
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """One connection, with one request at a time."""

    streams = 0
    """How many there have been, over all connections."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0 or self._transport is None:
            return
        length = _LENGTH.search(self._received, 0, head)
        if len(self._received) < head + 4 + (0 if length is None else int(length[1])):
            return
        is_stream = b'"stream":true' in self._received
        self._received.clear()
        if is_stream:
            self._transport.write(_BEGIN)
            self._begin()
        else:
            self._transport.write(_WHOLE)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        phase = Upstream.streams % PHASES / PHASES
        Upstream.streams += 1
        due = (loop.time() // PAUSE + 1 + phase) * PAUSE
        loop.call_at(due, self._tell, EVENTS, due)

    def _tell(self, left: int, due: float) -> None:
        """One event now, and the next one at its time, however long this one took."""
        if self._transport is None:
            return
        if not left:
            self._transport.write(_chunk(_END) + b"0\r\n\r\n")
            return
        self._transport.write(_chunk(_EVENT % time.monotonic_ns()))
        asyncio.get_running_loop().call_at(due + PAUSE, self._tell, left - 1, due + PAUSE)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
