"""What the tour stands on: the screen, the addresses, the gate as a child process, and its limits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import textwrap
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar

import aiohttp
import anthropic
import openai
import yaml

from standin import StandIn

HERE: Final = Path(__file__).parent
ENVOY: Final = HERE.parent / ".tools/envoy/envoy/_bin/envoy"
WIDTH: Final = 100
LOG: Final = "gate.log"
"""Beside the limits."""
KEY: Final = "no-key-is-needed-here"
START_WITHIN: Final = 60.0
END_WITHIN: Final = 15.0
SOON: Final = 10.0
"""Seconds after which what should have happened is said not to happen."""


T = TypeVar("T")


class Broken(Exception):
    """The tour cannot go on; the message says why, for a person."""


@dataclass(slots=True)
class Screen:
    """What is written on it, and which promises were not kept."""

    broken: list[str] = field(default_factory=list)
    _sections: int = 0

    def section(self, title: str, about: str) -> None:
        self._sections += 1
        heading = f"{self._sections}  {title}"
        print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}")
        self.text(about)
        print(flush=True)

    def text(self, text: str) -> None:
        self._wrapped(text, "   ", "   ")

    def row(self, name: str, text: str) -> None:
        """A name and what there is to say of it, wrapped under itself."""
        self._wrapped(text, f"   {name:<25} ", " " * 29)

    def quote(self, line: str) -> None:
        """A line of somebody else. One with columns stays as it is, however long."""
        if "  " in line:
            print(line, flush=True)
        else:
            self._wrapped(line, "", "  ")

    def _wrapped(self, text: str, first: str, others: str) -> None:
        lines = textwrap.TextWrapper(
            WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=False
        )
        print(lines.fill(text), flush=True)

    def promise(self, text: str, kept: bool) -> None:
        print(f"   {'✓' if kept else '✗'} {text}", flush=True)
        if not kept:
            self.broken.append(text)


class Whose(NamedTuple):
    """One bucket, by the words that `/status` selects by."""

    provider: str
    scope: str
    subject: str


class Bucket(NamedTuple):
    """What the tour looks at."""

    in_flight: int
    queued: int
    tokens: int
    """Counted in the last minute: what was used, and what calls in flight have reserved."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tour happens: the addresses of Envoy and of the gate's admin server, and the stand-in."""

    listen: str
    admin: str
    stand_in: StandIn
    http: aiohttp.ClientSession
    screen: Screen

    def gpt(self, user: str) -> openai.AsyncOpenAI:
        base = f"http://{self.listen}/openai/v1"
        return openai.AsyncOpenAI(api_key=KEY, base_url=base, max_retries=0, default_headers={"x-user-id": user})

    def claude(self, user: str) -> anthropic.AsyncAnthropic:
        base = f"http://{self.listen}/anthropic"
        return anthropic.AsyncAnthropic(api_key=KEY, base_url=base, max_retries=0, default_headers={"x-user-id": user})

    async def bucket(self, whose: Whose) -> Bucket:
        """What the gate says of a bucket; nothing but zeros where nobody has used it yet."""
        async with self.http.get(f"http://{self.admin}/status", params=whose._asdict()) as response:
            buckets = (await response.json())["buckets"]
        for bucket in buckets:
            if "models" not in bucket:
                return Bucket(bucket["inFlight"], bucket["queued"], bucket["windows"]["tokensPerMinute"]["used"])
        return Bucket(0, 0, 0)

    async def until(self, whose: Whose, holds: Callable[[Bucket], bool], what: str) -> Bucket:
        """Look at a bucket until something holds of it. Raises `Broken` if it does not hold soon."""
        for _ in range(int(SOON / 0.02)):
            bucket = await self.bucket(whose)
            if holds(bucket):
                return bucket
            await asyncio.sleep(0.02)
        raise Broken(f"waited {SOON:.0f} s for {what}, in vain")

    async def counted(self, whose: Whose) -> int:
        """The tokens of a bucket once no call of it is in flight: a call is settled just after its answer ended."""
        what = f"the last call of {whose.subject} to be settled"
        return (await self.until(whose, lambda bucket: bucket.in_flight == 0, what)).tokens


async def sluice(*arguments: str, output: int | IO[bytes] = asyncio.subprocess.PIPE) -> Process:
    """One `sluice` command as a child with a session of its own, so that a Ctrl-C here does not end it first."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sluice_sidecar",
        *arguments,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "SLUICE_ENVOY": os.environ.get("SLUICE_ENVOY") or str(ENVOY)},
    )


@contextlib.asynccontextmanager
async def gate(limits: Path, listen: str, admin: str, http: aiohttp.ClientSession) -> AsyncIterator[None]:
    """The gate and its Envoy, from ready to gone; its log beside its limits. Raises `Broken` if not ready."""
    log = limits.with_name(LOG)
    with log.open("wb") as output:
        process = await sluice("run", "-f", str(limits), "--envoy", "--listen", listen, "--admin", admin, output=output)
    try:
        why = await _what_keeps_it(process, admin, http)
        if why:
            last = log.read_text(errors="replace").splitlines()[-15:]
            raise Broken(f"the gate {why}; the last lines of its log:\n" + "\n".join(last))
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_WITHIN)
        with contextlib.suppress(ProcessLookupError):  # what is left of its session, and nothing else
            os.killpg(process.pid, signal.SIGKILL)


async def _what_keeps_it(process: Process, admin: str, http: aiohttp.ClientSession) -> str:
    """Wait for the gate to be ready; what it is instead, or nothing."""
    for _ in range(int(START_WITHIN / 0.05)):
        if process.returncode is not None:
            return f"ended with exit code {process.returncode}"
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"http://{admin}/readyz") as response:
                if response.status == 200:
                    return ""
        await asyncio.sleep(0.05)
    return f"is not ready after {START_WITHIN:.0f} s"


@contextlib.asynccontextmanager
async def under_way(*calls: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Future[list[T]]]:
    """Calls that run at the same time; none of them outlives the block."""
    together = asyncio.gather(*calls)
    try:
        yield together
    finally:
        together.cancel()
        await asyncio.gather(together, return_exceptions=True)


async def soon(what: Awaitable[None], name: str) -> None:
    try:
        await asyncio.wait_for(what, SOON)
    except TimeoutError:
        raise Broken(f"waited {SOON:.0f} s for {name}, in vain") from None


def derived_limits(folder: Path, upstream: str) -> Path:
    """The example's limits with every upstream replaced, in a file of their own."""
    documents = list(yaml.safe_load_all((HERE / "limits.yaml").read_text()))
    for document in documents:
        document["spec"]["upstream"] = upstream
    derived = folder / "limits.yaml"
    derived.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return derived


def loopback(port: int) -> str:
    """`127.0.0.1:PORT` if that port is free, else the same with one that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return loopback(0)
        return f"127.0.0.1:{probe.getsockname()[1]}"
