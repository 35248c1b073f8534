"""The HTTP side for probes and Prometheus: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from sluice.errors import SluiceError
from sluice_operator.metrics import STUCK, Metrics
from sluice_operator.settings import Address

INDEX: Final = """\
The Sluice operator. Here are:
  /healthz   200 as long as no turn is stuck
  /readyz    200 once every namespace was looked at, or another operator leads
  /metrics   for Prometheus
"""


class CannotServe(SluiceError):
    """An address is in use, or not this machine's."""


class Admin:
    """Serves it over HTTP. It only reads."""

    def __init__(self, metrics: Metrics, waiting_for: Callable[[], str]) -> None:
        """`waiting_for` says what stands between the operator and being ready; empty for nothing."""
        self._reported = metrics
        self._waiting_for = waiting_for
        self._runners: list[web.AppRunner] = []

    async def start(self, health: Address, metrics: Address | None) -> tuple[Address, ...]:
        """Serve, metrics apart if they have an address; returns where. Raises `CannotServe`."""
        probes = [("/", self._index), ("/healthz", self._healthz), ("/readyz", self._readyz)]
        scraped = [("/metrics", self._metrics)]
        if metrics is None:
            return (await self._serve("--health", health, probes + scraped),)
        return (
            await self._serve("--health", health, probes),
            await self._serve("--metrics", metrics, scraped),
        )

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, flag: str, address: Address, routes: Sequence[tuple[str, Any]]) -> Address:
        app = web.Application()
        for path, answer in routes:
            app.router.add_get(path, answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise CannotServe(f"{flag} {address}: cannot be served: {os.strerror(error.errno or 0)}") from error
        return Address(address.host, runner.addresses[0][1])

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def _healthz(self, _: web.Request) -> web.Response:
        if self._reported.is_alive:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"a turn has not moved for {STUCK:g} s\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if waiting_for := self._waiting_for():
            return web.Response(status=503, text=f"not ready: waiting for {waiting_for}\n")
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._reported.registry), headers={"Content-Type": content_type})
