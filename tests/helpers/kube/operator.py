"""`sluice-operator` as a person starts it: a process of its own, its log, its exit code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp
import yaml

from helpers.envoy import ROOT
from helpers.kube.control_plane import ControlPlane

SOON_SECONDS = 30
END_SECONDS = 10
RIGHTS = ROOT / "examples/operator.yaml"


class Ended(NamedTuple):
    """A command that has run."""

    code: int
    err: str


@dataclass(slots=True)
class Operator:
    """One under way."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    """Its log so far."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def line(self, text: str, start: int = 0) -> str:
        """The first line of the log, from line `start` on, with this in it, once it is there."""
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                for line in self.lines[start:]:
                    if text in line:
                        return line
                if self.process.returncode is not None and self._news.is_set():
                    raise AssertionError(f"it ended, and never said {text!r}:\n" + "\n".join(self.lines))
                self._news.clear()
                await self._news.wait()

    async def get(self, path: str) -> tuple[int, str]:
        """What its health server answers."""
        address = re.search(r"health at (\S+)", await self.line("health at"))
        assert address is not None
        async with aiohttp.ClientSession() as client, client.get(f"http://{address.group(1)}{path}") as answer:
            return answer.status, await answer.text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit code."""
        self.send(number)
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


@asynccontextmanager
async def operating(kubeconfig: Path, *arguments: object, alone: bool = True) -> AsyncIterator[Operator]:
    """An operator with these arguments and a health server on a free port; ended, if need be killed, afterwards."""
    election = ("--no-leader-election",) if alone else ()
    process = await _start("--kubeconfig", kubeconfig, "--health", "127.0.0.1:0", *election, *arguments)
    operator = Operator(process)
    reading = asyncio.create_task(operator.read_log())
    try:
        yield operator
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()
        await reading


async def sluice_operator(*arguments: object, **environment: str) -> Ended:
    """Run a command to its end."""
    process = await _start(*arguments, **environment)
    async with asyncio.timeout(SOON_SECONDS):
        _, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, err.decode())


def grant(plane: ControlPlane, namespace: str) -> Path:
    """Give the rights of `examples/operator.yaml` to its service account; returns a kubeconfig that is the account."""
    plane.kubectl("apply", "-n", namespace, "-f", str(RIGHTS))
    account = next(each for each in yaml.safe_load_all(RIGHTS.read_text()) if each["kind"] == "ServiceAccount")
    return plane.kubeconfig(f"system:serviceaccount:{namespace}:{account['metadata']['name']}")


async def _start(*arguments: object, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sluice_operator",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
