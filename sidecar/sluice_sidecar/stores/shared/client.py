"""A connection to Redis or Valkey on which scripts run: what is asked in one turn of the loop goes together.

Theory of operation
    Whoever asks for a decision is told within `PATIENCE`, whatever the server does. The pipeline itself waits longer,
    for an answer that comes late says what has to be given back. All else waits for `SLOW`. Nothing is sent twice by
    itself: only the caller knows what may be repeated.

    A script is run by its name. Where the server does not know it (it is new, or has forgotten), it is sent whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from sluice.errors import SluiceError
from sluice_sidecar.stores.address import StoreAddress, StoreKind
from sluice_sidecar.stores.shared.connections import Sentinels, connected
from sluice_sidecar.stores.shared.scripts import Script
from sluice_sidecar.stores.shared.troubles import FAILURES, UNREADABLE, explained, is_distrust

PATIENCE: Final = 0.015
"""Seconds that a decision waits for the server: with what the gate itself needs, it is made within 20 ms."""
SLOW: Final = 1.0
"""Seconds that everything else waits."""
NODE: Final = SLOW / 2
"""Seconds that a node of a cluster has. Only one that has failed is not asked again: there must be time for another."""
LATE: Final = 0.005
"""Seconds by which a timer of a busy loop comes late; a quiet one is late by a tenth of that."""
MOST_LATE: Final = 0.1
"""Seconds for which it may be late before it gives up all the same."""
TURNS: Final = 3
"""Of the loop, from bytes that have come to whoever waits for them."""
MOST_PIPELINES: Final = 4
"""Under way at once; what is asked meanwhile goes together in the next."""

Command: TypeAlias = tuple[bytes | str | int, ...]
OnLate: TypeAlias = Callable[[Any], None]


class StoreError(SluiceError):
    """The store did not do what it was asked; the message says why, in a few words, and holds no secret."""


class Unreadable(StoreError):
    """A script found something in its keys that no gate wrote."""


class Ask:
    """One script to be run."""

    __slots__ = ("args", "future", "keys", "late", "script")

    def __init__(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> None:
        self.script = script
        self.keys = keys
        self.args = args
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.late: OnLate | None = None
        """Told the answer if it comes when nobody waits for it any more."""

    def by_name(self) -> Command:
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def whole(self) -> Command:
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.args)

    def answer(self, reply: Any) -> None:
        if isinstance(reply, StoreError):
            if not self.future.done():
                self.future.set_exception(reply)
                self.future.exception()  # it may be that nobody asks
        elif not self.future.done():
            self.future.set_result(reply)
        elif self.late is not None:
            self.late(reply)

    def settle_late(self) -> None:
        """Whoever asked has gone: an answer that is there already is late too."""
        if self.late is not None and self.future.done() and not self.future.cancelled() and not self.future.exception():
            self.late(self.future.result())

    def give_up(self) -> None:
        """Nobody waits any longer."""
        if not self.future.done():
            self.future.set_exception(StoreError(f"did not answer within {PATIENCE * 1000:g} ms"))
            self.future.exception()


class Client:
    """Belongs to one event loop. `close` it in the end."""

    def __init__(
        self, address: StoreAddress, password: Callable[[], str] | None = None, ca: Path | None = None
    ) -> None:
        self.address = address
        self._seconds = NODE if address.kind is StoreKind.CLUSTER else SLOW
        self._connected = partial(connected, address, password, ca, self._seconds)
        self._redis, self._sentinels = self._connected()
        self._leaving: set[asyncio.Task[None]] = set()
        """Clients that trusted by certificates of before are being closed."""
        self._answered = False
        self._asked: list[Ask] = []
        self._pipelines: set[asyncio.Task[None]] = set()
        self._due = False

    def ask(self, ask: Ask) -> asyncio.Future[Any]:
        """Run a script for somebody who waits `PATIENCE`. The future may raise `StoreError`."""
        self._asked.append(ask)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)
            _Patience(self._asked, self._give_up)
        return ask.future

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> Any:
        """Run a script, waiting up to `SLOW`. Raises `StoreError`."""
        ask = Ask(script, keys, args)
        try:
            async with asyncio.timeout(SLOW):
                await self._run([ask])
        except TimeoutError:
            raise self._trouble(RedisTimeout()) from None
        return await ask.future

    async def publish(self, channel: bytes, message: bytes) -> None:
        """Raises `StoreError`."""
        try:
            async with asyncio.timeout(SLOW):
                await self._redis.execute_command("PUBLISH", channel, message)
        except FAILURES as error:
            raise self._trouble(error) from None

    async def eviction(self) -> str:
        """What the server does when it is full; empty if it does not say. Raises `StoreError`."""
        try:
            async with asyncio.timeout(SLOW):
                memory = await self._redis.info("memory")
        except (ResponseError, NoPermissionError):
            return ""
        except FAILURES as error:
            raise self._trouble(error) from None
        return str(memory.get("maxmemory_policy", ""))

    async def listen(self, channels: Sequence[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
        """Messages with their channels, as long as the connection holds. Raises `StoreError` when it breaks."""
        pubsub = self._redis.pubsub()
        try:
            await pubsub.subscribe(*channels)
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                if message is not None:
                    yield message["channel"], message["data"]
        except FAILURES as error:
            raise self._trouble(error) from None
        finally:
            with suppress(*FAILURES):
                await pubsub.aclose()

    async def close(self) -> None:
        """Drop every connection. What is still under way fails."""
        for task in tuple(self._pipelines):
            task.cancel()
        await asyncio.gather(*self._pipelines, return_exceptions=True)
        await asyncio.gather(_closed(self._redis, self._sentinels), *self._leaving)

    def _send(self) -> None:
        if not self._asked or len(self._pipelines) >= MOST_PIPELINES:
            return
        asks, self._asked, self._due = [ask for ask in self._asked if not ask.future.done()], [], False
        if not asks:
            return
        task = asyncio.get_running_loop().create_task(self._run(asks))
        self._pipelines.add(task)
        task.add_done_callback(self._sent)

    def _give_up(self, asks: list[Ask]) -> None:
        for ask in asks:
            ask.give_up()
        if asks is self._asked:  # every pipeline hangs: whoever asks next has a time of its own
            self._asked, self._due = [], False

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._pipelines.discard(task)
        self._send()

    async def _run(self, asks: list[Ask]) -> None:
        try:
            replies = await self._replies([ask.by_name() for ask in asks])
            unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                again = await self._replies([asks[at].whole() for at in unknown])
                for at, reply in zip(unknown, again, strict=True):
                    replies[at] = reply
        except FAILURES as error:
            replies = [error] * len(asks)
        except BaseException:
            for ask in asks:
                ask.answer(self._trouble(RedisTimeout()))
            raise
        for ask, reply in zip(asks, replies, strict=True):
            if isinstance(reply, Exception):
                ask.answer(self._trouble(reply))
            else:
                self._answered = True
                ask.answer(reply)

    def _trouble(self, error: BaseException) -> StoreError:
        if is_distrust(error):
            self._trust_anew()
        text = explained(error, self.address, self._seconds, answered=self._answered)
        return Unreadable(text) if text == UNREADABLE else StoreError(text)

    def _trust_anew(self) -> None:
        """A client reads its certificates once: another one reads them as they are now."""
        leaving = asyncio.get_running_loop().create_task(_closed(self._redis, self._sentinels))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._redis, self._sentinels = self._connected()

    async def _replies(self, commands: list[Command]) -> list[Any]:
        if len(commands) == 1 or isinstance(self._redis, RedisCluster):  # whose pipelines take no EVALSHA
            return await asyncio.gather(*[self._redis.execute_command(*c) for c in commands], return_exceptions=True)
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))


async def _closed(redis: Redis | RedisCluster, sentinels: Sentinels | None) -> None:
    with suppress(*FAILURES):
        async with asyncio.timeout(SLOW):
            await redis.aclose()
            if sentinels is not None:
                await sentinels.aclose()


class _Patience:
    """Gives up for those who have asked together, in time. Not where this program is late: no server can help that."""

    def __init__(self, asks: list[Ask], give_up: Callable[[list[Ask]], None]) -> None:
        self._asks = asks
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + PATIENCE
        self._ends_for_good = self._ends + MOST_LATE
        self._loop.call_at(self._ends, self._end, TURNS)

    def _end(self, turns: int) -> None:
        if turns:  # an answer that has come already is read in these turns
            self._loop.call_soon(self._end, turns - 1)
            return
        now = self._loop.time()
        if now - self._ends > LATE and now < self._ends_for_good:
            self._ends = now + (now - self._ends)
            self._loop.call_at(self._ends, self._end, TURNS)
            return
        self._give_up(self._asks)
