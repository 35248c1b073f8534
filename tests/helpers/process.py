"""A server that tests need as a process: started, killed, paused, and started again with the same arguments."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.envoy import ROOT

TETHER = ROOT / "sidecar/sluice_sidecar/tether.py"
STOP_SECONDS = 10
TAIL = 3000
# Below what Linux gives to outgoing connections (32768 and up): no connection takes the port of a server that is down.
PORTS = range(15_000, 32_000)


class Process:
    """Its output is kept in `log`. It ends with this process, even with one that is killed.

    The kernel ties it to the thread that starts it, so start it in one that stays, the main thread.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; does not wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(TETHER), str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def pause(self) -> None:
        """Stop it as it stands: its connections stay open, and nothing answers."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a word to anybody."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it end in its own way; takes up to ten seconds."""
        self._end(signal.SIGTERM)

    def check(self) -> None:
        """Raise `AssertionError` with the end of its log if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.name} has ended:\n{self.tail}")

    @property
    def pid(self) -> int:
        """Raises `AssertionError` if it is not started."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-TAIL:]

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._send(number)
        self._send(signal.SIGCONT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def lasting_ports(number: int, beside: int = 0) -> list[int]:
    """TCP ports on loopback that are free, and stay so while their server is down.

    `beside`: the port so far above each is free too.
    """
    candidates = range(PORTS.start, PORTS.stop - beside)
    ports: list[int] = []
    for port in random.sample(candidates, len(candidates)):
        if len(ports) == number:
            return ports
        if _is_free(port) and _is_free(port + beside):
            ports.append(port)
    raise OSError(f"no {number} ports are free on loopback")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
