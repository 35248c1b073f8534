"""What gRPC in Python costs by itself: a rate-limit service that answers every request with the same bytes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import grpc
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from sluice_sidecar.grpc_server import OPTIONS
from sluice_sidecar.protos import RATE_LIMIT

ANSWER: Final[bytes] = RateLimitResponse(overall_code=RateLimitResponse.OK).SerializeToString()


async def _answer(_: bytes, __: Any) -> bytes:
    return ANSWER


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(_answer)  # type: ignore[var-annotated]  # bytes are passed as they are
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RATE_LIMIT, {"ShouldRateLimit": method}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
