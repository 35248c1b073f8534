"""A relay in front of a server, which can be told to be a bad network; or to speak TLS for a server that does not.

What it does applies to both ways unless one is named, and to the connections under way as well as to new ones, until
`heal`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from helpers.pki import Authority
from helpers.process import lasting_ports

CHUNK = 65_536
RESET = struct.pack("ii", 1, 0)
"""Of SO_LINGER (socket(7)): closing forgets what is unsent, and tells the other side by RST."""


TLS_RECORD = b"\x16"
"""What a client begins with that speaks TLS: a record of a handshake (RFC 8446, 5.1)."""


class Way(Enum):
    REQUESTS = "from the client to the server"
    REPLIES = "from the server to the client"


BOTH = (Way.REQUESTS, Way.REPLIES)
Chunk: TypeAlias = tuple[float, bytes]
"""When it may go on, by the loop's time, and the bytes; none at the end."""


@dataclass(slots=True, eq=False)
class Connection:
    """One under way."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    sockets: list[TransportSocket]
    passing: list[asyncio.Task[None]] = field(default_factory=list)
    lost: bool = False
    """Bytes of it were swallowed, so what follows them would be misread."""

    def reset(self) -> None:
        for task in self.passing:
            task.cancel()
        for raw in self.sockets:
            if raw.fileno() != -1:  # not closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in (self.client, self.server):
            writer.transport.abort()


@dataclass(slots=True)
class Relay:
    """Use it by `relayed` or `behind_tls`."""

    port: int
    """Where clients call; it stays its own while it refuses."""
    upstream: int
    """The server's port."""
    tls: ssl.SSLContext | None = None
    accepted: int = 0
    """Connections so far."""
    came: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    """Bytes that came in so far."""
    passed: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    """Bytes of them that went on."""
    _listener: asyncio.Server | None = None
    _connections: set[Connection] = field(default_factory=set)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _seconds: dict[Way, float] = field(default_factory=lambda: dict.fromkeys(Way, 0.0))
    _swallows: set[Way] = field(default_factory=set)
    _left: dict[Way, int | None] = field(default_factory=lambda: dict.fromkeys(Way))
    """Bytes that still pass before the cut, if one is planned."""
    _open: dict[Way, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for way in Way:
            self._open[way] = asyncio.Event()
            self._open[way].set()

    @property
    def connections(self) -> int:
        """How many are under way."""
        return len(self._connections)

    @property
    def lossy(self) -> int:
        """How many of them have lost bytes."""
        return sum(connection.lost for connection in self._connections)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Let every byte take so long, as over a long line: later bytes do not wait for earlier ones to arrive."""
        for way in ways or BOTH:
            self._seconds[way] = seconds

    def hold(self, *ways: Way) -> None:
        """Let bytes wait, as where packets are dropped and sent again: they arrive late, once it is healed."""
        for way in ways or BOTH:
            self._open[way].clear()

    def swallow(self, *ways: Way) -> None:
        """Accept connections and bytes, and pass nothing on: what lost bytes for that is reset when healed."""
        self._swallows.update(ways or BOTH)

    def cut_after(self, number: int, way: Way) -> None:
        """Let so many more bytes pass that way, over all connections, and reset the connection of the next, once."""
        self._left[way] = number

    def reset(self) -> None:
        """Reset the connections under way."""
        for connection in self._connections.copy():
            connection.reset()

    def refuse(self) -> None:
        """Be as a server that has ended: connections are reset, and new ones refused."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()

    async def heal(self) -> None:
        """Pass everything on again."""
        self.delay(0.0)
        self._swallows.clear()
        for way in Way:
            self._left[way] = None
            self._open[way].set()
        for connection in self._connections.copy():
            if connection.lost:
                connection.reset()
        if self._listener is None:
            await self.listen()

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self.tls)

    async def close(self) -> None:
        """Refuse for good."""
        self.refuse()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:  # a relay can only accept first
            writer.transport.abort()
            return
        sockets = [each.get_extra_info("socket") for each in (writer, to_server)]
        connection = Connection(writer, to_server, sockets)
        self._connections.add(connection)
        connection.passing += [
            asyncio.create_task(self._pass(Way.REQUESTS, reader, to_server, connection)),
            asyncio.create_task(self._pass(Way.REPLIES, from_server, writer, connection)),
        ]
        try:
            await asyncio.gather(*connection.passing, return_exceptions=True)
        finally:
            self._connections.discard(connection)
            to_server.close()
            writer.close()

    async def _pass(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection
    ) -> None:
        chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        writing = asyncio.create_task(self._write(way, chunks, writer, connection))
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await _read(reader)
                self.came[way] += len(data)
                chunks.put_nowait((loop.time() + self._seconds[way], data))
                if not data:
                    break
            await writing
        finally:
            writing.cancel()

    async def _write(
        self, way: Way, chunks: asyncio.Queue[Chunk], writer: asyncio.StreamWriter, connection: Connection
    ) -> None:
        # `drain` waits until all is out of our hands. TLS in asyncio takes a limit of 0 as reached for ever.
        writer.transport.set_write_buffer_limits(high=1)
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(due - loop.time())
            await self._open[way].wait()
            if way in self._swallows:
                connection.lost = True
                continue
            left = self._left[way]
            now = data[:left]
            if left is not None:
                self._left[way] = left - len(now) if len(now) == len(data) else None
            with suppress(OSError):  # the reader of this side learns of it too
                writer.write(now)
                await writer.drain()
            self.passed[way] += len(now)
            if len(now) < len(data):
                connection.reset()
                return
            if not data:
                writer.close()
                return


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(CHUNK)
    except OSError:
        return b""


@asynccontextmanager
async def relayed(upstream: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    """A relay before the server at that port of loopback."""
    relay = Relay(lasting_ports(1)[0], upstream, tls)
    await relay.listen()
    try:
        yield relay
    finally:
        await relay.close()


@asynccontextmanager
async def behind_tls(upstream: int, authority: Authority) -> AsyncIterator[Relay]:
    """A relay that speaks TLS, as `localhost` and 127.0.0.1, for a server that does not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server", "localhost"))
    async with relayed(upstream, context) as relay:
        yield relay


@asynccontextmanager
async def plain_or_tls(upstream: int, authority: Authority) -> AsyncIterator[int]:
    """A port where the server answers both who speaks TLS and who does not."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await _read(reader)
            port = relay.port if first.startswith(TLS_RECORD) else upstream
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
            to_server.write(first)
            await asyncio.gather(_copy(reader, to_server), _copy(from_server, writer))
        except OSError:
            writer.transport.abort()

    async with behind_tls(upstream, authority) as relay:
        serving: set[asyncio.Task[None]] = set()
        front = await asyncio.start_server(
            lambda reader, writer: serving.add(asyncio.create_task(serve(reader, writer))),
            "127.0.0.1",
            lasting_ports(1)[0],
        )
        try:
            yield front.sockets[0].getsockname()[1]
        finally:
            front.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await _read(reader):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
