"""How the store is connected to: one server, sentinels or a cluster, with TLS and a password that may change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from sluice_sidecar.stores.address import PASSWORD_VARIABLE, StoreAddress, StoreKind
from sluice_sidecar.stores.shared.troubles import FAILURES, NoMasterError, unreadable


def password_source(file: Path | None, environ: Mapping[str, str]) -> Callable[[], str] | None:
    """Where the password is read, with each connection anew: a file before the variable. None: there is none."""
    if file is not None:
        return lambda: _read(file)
    word = environ.get(PASSWORD_VARIABLE)
    return (lambda: word) if word else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error) from None


class Credentials(CredentialProvider):
    """The password as it is when a connection is made, so that it can be changed meanwhile."""

    def __init__(self, user: str, password: Callable[[], str] | None) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password() if self._password is not None else ""  # of a user who has none
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class Sentinels(Sentinel):
    """All are asked at once, so that one whose machine is gone does not use up the time of the others.

    Where one asks for a password it is given that of the server.
    """

    def __init__(self, address: StoreAddress, options: dict[str, Any], credentials: Credentials | None) -> None:
        super().__init__(list(address.hosts), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._trusted = [
            Redis(host=host, port=port, credential_provider=credentials, **options)
            for host, port in (address.hosts if credentials is not None else ())
        ]

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where the server is; raises `NoMasterError`."""
        asked = [asyncio.create_task(self._masters(number)) for number in range(len(self.sentinels))]
        trouble: BaseException | None = None
        answered = False
        try:
            for telling in asyncio.as_completed(asked):
                try:
                    master = (await telling).get(service_name)
                except FAILURES as error:
                    trouble = error
                    continue
                answered = True
                if master and self.check_master_state(master, service_name):
                    return master["ip"], master["port"]
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise NoMasterError from (None if answered else trouble)

    async def aclose(self) -> None:
        await asyncio.gather(*[each.aclose() for each in (*self.sentinels, *self._trusted)], return_exceptions=True)

    async def _masters(self, number: int) -> dict[str, Any]:
        try:
            return await _told(self.sentinels[number])
        except AuthenticationError:
            if not self._trusted:
                raise
            return await _told(self._trusted[number])


async def _told(sentinel: Redis) -> dict[str, Any]:
    masters: Any = await sentinel.sentinel_masters()
    return dict(masters)


def connected(
    address: StoreAddress, password: Callable[[], str] | None, ca: Path | None, seconds: float
) -> tuple[Redis | RedisCluster, Sentinels | None]:
    """A client that waits so many seconds for anything, and the sentinels that it asks; nothing is connected yet."""
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    if address.tls:
        options["ssl"] = True
        if ca is not None:
            options["ssl_ca_certs"] = str(ca)
    credentials = Credentials(address.user, password) if address.user or password is not None else None
    own = {**options, "credential_provider": credentials} if credentials is not None else options
    if address.kind is StoreKind.CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        return RedisCluster(startup_nodes=nodes, **own), None
    own = {**own, "db": address.db}
    if address.kind is StoreKind.SENTINEL:
        sentinels = Sentinels(address, options, credentials)
        return sentinels.master_for(address.service, **own), sentinels
    if address.path is not None:
        return Redis(unix_socket_path=str(address.path), **own), None
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **own), None
