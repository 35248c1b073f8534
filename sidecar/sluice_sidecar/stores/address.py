"""What `--store` says: which servers keep the counts that gates share, and how they are reached.

A password stands in no address. Somebody may write one all the same, where it belongs or where it does not, so no
error repeats what was written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from sluice_sidecar.settings import LONGEST_SOCKET_PATH

PASSWORD_VARIABLE: Final = "SLUICE_STORE_PASSWORD"  # noqa: S105 - a name, not a password
"""The environment variable that holds the password where no file does."""

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

FORMS: Final = (
    "redis://HOST[:PORT][/DATABASE], rediss://… for TLS, unix:///PATH, redis+sentinel://HOST,HOST/SERVICE or "
    "redis+cluster://HOST,HOST"
)
_PASSWORD_GOES: Final = f"into a file that --store-password-file names, or into the variable {PASSWORD_VARIABLE}"

Server: TypeAlias = tuple[str, int]
"""A name or an IP address (of IPv6 without brackets), and a port."""


class StoreKind(StrEnum):
    """What answers at the address."""

    SINGLE = "single"
    """One server, or whatever passes for one."""
    SENTINEL = "sentinel"
    """Sentinels, which know where the server of a service is now."""
    CLUSTER = "cluster"
    """Some nodes of a cluster, which know the others."""


class _Scheme(NamedTuple):
    kind: StoreKind
    tls: bool


_SCHEMES: Final[Mapping[str, _Scheme]] = {
    "redis": _Scheme(StoreKind.SINGLE, tls=False),
    "rediss": _Scheme(StoreKind.SINGLE, tls=True),
    "redis+sentinel": _Scheme(StoreKind.SENTINEL, tls=False),
    "rediss+sentinel": _Scheme(StoreKind.SENTINEL, tls=True),
    "redis+cluster": _Scheme(StoreKind.CLUSTER, tls=False),
    "rediss+cluster": _Scheme(StoreKind.CLUSTER, tls=True),
}
_NAMES: Final = {scheme: name for name, scheme in _SCHEMES.items()}
_UNIX: Final = "unix"

_SERVER: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_][A-Za-z0-9._-]{0,252}))(?::([0-9]{1,5}))?")
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")  # what a sentinel takes for the name of a service
_DATABASE: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is. As a text it tells no user and no secret: gates with one store show one address."""

    kind: StoreKind
    hosts: tuple[Server, ...] = ()
    """Of a server, of the sentinels, or of some nodes of the cluster; empty for a Unix socket."""
    path: Path | None = None
    """The Unix socket of a server on this machine."""
    service: str = ""
    """What the sentinels call it; empty for the other kinds."""
    db: int = 0
    tls: bool = False
    user: str = field(default="", repr=False)
    """The ACL user; empty for the default one. Not shown: it may be a password in the wrong place."""

    @classmethod
    def parse(cls, text: str) -> StoreAddress:
        """The address in one of the `FORMS`; raises `ValueError` with what is wrong, and repeats nothing of it."""
        name, mark, rest = text.partition("://")
        name = name.lower()
        if not mark or name not in {*_SCHEMES, _UNIX}:
            raise ValueError(f"it is no address of a store: write {FORMS}")
        if name == _UNIX and rest.startswith("/"):  # an @ in the path is none behind a user
            return _socket("", rest)
        login, at, place = rest.rpartition("@")
        user = _user(login) if at else ""
        if name == _UNIX:
            return _socket(user, place)
        return _network(_SCHEMES[name], user, place)

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}://{quote(str(self.path))}" + (f"?db={self.db}" if self.db else "")
        servers = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        behind = [self.service] if self.service else []
        if self.db:
            behind.append(str(self.db))
        return "/".join([f"{_NAMES[_Scheme(self.kind, self.tls)]}://{servers}", *behind])


def _network(scheme: _Scheme, user: str, place: str) -> StoreAddress:
    if "?" in place or "#" in place:
        raise ValueError(
            "nothing may stand behind a ? or # in the address of a store: a database is written as /1, "
            f"and a password goes {_PASSWORD_GOES}"
        )
    kind, tls = scheme
    servers, _, behind = place.partition("/")
    hosts = _servers(servers, SENTINEL_PORT if kind is StoreKind.SENTINEL else PORT)
    match kind:
        case StoreKind.SINGLE:
            if len(hosts) > 1:
                raise ValueError(
                    "it names several servers: write redis+cluster:// for the nodes of a cluster, or redis+sentinel:// "
                    "for sentinels"
                )
            return StoreAddress(kind, hosts, db=_database(behind), tls=tls, user=user)
        case StoreKind.SENTINEL:
            service, _, database = behind.partition("/")
            if not _SERVICE.fullmatch(service):
                raise ValueError(
                    "behind the sentinels there must be what they call the service, a name of letters, digits, `.`, "
                    "`_` and `-`, as in redis+sentinel://HOST,HOST/mymaster"
                )
            return StoreAddress(kind, hosts, service=service, db=_database(database), tls=tls, user=user)
        case StoreKind.CLUSTER:
            if behind:
                raise ValueError("a cluster has no databases to choose from: leave out what stands behind its nodes")
            return StoreAddress(kind, hosts, tls=tls, user=user)


def _socket(user: str, place: str) -> StoreAddress:
    written, _, query = place.partition("?")
    path = _decoded(written)
    if path is None or not path.startswith("/") or path.endswith("/"):
        raise ValueError("a Unix socket has an absolute path, behind three slashes: unix:///run/redis/redis.sock")
    if len(path.encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"the path has {len(path.encode())} bytes; a Unix socket's path has at most {LONGEST_SOCKET_PATH}: "
            "choose a shorter one"
        )
    if query and not query.startswith("db="):
        raise ValueError(
            "behind the ? of a Unix socket stands its database and nothing else, as in unix:///run/redis.sock?db=1; "
            f"a password goes {_PASSWORD_GOES}"
        )
    return StoreAddress(StoreKind.SINGLE, path=Path(path), db=_database(query.removeprefix("db=")), user=user)


def _user(login: str) -> str:
    if ":" in login:
        raise ValueError(f"a password has no place in an address, where others can see it: it goes {_PASSWORD_GOES}")
    user = None if re.search(r"[/?#,]", login) else _decoded(login)
    if not user or " " in user:
        raise ValueError(
            "in front of the @ stands the name of a user and nothing else: leave out both, or write what is neither a "
            "letter nor a digit as %XX"
        )
    return user


def _servers(text: str, port: int) -> tuple[Server, ...]:
    written = text.split(",")
    return tuple(_server(each, port, f"server {number} of it") for number, each in enumerate(written, start=1))


def _server(text: str, port: int, what: str) -> Server:
    found = _SERVER.fullmatch(text)
    if not found:
        raise ValueError(
            f"{what} cannot be read: write a name or an IP address and, if need be, a port, as in redis.example:6379 "
            "or [::1]:6379"
        )
    address, name, given = found.groups()
    number = int(given) if given else port
    if not 1 <= number <= 65535:
        raise ValueError(f"{what} has a port that is not from 1 to 65535")
    if name:
        return name.lower(), number
    try:
        return str(ipaddress.IPv6Address(address)), number
    except ValueError:
        raise ValueError(f"{what} has no IPv6 address in its brackets") from None


def _database(text: str) -> int:
    if text and not _DATABASE.fullmatch(text):
        raise ValueError("a database is a number, as in redis://HOST/1 or unix:///PATH?db=1")
    return int(text or 0)


def _decoded(text: str) -> str | None:
    """The text without its %XX; None if it is none that a person could read."""
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None
    return decoded if decoded.isprintable() else None
