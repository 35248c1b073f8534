"""The gate without a transport: what a call costs in the engine and in the plain objects round it, and its memory."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from bench import limits, machine
from bench.decisions import FACTS, THREE, messages
from bench.samples import middle
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import Demand
from sluice.core.engine import Engine
from sluice.core.keys import Scope
from sluice.core.permits import Call, Permit
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
from sluice_sidecar.rls import RateLimitService

USERS: Final = 100_000
BATCH: Final = 2000
"""Calls that are timed at once."""


@dataclass(frozen=True, slots=True)
class Parts:
    """CPU time in microseconds a call; memory in bytes."""

    acquire: float
    """The engine alone: find the limits, then decide over three buckets of six windows."""
    settle: float
    """The engine alone: claim, commit and release."""
    decide: float
    """The service: the request's bytes read, decided, the answer's bytes written."""
    watch: float
    """The stream's object: three messages read, the usage taken, the call settled."""
    users_memory: int
    """What `USERS` users who made one call each have added."""


def measure(pool: ProcessPoolExecutor, rounds: int) -> Parts:
    """In a process of its own, so that neither its memory nor its garbage is anybody else's."""
    memory = pool.submit(_memory_of_users).result()  # first, while that process is fresh
    timings = pool.submit(_timings, rounds).result()
    return Parts(*timings, users_memory=memory)


def _engine(*entries: dict[str, Any]) -> Gate:
    configuration = merge(parse(json.dumps(limits.document("six", *entries)), "bench"))
    gate = Gate(Engine(telemetry=EventCounts()), clock.now)
    gate.apply(configuration, {})
    return gate


def _timings(rounds: int) -> tuple[float, float, float, float]:
    engine_times = [_time_engine() for _ in range(rounds)]
    service_times = [_time_service() for _ in range(rounds)]
    times = [middle(column) for pairs in (engine_times, service_times) for column in zip(*pairs, strict=True)]
    acquire, settle, decide, watch = times
    return acquire, settle, decide, watch


def _time_engine() -> tuple[float, float]:
    gate = _engine(*limits.THREE_BUCKETS)
    engine = gate.engine
    subjects = [{Scope.USER: f"user-{n % 1000}", Scope.ORG: "acme", Scope.PROJECT: "web"} for n in range(BATCH)]
    permits: list[Permit] = []

    def acquire(index: int) -> None:
        applied = engine.rules.match("six", subjects[index], "gpt-5-mini")
        permit = engine.acquire(Call(applied, Demand(1, 1, 500)), clock.now())
        assert isinstance(permit, Permit)
        permits.append(permit)

    def settle(index: int) -> None:
        now = clock.now()
        permit = engine.claim(permits[index].lease, now)
        assert permit is not None
        permit.commit_tokens(42, now)
        permit.release(now)

    _each(acquire)  # the buckets exist from now on
    _each(settle)
    permits.clear()
    return _each(acquire), _each(settle)


def _time_service() -> tuple[float, float]:
    gate = _engine(*limits.THREE_BUCKETS)
    service, calls = RateLimitService(gate), WatchedCalls(gate)
    requests = messages("sluice", (("provider", "six"), *THREE, *FACTS))
    answers: list[bytes] = []
    streams: list[list[bytes]] = []

    def decide(index: int) -> None:
        request = RateLimitRequest.FromString(requests[index % len(requests)])
        try:
            service.should_rate_limit(request).send(None)
        except StopIteration as answered:
            answers.append(answered.value.SerializeToString())

    def watch(index: int) -> None:
        stream = calls.open()
        for message in streams[index]:
            stream.feed(ProcessingRequest.FromString(message))
        stream.close()

    def both() -> tuple[float, float]:
        answers.clear()
        decided = _each(decide)
        streams[:] = [list(_stream(_lease(answer))) for answer in answers]
        return decided, _each(watch)

    both()  # the buckets exist from now on
    return both()


def _lease(answer: bytes) -> str:
    lease: str = RateLimitResponse.FromString(answer).dynamic_metadata["lease"]
    return lease


def _stream(lease: str) -> Iterator[bytes]:
    """What Envoy says of a call whose answer is JSON."""
    metadata = {LEASE_NAMESPACE: {"lease": lease}}
    opening, headers, trailers = ProcessingRequest(), ProcessingRequest(), ProcessingRequest()
    for message in (opening, headers, trailers):
        message.observability_mode = True
        message.metadata_context.filter_metadata[LEASE_NAMESPACE].update(metadata[LEASE_NAMESPACE])
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
        yield message.SerializeToString()


def _each(step: Callable[[int], None]) -> float:
    """CPU microseconds of a step, over `BATCH` of them."""
    gc.collect()
    began = time.process_time_ns()
    for index in range(BATCH):
        step(index)
    return (time.process_time_ns() - began) / 1000 / BATCH


def _memory_of_users() -> int:
    """Six windows for every user; each makes one call, which ends."""
    gate = _engine(limits.entry("User"))
    engine = gate.engine
    gc.collect()
    before = machine.resident_bytes()
    for number in range(USERS):
        applied = engine.rules.match("six", {Scope.USER: f"user-{number:08}"}, "gpt-5-mini")
        permit = engine.acquire(Call(applied, Demand(1, 1, 500)), clock.now())
        assert isinstance(permit, Permit)
        permit.commit_tokens(42, clock.now())
        permit.release(clock.now())
    gc.collect()
    return machine.resident_bytes() - before
