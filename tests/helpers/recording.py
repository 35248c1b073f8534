"""The two sides that Envoy stands between, as recorders: a gate that admits and remembers, a provider that answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from google.protobuf.message import Message

from sluice_sidecar.protos import USAGE_NAMESPACE, TokenUsage, lease_in, said_in

Entries = list[tuple[str, str]]
Verdict = Callable[[Message], Awaitable[Any]]

SECONDS = 10
"""How long a test waits for something that must come."""


@dataclass(slots=True)
class Observed:
    """One usage stream: what came on it, in order, and whether it is over."""

    messages: list[tuple[str, Any]] = field(default_factory=list)
    lease: str = ""
    usage: tuple[int, int] | None = None
    """Input and output tokens, if Envoy has read both or one of them."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.messages]

    def add(self, request: Any) -> None:
        self.messages.append((request.WhichOneof("request"), request))
        context = request.metadata_context
        self.lease = lease_in(context) or self.lease
        if USAGE_NAMESPACE in context.typed_filter_metadata:
            read = TokenUsage.FromString(context.typed_filter_metadata[USAGE_NAMESPACE].value)
            self.usage = (read.input_tokens.value, read.output_tokens.value)

    def headers(self, kind: str) -> dict[str, str]:
        for each, message in self.messages:
            if each == kind:
                found = getattr(message, kind).headers.headers
                return {header.key: header.raw_value.decode() for header in found}
        return {}


def admitted(lease: str) -> Any:
    """The answer that lets a call pass."""
    answer = rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)
    answer.dynamic_metadata["lease"] = lease
    return answer


class RecordingGate:
    """Admits every call with a lease of its own, unless `verdict` says otherwise."""

    def __init__(self) -> None:
        self.asked: list[Entries] = []
        self.streams: list[Observed] = []
        self.leases: list[str] = []
        self.cut: dict[str, str] = {}
        """The calls that Envoy says were cut: lease, and the type of the answer that was under way."""
        self.said: dict[str, int] = {}
        """The characters that Envoy has counted in streams, by lease."""
        self.verdict: Verdict | None = None
        self._changed = asyncio.Condition()

    async def ShouldRateLimit(self, request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC names it
        for descriptor in request.descriptors:
            self.asked.append([(entry.key, entry.value) for entry in descriptor.entries])
        await self._tell()
        if self.verdict is not None:
            return await self.verdict(request)
        self.leases.append(f"lease-{len(self.leases)}")
        return admitted(self.leases[-1])

    async def Process(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[None]:  # noqa: N802
        stream = Observed()
        self.streams.append(stream)
        try:
            async for request in requests:
                stream.add(request)
                await self._tell()
        finally:
            stream.ended.set()
            await self._tell()
        return
        yield  # makes it the stream of answers that gRPC wants: an empty one

    async def StreamAccessLogs(self, messages: AsyncIterator[Any], _context: Any) -> Any:  # noqa: N802
        async for message in messages:
            for entry in message.http_logs.log_entry:
                call = entry.common_properties
                lease, said = lease_in(call.metadata), said_in(call.metadata)
                if said is not None:
                    self.said[lease] = said
                if call.response_flags.ByteSize():
                    self.cut[lease] = entry.response.response_headers.get("content-type", "")
            await self._tell()
        return als_pb2.StreamAccessLogsResponse()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Returns once it has happened. Raises `TimeoutError` after ten seconds."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(happened)


@asynccontextmanager
async def serving(gate: RecordingGate, socket: Path) -> AsyncIterator[RecordingGate]:
    """The gate on a Unix socket."""
    server = grpc.aio.server()
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(gate, server)
    external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(gate, server)
    als_pb2_grpc.add_AccessLogServiceServicer_to_server(gate, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield gate
    finally:
        await server.stop(0)


@dataclass(slots=True)
class Received:
    """A call as the provider got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class RecordingProvider:
    """Answers every call with `answer` and remembers it."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = self.ok

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        headers = [(key.decode(), value.decode(errors="replace")) for key, value in request.raw_headers]
        self.received.append(Received(request.method, request.raw_path, headers, body))
        return await self.answer(request)

    @staticmethod
    async def ok(_request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})


@asynccontextmanager
async def providing(
    provider: RecordingProvider, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RecordingProvider]:
    """The provider on a loopback port."""
    runner = web.ServerRunner(web.Server(provider.handle), handle_signals=False, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    try:
        yield provider
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class Answer:
    """A raw HTTP/1.1 answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def send(port: int, request: bytes, seconds: float = SECONDS) -> Answer:
    """Sends bytes as they are, and reads one answer with a content-length or to the end of the connection."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            if "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = await _chunks(reader)
            else:
                body = await reader.read()
            return Answer(int(head[0].split()[1]), headers, body)
        finally:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    return body


def post(target: str, body: bytes = b"{}", *headers: str, host: str = "envoy") -> bytes:
    """A POST with a content-length, and `application/json` unless a header says otherwise."""
    lines = [f"POST {target} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}", *headers]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append("content-type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
