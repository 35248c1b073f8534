"""The HTTP side for people, probes and Prometheus: `/healthz`, `/readyz`, `/status`, `/metrics`."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import islice
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from sluice.core.keys import SCOPES
from sluice_sidecar import status
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import Health
from sluice_sidecar.recent import RecentCounts
from sluice_sidecar.settings import Address, Failed, TcpAddress

SELECTORS: Final = ("provider", "scope", "subject")
LIMIT: Final = "limit"
INDEX: Final = """\
Sluice. Here are:
  /healthz   200 as long as the program runs
  /readyz    200 once calls are served; else what it waits for
  /status    what is counted, as JSON; ?provider=, ?scope=, ?subject= select buckets, ?limit= so many
  /metrics   for Prometheus
"""
AT_ONCE: Final = 100
"""Buckets looked at before waiting calls have their turn: some 2 ms."""


class Admin:
    """Serves what the gate says of itself. It only reads."""

    def __init__(
        self, health: Health, gate: Gate, registry: CollectorRegistry, recent: RecentCounts, commits: CommitWatch
    ) -> None:
        self._health = health
        self._commits = commits
        self._gate = gate
        self._recent = recent
        self._registry = registry
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        self._socket: Path | None = None
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, address: Address) -> Address:
        """Serve; returns the address with the port that was bound. Raises `Failed` if it cannot be."""
        await self._runner.setup()
        site: web.BaseSite
        if isinstance(address, Path):
            site = web.UnixSite(self._runner, str(address))
        else:
            site = web.TCPSite(self._runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise Failed(f"--admin {address}: cannot be served: {os.strerror(error.errno or 0)}") from error
        if isinstance(address, Path):
            self._socket = address
            return address
        return TcpAddress(address.host, self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Let answers under way finish, for a second; leave no socket behind."""
        await self._runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._health.is_ready:
            return web.Response(text="ready\n")
        return web.Response(status=503, text=f"not ready: {self._health.waiting_for}\n")

    async def _status(self, request: web.Request) -> web.Response:
        wrong = _complaint(request)
        if wrong is not None:
            return web.json_response({"error": wrong}, status=400)
        selection = status.Selection(**{name: request.query.get(name) for name in SELECTORS})
        fullest = status.Fullest(selection, int(request.query.get(LIMIT, status.MOST_BUCKETS)))
        await self._gather(fullest)
        engine = self._gate.engine
        providers = [policy.provider for policy in self._gate.policies.values()]
        answer = status.document(
            self._health,
            self._gate.summary(),
            fullest,
            self._recent.by_provider(),
            status.estimation(providers, self._gate.learner),
            self._commits.missing,
            engine.upstreams(self._gate.clock()),
        )
        return web.json_response(answer, dumps=lambda value: json.dumps(value, ensure_ascii=False))

    async def _gather(self, fullest: status.Fullest) -> None:
        """Look at every bucket, a few at a time: calls that come meanwhile do not wait for the whole of it."""
        engine, store = self._gate.engine, self._gate.store
        wanted = filter(fullest.wants, engine.keys())
        while keys := list(islice(wanted, AT_ONCE)):
            states = [state for key in keys if (state := engine.current_state(key, self._gate.clock())) is not None]
            for state in states if store is None else await store.pictures(states):
                fullest.add(state)
            await asyncio.sleep(0)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def _complaint(request: web.Request) -> str | None:
    """What is wrong with a query; None if nothing is."""
    unknown = [name for name in request.query if name not in (*SELECTORS, LIMIT)]
    if unknown:
        return f"unknown parameter {unknown[0]!r}: {', '.join(SELECTORS)} select buckets, {LIMIT} says how many"
    scope = request.query.get("scope")
    if scope is not None and scope not in SCOPES:
        return f"unknown scope {scope!r}: it is one of {', '.join(SCOPES)}"
    limit = request.query.get(LIMIT, "1")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= status.MOST_BUCKETS):
        return f"{LIMIT} is not a number from 1 to {status.MOST_BUCKETS}"
    return None
