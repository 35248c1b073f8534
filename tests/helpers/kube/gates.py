"""Gates as pods of a namespace: each a real `sluice run`, in a folder that the stand-in for the kubelet fills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.service.ratelimit import v3 as rls

from helpers.channel import EXT_PROC, OVER_LIMIT, RATE_LIMIT, descriptor, lease_of, request_headers
from helpers.envoy import free_port
from helpers.kube.kubelet import Kubelet
from helpers.program import Program, eventually, running

MOUNTED_SECONDS = 30
"""An operator may have to start first."""


@dataclass(slots=True)
class GatePod:
    """A pod whose gate runs."""

    name: str
    program: Program
    channel: grpc.aio.Channel

    async def ask(self, user: str = "alice", provider: str = "openai") -> rls.RateLimitResponse:
        """The gate's decision on a call, as Envoy asks for it."""
        method: Any = self.channel.unary_unary(
            f"/{RATE_LIMIT}/ShouldRateLimit", response_deserializer=rls.RateLimitResponse.parse
        )
        call = rls.RateLimitRequest(domain="sluice", descriptors=[descriptor(provider=provider, user=user)])
        answer: rls.RateLimitResponse = await method(bytes(call))
        return answer

    async def refuses(self, user: str = "alice", provider: str = "openai") -> bool:
        return (await self.ask(user, provider)).overall_code is OVER_LIMIT

    @asynccontextmanager
    async def call(self, user: str = "alice") -> AsyncIterator[None]:
        """A call in flight, as long as this lasts."""
        stream: Any = self.channel.stream_stream(
            f"/{EXT_PROC}/Process", request_serializer=bytes, response_deserializer=ext_proc.ProcessingResponse.parse
        )()
        await stream.write(request_headers(lease_of(await self.ask(user))))
        try:
            yield
        finally:
            stream.cancel()


@asynccontextmanager
async def running_gate(kubelet: Kubelet, name: str, *arguments: object) -> AsyncIterator[GatePod]:
    """A pod whose gate serves on loopback, from ready to gone; the pod itself stays. `arguments` go to `sluice run`.

    As on a real kubelet, its gate is not started before there is a ConfigMap to mount.
    """
    admin, port = free_port(), free_port()
    folder = await kubelet.run_pod(name, admin)

    async def is_mounted() -> bool:
        return (folder / "limits.yaml").exists()

    await eventually(is_mounted, lambda: f"no limits.yaml in {folder}", MOUNTED_SECONDS)
    command = ("-f", folder, "--admin", f"127.0.0.1:{admin}", "--grpc", f"127.0.0.1:{port}", *arguments)
    async with running(*command) as program, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GatePod(name, program, channel)
