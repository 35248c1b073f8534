"""A proxy between one client and the API server, for what an API server rarely does when a test wants it to.

Towards the client it is plain HTTP on loopback; towards the API server it is one user. It passes everything through,
watches too, records every call, and does what the test has planned for some of them. A call that the API server has
begun to hear goes on without its client, as it would in a network.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp import web

from helpers.kube.control_plane import ControlPlane

SOON_SECONDS = 30
FOR_EVER = 1_000_000
HOP_BY_HOP = {"connection", "content-length", "content-encoding", "host", "keep-alive", "transfer-encoding", "upgrade"}
REASONS = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests"}
REASONS |= {500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}


class Call(NamedTuple):
    """One call as it came."""

    number: int
    """From 1."""
    method: str
    path: str
    watch: bool
    content_type: str = ""

    @property
    def writes(self) -> bool:
        return self.method != "GET"


Meets = Callable[[Call], bool]
Action = Callable[[], object]


@dataclass(slots=True)
class Fault:
    """What happens to the calls that `meets` is true of."""

    meets: Meets
    times: int
    """Calls it is still for."""
    skip: int = 0
    """Calls that pass before the first it is for."""
    before: Action | None = None
    """Called before the API server hears of the call."""
    held: asyncio.Event | None = None
    """The call waits for it."""
    delay: float = 0.0
    """Seconds that the call waits."""
    status: int = 0
    """Answer this, and the API server hears nothing of the call; 0 to let the call through."""
    lost: bool = False
    """The API server hears nothing of the call, and the client's connection is cut."""
    after: Action | None = None
    """Called once the API server has done it, before the client hears of it."""
    cut: bool = False
    """The client never hears of it: its connection is cut."""

    def takes(self, call: Call) -> bool:
        """True if it is for this call, which then counts."""
        if self.times == 0 or not self.meets(call):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


NO_FAULT = Fault(lambda _: False, 0)


@dataclass(slots=True, eq=False)
class Watch:
    """One under way."""

    copying: asyncio.Task[None]
    last: bytes = b""
    """What the client reads when the copying is cancelled; if nothing, its connection is cut."""


@dataclass(slots=True)
class ApiProxy:
    """Use it by `proxied`. Of several plans for a call the oldest takes it."""

    session: aiohttp.ClientSession
    upstream: str
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _watches: set[Watch] = field(default_factory=set)
    _under_way: set[asyncio.Task[web.StreamResponse]] = field(default_factory=set)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def answer(self, status: int, meets: Meets, times: int = 1) -> None:
        """Refuse the next calls like that with this status."""
        self.faults.append(Fault(meets, times, status=status))

    def before(self, action: Action, meets: Meets, nth: int = 1) -> None:
        """Do something as the n-th call like that comes in, which then goes on."""
        self.faults.append(Fault(meets, 1, skip=nth - 1, before=action))

    def after(self, action: Action, meets: Meets, nth: int = 1) -> None:
        """Do something once the API server has done the n-th call like that; then the client hears of it."""
        self.faults.append(Fault(meets, 1, skip=nth - 1, after=action))

    def lose(self, meets: Meets, nth: int = 1, action: Action | None = None, times: int = 1) -> None:
        """The n-th call like that does not arrive: do something, and cut its connection."""
        self.faults.append(Fault(meets, times, skip=nth - 1, before=action, lost=True))

    def lose_answer(self, meets: Meets, nth: int = 1, action: Action | None = None, times: int = 1) -> None:
        """The n-th call like that is done, and its client does not hear of it: do something, and cut its connection."""
        self.faults.append(Fault(meets, times, skip=nth - 1, after=action, cut=True))

    def delay(self, seconds: float, meets: Meets, times: int = FOR_EVER) -> None:
        """Let calls like that take longer to arrive."""
        self.faults.append(Fault(meets, times, delay=seconds))

    def hold(self, meets: Meets, times: int = FOR_EVER) -> asyncio.Event:
        """Let calls like that hang until the event that this returns is set; then they arrive."""
        event = asyncio.Event()
        self.faults.append(Fault(meets, times, held=event))
        return event

    async def expire_watches(self) -> None:
        """End every watch with what the API server says when it no longer has the version asked for."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}
        event = {"type": "ERROR", "object": status | {"message": "too old resource version"}}
        await self._end_watches(json.dumps(event).encode() + b"\n")

    async def cut_watches(self) -> None:
        """Cut the connection of every watch."""
        await self._end_watches(b"")

    async def until(self, holds: Callable[[list[Call]], bool]) -> None:
        """Wait until it is true of the calls so far."""
        try:
            async with asyncio.timeout(SOON_SECONDS), self._news:
                await self._news.wait_for(lambda: holds(self.calls))
        except TimeoutError:
            last = "\n".join(f"{call.method} {call.path}" for call in self.calls[-10:])
            raise AssertionError(
                f"not within {SOON_SECONDS} s; of {len(self.calls)} calls the last are:\n{last}"
            ) from None

    async def stop(self) -> None:
        """Give up the calls that are still on their way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = Call(
            len(self.calls) + 1,
            request.method,
            request.path,
            request.query.get("watch") in ("true", "1"),
            request.content_type,
        )
        async with self._news:
            self.calls.append(call)
            self._news.notify_all()
        fault = next((fault for fault in self.faults if fault.takes(call)), NO_FAULT)
        body = await request.read()
        if call.watch:
            return await self._faulty(request, call, body, fault)
        # The server cancels a handler whose client has gone; the call goes on.
        passing = asyncio.create_task(self._faulty(request, call, body, fault))
        self._under_way.add(passing)
        passing.add_done_callback(self._under_way.discard)
        return await asyncio.shield(passing)

    async def _faulty(self, request: web.Request, call: Call, body: bytes, fault: Fault) -> web.StreamResponse:
        if fault.before is not None:
            fault.before()
        if fault.held is not None:
            await fault.held.wait()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.lost:
            return _cut(request)
        if fault.status:
            return _refusal(fault.status)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = self.upstream + request.raw_path
        try:
            async with self.session.request(request.method, url, headers=headers, data=body or None) as answer:
                if call.watch and answer.status == 200:
                    return await self._watched(request, answer)
                return await _told(request, answer, fault)
        except aiohttp.ClientError:  # as if the API server were not there
            return _cut(request)

    async def _watched(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_headers(answer))
        await response.prepare(request)

        async def copy() -> None:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)

        watch = Watch(asyncio.create_task(copy()))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch.copying})
            if not watch.copying.cancelled():
                watch.copying.result()
            elif watch.last:
                await response.write(watch.last)
            else:
                return _cut(request)
            await response.write_eof()
            return response
        finally:
            self._watches.discard(watch)
            watch.copying.cancel()

    async def _end_watches(self, last: bytes) -> None:
        copying = []
        for watch in self._watches:
            watch.last = last
            watch.copying.cancel()
            copying.append(watch.copying)
        await asyncio.gather(*copying, return_exceptions=True)


@asynccontextmanager
async def proxied(plane: ControlPlane, user: str, name: str = "") -> AsyncIterator[tuple[ApiProxy, Path]]:
    """A proxy for a user who has a kubeconfig, and the kubeconfig that leads through it."""
    connector = aiohttp.TCPConnector(ssl=plane.tls(user), limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        proxy = ApiProxy(session, plane.url)
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{tail:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy, _kubeconfig(plane, proxy.url, name or user)
        finally:
            await proxy.stop()
            await runner.cleanup()


async def _told(request: web.Request, answer: aiohttp.ClientResponse, fault: Fault) -> web.StreamResponse:
    body = await answer.read()
    if fault.after is not None:
        fault.after()
    return _cut(request) if fault.cut else web.Response(body=body, status=answer.status, headers=_headers(answer))


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # which nobody reads


def _kubeconfig(plane: ControlPlane, server: str, name: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "current-context": "proxy",
    }
    path = plane.folder / f"{name.replace(':', '-')}-by-{server.rpartition(':')[2]}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def _refusal(status: int) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": REASONS.get(status, ""),
        "code": status,
        "message": f"the test answers {status}",
    }
    return web.json_response(body, status=status)
