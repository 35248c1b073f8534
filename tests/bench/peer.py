"""envoyproxy/ratelimit, the rate-limit service that the bench compares Sluice with on one Redis.

`make bench-peers` builds it. A descriptor has one limit there, a number of requests in a unit of the clock (a fixed
window, where Sluice's slides), so a call that meets several windows sends a descriptor for each. It is given every
advantage that its settings offer here: no statistics, one thread for its one core, and the pool of connections that
suited it best (its default).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from bench import limits
from bench.programs import free_address, program

NAME: Final = "envoyproxy/ratelimit"
DOMAIN: Final = "bench"
SCOPES: Final = {"user": "user-{}", "org": "acme", "project": "web"}
UNITS: Final = ("minute", "hour")
BUILD: Final = Path(__file__).parent / "peers" / "build.sh"


def find() -> Path | None:
    """The program, if it has been built."""
    built = subprocess.run([BUILD, "--find"], capture_output=True, text=True, check=False)
    return Path(built.stdout.strip()) / "ratelimit" if built.returncode == 0 else None


@contextmanager
def running(binary: Path, redis: str, folder: Path, core: int | None) -> Iterator[tuple[str, int]]:
    """The service on that Redis: its address and its process id."""
    configuration = folder / "peer" / "bench" / "config" / "bench.yaml"  # root, sub-directory, `config`: as it wants it
    configuration.parent.mkdir(parents=True)
    configuration.write_text(json.dumps({"domain": DOMAIN, "descriptors": list(_descriptors())}))
    addresses = {name: free_address().split(":") for name in ("", "GRPC_", "DEBUG_")}
    environment = {
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": redis,
        "RUNTIME_ROOT": str(folder / "peer"),
        "RUNTIME_SUBDIRECTORY": "bench",
        "RUNTIME_WATCH_ROOT": "false",
        "LOG_LEVEL": "warn",
        "DISABLE_STATS": "true",
        **{f"{name}HOST": host for name, (host, _) in addresses.items()},
        **{f"{name}PORT": port for name, (_, port) in addresses.items()},
        **({} if core is None else {"GOMAXPROCS": "1"}),
    }
    address = ":".join(addresses["GRPC_"])
    with program([str(binary)], address, folder, core, environment) as pid:
        yield address, pid


def _descriptors() -> Iterator[dict[str, object]]:
    for scope in SCOPES:
        for unit in UNITS:
            yield {"key": f"{scope}_{unit}", "rate_limit": {"unit": unit, "requests_per_unit": limits.WIDE}}


def messages(scopes: Sequence[str], units: Sequence[str], subjects: int) -> tuple[bytes, ...]:
    """A request for each user, with a descriptor for each of the scopes in each of the units."""
    return tuple(_message(scopes, units, number) for number in range(subjects))


def _message(scopes: Sequence[str], units: Sequence[str], number: int) -> bytes:
    request = RateLimitRequest(domain=DOMAIN)
    for scope in scopes:
        for unit in units:
            request.descriptors.add().entries.add(key=f"{scope}_{unit}", value=SCOPES[scope].format(number))
    return bytes(request.SerializeToString())
