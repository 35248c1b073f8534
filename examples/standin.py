"""A stand-in for LLM providers: OpenAI, Anthropic and Gemini on one loopback port, with no model behind them.

It answers in each provider's own JSON and server-sent events, with usage and errors as the real ones report them,
so that the gate can be tried and tested without a key. The same request always gets the same answer.

How an answer behaves is a `Script`: a test gives the whole instance one, and any request changes it by headers, one
a field, as in `x-standin-output-tokens: 42` or `x-standin-cut: middle`. A header it does not know is answered 400.

    python examples/standin.py --port 9000
    curl -s localhost:9000/v1/chat/completions -d '{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from aiohttp import web

from standin_dialects import CREATED, GEMINI_ARRAY, Dialect, Failure, openai_failure, route_of
from standin_script import COUNT, Call, Json, Point, Script, call_of

__all__ = ["Ending", "Point", "Recording", "Script", "Seen", "StandIn"]

LARGEST_BODY: Final = 32 * 1024 * 1024
"""Bytes; the largest request that any of the three providers takes."""


class Ending(StrEnum):
    """How a request ended, seen from here."""

    OPEN = "open"
    COMPLETE = "complete"
    CUT = "cut"
    """Cut by us, because the script said so."""
    LEFT = "left"
    """The client went away before the answer was over."""


@dataclass(slots=True)
class Seen:
    """A request as it arrived: what a test may ask of it, and no secret."""

    method: str
    path: str
    """Without the query, which may hold a key."""
    header_names: frozenset[str]
    """In lower case."""
    values: Mapping[str, str]
    """Of the headers that `StandIn(keep=…)` names, which are in lower case here."""
    arrived: float
    """Seconds, by the event loop's clock."""
    ending: Ending = Ending.OPEN


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole answer, as some provider gave it."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is written: a status, headers, and parts that are flushed one by one."""

    status: int
    headers: Mapping[str, str]
    parts: list[bytes]
    pause_ms: int = 0
    """Before every part after the first one."""


class StandIn:
    """The server. Use `start` and `stop`, or `async with`.

    What changes: `script` by its owner; `seen`, `in_flight`, `held` and `peak` by the requests that come and go.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        keep: Iterable[str] = (),
        port: int = 0,
        recordings: Mapping[str, Recording] | None = None,
    ) -> None:
        """Answer by `script`, keep the values of the headers named in `keep`; port 0 takes a free one.

        `recordings` are what a script's `recording` may name.
        """
        self.script = script or Script()
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.held = 0
        """Of those in flight, the calls that wait for `let_go`."""
        self.peak = 0
        """The most calls that were ever in flight at once."""
        self._recordings = recordings or {}
        self._keep = frozenset(name.lower() for name in keep)
        self._port = port
        self._runner: web.AppRunner | None = None
        self._let_go = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, once started."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> Self:
        """Listen. Raises OSError if the port is taken."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """End every call in flight and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def let_go(self) -> None:
        """Let every call go on that is held now by its script's `hold`."""
        self._let_go.set()
        self._let_go = asyncio.Event()

    async def until(self, holds: Callable[[StandIn], bool]) -> None:
        """Wait until a condition holds, as in `until(lambda s: s.held == 3)`: asked as calls come and go."""
        while not holds(self):
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        names = frozenset(name.lower() for name in request.headers)
        values = {name: request.headers[name] for name in names & self._keep}
        seen = Seen(request.method, request.path, names, values, asyncio.get_running_loop().time())
        self.seen.append(seen)
        number = len(self.seen)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._tell()
        try:
            return await self._respond(request, seen, number)
        except asyncio.CancelledError:
            seen.ending = Ending.LEFT
            raise
        except ConnectionError:
            seen.ending = Ending.LEFT
            return web.Response()  # nobody is there to read it
        finally:
            self.in_flight -= 1
            self._tell()

    async def _respond(self, request: web.Request, seen: Seen, number: int) -> web.StreamResponse:
        script, answer = self._decide(request, await request.read(), number)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await asyncio.sleep(script.delay_ms / 1000)
        if not await self._pass(Point.START, script, request, seen):
            return response
        await response.prepare(request)
        for index, part in enumerate(answer.parts):
            if index == len(answer.parts) // 2 and not await self._pass(Point.MIDDLE, script, request, seen):
                return response
            if index:
                await asyncio.sleep(answer.pause_ms / 1000)
            await response.write(part)
        await response.write_eof()
        seen.ending = Ending.COMPLETE
        return response

    async def _pass(self, point: Point, script: Script, request: web.Request, seen: Seen) -> bool:
        """Wait at a point if the script holds there; False if it cuts the connection there."""
        if script.hold is point:
            self.held += 1
            self._tell()
            try:
                await self._let_go.wait()
            finally:
                self.held -= 1
        if script.cut is not point:
            return True
        seen.ending = Ending.CUT
        if request.transport is not None:
            request.transport.abort()
        return False

    def _decide(self, request: web.Request, body: bytes, number: int) -> tuple[Script, Answer]:
        if request.path == "/v1/models":
            model = {"id": "standin-model", "object": "model", "created": CREATED, "owned_by": "standin"}
            return self.script, _json_answer(200, {"object": "list", "data": [model]})
        name = request.headers.get("x-standin-recording", self.script.recording)
        if name:
            return self._replay(name, request)
        route = route_of(request.path, request.query)
        if route is None:
            return self.script, _failed(openai_failure(404, f"Unknown request URL: {request.method} {request.path}."))
        try:
            script = self.script.changed_by(request.headers)
            call = call_of(json.loads(body), script, number, model=route.model, is_stream=route.is_stream)
        except ValueError as error:
            return self.script, _failed(route.dialect.failure(400, f"The stand-in cannot take this: {error}."))
        headers = {route.dialect.id_header: f"req_standin_{call.number}", **script.answer_headers}
        if script.status >= 400:
            failure = route.dialect.failure(script.status, f"The stand-in was told to fail with {script.status}.")
            return script, _failed(failure, headers)
        is_gzip = script.gzip and "gzip" in request.headers.get("accept-encoding", "")
        return script, _answered(route.dialect, call, headers, is_gzip=is_gzip)

    def _replay(self, name: str, request: web.Request) -> tuple[Script, Answer]:
        try:
            script = self.script.changed_by(request.headers)
            recording = self._recordings[name]
        except (KeyError, ValueError) as error:
            why = f"no such recording: {name}" if isinstance(error, KeyError) else str(error)
            return self.script, _failed(openai_failure(400, f"The stand-in cannot take this: {why}."))
        return script, _replayed(recording, script)


def _answered(dialect: Dialect, call: Call, headers: Mapping[str, str], *, is_gzip: bool) -> Answer:
    if not call.is_stream or dialect.events is None:
        answer = _json_answer(call.script.status, dialect.answer(call), headers, call.script.usage_count)
        return _zipped(answer) if is_gzip else answer
    parts = [_told(event, call.script.usage_count) for event in dialect.events(call)]
    kind = "application/json" if dialect is GEMINI_ARRAY else "text/event-stream; charset=utf-8"
    return Answer(call.script.status, {"content-type": kind, **headers}, parts, call.script.chunk_delay_ms)


def _replayed(recording: Recording, script: Script) -> Answer:
    """A recording in equal pieces, wherever that cuts it."""
    body, size = recording.body, max(1, -(-len(recording.body) // max(1, script.chunks)))
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return Answer(script.status, {**recording.headers, **script.answer_headers}, parts, script.chunk_delay_ms)


def _failed(failure: Failure, headers: Mapping[str, str] | None = None) -> Answer:
    return _json_answer(failure.status, failure.body, {**failure.headers, **(headers or {})})


def _json_answer(
    status: int, document: Json, headers: Mapping[str, str] | None = None, usage_count: str | None = None
) -> Answer:
    return _whole(
        status,
        {"content-type": "application/json", **(headers or {})},
        _told(json.dumps(document).encode(), usage_count),
    )


def _zipped(answer: Answer) -> Answer:
    packed = gzip.compress(b"".join(answer.parts), mtime=0)
    return _whole(answer.status, {**answer.headers, "content-encoding": "gzip"}, packed)


def _whole(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """An answer of one document, in two halves, so that a script finds a middle in it."""
    half = len(body) // 2
    return Answer(status, {**headers, "content-length": str(len(body))}, [body[:half], body[half:]])


def _told(part: bytes, usage_count: str | None) -> bytes:
    return part if usage_count is None else part.replace(f'"{COUNT}"'.encode(), usage_count.encode())


async def _main(port: int) -> None:
    async with StandIn(port=port) as stand_in:
        print(f"the stand-in provider listens on {stand_in.url} (Ctrl-C ends it)", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A stand-in for OpenAI, Anthropic and Gemini on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    port = parser.parse_args().port
    try:
        asyncio.run(_main(port))
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "no such port"
        sys.exit(f"the stand-in cannot listen on port {port}: {why}")
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
