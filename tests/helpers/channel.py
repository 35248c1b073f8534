"""The gate over a real channel, and a client that shares nothing with it: its messages are envoy-data-plane's.

What both sides got wrong in the same way would not be seen; so nothing here comes from `sluice_sidecar.protos`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import grpc
import grpc.aio
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.data.accesslog import v3 as accesslog
from envoy_data_plane.envoy.extensions.common.ratelimit import v3 as descriptors
from envoy_data_plane.envoy.service.accesslog import v3 as als
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.service.ratelimit import v3 as rls
from envoy_data_plane.google.protobuf import Any as Packed
from envoy_data_plane.google.protobuf import Struct

from helpers.envoy import short_folder
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.states import BucketState, Snapshot
from sluice.core.telemetry import Telemetry
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.grpc_server import GrpcServer

RATE_LIMIT: Final = "envoy.service.ratelimit.v3.RateLimitService"
EXT_PROC: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG: Final = "envoy.service.accesslog.v3.AccessLogService"
LEASE_NAMESPACE: Final = "envoy.filters.http.ratelimit"
USAGE_NAMESPACE: Final = "envoy.ai.token_usage"

OK: Final = rls.RateLimitResponseCode.OK
OVER_LIMIT: Final = rls.RateLimitResponseCode.OVER_LIMIT
ENDED: Final = grpc.aio.EOF
ANSWER_SECONDS: Final = 10.0


class Transport(StrEnum):
    """How the client reaches the gate, which serves on both."""

    UNIX = "unix"
    TCP = "tcp"


@dataclass(slots=True)
class Served:
    """A gate that serves, and the channel to it."""

    gate: Gate
    server: GrpcServer
    port: int
    channel: grpc.aio.Channel

    async def ask(
        self, *asked: descriptors.RateLimitDescriptor, hits: int = 0, patience: float | None = ANSWER_SECONDS
    ) -> rls.RateLimitResponse:
        """The gate's decision, waited for so many seconds. Raises `grpc.aio.AioRpcError`."""
        request = rls.RateLimitRequest(domain="sluice", descriptors=list(asked), hits_addend=hits)
        return await self.ask_raw(bytes(request), patience)

    async def ask_raw(self, request: bytes, patience: float | None = ANSWER_SECONDS) -> rls.RateLimitResponse:
        """The decision on whatever these bytes are."""
        method: Any = self.channel.unary_unary(
            f"/{RATE_LIMIT}/ShouldRateLimit", response_deserializer=rls.RateLimitResponse.parse
        )
        answer: rls.RateLimitResponse = await method(request, timeout=patience)
        return answer

    async def admit(self, **entries: str) -> str:
        """The lease of a call that is admitted."""
        answer = await self.ask(descriptor(**entries))
        assert answer.overall_code is OK, answer
        return lease_of(answer)

    def put_in_force(self, document: str) -> None:
        """Other limits, from now on."""
        self.gate.apply(merge(parse(document, "test")), {})

    async def claimed(self, lease: str) -> Any:
        """An ext_proc stream that has claimed its lease."""
        stream = self.watch()
        await stream.write(request_headers(lease))
        await self.until(lambda: lease in self.server.calls.streams)
        return stream

    def watch(self) -> Any:
        """An ext_proc stream, as Envoy opens one for each call."""
        return self.channel.stream_stream(
            f"/{EXT_PROC}/Process", request_serializer=bytes, response_deserializer=ext_proc.ProcessingResponse.parse
        )()

    def log(self) -> Any:
        """An access-log stream, as Envoy keeps one for all calls."""
        return self.channel.stream_unary(
            f"/{ACCESS_LOG}/StreamAccessLogs",
            request_serializer=bytes,
            response_deserializer=als.StreamAccessLogsResponse.parse,
        )()

    def snapshot(self) -> Snapshot:
        return self.gate.engine.snapshot(self.gate.clock())

    def bucket(self, subject: str, scope: Scope = Scope.USER) -> BucketState:
        """The one bucket of that subject."""
        (state,) = [b for b in self.snapshot().buckets if (b.key.scope, b.key.subject) == (scope, subject)]
        return state

    def used(self, subject: str, scope: Scope = Scope.USER) -> dict[str, int]:
        """What every window of a bucket counts."""
        return {cap.value: window.used for cap, window in self.bucket(subject, scope).windows.items()}

    async def until(self, holds: Callable[[], bool], seconds: float = ANSWER_SECONDS) -> None:
        """Wait until it holds; fail with the state that there was if it never does."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; now: {self.snapshot()}")
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(
    document: str,
    transport: Transport = Transport.UNIX,
    *,
    environ: dict[str, str] | None = None,
    settings: EngineSettings | None = None,
    telemetry: Telemetry | None = None,
    now: Callable[[], int] = clock.now,
) -> AsyncIterator[Served]:
    """A gate with these limits, up, and a channel to it; both down in the end.

    With another clock than the loop's nothing may queue, and the gate keeps no house.
    """
    gate = Gate(Engine(settings=settings, telemetry=telemetry), now)
    gate.apply(merge(parse(document, "test")), environ or {})
    if now is clock.now:
        gate.start()
    server = GrpcServer(gate)
    with short_folder() as folder:
        port = await server.start(socket=f"{folder}/gate.sock", address="127.0.0.1:0")
        target = {Transport.UNIX: f"unix:{folder}/gate.sock", Transport.TCP: f"127.0.0.1:{port}"}[transport]
        try:
            async with grpc.aio.insecure_channel(target) as channel:
                yield Served(gate, server, port, channel)
        finally:
            await server.stop(0)
            await gate.close()


def descriptor(hits: int | None = None, /, **entries: str) -> descriptors.RateLimitDescriptor:
    """A descriptor with these entries; `provider` is openai unless it is given."""
    return raw_descriptor(hits, **{"provider": "openai", **entries})


def raw_descriptor(hits: int | None = None, /, **entries: str) -> descriptors.RateLimitDescriptor:
    """A descriptor with these entries and no others."""
    return descriptors.RateLimitDescriptor(
        entries=[descriptors.RateLimitDescriptorEntry(key=key, value=value) for key, value in entries.items()],
        hits_addend=hits,
    )


def lease_of(answer: rls.RateLimitResponse) -> str:
    """The lease in an answer; empty if it has none."""
    told = {} if answer.dynamic_metadata is None else answer.dynamic_metadata.to_dict()
    lease = told.get("lease", "")
    assert isinstance(lease, str)
    return lease


def headers_of(answer: rls.RateLimitResponse) -> dict[str, str]:
    """The headers that a refused caller gets."""
    return {header.key: header.value for header in answer.response_headers_to_add}


async def ended(stream: Any) -> None:
    """The gate has ended the stream, without ever answering, by which the call is settled."""
    assert await stream.read() is ENDED
    assert await stream.code() is grpc.StatusCode.OK


def settled(served: Served) -> tuple[int, int, int, int]:
    """Of alice: tokens counted, and the calls by how they were settled."""
    state = served.bucket("alice")
    assert state.in_flight == 0
    return served.used("alice")["tokensPerMinute"], state.committed, state.estimated, state.refunded


def request_headers(lease: str = "") -> ext_proc.ProcessingRequest:
    """The first message of a stream."""
    return ext_proc.ProcessingRequest(request_headers=ext_proc.HttpHeaders(), metadata_context=metadata(lease))


def response_headers(
    headers: Mapping[str, str] = MappingProxyType({":status": "200"}),
    *,
    lease: str = "",
    end_of_stream: bool = False,
    usage: bytes | None = None,
) -> ext_proc.ProcessingRequest:
    """The response's headers."""
    values = [core.HeaderValue(key=name, raw_value=value.encode()) for name, value in headers.items()]
    return ext_proc.ProcessingRequest(
        response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=values), end_of_stream=end_of_stream),
        metadata_context=metadata(lease, usage),
    )


def response_body(body: bytes, *, lease: str = "", end_of_stream: bool = False) -> ext_proc.ProcessingRequest:
    """A piece of the response's body."""
    return ext_proc.ProcessingRequest(
        response_body=ext_proc.HttpBody(body=body, end_of_stream=end_of_stream), metadata_context=metadata(lease)
    )


def response_trailers(usage: bytes | None = None, *, lease: str = "") -> ext_proc.ProcessingRequest:
    """The end of the response."""
    return ext_proc.ProcessingRequest(
        response_trailers=ext_proc.HttpTrailers(), metadata_context=metadata(lease, usage)
    )


def metadata(lease: str, usage: bytes | None = None) -> core.Metadata:
    """What Envoy hands on of a call: the lease, and the usage that it has read."""
    kept = core.Metadata()
    if lease:
        kept.filter_metadata[LEASE_NAMESPACE] = Struct.from_dict({"lease": lease})
    if usage is not None:
        type_url = "type.googleapis.com/envoy.data.ai.v3.TokenUsage"
        kept.typed_filter_metadata[USAGE_NAMESPACE] = Packed(type_url=type_url, value=usage)
    return kept


def token_usage(*, input_tokens: int | None, output_tokens: int | None, status: int = 1) -> bytes:
    """`envoy.data.ai.v3.TokenUsage` on the wire: counts are `UInt64Value`s, the status says how well it was read."""
    counts = ((3, input_tokens), (4, output_tokens))
    fields = [_bytes(number, _number(1, count)) for number, count in counts if count is not None]
    return b"".join(fields) + _number(9, status)


def unreached_call(provider: str, flags: accesslog.ResponseFlags, reason: str = "") -> accesslog.HttpAccessLogEntry:
    """What Envoy's access log says of a call that nothing limits and whose provider could not be reached."""
    return accesslog.HttpAccessLogEntry(
        common_properties=accesslog.AccessLogCommon(
            route_name=provider,
            response_flags=flags,
            upstream_transport_failure_reason=reason,
        ),
        response=accesslog.HttpResponseProperties(response_code=503),
    )


def cut_call(lease: str, status: int = 0) -> accesslog.HttpAccessLogEntry:
    """What Envoy's access log says of a call that was cut; status 0: it was not answered."""
    return accesslog.HttpAccessLogEntry(
        common_properties=accesslog.AccessLogCommon(metadata=metadata(lease)),
        response=accesslog.HttpResponseProperties(response_code=status or None),
    )


def log_message(*entries: accesslog.HttpAccessLogEntry) -> als.StreamAccessLogsMessage:
    """One message of the access log."""
    return als.StreamAccessLogsMessage(
        http_logs=als.StreamAccessLogsMessageHttpAccessLogEntries(log_entry=list(entries))
    )


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
