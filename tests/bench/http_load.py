"""A load of LLM calls over HTTP/1.1 that costs little: the same bytes for every request, and answers read no further
than to their end. Each connection has one call in flight.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from bench.grpc_load import PATIENCE, connected
from bench.samples import GOOD, Sample

LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
SENT: Final = re.compile(rb'"sent":(\d+),')
"""When the upstream sent an event, in nanoseconds of the clock that all processes of a machine share."""


@dataclass(frozen=True, slots=True)
class HttpLoad:
    """What to send, and how much."""

    address: str
    request: bytes
    connections: int
    seconds: float
    """No call begins later."""
    calls: int = 2**31
    """Nor are there more than these."""
    pause: float = 0.0
    """Seconds of rest between an answer and the next call, for a load of one connection."""
    events: bool = False
    """Measure how late each event of a stream comes, rather than how late each answer ends."""


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    sent: int = 0
    looked: int = 0
    """Up to where the answer was searched for events."""


def run(load: HttpLoad) -> Sample:
    """Make the calls. Raises `OSError` and `RuntimeError` if a connection breaks or stays silent."""
    connections = [_Connection(connected(load.address)) for _ in range(load.connections)]
    try:
        with selectors.DefaultSelector() as selector:
            for connection in connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            return _Run(load).sample(connections, selector)
    finally:
        for connection in connections:
            connection.socket.close()


class _Run:
    def __init__(self, load: HttpLoad) -> None:
        self._load = load
        self._left = load.calls
        self._latencies: list[int] = []
        self._answers: Counter[str] = Counter()

    def sample(self, connections: list[_Connection], selector: selectors.BaseSelector) -> Sample:
        cpu, began = time.process_time(), time.monotonic_ns()
        ends = began + int(self._load.seconds * 1e9)
        in_flight = sum(self._send(connection, began) for connection in connections)
        last = began
        while in_flight:
            ready = selector.select(PATIENCE)
            if not ready:
                raise RuntimeError(f"{in_flight} calls have had no byte of an answer for {PATIENCE:.0f} s")
            for key, _ in ready:
                connection: _Connection = key.data
                chunk = connection.socket.recv(262_144)
                if not chunk:
                    raise RuntimeError("a connection was closed with a call in flight")
                now = time.monotonic_ns()
                connection.received += chunk
                if self._load.events:
                    self._see_events(connection, now)
                if _is_whole(connection.received):
                    in_flight -= 1
                    last = now
                    self._answered(connection, now)
                    if self._load.pause:
                        time.sleep(self._load.pause)
                        now = time.monotonic_ns()
                    if now < ends:
                        in_flight += self._send(connection, now)
        return Sample.of(self._latencies, (last - began) / 1e9, time.process_time() - cpu, self._answers)

    def _send(self, connection: _Connection, now: int) -> bool:
        if not self._left:
            return False
        self._left -= 1
        connection.received.clear()
        connection.looked = 0
        connection.sent = now
        connection.socket.sendall(self._load.request)
        return True

    def _answered(self, connection: _Connection, now: int) -> None:
        status = connection.received[9:12].decode("ascii", "replace")
        self._answers[GOOD if status == "200" else status] += 1
        if not self._load.events:
            self._latencies.append(now - connection.sent)

    def _see_events(self, connection: _Connection, now: int) -> None:
        whole = connection.received.rfind(b"\n\n") + 1
        for found in SENT.finditer(connection.received, connection.looked, whole):
            self._latencies.append(now - int(found[1]))
        connection.looked = max(whole, connection.looked)


def _is_whole(received: bytearray) -> bool:
    """True at the end of an answer; bytes after it, there are none."""
    if received.endswith(LAST_CHUNK):
        return True
    head = received.find(b"\r\n\r\n", 0, 8192)
    if head < 0:
        return False
    length = LENGTH.search(received, 0, head)
    return length is not None and len(received) >= head + 4 + int(length[1])
