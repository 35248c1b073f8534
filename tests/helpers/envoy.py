"""A real Envoy for tests: free ports, a folder of its own, its log when something went wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 15
STOP_SECONDS = 5
# Envoy says of every message of `ai_protocol_manager` that it is work in progress; docs/envoy.md says why it is used.
QUIET = ("--log-level", "warning", "--component-log-level", "misc:error")


def envoy_binary() -> Path:
    """The Envoy under test. Raises `FileNotFoundError` that says how to get one."""
    path = Path(os.environ.get("SLUICE_ENVOY", ROOT / ".tools/envoy/envoy/_bin/envoy"))
    if not path.is_file():
        raise FileNotFoundError(f"no Envoy at {path}: run `make setup`, or point SLUICE_ENVOY to a binary")
    return path


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets (107 bytes), which pytest's own need not be."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def validate(bootstrap: Mapping[str, Any], folder: Path) -> str:
    """What `envoy --mode validate` has against the bootstrap; empty if nothing."""
    path = folder / "validate.json"
    path.write_text(json.dumps(bootstrap))
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(path), *QUIET]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else done.stderr


@dataclass(slots=True)
class RunningEnvoy:
    """An Envoy that serves. Its admin interface is a Unix socket."""

    process: subprocess.Popen[bytes]
    admin_socket: str
    log_file: Path

    def admin(self, path: str, method: str = "GET") -> str:
        """The admin interface's answer. Raises `OSError` if it does not answer with 200."""
        connection = _UnixConnection(self.admin_socket)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"Envoy's admin interface answered {path} with {answer.status}: {body}")
        return body

    def stat(self, name: str) -> int:
        """A counter or gauge; 0 if it does not exist yet."""
        for line in self.admin(f"/stats?filter=^{name}$").splitlines():
            return int(line.partition(": ")[2])
        return 0

    @property
    def log(self) -> str:
        """Everything Envoy has said so far."""
        return self.log_file.read_text(errors="replace")


@contextmanager
def running_envoy(bootstrap: Mapping[str, Any], folder: Path, *arguments: str) -> Iterator[RunningEnvoy]:
    """Starts Envoy, waits until it serves, and stops it in the end.

    `folder` holds its files; give a short one (`short_folder`). Raises `RuntimeError` with its log if it does not
    come up within 15 seconds.
    """
    config, log_file = folder / "bootstrap.json", folder / "envoy.log"
    config.write_text(json.dumps(bootstrap))
    admin_socket = bootstrap["admin"]["address"]["pipe"]["path"]
    command = [str(envoy_binary()), "-c", str(config), "--disable-hot-restart", "--concurrency", "2", *QUIET]
    with log_file.open("wb") as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)
    envoy = RunningEnvoy(process, admin_socket, log_file)
    try:
        _wait_until_ready(envoy)
        try:
            yield envoy
        except Exception as error:
            error.add_note(f"Envoy's log:\n{envoy.log}")
            raise
    finally:
        _stop(process)


def _wait_until_ready(envoy: RunningEnvoy) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if envoy.process.poll() is not None:
            raise RuntimeError(f"Envoy ended with {envoy.process.returncode}:\n{envoy.log}")
        try:
            if envoy.admin("/ready").strip() == "LIVE":
                return
        except OSError:
            pass
        try:
            envoy.process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    raise RuntimeError(f"Envoy was not ready within {START_SECONDS} s:\n{envoy.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
