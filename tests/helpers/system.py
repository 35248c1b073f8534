"""The whole data plane for a test: a stand-in provider, a real Envoy, and the gate in the test's own process.

The gate runs here so that a test sees its engine; that it runs as a program too is what `test_command.py` holds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from helpers.envoy import RunningEnvoy, free_port, running_envoy, short_folder
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine, EngineSettings
from sluice.core.states import BucketState, Snapshot
from sluice.core.telemetry import Telemetry
from sluice_sidecar import clock
from sluice_sidecar.envoy_config import EnvoySettings, TcpAddress, UsageSource, bootstrap
from sluice_sidecar.extproc import OnRefused, OnUntold
from sluice_sidecar.gate import Gate
from sluice_sidecar.grpc_server import GrpcServer
from standin import Recording, StandIn

SETTLE_SECONDS = 10.0
SUM = {"counting": {"combine": "Sum"}}
"""Of a profile: what is reserved is the input and the output. OpenAI's own is the larger of the two."""


@dataclass(slots=True)
class System:
    """What a test may touch."""

    gate: Gate
    envoy: RunningEnvoy
    provider: StandIn
    url: str
    """Where applications call: Envoy."""
    client: aiohttp.ClientSession
    server: GrpcServer
    socket: str
    """Where the gate serves."""

    def snapshot(self) -> Snapshot:
        return self.gate.engine.snapshot(clock.now())

    def bucket(self, subject: str) -> BucketState:
        """The one bucket of that subject."""
        (state,) = [bucket for bucket in self.snapshot().buckets if bucket.key.subject == subject]
        return state

    async def until(self, holds: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> None:
        """Wait until it holds; fail with the state that there was if it never does."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; now: {self.snapshot()}")
            await asyncio.sleep(0.005)

    async def stop_gate(self) -> None:
        """The gate is gone, as far as Envoy can see; its engine stays."""
        await self.server.stop(0)

    async def start_gate(self) -> None:
        """The gate is there again."""
        self.server = GrpcServer(self.gate)
        await self.server.start(socket=self.socket)

    async def settled(self) -> None:
        """Wait until no call is in flight."""
        await self.until(lambda: self.snapshot().in_flight == 0)


def limits(provider: str, upstream: str, *entries: Mapping[str, Any], **spec: Any) -> str:
    """A limits document. Entries read the subject from `x-user-id` unless they say otherwise."""
    default = {"scope": "User", "subject": {"header": "x-user-id"}}
    manifest = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": provider},
        "spec": {
            "provider": provider,
            "upstream": upstream,
            "limits": [{**default, **entry} for entry in entries],
            **spec,
        },
    }
    return json.dumps(manifest)


@asynccontextmanager
async def running_system(
    document: Callable[[str], str],
    usage: UsageSource = UsageSource.METADATA,
    settings: EngineSettings | None = None,
    telemetry: Telemetry | None = None,
    *,
    on_refused: Sequence[OnRefused] = (),
    on_untold: Sequence[OnUntold] = (),
    recordings: Mapping[str, Recording] | None = None,
    changed: Callable[[dict[str, Any]], None] = lambda _: None,
) -> AsyncIterator[System]:
    """Everything up, with the limits that `document` gives for the provider's address; down in the end.

    `changed` may change what Envoy is started with.
    """
    with short_folder() as folder:
        provider = await StandIn(recordings=recordings).start()
        configuration = merge(parse(document(provider.url), "test"))
        gate = Gate(Engine(settings=settings, telemetry=telemetry), clock.now)
        gate.apply(configuration, {})
        gate.start()
        server = GrpcServer(gate, on_refused=on_refused, on_untold=on_untold)
        port, socket = free_port(), str(folder / "gate.sock")
        await server.start(socket=socket)
        envoy_settings = EnvoySettings(
            gate=Path(socket), admin_socket=folder / "admin.sock", listen=TcpAddress("127.0.0.1", port), usage=usage
        )
        laid_out = bootstrap(configuration, envoy_settings)
        changed(laid_out)
        starting = running_envoy(laid_out, folder)
        envoy = await asyncio.to_thread(starting.__enter__)
        client = aiohttp.ClientSession()
        system = System(gate, envoy, provider, f"http://127.0.0.1:{port}", client, server, socket)
        try:
            yield system
        finally:
            await client.close()
            await asyncio.to_thread(starting.__exit__, None, None, None)
            await system.server.stop(0)
            await gate.close()
            await provider.stop()
