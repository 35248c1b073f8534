"""A proxy between one client and the API server, for what an API server rarely does when a test wants it to.

Towards the client it is plain HTTP on loopback; towards the API server it is one user. It passes everything through,
watches too, records every call, and does what the test has planned for some of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp import web

from helpers.kube.control_plane import ControlPlane

HOP_BY_HOP = {"connection", "content-length", "content-encoding", "host", "keep-alive", "transfer-encoding", "upgrade"}
REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


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


@dataclass(slots=True)
class Fault:
    """What happens to the calls that `meets` is true of."""

    meets: Callable[[Call], bool]
    times: int
    """Calls it is still for."""
    status: int = 0
    """Answer this, and the API server hears nothing of the call; 0 to let the call through."""
    before: Callable[[], object] | None = None
    """Called before the API server hears of the call, which then goes on."""
    after: Callable[[], object] | None = None
    """Called once the API server has answered, before the client hears of it."""
    held: asyncio.Event | None = None
    """The call waits for it, and is as good as lost until then."""


@dataclass(slots=True)
class ApiProxy:
    """Use it by `proxied`."""

    session: aiohttp.ClientSession
    upstream: str
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _watches: set[web.StreamResponse] = field(default_factory=set)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def answer(self, status: int, meets: Callable[[Call], bool], times: int = 1) -> None:
        """Refuse the next calls like that with this status."""
        self.faults.append(Fault(meets, times, status=status))

    def before(self, action: Callable[[], object], meets: Callable[[Call], bool]) -> None:
        """Do something as the next call like that comes in."""
        self.faults.append(Fault(meets, 1, before=action))

    def after(self, action: Callable[[], object], meets: Callable[[Call], bool]) -> None:
        """Do something once the API server has done the next call like that."""
        self.faults.append(Fault(meets, 1, after=action))

    def hold(self, meets: Callable[[Call], bool], times: int = 1_000_000) -> asyncio.Event:
        """Let calls like that hang until the event that this returns is set."""
        event = asyncio.Event()
        self.faults.append(Fault(meets, times, held=event))
        return event

    async def expire_watches(self) -> None:
        """End every watch with what the API server says when it no longer has the version asked for."""
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}
        event = json.dumps({"type": "ERROR", "object": status | {"message": "too old resource version"}})
        for watch in tuple(self._watches):
            with contextlib.suppress(ConnectionError):
                await watch.write(event.encode() + b"\n")
                await watch.write_eof()

    async def until(self, holds: Callable[[list[Call]], bool]) -> None:
        """Wait until it is true of the calls so far."""
        async with self._news:
            await self._news.wait_for(lambda: holds(self.calls))

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
        fault = self._fault(call)
        if fault is not None:
            if fault.before is not None:
                fault.before()
            if fault.held is not None:
                await fault.held.wait()
            if fault.status:
                return _refusal(fault.status)
        return await self._passed_on(request, call, fault)

    async def _passed_on(self, request: web.Request, call: Call, fault: Fault | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            async with self.session.request(
                request.method,
                self.upstream + request.raw_path,
                headers=headers,
                data=await request.read(),
            ) as answer:
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
                if fault is not None and fault.after is not None:
                    await answer.read()
                    fault.after()
                await response.prepare(request)
                if call.watch:
                    self._watches.add(response)
                try:
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                finally:
                    self._watches.discard(response)
                return response
        except aiohttp.ClientError:
            if request.transport is not None:
                request.transport.abort()  # as if the API server were not there
            raise web.HTTPBadGateway from None

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.meets(call):
                fault.times -= 1
                return fault
        return None


@asynccontextmanager
async def proxied(plane: ControlPlane, user: str, name: str = "") -> AsyncIterator[tuple[ApiProxy, Path]]:
    """A proxy for a user who has a kubeconfig, and the kubeconfig that leads through it."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(ssl=plane.tls(user), limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True) as session:
        proxy = ApiProxy(session, plane.url)
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{tail:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy, _kubeconfig(plane, proxy.url, name or user)
        finally:
            await runner.cleanup()


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
