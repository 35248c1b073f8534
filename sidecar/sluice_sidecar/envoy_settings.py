"""What the Envoy configuration needs to know beyond the limits: addresses, sockets, folders, bounds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sluice_sidecar.settings import LISTEN, Address, TcpAddress, UsageSource

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """How Envoy is laid out on its machine. Paths are absolute; a socket's path is at most 107 bytes (`unix(7)`)."""

    gate: Address
    """Where the gate serves its gRPC services: a Unix socket's path, or a loopback address."""
    admin_socket: Path
    """Envoy's admin interface is a Unix socket, because whoever reaches it can stop Envoy and read its traffic."""
    listen: TcpAddress = LISTEN
    """Where applications call."""
    xds_folder: Path | None = None
    """The folder of the files that Envoy follows; None for a bootstrap that holds everything itself."""
    usage: UsageSource = UsageSource.METADATA
    observed_headers: tuple[str, ...] = ()
    """Further response headers that the gate is shown, by name, or by prefix if it ends in `*`."""
    ca_bundle: Path | None = None
    """The certificates that a provider's certificate must lead to; None for the system's own."""
    rls_timeout: timedelta | None = None
    """How long a call waits for the gate's decision; None for the longest `maxWait` and a second."""
    deferred_close_timeout: timedelta = timedelta(milliseconds=500)
    """How long Envoy holds a call's usage stream open after the call's end, for the gate to take the last messages.

    Measured with a gate that had 400 calls at once to settle: at 50 ms it missed 85 % of the usage, at 200 ms 0.7 %,
    at 500 ms none. No slot waits for it: the gate ends the stream itself, and is told of cut calls at once.
    """
    body_limit: int = 32 * MIB
    """The largest request body in bytes; a larger one is answered with 413. 32 MiB is the most a provider takes."""
