"""Several gates in one process that share a store, as several pods do; and callers that keep calling them.

Theory of operation
    A decision is timed by its caller, from `Gate.acquire` to its outcome. On a machine that is busy with others a loop
    is late for reasons that are not the gate's. So a task looks at the clock every millisecond: where it comes late
    and this thread did not compute meanwhile, the machine had given the time to somebody else. That much is taken off
    the decisions that were under way then, or began just after, when the loop had to catch up; and no more: what the
    gates, the callers and the relay compute themselves counts as the gate's time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from helpers.history import Call as Seen
from helpers.program import eventually
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import Charge, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice.core.permits import Call, Permit
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import StoreHealth, StoreMode
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import Client
from sluice_sidecar.stores.shared.scripts import Script, Scripts
from sluice_sidecar.stores.shared.store import SharedStore

logger = logging.getLogger(__name__)

RETURN_SECONDS = 5.0
"""In which the store decides again once it is there again."""
DECISION_SECONDS = 0.020
"""In which a decision is made, whatever the store does."""
LOOK_SECONDS = 0.001
IDLE_SECONDS = 0.0022
"""A look every millisecond may be that far from the last one on a machine that is idle: timers are rounded up."""
CATCHING_UP = 50_000_000
"""Nanoseconds after which the loop has done what it could not do in time."""
BUSY = 5_000_000
"""A machine that takes away so many nanoseconds at once may make a store look slow that is not."""
OWED_SECONDS = 10.0
BEATS_KEYS = 4
"""Of the script by which a gate says that it lives."""


class Span(NamedTuple):
    """A time in which the machine did something else, in ns."""

    first: int
    last: int
    lost: int


@dataclass(slots=True)
class Machine:
    """What it took away from this thread."""

    spans: list[Span] = field(default_factory=list)

    async def watch(self) -> None:
        while True:
            wall, computed = time.monotonic_ns(), time.thread_time_ns()
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic_ns()
            idle = now - wall - (time.thread_time_ns() - computed)
            if idle > IDLE_SECONDS * 1e9:
                self.spans.append(Span(wall, now, idle - int(LOOK_SECONDS * 1e9)))

    @property
    def was_busy(self) -> bool:
        return any(span.lost > BUSY for span in self.spans)

    def lost(self, first: int, last: int) -> int:
        """Nanoseconds lost in this time, and just before."""
        total = 0
        at = bisect_left(self.spans, first - CATCHING_UP, key=lambda span: span.last)
        while at < len(self.spans) and self.spans[at].first <= last:
            total += self.spans[at].lost
            at += 1
        return total


class Watched(Client):
    """A client that tells how often its gate has looked after the store."""

    beats = 0

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> Any:
        try:
            return await super().run(script, keys, args)
        finally:
            self.beats += keys[0].endswith(b"gates") and keys[1].endswith(b"epoch") and len(keys) == BEATS_KEYS


class Decision(NamedTuple):
    """One decision, as its caller saw it. Times are in ns."""

    gate: str
    asked: int
    answered: int
    mode: StoreMode
    """Of the gate when it was asked."""
    outcome: Permit | Refusal


@dataclass(slots=True, eq=False)
class Sharer:
    """One of the gates."""

    name: str
    gate: Gate
    store: SharedStore
    client: Watched
    is_closed: bool = False

    @property
    def health(self) -> StoreHealth:
        return self.store.health

    @property
    def mode(self) -> StoreMode:
        return self.store.health.mode

    def call(self, provider: str, user: str, tokens: int, org: str = "") -> Call:
        subjects = {Scope.USER: user, Scope.ORG: org}
        return Call(self.gate.engine.rules.match(provider, subjects), Demand(1, 1, tokens, tokens // 10, tokens))

    async def acquire(self, provider: str, user: str, tokens: int = 0, org: str = "") -> Permit | Refusal:
        """As Envoy asks: whoever is admitted is claimed at once."""
        outcome = await self.gate.acquire(self.call(provider, user, tokens, org))
        if isinstance(outcome, Permit):
            self.gate.engine.claim(outcome.lease, self.gate.clock())
        return outcome

    async def admitted(self, provider: str, user: str, tokens: int = 0) -> int:
        """1 if a call is admitted, which ends at once; else 0."""
        outcome = await self.acquire(provider, user, tokens)
        if isinstance(outcome, Refusal):
            return 0
        outcome.release(self.gate.clock())
        return 1

    def own(self, key: BucketKey, cap: Cap) -> int:
        """What it has counted itself."""
        state = self.gate.engine.current_state(key, self.gate.clock())
        return state.windows[cap].used if state is not None and cap in state.windows else 0

    @property
    def owes(self) -> bool:
        return any(each.owes for each in self.store.keyspaces.values())

    async def close(self) -> None:
        """Let it end as `sluice run` does."""
        if not self.is_closed:
            self.is_closed = True
            await self.store.close()
            await self.gate.close()


@dataclass(slots=True)
class Gates:
    """Use it by `sharing`."""

    each: list[Sharer]
    machine: Machine
    decisions: list[Decision] = field(default_factory=list)
    history: list[Seen] = field(default_factory=list)
    """Of the callers, for `helpers.history`."""

    async def until(self, mode: StoreMode, seconds: float = RETURN_SECONDS) -> float:
        """Wait until every gate is in that mode; returns the seconds."""
        began = time.monotonic()

        async def all_are() -> bool:
            return all(each.mode is mode for each in self.each if not each.is_closed)

        await eventually(all_are, lambda: str([each.health for each in self.each]), seconds)
        return time.monotonic() - began

    async def know_each_other(self) -> None:
        """Wait until the store decides, and every gate knows how many there are."""
        await self.until(StoreMode.SHARED)

        async def all_do() -> bool:
            alive = [each for each in self.each if not each.is_closed]
            return all(each.health.gates == len(alive) for each in alive)

        await eventually(all_do, lambda: str([each.health for each in self.each]))

    async def saying(self, problem: str) -> None:
        """Wait until every gate says this of the store."""

        async def all_do() -> bool:
            return all(problem in each.health.problem for each in self.each)

        await eventually(all_do, lambda: str([each.health for each in self.each]))

    async def beaten(self, times: int) -> None:
        """Wait until every gate has looked after the store so often more, whether it found it or not."""
        before = [each.client.beats for each in self.each]

        async def all_have() -> bool:
            return all(
                each.client.beats >= number + times * len(each.store.keyspaces)
                for each, number in zip(self.each, before, strict=True)
                if not each.is_closed
            )

        await eventually(all_have, lambda: str([each.health for each in self.each]))

    async def settled(self) -> None:
        """Wait until the store lacks nothing."""

        async def nothing_is_owed() -> bool:
            return not any(each.owes for each in self.each if not each.is_closed)

        await eventually(nothing_is_owed, lambda: str([each.health for each in self.each]), OWED_SECONDS)

    @property
    def keys(self) -> list[BucketKey]:
        """Every bucket that some gate knows."""
        known = [each.gate.engine.keys() for each in self.each]
        return sorted({key for keys in known for key in keys})

    def own(self, key: BucketKey, cap: Cap) -> int:
        """What all gates have counted themselves."""
        return sum(each.own(key, cap) for each in self.each)

    async def stored(self, key: BucketKey, cap: Cap) -> int:
        """What the store counts, by what a gate says that knows the bucket. Waits for what is owed."""
        await self.settled()
        for each in self.each:
            state = each.gate.engine.current_state(key, each.gate.clock())
            if state is not None and not each.is_closed:
                (told,) = await each.store.pictures([state])
                return told.windows[cap].used
        return 0

    def took(self, decision: Decision) -> float:
        """Seconds, without those that the machine took away."""
        passed = decision.answered - decision.asked
        return max(0, passed - self.machine.lost(decision.asked, decision.answered)) / 1e9

    @property
    def slow(self) -> list[str]:
        """The decisions that took longer than any may, in words."""
        return [
            f"{each.gate} in mode {each.mode} took {1000 * self.took(each):.1f} ms of "
            f"{(each.answered - each.asked) / 1e6:.1f} ms up to {each.answered}, and said {each.outcome}"
            for each in self.decisions
            if self.took(each) > DECISION_SECONDS
        ]

    def tell(self, what: str) -> None:
        """Put into the log how long decisions took: see it by `pytest --log-cli-level=INFO`."""
        took = sorted(1000 * self.took(each) for each in self.decisions)
        raw = max((each.answered - each.asked) / 1e6 for each in self.decisions)
        logger.info(
            "%s; %d decisions, p50 %.2f ms, p99 %.2f ms, max %.2f ms (%.2f ms by the clock)",
            what, len(took), took[len(took) // 2], took[len(took) * 99 // 100], took[-1], raw,
        )  # fmt: skip

    def changes(self, mode: StoreMode) -> int:
        """How often the gates have come into that mode, all together."""
        return sum(each.health.entered[mode] for each in self.each)


@dataclass(slots=True)
class Callers:
    """So many of each gate, which keep calling until they are told to stop."""

    gates: Gates
    provider: str
    users: list[str]
    tokens: int = 100
    per_gate: int = 3
    longest: float = 0.004
    """Seconds that a call lasts at most, and that a caller waits at most until the next."""
    seed: int = 0
    org: str = ""
    buckets: Callable[[str], tuple[str, ...]] = lambda user: (user,)
    """The buckets of a user's call, as `helpers.history` names them."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    def start(self) -> None:
        numbers = range(len(self.gates.each) * self.per_gate)
        self._tasks = [
            asyncio.create_task(self._keep_calling(self.gates.each[number % len(self.gates.each)], number))
            for number in numbers
        ]

    async def stop(self) -> None:
        """No new calls; returns when those under way have ended."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def made(self, number: int, gates: Iterable[Sharer] = ()) -> None:
        """Wait until each gate has decided so often more."""
        names = {each.name for each in (gates or self.gates.each)}
        start = len(self.gates.decisions)

        async def is_so() -> bool:
            counts = dict.fromkeys(names, 0)
            for decision in self.gates.decisions[start:]:
                if decision.gate in counts:
                    counts[decision.gate] += 1
            failed = [task for task in self._tasks if task.done()]
            assert not failed, failed
            return min(counts.values()) >= number

        await eventually(is_so, lambda: str(len(self.gates.decisions) - start), 30)

    async def _keep_calling(self, sharer: Sharer, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        count = 0
        while not self._stopping and not sharer.is_closed:
            await self._call(sharer, rng, number * 1_000_000 + count)
            count += 1
            await asyncio.sleep(rng.random() * self.longest)  # so that the loop is not kept busy

    async def _call(self, sharer: Sharer, rng: random.Random, number: int) -> None:
        user = rng.choice(self.users)
        mode, asked = sharer.mode, clock.now()
        outcome = await sharer.acquire(self.provider, user, self.tokens, self.org)
        answered = clock.now()
        self.gates.decisions.append(Decision(sharer.name, asked, answered, mode, outcome))
        ended, used = None, None
        if isinstance(outcome, Permit):
            await asyncio.sleep(rng.random() * self.longest)
            used = rng.randrange(self.tokens + 1)
            ended = clock.now()
            outcome.commit_tokens(Charge(used, used // 10, used), clock.now())
            outcome.release(clock.now())
        self.gates.history.append(
            Seen(
                sharer.name, number, asked, answered, isinstance(outcome, Permit), self.buckets(user),
                self.tokens, ended, used,
            )
        )  # fmt: skip


@contextmanager
def _no_walks_through_all_objects() -> Iterator[None]:
    """A gate holds little. This process holds all that was imported and seen: a look at it takes 100 ms."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # as `sluice run` does
    gc.set_threshold(*before[:2], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@asynccontextmanager
async def sharing(
    address: str,
    *documents: str,
    gates: int = 3,
    known: int = 1,
    scripts: Scripts | None = None,
    password: Callable[[], str] | None = None,
    client: Callable[[StoreAddress, Callable[[], str] | None, Path | None], Watched] = Watched,
    prefix: str = "test",
    wall: Callable[[], int] = clock.wall_now,
) -> AsyncIterator[Gates]:
    """So many gates with these limits, started, whether the store is there or not; `known` of them, it is told."""
    machine = Machine()
    watching = asyncio.create_task(machine.watch())
    async with AsyncExitStack() as stack:
        stack.callback(watching.cancel)
        sharers = []
        for number in range(gates):
            name = f"gate-{number}"
            gate = Gate(Engine(settings=EngineSettings(name=f"{name}-")), clock.now)
            where = StoreAddress.parse(address)
            health = StoreHealth(address=str(where), prefix=prefix, clock=clock.now, gates=known)
            its_client = client(where, password, None)
            store = SharedStore(gate, its_client, health, name, wall, scripts or Scripts())
            gate.store = store
            gate.apply(merge(tuple(found for text in documents for found in parse(text, "test"))), {})
            gate.start()
            sharers.append(Sharer(name, gate, store, its_client))
            stack.push_async_callback(sharers[-1].close)
        await asyncio.gather(*[each.store.start() for each in sharers])
        stack.enter_context(_no_walks_through_all_objects())
        yield Gates(sharers, machine)
