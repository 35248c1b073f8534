"""Reports from the gates of a namespace, asked in parallel; what a forged gate could stretch has its bounds."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Final

import aiohttp

from sluice_operator import clock
from sluice_operator.cluster import GatePod
from sluice_operator.planning.reports import BadReport, Report, read_report
from sluice_operator.planning.state import Gate

PATH: Final = "/status?limit=100"
PARALLEL: Final = 16
SECONDS: Final = 2.0
"""For the whole of one answer."""
PATIENCE: Final = 4.0
"""Seconds for all the gates of a namespace. Whoever was silent is asked last the next time."""
LARGEST: Final = 2 * 1024 * 1024
"""Bytes of one answer."""


class Collector:
    """Asks gates for their reports. One for all namespaces; close it in the end."""

    def __init__(self, seconds: float = SECONDS, patience: float = PATIENCE) -> None:
        self._seconds = seconds
        self._patience = patience
        # Nothing is sent to a proxy, decompressed, redirected or remembered.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=seconds),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )
        self._slots = asyncio.Semaphore(PARALLEL)
        self._silent: set[str] = set()

    async def close(self) -> None:
        await self._session.close()

    async def gates(self, pods: Sequence[GatePod]) -> tuple[Gate, ...]:
        """What each pod's gate says now, within `PATIENCE` for all of them."""
        deadline = clock.now() + self._patience
        in_order = sorted(pods, key=lambda pod: (pod.uid in self._silent, pod.name))
        gates = await asyncio.gather(*(self._gate(pod, deadline) for pod in in_order))
        self._silent -= {pod.uid for pod in pods}
        self._silent |= {gate.uid for gate in gates if gate.report is None}
        return tuple(gates)

    async def _gate(self, pod: GatePod, deadline: float) -> Gate:
        try:
            async with asyncio.timeout(deadline - clock.now()), self._slots:
                return Gate(pod.name, pod.uid, pod.told, await self._report(pod))
        except TimeoutError:
            failure = f"no answer within {self._seconds:g} s"
        except BadReport as error:
            failure = str(error)
        except (aiohttp.ClientError, OSError):
            failure = "cannot be reached"
        return Gate(pod.name, pod.uid, pod.told, None, failure)

    async def _report(self, pod: GatePod) -> Report:
        async with self._session.get(_url(pod), allow_redirects=False) as response:
            if response.status != 200:
                raise BadReport(f"answers {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LARGEST:
                    raise BadReport(f"answers more than {LARGEST} bytes")
        return read_report(bytes(body))


def _url(pod: GatePod) -> str:
    if not pod.ip:
        raise BadReport("has no address yet")
    address = ipaddress.ip_address(pod.ip)
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{pod.port}{PATH}"


def unasked(pods: Sequence[GatePod], known: Sequence[Gate]) -> tuple[Gate, ...]:
    """The gates of these pods with what they said last, for a plan that cannot wait for their answers."""
    reports = {gate.uid: gate for gate in known}
    nothing = Gate("", "", "", None, "not asked yet")
    found = ((pod, reports.get(pod.uid, nothing)) for pod in pods)
    return tuple(Gate(pod.name, pod.uid, pod.told, gate.report, gate.failure) for pod, gate in found)
