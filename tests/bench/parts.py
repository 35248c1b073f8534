"""The gate without a transport: what a call costs in the engine, and in the plain objects round it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from bench import engine, keeping, limits
from bench.decisions import FACTS, THREE, messages
from bench.samples import Part, Stopwatch
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine
from sluice.core.telemetry import Fanout
from sluice_sidecar import clock
from sluice_sidecar.extproc import WatchedCalls
from sluice_sidecar.gate import Gate
from sluice_sidecar.metrics import EventCounts
from sluice_sidecar.protos import (
    COMPLETE,
    LEASE_NAMESPACE,
    USAGE_NAMESPACE,
    ProcessingRequest,
    RateLimitRequest,
    RateLimitResponse,
    TokenUsage,
)
from sluice_sidecar.recent import RecentCounts
from sluice_sidecar.rls import RateLimitService

CALLS: Final = 20_000


def measure(pool: ProcessPoolExecutor) -> list[Part]:
    """In a process of its own, so that neither its memory nor its garbage is anybody else's."""
    return pool.submit(_measure).result()


def _measure() -> list[Part]:
    return [
        *engine.users(),  # first, while this process is fresh
        *engine.decisions(CALLS),
        *engine.queue(),
        *engine.pictures(),
        *_objects(),
        *keeping.saves(),
    ]


def _objects() -> Iterator[Part]:
    """The two services without gRPC: from the bytes of a request to those of its answer, and a stream's messages."""
    configuration = merge(parse(json.dumps(limits.document("six", *limits.THREE_BUCKETS)), "bench"))
    gate = Gate(Engine(telemetry=Fanout(EventCounts(), RecentCounts(clock.now))), clock.now)
    gate.apply(configuration, {})
    service, calls = RateLimitService(gate), WatchedCalls(gate)
    requests = messages("sluice", (("provider", "six"), *THREE, *FACTS))
    decided, watched = Stopwatch(), Stopwatch()
    for k in range(CALLS):
        with decided:
            answer = _decide(service, requests[k % len(requests)])
        told = list(_stream(RateLimitResponse.FromString(answer).dynamic_metadata["lease"]))
        with watched:
            stream = calls.open()
            for message in told:
                stream.feed(ProcessingRequest.FromString(message))
            stream.close()
    yield decided.part("admission: a request's bytes to its answer's")
    yield watched.part("usage: a stream's three messages, settled")


def _decide(service: RateLimitService, request: bytes) -> bytes:
    try:
        service.should_rate_limit(RateLimitRequest.FromString(request)).send(None)
    except StopIteration as answered:  # it did not wait
        return bytes(answered.value.SerializeToString())
    raise RuntimeError("a call of the bench was queued")


def _stream(lease: str) -> Iterator[bytes]:
    """What Envoy says of a call whose answer is JSON."""
    opening, headers, trailers = ProcessingRequest(), ProcessingRequest(), ProcessingRequest()
    opening.request_headers.SetInParent()
    for name, value in ((":status", b"200"), ("content-type", b"application/json")):
        headers.response_headers.headers.headers.add(key=name, raw_value=value)
    trailers.response_trailers.SetInParent()
    usage = TokenUsage(extraction_status=COMPLETE)
    usage.input_tokens.value, usage.output_tokens.value = 20, 22
    usage.total_tokens.value = usage.provider_total_tokens.value = 42
    told = trailers.metadata_context.typed_filter_metadata[USAGE_NAMESPACE]
    told.type_url, told.value = "type.googleapis.com/envoy.data.ai.v3.TokenUsage", usage.SerializeToString()
    for message in (opening, headers, trailers):
        message.observability_mode = True
        message.metadata_context.filter_metadata[LEASE_NAMESPACE]["lease"] = lease
        yield message.SerializeToString()
