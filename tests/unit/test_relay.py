"""The relay that is a bad network on request: each fault, on an echo server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import pytest_asyncio

from helpers.process import lasting_ports
from helpers.program import eventually
from helpers.relay import Relay, Way, relayed

SOON_SECONDS = 10
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest_asyncio.fixture
async def relay() -> AsyncIterator[Relay]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with relayed(server.sockets[0].getsockname()[1]) as started:
        yield started
    server.close()


@asynccontextmanager
async def connected(relay: Relay) -> AsyncIterator[Streams]:
    async with asyncio.timeout(SOON_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def echoed(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    return await reader.readexactly(len(data))


async def has_come(relay: Relay, number: int) -> bool:
    return relay.came[Way.REQUESTS] == number


async def test_it_passes_everything_on_and_counts_it(relay: Relay) -> None:
    data = bytes(range(256)) * 4000
    async with connected(relay) as streams:
        assert await echoed(streams, data) == data
        assert (relay.accepted, relay.connections) == (1, 1)
        assert relay.came == relay.passed == {Way.REQUESTS: len(data), Way.REPLIES: len(data)}

    await eventually(lambda: asyncio.sleep(0, relay.connections == 0))


async def test_bytes_are_delayed_both_ways_and_do_not_wait_for_earlier_ones(relay: Relay) -> None:
    loop = asyncio.get_running_loop()
    relay.delay(0.15, Way.REQUESTS)
    relay.delay(0.05, Way.REPLIES)
    async with connected(relay) as (reader, writer):
        start = loop.time()
        for number in range(10):
            writer.write(b"%d" % number)
            await eventually(partial(has_come, relay, number + 1))
        assert await reader.readexactly(10) == b"0123456789"
        assert 0.29 <= loop.time() - start < 1  # one after the other they would take two seconds


async def test_what_was_held_arrives_late(relay: Relay) -> None:
    async with connected(relay) as (reader, writer):
        relay.hold(Way.REPLIES)
        writer.write(b"late")
        await eventually(lambda: asyncio.sleep(0, relay.passed[Way.REQUESTS] == 4))
        assert relay.passed[Way.REPLIES] == 0

        await relay.heal()
        assert await reader.readexactly(4) == b"late"


async def test_what_was_swallowed_never_arrives_and_its_connection_is_reset_when_healed(relay: Relay) -> None:
    async with connected(relay) as old, connected(relay) as unused:
        await echoed(old, b"before")
        relay.swallow()
        old[1].write(b"lost")
        async with connected(relay) as new:
            new[1].write(b"lost")
            await eventually(lambda: asyncio.sleep(0, relay.lossy == 2))
            await relay.heal()
            for reader, _ in (old, new):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        assert await echoed(unused, b"after") == b"after"
        assert relay.passed[Way.REQUESTS] == len(b"before") + len(b"after")


async def test_a_connection_is_cut_after_so_many_bytes_once(relay: Relay) -> None:
    async with connected(relay) as streams:
        assert await echoed(streams, b"12345") == b"12345"
        relay.cut_after(7, Way.REPLIES)
        assert await echoed(streams, b"1234") == b"1234"
        streams[1].write(b"56789")
        assert await streams[0].readexactly(3) == b"567"
        with pytest.raises(ConnectionResetError):
            await streams[0].read()

    async with connected(relay) as streams:
        assert await echoed(streams, b"1234567890") == b"1234567890"


async def test_who_refuses_resets_what_is_under_way_and_takes_nobody_until_healed(relay: Relay) -> None:
    async with connected(relay) as streams:
        await echoed(streams, b"before")
        relay.refuse()
        with pytest.raises(ConnectionResetError):
            await streams[0].read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", relay.port)

    await relay.heal()
    async with connected(relay) as streams:
        assert await echoed(streams, b"after") == b"after"


async def test_a_server_that_is_not_there_shows_as_an_end() -> None:
    async with relayed(lasting_ports(1)[0]) as relay, connected(relay) as (reader, _):
        assert await reader.read() == b""


async def test_the_end_of_one_side_reaches_the_other(relay: Relay) -> None:
    async with connected(relay) as (reader, writer):
        await echoed((reader, writer), b"all")
        writer.write_eof()
        assert await reader.read() == b""
