"""The one Redis of the bench: started here, asked over a plain socket, so that nothing of ours is measured with it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from bench.grpc_load import connected
from bench.programs import free_address, program

Command = Sequence[bytes]
"""A command and its arguments."""

MONITORED: Final = re.compile(rb'[\d.]+ \[\d+ (\S+)\] ((?:"(?:[^"\\]|\\.)*" ?)+)')
OURS: Final = ("cmdstat_info:", "cmdstat_echo:")
"""What the bench itself asks."""
LIFE: Final = (b"PING", b"EVALSHA")
"""Signs of life: of the service that is listened to, and of the gate, which beats meanwhile."""
WORD: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')


class RedisError(RuntimeError):
    """What the server answered in place of a result."""


def find() -> str | None:
    """The server's program: the one that `SLUICE_REDIS` names, or the system's."""
    return os.environ.get("SLUICE_REDIS") or shutil.which("redis-server")


@contextmanager
def running(binary: str, folder: Path, core: int | None) -> Iterator[Redis]:
    """A server that keeps everything in memory only."""
    address = free_address()
    command = [binary, "--bind", "127.0.0.1", "--port", address.rpartition(":")[2], "--dir", str(folder)]
    with (
        program([*command, "--save", "", "--appendonly", "no", "--daemonize", "no"], address, folder, core),
        Redis(address) as redis,
    ):
        yield redis


def packed(command: Command) -> bytes:
    """The command as it goes over the wire."""
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)


@dataclass(frozen=True, slots=True)
class Work:
    """What the server has done since it was started."""

    cpu: float
    """CPU seconds, all its threads included."""
    commands: int
    """Those that scripts call included."""
    failed: int

    def since(self, before: Work) -> Work:
        return Work(self.cpu - before.cpu, self.commands - before.commands, self.failed - before.failed)


class Redis:
    """A connection that waits for each answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket: socket.socket = connected(address)
        self._answers: BinaryIO = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def do(self, *words: str | bytes | int) -> Any:
        """The answer to one command: bytes, a number, None, or a list of these. Raises `RedisError`."""
        command = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(packed(command))
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line.endswith(b"\r\n"):
            raise RedisError("the server has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._answers.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self._answer() for _ in range(int(rest))]
        return rest

    def work(self) -> Work:
        """What the server has done until now."""
        cpu = _numbers(self.do("INFO", "cpu"))
        calls = failed = 0
        for line in self.do("INFO", "commandstats").decode().splitlines():
            if not line.startswith("cmdstat_") or line.startswith(OURS):
                continue
            fields = dict(pair.split("=") for pair in line.partition(":")[2].split(","))
            calls += int(fields["calls"])
            failed += int(fields["rejected_calls"]) + int(fields["failed_calls"])
        return Work(cpu["used_cpu_user"] + cpu["used_cpu_sys"], calls, failed)

    def sizes(self) -> Iterator[int]:
        """The bytes that `MEMORY USAGE` tells of each key."""
        cursor = b"0"
        while True:
            cursor, keys = self.do("SCAN", cursor, "COUNT", 1000)
            for key in keys:
                size = self.do("MEMORY", "USAGE", key, "SAMPLES", 0)
                if size is not None:  # it may have expired meanwhile
                    yield size
            if cursor == b"0":
                return


def _numbers(info: bytes) -> dict[str, float]:
    pairs = (line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return {name: float(value) for name, value in pairs if re.fullmatch(r"[\d.]+", value)}


class Monitor:
    """Everything that clients ask the server, from here until it is read."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._monitor = Redis(redis.address)
        self._monitor.do("MONITOR")

    def commands(self) -> list[Command]:
        """In the order in which the server took them; without what its scripts do, and without signs of life."""
        mark = f"bench-{time.monotonic_ns()}".encode()
        self._redis.do("ECHO", mark)
        found: list[Command] = []
        while True:
            line = self._monitor._answer()  # noqa: SLF001  # one object in two parts
            match = MONITORED.match(line)
            if match is None or match[1] == b"lua":
                continue
            command = [bytes(ast.literal_eval(f"b{word.decode('ascii')}")) for word in WORD.findall(match[2])]
            if command[-1] == mark:
                self._monitor.__exit__()
                return found
            if command[0].upper() not in LIFE:
                found.append(command)
