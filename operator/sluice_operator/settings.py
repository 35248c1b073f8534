"""What the command line and the environment may say, as values. Nothing here is live."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from sluice.schema.durations import parse_duration

INTERVAL: Final = 5.0
"""Seconds between two looks at the gates of a namespace."""
SHORTEST_INTERVAL: Final = 1.0
LONGEST_INTERVAL: Final = 600.0
OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class LogFormat(StrEnum):
    """How the log is written. The value is the word of `--log-format`."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


HEALTH: Final = Address("0.0.0.0", 8080)  # noqa: S104 - the kubelet and Prometheus come from outside the pod


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator was told."""

    namespaces: tuple[str, ...]
    """Those it serves; empty for all."""
    kubeconfig: Path | None
    """None for the service account of the pod."""
    identity: str
    """Its name in the Lease."""
    lease_namespace: str
    """Where the Lease is; empty for no leader election."""
    interval: float = INTERVAL
    """Seconds between two looks at the gates."""
    health: Address = HEALTH
    """Where the probes and the metrics are served."""
    metrics: Address | None = None
    """Where the metrics are served, if not beside the probes."""


def own_namespace(environ: Mapping[str, str], file: Path = OWN_NAMESPACE) -> str:
    """The namespace of the pod that this is; empty if it is none."""
    if name := environ.get("POD_NAMESPACE", ""):
        return name
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def kubeconfig(environ: Mapping[str, str]) -> Path | None:
    """The file that `KUBECONFIG` names, or kubectl's usual one if there is one; None in a pod."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return None
    if named := environ.get("KUBECONFIG", ""):
        return Path(named.split(":")[0])
    usual = Path(environ.get("HOME", "/")) / ".kube" / "config"
    return usual if usual.is_file() else None


def namespace(text: str) -> str:
    """A namespace's name; raises `ValueError`."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not the name of a namespace: lower-case letters, digits and dashes, at most 63")
    return text


def identity(text: str) -> str:
    """A name for the Lease: 1 to 253 printable characters; raises `ValueError`."""
    if not (text.isascii() and text.isprintable() and 1 <= len(text) <= 253):
        raise ValueError(f"{text!r} is not a name of 1 to 253 printable characters")
    return text


def interval(text: str) -> float:
    """Seconds of `5s`, `1m`; raises `ValueError` with what is allowed."""
    nanoseconds = parse_duration(text)
    seconds = -1.0 if nanoseconds is None else nanoseconds / 1e9
    if not SHORTEST_INTERVAL <= seconds <= LONGEST_INTERVAL:
        raise ValueError(f"{text!r} is not a duration from 1s to 10m: write 5s, 30s, 1m")
    return seconds


def address(text: str) -> Address:
    """`0.0.0.0:8080` or `[::]:8080`; raises `ValueError` with what is wrong."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise ValueError(f"{text!r} is not an address: write an IP address and a port, as in 0.0.0.0:8080")
    try:
        return Address("127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address: names are not looked up, except localhost") from None
