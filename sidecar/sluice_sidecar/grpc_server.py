"""The transport that works everywhere: the three services that Envoy calls, and health, on grpcio."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sluice.core.limits import MILLISECOND, SECOND
from sluice.core.windows import NEVER
from sluice.usage.headers import USAGE_HEADERS
from sluice.usage.profiles.profile import UsageFields
from sluice_sidecar.extproc import OnRefused, OnUntold, WatchedCalls
from sluice_sidecar.gate import Gate
from sluice_sidecar.logs import whereabouts
from sluice_sidecar.protos import (
    ACCESS_LOG,
    EXT_PROC,
    RATE_LIMIT,
    DecodeError,
    ProcessingRequest,
    StreamAccessLogsMessage,
    rate_limit_request,
)
from sluice_sidecar.rls import InvalidRequest, RateLimitService

logger = logging.getLogger(__name__)

ANSWER_MARGIN: Final = 50 * MILLISECOND
"""Nanoseconds before the client's deadline at which a waiting call is answered, so that it hears the reason."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 2**31 - 1),  # one stream a call in flight
    ("grpc.so_reuseport", 0),  # a port that another process holds is an error, not a share of its traffic
    ("grpc.keepalive_time_ms", 30_000),  # an Envoy that vanished without a word is noticed, and its calls end
    ("grpc.keepalive_timeout_ms", 10_000),
)


class GrpcServer:
    """Serves a gate on a Unix socket, a TCP address, or both."""

    def __init__(
        self,
        gate: Gate,
        headers: UsageFields = USAGE_HEADERS,
        on_refused: Sequence[OnRefused] = (),
        on_untold: Sequence[OnUntold] = (),
    ) -> None:
        self.calls = WatchedCalls(gate, headers, on_refused, on_untold)
        self._rate_limit = RateLimitService(gate)
        self._server = grpc.aio.server(options=OPTIONS)
        self._health = health.aio.HealthServicer()
        # grpcio is given no serializers: what fails in one is answered UNKNOWN, and its traceback logged.
        handlers: tuple[tuple[str, str, Any], ...] = (
            (RATE_LIMIT, "ShouldRateLimit", grpc.unary_unary_rpc_method_handler(self._should_rate_limit)),
            (EXT_PROC, "Process", grpc.stream_stream_rpc_method_handler(self._process)),
            (ACCESS_LOG, "StreamAccessLogs", grpc.stream_unary_rpc_method_handler(self._stream_access_logs)),
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler}) for service, method, handler in handlers]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self, *, socket: str | None = None, address: str | None = None) -> int:
        """Serve on a Unix socket's path, on `host:port`, or on both. Returns the TCP port, 0 without an address.

        Raises `RuntimeError` if a port or path cannot be bound.
        """
        port = 0
        if socket is not None:
            self._server.add_insecure_port(f"unix:{socket}")
        if address is not None:
            port = self._server.add_insecure_port(address)
        await self._server.start()
        for service in ("", RATE_LIMIT, EXT_PROC, ACCESS_LOG):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace: float) -> None:
        """Take no new calls, let those under way finish for up to `grace` seconds, then end them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)

    async def _should_rate_limit(self, data: bytes, context: Any) -> bytes:
        remaining = context.time_remaining()
        patience = NEVER if remaining is None else max(0, int(remaining * SECOND) - ANSWER_MARGIN)
        try:
            response = await self._rate_limit.should_rate_limit(rate_limit_request(data), patience)
            return bytes(response.SerializeToString())
        except DecodeError:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, "the request is no RateLimitRequest"
        except InvalidRequest as error:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception as error:  # noqa: BLE001  Envoy's failure mode decides, and the log says where to look
            code, details = grpc.StatusCode.INTERNAL, "the gate failed to decide; its log says where"
            _report("a decision failed", error)
        await context.abort(code, details)
        raise AssertionError  # abort has raised

    async def _process(self, _: Any, context: Any) -> None:
        stream = self.calls.open()
        try:
            try:
                while (data := await context.read()) is not grpc.aio.EOF:
                    if stream.feed(ProcessingRequest.FromString(data)):
                        return
            finally:
                stream.close()
        except Exception as error:  # noqa: BLE001  Envoy reads no answer: the log is all there is
            _report("a call could not be followed to its end", error)

    async def _stream_access_logs(self, _: Any, context: Any) -> bytes:
        while (data := await context.read()) is not grpc.aio.EOF:
            try:
                self.calls.feed_log(StreamAccessLogsMessage.FromString(data))
            except Exception as error:  # noqa: BLE001  the next message is about another call
                _report("a message of the access log could not be read", error)
        return b""  # a StreamAccessLogsResponse has no fields


def _report(what: str, error: BaseException) -> None:
    logger.error("%s: %s", what, whereabouts(error))
