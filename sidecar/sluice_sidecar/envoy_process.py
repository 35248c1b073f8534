"""Envoy as a child of the gate.

It ends when the gate ends, however that happens (see `tether`), and it is in a process group of its own, so that a
Ctrl-C on the terminal reaches the gate alone, which lets the calls finish first. If Envoy ends by itself, so does the
gate: whoever started the gate (Kubernetes, a person) starts both again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Final

from sluice_sidecar import tether
from sluice_sidecar.http_client import fetch
from sluice_sidecar.settings import Failed
from sluice_sidecar.stores.address import PASSWORD_VARIABLE

logger = logging.getLogger("envoy")

LIVE_WITHIN: Final = 30.0
"""Seconds for Envoy to start: it takes about one."""
POLL: Final = 0.05
LAST_WORDS: Final = 5
"""Errors in Envoy's log that are told again when it has ended."""
LONGEST_LINE: Final = 64 * 1024
QUIET: Final = "misc:error"
"""Envoy says of each message of `ai_protocol_manager` that it is work in progress: see `docs/envoy.md`."""
_EXPECTED: Final = (
    "caught ENVOY_SIGTERM",
    "no configured limit to the number of allowed active downstream connections",
)
"""Warnings of Envoy's that say nothing new: how it is ended, and a limit that its overload manager could have."""
_LEVELS: Final = {
    "[debug]": logging.DEBUG,
    "[info]": logging.INFO,
    "[warning]": logging.WARNING,
    "[error]": logging.ERROR,
    "[critical]": logging.CRITICAL,
}


def find(binary: str | None) -> Path:
    """The Envoy to run: a path, or a name in PATH; raises `Failed` if there is none."""
    found = shutil.which(binary or "envoy")
    if found is None:
        what = f"no Envoy at {binary}" if binary else "no `envoy` in PATH"
        raise Failed(f"{what}: give --envoy-binary PATH, or set SLUICE_ENVOY")
    return Path(found).absolute()


class EnvoyProcess:
    """A running Envoy. Use `start`."""

    def __init__(self, process: asyncio.subprocess.Process, admin: Path) -> None:
        self._process = process
        self._admin = admin
        self._tail: deque[str] = deque(maxlen=LAST_WORDS)
        self._log = asyncio.create_task(self._copy_log())

    @classmethod
    async def start(cls, binary: Path, bootstrap: Path, admin: Path) -> EnvoyProcess:
        """Start it; `admin` is the socket that the bootstrap names. `wait_until_live` comes next."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            tether.__file__,
            str(os.getpid()),
            *(str(binary), "--config-path", str(bootstrap), "--disable-hot-restart"),
            *("--log-level", "warning", "--component-log-level", QUIET, "--log-format", "[%l] %v"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Envoy has no use for the password of the store.
            env={name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE},
            limit=LONGEST_LINE,
            process_group=0,
        )
        return cls(process, admin)

    async def wait_until_live(self) -> None:
        """Return once Envoy takes calls; raises `Failed` if it ends or takes too long."""
        try:
            async with asyncio.timeout(LIVE_WITHIN):
                while self._process.returncode is None:
                    if await self._is_live():
                        return
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise Failed(f"Envoy was not live within {LIVE_WITHIN:.0f} s{await self._last_words()}") from None
        raise Failed(await self.ended())

    async def ended(self) -> str:
        """Wait for Envoy's end; a sentence that says how it came."""
        code = await self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"Envoy {how}{await self._last_words()}"

    async def listening(self) -> list[str]:
        """Where it takes calls."""
        _, body = await self._ask("/listeners?format=json")
        addresses = (listener["local_address"] for listener in json.loads(body).get("listener_statuses", ()))
        sockets = (address["socket_address"] for address in addresses if "socket_address" in address)
        return [f"http://{socket['address']}:{socket['port_value']}" for socket in sockets]

    async def drain(self) -> None:
        """Take no new connections; say `connection: close` on those there are. Calls under way go on."""
        await self._ask("/healthcheck/fail", "POST")
        await self._ask("/drain_listeners", "POST")

    async def calls(self) -> int:
        """How many calls are under way; 0 once Envoy has ended."""
        try:
            _, body = await self._ask("/stats?format=json&filter=downstream_rq_active$")
        except OSError:
            return 0
        stats = json.loads(body)["stats"]
        return sum(s["value"] for s in stats if "value" in s and not s["name"].startswith("http.admin."))

    async def stop(self, patience: float) -> None:
        """End it, the hard way after `patience` seconds."""
        self._send(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            self._send(signal.SIGKILL)
            await self._process.wait()
        await self._log

    def _send(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(fetch, self._admin, path, method=method)

    async def _is_live(self) -> bool:
        try:
            status, _ = await self._ask("/ready")
        except OSError:
            return False  # not even its admin interface is up
        return status == 200

    async def _last_words(self) -> str:
        if self._process.returncode is not None:
            await self._log
        return ": " + " | ".join(self._tail) if self._tail else ""

    async def _copy_log(self) -> None:
        """Envoy's lines become ours, so that there is one log in one format."""
        stream = self._process.stderr
        assert stream is not None  # noqa: S101 - for the type checker: we asked for a pipe
        while True:
            try:
                line = (await stream.readline()).decode("utf-8", "replace")
            except ValueError:
                continue  # longer than LONGEST_LINE: the stream has dropped it
            if not line:
                return
            level, _, text = line.rstrip().partition(" ")
            if level not in _LEVELS:
                level, text = "[error]", line.rstrip()
            if any(words in text for words in _EXPECTED):
                continue
            if _LEVELS[level] >= logging.ERROR:
                self._tail.append(text)
            logger.log(_LEVELS[level], "%s", text)
