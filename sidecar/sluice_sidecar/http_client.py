"""One HTTP request over TCP or a Unix socket: for Envoy's admin interface, and for ours."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from sluice_sidecar.settings import Address

TIMEOUT = 5.0
"""Seconds for each step of a request."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        if isinstance(self._address, Path):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._address))
        else:
            self.sock = socket.create_connection((self._address.host, self._address.port), self.timeout)


def fetch(address: Address, path: str, *, method: str = "GET", timeout: float = TIMEOUT) -> tuple[int, str]:
    """The status and the body of the answer; raises `OSError`, also for an answer that is no HTTP."""
    connection = _Connection(address, timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(f"the answer is not HTTP: {error!r}") from error
    finally:
        connection.close()
