"""The processes that are measured, and the one that loads them: each started here, and ended here."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.grpc_load import connected

START_WITHIN = 20.0
STOP_WITHIN = 5.0


@contextmanager
def program(
    command: Sequence[str],
    address: str,
    folder: Path,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """A program, with these variables too, from the moment it takes connections at the address; its process id.

    Raises `RuntimeError` with its last words if it ends before, or takes too long.
    """
    name = command[2] if command[0] == sys.executable else Path(command[0]).name
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        variables = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {core})  # before it has threads: they take after the first one
        _wait(process, address, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            connected(address).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    said = log.read_text(errors="replace").strip()[-2000:]
    raise RuntimeError(f"{log.stem.partition('-')[0]} does not take connections at {address}:\n{said}")


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def gate(limits: Path, *arguments: str) -> list[str]:
    """The command that runs the gate, as a user would; its admin interface on a socket beside the limits."""
    admin = str(limits.with_name("gate-admin.sock"))
    return python("sluice_sidecar", "run", "-f", str(limits), "--admin", admin, "--grace", "1s", *arguments)


@contextmanager
def loader(core: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A process for loads to run in, kept to one core if one is named."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=machine.pin, initargs=(core,)) as pool:
        yield pool


def free_address() -> str:
    """A TCP address on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
