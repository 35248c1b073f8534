"""The engine alone: a decision over three buckets of six windows, the memory of many users, a long queue.

Nothing here waits, so that wall time is what is measured; medians, for whatever else this machine does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from time import perf_counter_ns
from typing import Final

from bench import machine
from bench.samples import Part, Stopwatch
from sluice.core.buckets import Charge, Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import SCOPES, Scope
from sluice.core.limits import HOUR, MAX_COUNT, MINUTE, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook

SIX_WINDOWS: Final = Limits(
    requests_per_minute=MAX_COUNT,
    requests_per_hour=MAX_COUNT,
    requests_per_day=MAX_COUNT,
    tokens_per_minute=MAX_COUNT,
    tokens_per_hour=MAX_COUNT,
    tokens_per_day=MAX_COUNT,
    max_concurrent=MAX_COUNT,
)
SUBJECTS: Final = {Scope.USER: "alice", Scope.ORG: "acme", Scope.PROJECT: "web"}
DEMAND: Final = Demand(slots=1, requests=1, tokens=1000, input_tokens=250, output_tokens=750)
USED: Final = Charge(500, input_tokens=250, output_tokens=250)
PACE: Final = 300_000
"""Nanoseconds from one call to the next."""
EVERYBODY: Final = RuleBook((Rule("openai", Scope.USER, SIX_WINDOWS),))
DECIDED: Final = "engine: find the limits, decide"
MEMORY: Final = "engine: 100,000 users of one call each"


def decisions(calls: int) -> Iterator[Part]:
    """Three buckets with six windows each, in a steady flow of calls."""
    book = RuleBook(tuple(Rule("openai", scope, SIX_WINDOWS) for scope in SCOPES))
    engine = Engine(book)
    decided, settled = Stopwatch(), Stopwatch()
    for k in range(calls):
        now = k * PACE
        with decided:
            permit = engine.acquire(Call(book.match("openai", SUBJECTS, "gpt-5"), DEMAND), now)
        assert isinstance(permit, Permit)
        with settled:
            permit.commit_tokens(USED, now)
            permit.release(now)
    yield decided.part(DECIDED)
    yield settled.part("engine: commit, release")


def users() -> Iterator[Part]:
    """What this process has grown by, once every user has made a call."""
    engine = Engine(EVERYBODY)
    gc.collect()
    before = machine.resident_bytes()
    for k in range(100_000):
        call = Call(EVERYBODY.match("openai", {Scope.USER: f"user-{k:06d}"}), DEMAND)
        permit = engine.acquire(call, k * PACE)
        assert isinstance(permit, Permit)
        permit.commit_tokens(USED, k * PACE)
        permit.release(k * PACE)
    gc.collect()
    yield Part(MEMORY, "MB", (machine.resident_bytes() - before) / 1e6)


def queue(length: int = 1000, calls: int = 2000) -> Iterator[Part]:
    """A queue that stays long: each release serves one, each call joins behind all."""
    book = RuleBook((
        Rule("openai", Scope.USER, Limits(max_concurrent=2, tokens_per_minute=MAX_COUNT, max_wait=HOUR)),
        Rule("openai", Scope.ORG, Limits(max_concurrent=10, tokens_per_day=MAX_COUNT, max_wait=HOUR)),
    ))  # fmt: skip
    engine = Engine(book, EngineSettings(max_waiters=length + calls, lease=HOUR))
    running: list[Permit] = []

    def ask(k: int) -> None:
        subjects = {Scope.USER: f"user-{k % 50}", Scope.ORG: "acme"}
        outcome = engine.acquire(Call(book.match("openai", subjects), DEMAND), k)
        if isinstance(outcome, Waiter):
            outcome.notify = lambda permit: running.append(permit) if isinstance(permit, Permit) else None
        elif isinstance(outcome, Permit):
            running.append(outcome)

    joined, released = Stopwatch(), Stopwatch()
    for k in range(length):
        ask(k)
    for k in range(length, length + calls):
        with released:
            running.pop(0).release(k)
        with joined:
            ask(k)
    yield joined.part(f"engine: join a queue of {length:,}")
    yield released.part(f"engine: release with {length:,} waiting")
    start = perf_counter_ns()
    engine.swap(RuleBook(book.rules), length + calls)
    yield Part(
        f"engine: other limits with {engine.summary().queued:,} waiting", "ms", (perf_counter_ns() - start) / 1e6
    )


def pictures(count: int = 10_000) -> Iterator[Part]:
    """A snapshot of many buckets at one moment, during which nothing is decided."""
    engine = Engine(EVERYBODY)
    for k in range(count):
        engine.acquire(Call(EVERYBODY.match("openai", {Scope.USER: f"user-{k}"}), DEMAND), k)
    start = perf_counter_ns()
    engine.snapshot(MINUTE)
    yield Part(f"engine: a picture of {count:,} buckets", "ms", (perf_counter_ns() - start) / 1e6)
