"""What the engine costs: a decision over three buckets of six windows, memory of many users, a long queue.

PYTHONPATH=sidecar python tests/bench/engine.py
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable
from statistics import median, quantiles
from time import perf_counter_ns
from typing import Any

from sluice.core.buckets import Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import HOUR, MAX_COUNT, MINUTE, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook

SIX_WINDOWS = Limits(
    requests_per_minute=MAX_COUNT,
    requests_per_hour=MAX_COUNT,
    requests_per_day=MAX_COUNT,
    tokens_per_minute=MAX_COUNT,
    tokens_per_hour=MAX_COUNT,
    tokens_per_day=MAX_COUNT,
    max_concurrent=MAX_COUNT,
)
SUBJECTS = {Scope.USER: "alice", Scope.ORG: "acme", Scope.PROJECT: "web"}
DEMAND = Demand(slots=1, requests=1, tokens=1000)
PACE = 300_000
"""Nanoseconds from one call to the next."""


def show(what: str, times: Iterable[int]) -> None:
    of = sorted(times)
    print(f"{what:32} median {median(of) / 1000:8.2f} µs    p99 {quantiles(of, n=100)[98] / 1000:8.2f} µs")


def timed(times: list[int], act: Callable[..., Any], *arguments: Any) -> Any:
    start = perf_counter_ns()
    done = act(*arguments)
    times.append(perf_counter_ns() - start)
    return done


def decisions(calls: int = 50_000) -> None:
    """Three buckets with six windows each, in a steady flow of calls."""
    book = RuleBook(tuple(Rule("openai", scope, SIX_WINDOWS) for scope in Scope))
    engine = Engine(book)
    times: dict[str, list[int]] = {"match": [], "acquire": [], "commit": [], "release": []}
    for k in range(calls):
        now = k * PACE
        applied = timed(times["match"], book.match, "openai", SUBJECTS, "gpt-5")
        permit = timed(times["acquire"], engine.acquire, Call(applied, DEMAND), now)
        timed(times["commit"], permit.commit_tokens, 500, now)
        timed(times["release"], permit.release, now)
    for what, of in times.items():
        show(what, of)
    show("all of a call", map(sum, zip(*times.values(), strict=True)))


def users(count: int = 100_000) -> None:
    """Memory of users of one call each."""
    book = RuleBook((Rule("openai", Scope.USER, SIX_WINDOWS),))
    engine = Engine(book, EngineSettings(max_keys=count))
    gc.collect()
    tracemalloc.start()
    for k in range(count):
        call = Call(book.match("openai", {Scope.USER: f"user-{k:06d}"}), DEMAND)
        permit = engine.acquire(call, k * PACE)
        assert isinstance(permit, Permit)
        permit.commit_tokens(500, k * PACE)
        permit.release(k * PACE)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{f'{count} users of one call':32} {taken / 2**20:8.1f} MiB")


def queue(length: int = 1000, calls: int = 2000) -> None:
    """A queue that stays long: each release serves one, each call joins behind all."""
    book = RuleBook((
        Rule("openai", Scope.USER, Limits(max_concurrent=2, tokens_per_minute=MAX_COUNT, max_wait=HOUR)),
        Rule("openai", Scope.ORG, Limits(max_concurrent=10, tokens_per_day=MAX_COUNT, max_wait=HOUR)),
    ))  # fmt: skip
    engine = Engine(book, EngineSettings(max_waiters=length + calls, lease=HOUR))
    waiters: list[Waiter] = []
    running: list[Permit] = []

    def ask(k: int) -> None:
        subjects = {Scope.USER: f"user-{k % 50}", Scope.ORG: "acme"}
        outcome = engine.acquire(Call(book.match("openai", subjects), DEMAND), k)
        if isinstance(outcome, Waiter):
            outcome.notify = lambda permit: running.append(permit) if isinstance(permit, Permit) else None
            waiters.append(outcome)
        elif isinstance(outcome, Permit):
            running.append(outcome)

    joins: list[int] = []
    releases: list[int] = []
    for k in range(length):
        ask(k)
    for k in range(length, length + calls):
        timed(releases, running.pop(0).release, k)
        timed(joins, ask, k)
    show(f"join a queue of {length}", joins)
    show(f"release with {length} waiting", releases)
    start = perf_counter_ns()
    engine.swap(RuleBook(book.rules), length + calls)
    print(f"{f'swap with {engine.totals().queued} waiting':32} {(perf_counter_ns() - start) / 1e6:8.1f} ms")
    start = perf_counter_ns()
    engine.advance(2 * HOUR)
    print(f"{'refuse them all at once':32} {(perf_counter_ns() - start) / 1e6:8.1f} ms")


def pictures(count: int = 10_000) -> None:
    """A snapshot of many buckets, during which nothing is decided."""
    book = RuleBook((Rule("openai", Scope.USER, SIX_WINDOWS),))
    engine = Engine(book)
    for k in range(count):
        engine.acquire(Call(book.match("openai", {Scope.USER: f"user-{k}"}), DEMAND), k)
    start = perf_counter_ns()
    engine.snapshot(MINUTE)
    print(f"{f'snapshot of {count} buckets':32} {(perf_counter_ns() - start) / 1e6:8.1f} ms")


if __name__ == "__main__":
    decisions()
    users()
    queue()
    pictures()
