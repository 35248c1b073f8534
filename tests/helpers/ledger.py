"""What the engine's tests share: a gate that remembers what it told, outcomes by name, and books that must balance."""

# ruff: noqa: SLF001 - that a refusal leaves no trace is a statement about all that the engine holds

from __future__ import annotations

from typing import Any, NamedTuple

from sluice.core.buckets import Bucket, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.windows import SlidingWindow

PROVIDER = "openai"

Outcome = Permit | Refusal | Waiter
Parts = tuple[int, int]
"""Input tokens and output tokens."""


def user(*subjects: str, limits: Limits) -> Rule:
    return Rule(PROVIDER, Scope.USER, limits, subjects)


def org(*subjects: str, limits: Limits) -> Rule:
    return Rule(PROVIDER, Scope.ORG, limits, subjects)


def project(*subjects: str, limits: Limits) -> Rule:
    return Rule(PROVIDER, Scope.PROJECT, limits, subjects)


class Event(NamedTuple):
    """One call of the telemetry hook."""

    name: str
    keys: tuple[BucketKey, ...]
    estimate: int
    actual: int
    wait: int
    reason: str
    retry_after: int | None = None


class Journal:
    """Telemetry that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def acquired(self, permit: Permit) -> None:
        self._permit("acquired", permit)

    def committed(self, permit: Permit) -> None:
        self._permit("committed", permit)

    def released(self, permit: Permit) -> None:
        self._permit("released", permit)

    def expired(self, permit: Permit) -> None:
        self._permit("expired", permit)

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        self._refusal("rejected", call, refusal, waited)

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        self._refusal("would_reject", call, refusal, 0)

    def _permit(self, name: str, permit: Permit) -> None:
        reason = "" if permit.settled is None else permit.settled.value
        self.events.append(Event(name, permit.keys, permit.estimate, permit.tokens, permit.waited, reason))

    def _refusal(self, name: str, call: Call, refusal: Refusal, waited: int) -> None:
        told = Event(name, (refusal.key,), call.demand.tokens, 0, waited, refusal.reason.value, refusal.retry_after)
        self.events.append(told)


class Gate:
    """An engine under some rules, and callers who are named by their subjects."""

    def __init__(self, *rules: Rule, settings: EngineSettings | None = None) -> None:
        self.journal = Journal()
        self.engine = Engine(RuleBook(rules), settings, self.journal)

    def ask(
        self, now: int, tokens: int = 10, requests: int = 1, slots: int = 1, parts: Parts = (0, 0), **subjects: str
    ) -> Outcome:
        """Ask for one call of `user` alice (or another), `org` acme, `project` web; `parts` are input and output."""
        named = {"user": "alice", "org": "acme", "project": "web", **subjects}
        applied = self.engine.rules.match(PROVIDER, {Scope(scope.capitalize()): name for scope, name in named.items()})
        return self.engine.acquire(Call(applied, Demand(slots, requests, tokens, *parts)), now)

    def admit(
        self, now: int, tokens: int = 10, requests: int = 1, slots: int = 1, parts: Parts = (0, 0), **subjects: str
    ) -> Permit:
        return admitted(self.ask(now, tokens, requests, slots, parts, **subjects))

    def refuse(
        self, now: int, tokens: int = 10, requests: int = 1, slots: int = 1, parts: Parts = (0, 0), **subjects: str
    ) -> Refusal:
        return refused(self.ask(now, tokens, requests, slots, parts, **subjects))

    def queue(
        self, now: int, tokens: int = 10, requests: int = 1, slots: int = 1, parts: Parts = (0, 0), **subjects: str
    ) -> Waiter:
        return waiting(self.ask(now, tokens, requests, slots, parts, **subjects))

    def swap(self, now: int, *rules: Rule) -> None:
        self.engine.swap(RuleBook(rules), now)

    def used(self, now: int, cap: Cap, scope: Scope = Scope.USER, subject: str = "alice") -> int:
        state = self.engine.current_state(BucketKey(PROVIDER, scope, subject), now)
        assert state is not None
        return state.windows[cap].used

    def in_flight(self, now: int, scope: Scope = Scope.USER, subject: str = "alice") -> int:
        state = self.engine.current_state(BucketKey(PROVIDER, scope, subject), now)
        assert state is not None
        return state.in_flight


def admitted(outcome: Outcome | None) -> Permit:
    assert isinstance(outcome, Permit), outcome
    return outcome


def refused(outcome: Outcome | None) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


def waiting(outcome: Outcome | None) -> Waiter:
    assert isinstance(outcome, Waiter), outcome
    assert outcome.pending, outcome.outcome
    return outcome


def everything(engine: Engine, now: int) -> dict[str, Any]:
    """All that the engine holds at `now`, but for its counts of refusals and buckets that nothing was counted in."""
    totals = engine.snapshot(now).totals  # it slides every window, so that two pictures of one moment are alike
    counted = {name: getattr(totals, name) for name in totals.__slots__ if "reject" not in name}
    buckets = {key: _contents(bucket) for key, bucket in engine._buckets.items() if bucket.admitted or bucket.queue}
    held = {
        "waiting": tuple(engine._waiters.by_ticket),
        "in flight": engine._in_flight,
        "unclaimed": tuple(engine._unclaimed),
        "expired": tuple(engine._expired),
    }
    return {**counted, **held, **{str(key): contents for key, contents in buckets.items()}}


def _contents(bucket: Bucket) -> dict[str, Any]:
    counted = ("admitted", "committed", "estimated", "refunded", "in_flight", "limits", "max_concurrent")
    queue = None if bucket.queue is None else (tuple(bucket.queue.waiters), tuple(bucket.queue.blocked))
    windows = {window.caps: _slots(window) for window in (*bucket.windows, *bucket.parts)}
    return {**{name: getattr(bucket, name) for name in counted}, "queue": queue, "windows": windows}


def _slots(window: SlidingWindow) -> tuple[int, int, int, int, int, tuple[int, ...]]:
    slots = tuple(window._slots[window._head :])
    return window.first_limit, window.second_limit, window.first, window.second, window.expires, slots


def unsettled(engine: Engine, permits: list[Permit]) -> dict[BucketKey, int]:
    """How many of the permits have no final count of tokens yet, by bucket (of those that are not forgotten)."""
    open_calls = dict.fromkeys(engine._buckets, 0)
    for permit in permits:
        for bucket in permit.buckets if permit.settled is None else ():
            if engine._buckets.get(bucket.key) is bucket:
                open_calls[bucket.key] += 1
    return open_calls


def assert_balanced(engine: Engine, permits: list[Permit], now: int) -> None:
    """In every bucket: admitted = committed + estimated + refunded + unsettled; and the totals say the same."""
    open_calls = unsettled(engine, permits)
    snapshot = engine.snapshot(now)
    for bucket in snapshot.buckets:
        settled = bucket.committed + bucket.estimated + bucket.refunded
        assert bucket.admitted == settled + open_calls[bucket.key], bucket
        assert bucket.in_flight >= 0
    totals = snapshot.totals
    settled = totals.committed + totals.estimated + totals.refunded
    assert totals.admitted == settled + sum(permit.settled is None for permit in permits)
    assert snapshot.in_flight == sum(permit.call.demand.slots for permit in permits if not permit.released)
