"""`grpc.health.v1` over a real channel, as Envoy or a kubelet asks it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from helpers.channel import ACCESS_LOG, EXT_PROC, RATE_LIMIT, Served, Transport, descriptor, request_headers, serving
from helpers.system import limits

LIMITS = limits("openai", "http://127.0.0.1:9", {"maxConcurrent": 1, "maxWait": "60s"})
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


async def check(served: Served, service: str) -> int:
    method: Any = served.channel.unary_unary(
        "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    answer: HealthCheckResponse = await method(HealthCheckRequest(service=service))
    return answer.status


def watch(served: Served) -> Any:
    method: Any = served.channel.unary_stream(
        "/grpc.health.v1.Health/Watch", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    return method(HealthCheckRequest())


@pytest.mark.parametrize("transport", list(Transport))
async def test_every_service_is_serving_once_the_gate_is_up(transport: Transport) -> None:
    async with serving(LIMITS, transport) as served:
        for service in ("", RATE_LIMIT, EXT_PROC, ACCESS_LOG):
            assert await check(served, service) == SERVING


async def test_a_service_that_is_not_here_is_not_found() -> None:
    async with serving(LIMITS) as served:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await check(served, "else")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_gate_that_stops_says_so_while_calls_are_still_under_way() -> None:
    async with serving(LIMITS) as served:
        watching = watch(served)
        assert (await watching.read()).status == SERVING
        stream = await served.claimed(await served.admit(user="alice"))
        waiting = asyncio.create_task(served.ask(descriptor(user="alice")))
        await served.until(lambda: served.snapshot().queued == 1)
        stopping = asyncio.create_task(served.server.stop(30))
        assert (await watching.read()).status == NOT_SERVING
        watching.cancel()
        await stream.done_writing()  # what is under way goes on to its end: who waits gets the slot
        assert (await waiting).overall_code.name == "OK"
        await stopping
        stream = served.watch()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.write(request_headers("1"))
