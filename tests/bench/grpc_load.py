"""A load of unary gRPC calls that costs far less than the server under it: HTTP/2 by hand, over one blocking socket.

A gRPC client in Python spends as much on a call as the server does, and would measure itself. This one speaks just
enough HTTP/2 (RFC 9113): request headers are the same bytes every time (literals, no compression state), answers are
told apart by their stream, and only their message is read. It heeds the server's windows and answers its pings. The
number of calls in flight is constant: each answer sends the next request.

It also fetches a file by GET, for a yardstick that is no gRPC server.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from bench.samples import GOOD, Sample

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_WINDOW: Final = 65_535
WIDEST: Final = 2**31 - 1
HEADER: Final = struct.Struct(">BHBBL")
"""A frame's header: length (8 + 16 bits), type, flags, stream."""
PATIENCE: Final = 10.0
"""Seconds without a byte after which the server is given up."""

_OK: Final = RateLimitResponse.OK
_OVER_LIMIT: Final = RateLimitResponse.OVER_LIMIT


@dataclass(frozen=True, slots=True)
class GrpcLoad:
    """What to send: unary calls with these messages in turn, or with none, a GET of the path."""

    address: str
    """`HOST:PORT` or `unix:PATH`."""
    path: str
    messages: tuple[bytes, ...]
    in_flight: int
    seconds: float


def run(load: GrpcLoad) -> Sample:
    """Send for that long, and hear every answer. Raises `OSError` and `RuntimeError` if the server breaks off."""
    with connected(load.address) as connection:
        return _Run(connection, load).sample()


def connected(address: str) -> socket.socket:
    """A connection to `HOST:PORT` or `unix:PATH`."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def header_block(headers: Sequence[tuple[str, str]]) -> bytes:
    """Headers as HPACK literals that neither side remembers (RFC 7541, 6.2.2); each text shorter than 127 bytes."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("ascii")


class _Run:
    def __init__(self, connection: socket.socket, load: GrpcLoad) -> None:
        self._socket = connection
        self._load = load
        self._requests = cycle(_requests(load))
        self._window = FIRST_WINDOW
        """Bytes of DATA that the server still takes."""
        self._stream = -1
        self._sent: dict[int, int] = {}
        """When each call in flight was sent, by stream."""
        self._bodies: dict[int, bytes] = {}
        self._latencies: list[int] = []
        self._answers: Counter[str] = Counter()
        self._out = bytearray()
        self._is_grpc = bool(load.messages)

    def sample(self) -> Sample:
        cpu, began = time.process_time(), time.monotonic_ns()
        ends = began + int(self._load.seconds * 1e9)
        settings = struct.pack(">HLHLHL", 1, 0, 2, 0, 4, WIDEST)  # no compression state, no push, a wide stream window
        self._out += PREFACE + frame(SETTINGS, 0, 0, settings)
        self._out += frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", WIDEST - FIRST_WINDOW))
        received = bytearray()
        now, last = began, began
        while True:
            if now < ends:
                self._fill(now)
            if self._out:
                self._socket.sendall(self._out)
                self._out.clear()
            if not self._sent:
                break
            chunk = self._socket.recv(262_144)
            if not chunk:
                raise RuntimeError(f"the server has closed the connection with {len(self._sent)} calls in flight")
            now = time.monotonic_ns()
            received += chunk
            ended = len(self._latencies)
            self._read(received, now)
            if len(self._latencies) > ended:
                last = now
        return Sample.of(self._latencies, (last - began) / 1e9, time.process_time() - cpu, self._answers)

    def _fill(self, now: int) -> None:
        """Put requests on their way until as many are in flight as there shall be."""
        while len(self._sent) < self._load.in_flight:
            headers, message = next(self._requests)
            if len(message) > self._window:
                return
            self._window -= len(message)
            self._stream += 2
            stream = self._stream
            self._out += frame(HEADERS, END_HEADERS | (0 if self._is_grpc else END_STREAM), stream, headers)
            if self._is_grpc:
                self._out += frame(DATA, END_STREAM, stream, message)
            self._sent[stream] = now

    def _read(self, received: bytearray, now: int) -> None:
        """Take every whole frame."""
        at, end = 0, len(received)
        while end - at >= 9:
            high, low, kind, flags, stream = HEADER.unpack_from(received, at)
            after = at + 9 + (high << 16) + low
            if after > end:
                break
            if kind == DATA:
                if flags & PADDED:
                    raise RuntimeError("the server pads its frames, which this load does not read")
                self._bodies[stream] = self._bodies.get(stream, b"") + received[at + 9 : after]
            elif kind not in (HEADERS, RST_STREAM):
                self._control(kind, flags, stream, bytes(received[at + 9 : after]))
            if kind == RST_STREAM or (kind <= HEADERS and flags & END_STREAM):
                self._answered(stream, now, is_whole=kind != RST_STREAM)
            at = after
        del received[:at]

    def _answered(self, stream: int, now: int, *, is_whole: bool) -> None:
        sent = self._sent.pop(stream, None)
        if sent is None:
            return  # a reset after the end
        self._latencies.append(now - sent)
        body = self._bodies.pop(stream, b"")
        self._answers[self._verdict(body) if is_whole else "reset"] += 1

    def _verdict(self, body: bytes) -> str:
        if not body:
            return "an error without a message"
        if not self._is_grpc:
            return GOOD
        code = RateLimitResponse.FromString(body[5:]).overall_code
        return {_OK: GOOD, _OVER_LIMIT: "over limit"}.get(code, "unknown")

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">L", payload)[0]
        elif kind == SETTINGS and not flags & ACK:
            self._out += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            raise RuntimeError(f"the server ends the connection: {payload[8:].decode('ascii', 'replace') or payload!r}")


def _requests(load: GrpcLoad) -> Iterator[tuple[bytes, bytes]]:
    """Header block and length-prefixed message of each request."""
    authority = "localhost" if load.address.startswith("unix:") else load.address
    target = [(":scheme", "http"), (":path", load.path), (":authority", authority)]
    if not load.messages:
        yield header_block([(":method", "GET"), *target]), b""
    # Envoy tells its deadline in the same way.
    kind = [("te", "trailers"), ("content-type", "application/grpc"), ("grpc-timeout", "5S")]
    headers = header_block([(":method", "POST"), *target, *kind])
    for message in load.messages:
        yield headers, struct.pack(">BL", 0, len(message)) + message
