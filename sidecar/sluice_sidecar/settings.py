"""What the command line may say, as values: addresses, sockets, bounds. Nothing here is live; limits are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from sluice.config.entries import HEADER
from sluice.core.engine import EngineSettings
from sluice.core.limits import SECOND
from sluice.errors import SluiceError
from sluice.schema.declare import is_sound
from sluice.schema.durations import parse_duration

if TYPE_CHECKING:
    from sluice_sidecar.stores.address import StoreAddress

LONGEST_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path that the kernel takes (`unix(7)`: `sun_path` has 108, one for the NUL)."""


class Failed(SluiceError):
    """The program cannot go on; the message is a sentence for whoever started it. Exit code 1."""


class LogFormat(StrEnum):
    """How the log is written. The value is the word of `--log-format`."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if nothing outside this machine (or pod) reaches it."""
        return ipaddress.ip_address(self.host).is_loopback


Address: TypeAlias = TcpAddress | Path
"""A TCP address, or the path of a Unix socket."""

LISTEN: Final = TcpAddress("127.0.0.1", 10000)
ADMIN: Final = TcpAddress("127.0.0.1", 10001)
LEASE: Final = EngineSettings().lease
MAX_KEYS: Final = EngineSettings().max_keys
GRACE: Final = 30 * SECOND
STORE_PREFIX: Final = "sluice"


class UsageSource(StrEnum):
    """Where the gate learns how many tokens a call really used."""

    METADATA = "metadata"
    """Envoy's `ai_protocol_manager` reads the answer and hands over the numbers; no body leaves Envoy."""
    BODY = "body"
    """The answer's body is streamed to the gate: for Envoys without that filter, at the price of the copies."""


class Start(StrEnum):
    """How buckets start of which is not known what they had counted. The value is the word of `--start`."""

    FULL = "full"
    """With all that their limits allow."""
    EMPTY = "empty"
    """With nothing, as if their limits had been used up evenly until then: capacity comes back over each window."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What `sluice run` was told. Times are in nanoseconds."""

    files: tuple[Path, ...]
    """Limits documents, and folders of them."""
    profiles: Path | None = None
    """A folder of provider profiles, read at the start."""
    wait_for_limits: bool = False
    """Wait at the start until they are there and right; else that is an error."""
    socket: Path | None = None
    """Where Envoy finds the gate; None with `envoy` for a socket of its own in a private folder."""
    grpc: TcpAddress | None = None
    envoy: bool = False
    """Run an Envoy as a child."""
    envoy_binary: str | None = None
    """A path, or a name to look for in PATH; None for `envoy`."""
    listen: TcpAddress = LISTEN
    """Where that Envoy takes the applications' calls."""
    xds: Path | None = None
    """The folder of the files that an Envoy follows; None with `envoy` for one in the private folder."""
    admin: Address = ADMIN
    lease: int = LEASE
    max_keys: int = MAX_KEYS
    state_dir: Path | None = None
    """The folder in which counts are saved; None: they are in memory alone."""
    start: Start = Start.FULL
    """Where a gate has saved counts there, and they are lost."""
    store: StoreAddress | None = None
    """The store that this gate shares with others; None: it counts alone. Never with a `state_dir`."""
    store_password_file: Path | None = None
    """Read at every connection, so that the password may change; None: the variable of the environment has it."""
    store_prefix: str = STORE_PREFIX
    """Begins the name of every key in the store: the namespace's own, where namespaces share a store."""
    store_ca: Path | None = None
    """The certificates that the store is trusted by, with TLS; None for the system's own."""
    store_gates: int = 1
    """How many gates there are, as long as the store was never reached."""
    grace: int = GRACE
    """From the first signal to the end."""
    usage_source: UsageSource = UsageSource.METADATA
    usage_headers: tuple[str, ...] = ()
    """Response headers that tell the tokens used, beside the known ones; lower case."""
    ca_bundle: Path | None = None
    """The certificates that Envoy trusts providers by; None for the system's own."""


def tcp_address(text: str) -> TcpAddress:
    """`127.0.0.1:10000`, `[::1]:10000` or `localhost:10000`; raises `ValueError` with what is wrong."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address: write an IP address and a port, as in 127.0.0.1:10000")
    try:
        return TcpAddress("127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address: names are not looked up, except localhost") from None


def address(text: str) -> Address:
    """A TCP address, also as `http://…`, or a Unix socket: a path with a slash in it, with or without `unix:`."""
    if text.startswith("http://"):
        return tcp_address(text.removeprefix("http://").removesuffix("/"))
    if text.startswith("unix:") or "/" in text:
        return socket_path(text)
    return tcp_address(text)


def socket_path(text: str) -> Path:
    """An absolute path that is short enough for a Unix socket; raises `ValueError` with what is wrong."""
    path = Path(text.removeprefix("unix:")).absolute()
    size = len(str(path).encode())
    if size > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"{path} has {size} bytes; a Unix socket's path has at most {LONGEST_SOCKET_PATH}: choose a shorter one"
        )
    return path


def duration(text: str) -> int:
    """Nanoseconds of `2s`, `500ms`, `1m30s`; raises `ValueError` with what is allowed."""
    nanoseconds = parse_duration(text)
    if nanoseconds is None:
        raise ValueError(f"{text!r} is not a duration: write 500ms, 2s, 1m30s or 1h")
    return nanoseconds


def lease(text: str) -> int:
    """A duration that Envoy can keep; raises `ValueError` for none at all."""
    nanoseconds = duration(text)
    if nanoseconds == 0:
        raise ValueError(f"{text!r} would give up every call as it is admitted: write a second or more")
    return nanoseconds


def count(text: str) -> int:
    """A number from 1 to a billion; raises `ValueError`."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:11]) <= 10**9):
        raise ValueError(f"{text!r} is not a number from 1 to {10**9}")
    return int(text)


def store_prefix(text: str) -> str:
    """What keys in the store begin with; raises `ValueError`."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError("a prefix has 1 to 64 letters, digits, `.`, `_` and `-`, such as team-a")
    return text


def header_names(text: str) -> tuple[str, ...]:
    """Names with commas between them, in lower case; raises `ValueError` for what cannot be a header's name."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    bad = [name for name in names if not is_sound(HEADER, name)]
    if bad:
        raise ValueError(f"{bad[0]!r} is not the name of a header")
    return names


def shown(addresses: Iterable[Address | None]) -> str:
    """Addresses for a person."""
    return " and ".join(f"unix:{a}" if isinstance(a, Path) else str(a) for a in addresses if a is not None)
