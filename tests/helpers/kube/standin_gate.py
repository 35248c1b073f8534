"""A stand-in for a gate's admin server, for what a real gate does too slowly for a test, or would never do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def report(*hashes: str, **further: Any) -> dict[str, Any]:
    """The `/status` of a gate that runs files with these hashes."""
    files = {f"/etc/sluice/{number}.yaml": each for number, each in enumerate(hashes)}
    return {"configuration": {"files": files, "problems": []}, "buckets": [], **further}


def follower(volume: Path) -> Answer:
    """A gate that runs whatever limits are in its volume."""

    async def answer(_: web.Request) -> web.Response:
        file = volume / "limits.yaml"
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest()] if file.exists() else []
        return web.json_response(report(*hashes))

    return answer


def saying(body: str | bytes | dict[str, Any], status: int = 200, **headers: str) -> Answer:
    """One answer, whatever is asked. A header is a keyword: `content_encoding="gzip"`."""
    text = json.dumps(body) if isinstance(body, dict) else body
    content = text.encode() if isinstance(text, str) else text
    fields = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content, status=status, headers=fields)

    return answer


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """A server on loopback that answers every GET so; yields its port."""
    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
