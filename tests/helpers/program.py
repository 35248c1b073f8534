"""`sluice` as a person starts it: a process of its own, its log, its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from helpers.envoy import envoy_binary

READY_SECONDS = 30
END_SECONDS = 20
SOON_SECONDS = 10


class Ended(NamedTuple):
    """A command that has run."""

    code: int
    out: str
    err: str


async def sluice(*arguments: object, **environment: str) -> Ended:
    """Run a command to its end."""
    process = await _start(arguments, environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(READY_SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


@dataclass(slots=True)
class Program:
    """A `sluice run` under way."""

    process: asyncio.subprocess.Process
    client: aiohttp.ClientSession
    lines: list[str] = field(default_factory=list)
    """Its log so far."""
    url: str = ""
    """Where its Envoy takes calls; empty without one."""
    admin: str = ""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def line(self, text: str, start: int = 0) -> str:
        """The first line of the log, from line `start` on, with this in it, once it is there."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                for line in self.lines[start:]:
                    if text in line:
                        return line
                if self.process.returncode is not None and self._news.is_set():
                    raise AssertionError(f"it ended, and never said {text!r}:\n" + "\n".join(self.lines))
                self._news.clear()
                await self._news.wait()

    async def status(self, **selection: str) -> dict[str, Any]:
        async with self.client.get(f"http://{self.admin}/status", params=selection) as answer:
            return dict(await answer.json())

    async def get(self, path: str) -> tuple[int, str]:
        """What the admin server answers."""
        async with self.client.get(f"http://{self.admin}{path}") as answer:
            return answer.status, await answer.text()

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status, once it is so."""
        status: dict[str, Any] = {}

        async def is_so() -> bool:
            status.update(await self.status())
            return holds(status)

        await eventually(is_so, lambda: json.dumps(status, indent=1))
        return status

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit code."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(END_SECONDS):
            return await self.process.wait()

    async def read_log(self) -> None:
        """Collect the log until it ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())
            self._news.set()
        await self.process.wait()
        self._news.set()


async def eventually(
    holds: Callable[[], Awaitable[bool]], now: Callable[[], str] = str, seconds: float = SOON_SECONDS
) -> None:
    """Wait until it holds; fail, with what there is `now`, if it does not soon."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():  # noqa: ASYNC110  another process: nobody tells us
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s; now: {now()}") from None


@asynccontextmanager
async def running(*arguments: object, ready: bool = True, **environment: str) -> AsyncIterator[Program]:
    """`sluice run` with these arguments and an admin server on a free port; ended, if need be killed, afterwards."""
    command = ("run", "--admin", "127.0.0.1:0", *arguments)
    process = await _start(command, environment, stdout=asyncio.subprocess.DEVNULL)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        program = Program(process, client)
        reading = asyncio.create_task(program.read_log())
        try:
            if ready:
                line = await program.line("ready:")
                program.admin = _found(r"status at ([\d.:]+)", line)
                program.url = _found(r"calls at (http://[\d.:]+)", line)
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def has_child(program: Program) -> bool:
    return bool(children(program.process.pid))


async def has_ended(pid: int) -> bool:
    """True once the process has ended, also if nobody has asked for its exit code yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]  # noqa: ASYNC240  no disk
    except FileNotFoundError:
        return True
    return state == "Z"


def _found(pattern: str, line: str) -> str:
    found = re.search(pattern, line)
    return found.group(1) if found else ""


async def _start(arguments: tuple[object, ...], environment: dict[str, str], stdout: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sluice_sidecar",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SLUICE_ENVOY": str(envoy_binary()), **environment},
    )
