"""What the gate adds to a call: one Envoy with three listeners, alike but for the filters of the gate.

All three lead to the same upstream through the same clusters, and are called in turn, so that what disturbs the
machine disturbs all of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from bench import http_load, limits, machine
from bench.http_load import HttpLoad
from bench.programs import free_address, gate, loader, program, python
from bench.samples import Sample
from bench.upstream import EVENTS, PHASES
from helpers.envoy import running_envoy
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice_sidecar.envoy_config import EnvoySettings, bootstrap
from sluice_sidecar.envoy_config.filters import CHAIN, READ_USAGE, USAGE_STREAM

CONNECTIONS: Final = 16
REST: Final = 0.003
"""Seconds of a rest: longer than the gate has to do after a call; every process is asleep when the next one comes."""
STREAMS: Final = PHASES


class Shape(StrEnum):
    """How much of the gate stands in a call's way."""

    NO_GATE = "no gate"
    ADMISSION = "admission only"
    WHOLE = "the whole gate"


WITHOUT: Final[dict[Shape, frozenset[str]]] = {
    Shape.NO_GATE: frozenset(CHAIN),
    Shape.ADMISSION: frozenset((USAGE_STREAM, READ_USAGE)),
    Shape.WHOLE: frozenset(),
}
"""The filters that a shape lacks. Admission still reads the request's body: its facts stand there."""


@dataclass(slots=True)
class Way:
    """One listener, and what was measured there: a sample a round."""

    shape: Shape
    address: str
    rested: list[Sample] = field(default_factory=list)
    """One call at a time, with a rest after each."""
    one: list[Sample] = field(default_factory=list)
    """One call after another, without a rest: what the gate does when a call has ended meets the next one."""
    many: list[Sample] = field(default_factory=list)
    """As many calls in flight as connections."""
    events: list[Sample] = field(default_factory=list)
    """How late each event of the streams came."""
    gate_cpu: list[float] = field(default_factory=list)
    """The gate's CPU seconds for each of `many`."""
    envoy_cpu: list[float] = field(default_factory=list)
    event_gate_cpu: list[float] = field(default_factory=list)
    """The gate's CPU seconds for each of `events`."""
    event_envoy_cpu: list[float] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Answers other than 200, and events that never came."""
        missing = sum(STREAMS * EVENTS - sample.count for sample in self.events)
        return missing + sum(sample.failures for sample in (*self.rested, *self.one, *self.many, *self.events))


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it may take: `rounds` times each load on each way, and `event_rounds` times the streams, 3 s each."""

    rounds: int
    rested_seconds: float
    one_seconds: float
    many_seconds: float
    event_rounds: int


def measure(folder: Path, plan: Plan, say: Callable[[str], None]) -> list[Way]:
    """Every way in every round, one after the other. Raises `RuntimeError` or `OSError` if a part breaks."""
    with ExitStack() as stack:
        upstream, socket = free_address(), str(folder / "gate.sock")
        port = upstream.rpartition(":")[2]
        stack.enter_context(program(python("bench.upstream", port), upstream, folder))
        file = limits.write(
            folder / "calls.yaml", limits.document("bench", *limits.THREE_BUCKETS, upstream=f"http://{upstream}")
        )
        gate_pid = stack.enter_context(program(gate(file, "--socket", socket), f"unix:{socket}", folder))
        ways = [Way(shape, free_address()) for shape in Shape]
        envoy = stack.enter_context(running_envoy(_bootstrap(file, socket, ways, folder), folder))
        pool = stack.enter_context(loader())
        for way in ways:
            _run(pool, way, connections=CONNECTIONS, seconds=0.5)  # warm
        for number in range(plan.rounds):
            say(f"calls: round {number + 1} of {plan.rounds}")
            for way in ways:
                way.rested.append(_run(pool, way, connections=1, seconds=plan.rested_seconds, pause=REST))
            for way in ways:
                way.one.append(_run(pool, way, connections=1, seconds=plan.one_seconds))
            for way in ways:
                before = machine.cpu_seconds([gate_pid]), machine.cpu_seconds([envoy.process.pid])
                way.many.append(_run(pool, way, connections=CONNECTIONS, seconds=plan.many_seconds))
                way.gate_cpu.append(machine.cpu_seconds([gate_pid]) - before[0])
                way.envoy_cpu.append(machine.cpu_seconds([envoy.process.pid]) - before[1])
        for number in range(plan.event_rounds):
            say(f"streams: round {number + 1} of {plan.event_rounds}")
            for way in (ways[0], ways[-1]):  # between them there is nothing that an event would meet
                before = machine.cpu_seconds([gate_pid]), machine.cpu_seconds([envoy.process.pid])
                way.events.append(_run(pool, way, connections=STREAMS, calls=STREAMS, events=True))
                way.event_gate_cpu.append(machine.cpu_seconds([gate_pid]) - before[0])
                way.event_envoy_cpu.append(machine.cpu_seconds([envoy.process.pid]) - before[1])
    return ways


def _run(
    pool: ProcessPoolExecutor,
    way: Way,
    connections: int,
    seconds: float = 1.0,
    calls: int = 2**31,
    pause: float = 0.0,
    *,
    events: bool = False,
) -> Sample:
    request = _request(way.address, is_stream=events)
    load = HttpLoad(way.address, request, connections, seconds, calls, pause, events)
    return pool.submit(http_load.run, load).result()


def _request(address: str, *, is_stream: bool) -> bytes:
    words = "Say something nice about rate limits, in a few words. " * 16
    call: dict[str, Any] = {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 256,
    }
    if is_stream:
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(call, separators=(",", ":")).encode()
    head = (
        f"POST /bench/v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer no-key-is-needed\r\nx-user-id: alice\r\nx-org-id: acme\r\nx-project-id: web\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _bootstrap(file: Path, socket: str, ways: list[Way], folder: Path) -> dict[str, Any]:
    configuration = merge(parse(file.read_text(), str(file)))
    settings = EnvoySettings(gate=Path(socket), admin_socket=folder / "envoy-admin.sock")
    whole = bootstrap(configuration, settings)
    (listener,) = whole["staticResources"]["listeners"]
    whole["staticResources"]["listeners"] = [_listener(listener, way) for way in ways]
    return whole


def _listener(listener: dict[str, Any], way: Way) -> dict[str, Any]:
    """The gate's own listener at another address, without the filters that this way lacks."""
    host, _, port = way.address.rpartition(":")
    changed = copy.deepcopy(listener)
    changed["name"] = way.shape.name
    changed["address"]["socketAddress"] |= {"address": host, "portValue": int(port)}
    without = WITHOUT[way.shape]
    for holder in _objects(changed):
        if "httpFilters" in holder:
            holder["httpFilters"] = [f for f in holder["httpFilters"] if f["name"] not in without]
        if "typedPerFilterConfig" in holder:
            kept = {name: c for name, c in holder["typedPerFilterConfig"].items() if name not in without}
            holder["typedPerFilterConfig"] = kept
        if way.shape is Shape.NO_GATE:
            holder.pop("accessLog", None)
    return changed


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in it."""
    if isinstance(value, dict):
        yield value
        for inner in list(value.values()):
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
