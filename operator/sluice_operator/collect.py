"""Reports from the gates of a namespace, asked in parallel; what a forged gate could stretch has its bounds."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from sluice_operator import clock
from sluice_operator.cluster import GatePod
from sluice_operator.planning.reports import MOST_BUCKETS, BadReport, Report, read_report
from sluice_operator.planning.state import Gate

PATH: Final = f"/status?limit={MOST_BUCKETS}"
PARALLEL: Final = 16
"""Gates of a namespace asked at a time: one with many silent ones keeps no other namespace waiting."""
SECONDS: Final = 2.0
"""For the whole of one answer."""
PATIENCE: Final = 4.0
"""Seconds for all the gates of a namespace. Whoever was silent is asked last the next time."""
LARGEST: Final = 512 * 1024
"""Bytes of one answer: five times what a hundred buckets take."""
LARGEST_SUM: Final = 64 * 1024 * 1024
"""Bytes of the answers of a namespace: a thousand gates may send 64 KiB each. They are kept until the next look, in
twice the memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one look at the gates of a namespace."""

    deadline: float
    """Of all of them, on the monotonic clock."""
    slots: asyncio.Semaphore
    largest: int
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
        self._silent: set[str] = set()

    async def close(self) -> None:
        await self._session.close()

    async def gates(self, pods: Sequence[GatePod]) -> tuple[Gate, ...]:
        """What each pod's gate says now, within `PATIENCE` for all of them."""
        bounds = Bounds(
            clock.now() + self._patience, asyncio.Semaphore(PARALLEL), min(LARGEST, LARGEST_SUM // max(len(pods), 1))
        )
        in_order = sorted(pods, key=lambda pod: (pod.uid in self._silent, pod.name))
        gates = await asyncio.gather(*(self._gate(pod, bounds) for pod in in_order))
        self._silent -= {pod.uid for pod in pods}
        self._silent |= {gate.uid for gate in gates if gate.report is None}
        return tuple(gates)

    async def _gate(self, pod: GatePod, bounds: Bounds) -> Gate:
        try:
            async with asyncio.timeout(bounds.deadline - clock.now()), bounds.slots:
                return Gate(pod.name, pod.uid, pod.told, await self._report(pod, bounds.largest))
        except TimeoutError:
            failure = f"no answer within {self._seconds:g} s"
        except BadReport as error:
            failure = str(error)
        except (aiohttp.ClientError, OSError):
            failure = "cannot be reached"
        return Gate(pod.name, pod.uid, pod.told, None, failure)

    async def _report(self, pod: GatePod, largest: int) -> Report:
        async with self._session.get(_url(pod), allow_redirects=False) as response:
            if response.status != 200:
                raise BadReport(f"answers {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > largest:
                    raise BadReport(f"answers more than {largest} bytes")
        return read_report(bytes(body))


def _url(pod: GatePod) -> str:
    if not pod.ip:
        raise BadReport("has no address yet")
    try:
        address = ipaddress.ip_address(pod.ip)
    except ValueError:  # the API server still takes zeros in front
        raise BadReport("has an address that cannot be read") from None
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{pod.port}{PATH}"


def unasked(pods: Sequence[GatePod], known: Sequence[Gate]) -> tuple[Gate, ...]:
    """The gates of these pods with what they said last, for a plan that cannot wait for their answers."""
    reports = {gate.uid: gate for gate in known}
    nothing = Gate("", "", "", None, "not asked yet")
    found = ((pod, reports.get(pod.uid, nothing)) for pod in pods)
    return tuple(Gate(pod.name, pod.uid, pod.told, gate.report, gate.failure) for pod, gate in found)
