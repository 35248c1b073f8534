"""A gate that counts for itself, and gates that share a store: told the same, they must decide and count the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, NamedTuple

from helpers.house import House
from sluice.core.buckets import Charge
from sluice.core.decisions import Refusal
from sluice.core.keys import BucketKey
from sluice.core.permits import Permit, Settled
from sluice.core.rules import Rule
from sluice.core.states import BucketState

Outcome = Permit | Refusal
GATES = 3


class Pair(NamedTuple):
    """One call, as either has admitted it."""

    memory: Permit
    shared: Permit
    gate: int


class Waiting(NamedTuple):
    """One call that waits in both."""

    memory: asyncio.Task[Outcome]
    shared: asyncio.Task[Outcome]
    gate: int


@dataclass
class Twins:
    """Both, and the calls of which something is still to come."""

    memory: House
    shared: House
    random: Random
    pairs: list[Pair] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """How often what has happened."""

    async def ask(self, tokens: int, **subjects: str) -> None:
        """One call at some gate, of so many tokens and some of all else."""
        random, gate = self.random, self.random.randrange(GATES)
        what: dict[str, Any] = {
            "tokens": tokens,
            "requests": random.choice((1, 1, 1, 1, 0, 3)),
            "slots": random.choice((1, 1, 1, 0)),
            "parts": (random.randrange(80), random.randrange(80)),
            **subjects,
        }
        asked = asyncio.create_task(self.memory.ask(**what)), asyncio.create_task(self.shared.ask(gate=gate, **what))
        self.waiting.append(Waiting(*asked, gate))
        await self.look(is_new=True)

    async def commit(self) -> None:
        """Or refund, or let an estimate stand; also what is settled already."""
        if self.pairs:
            pair = self.random.choice(self.pairs)
            settled = self.random.choice((Settled.COMMITTED, Settled.COMMITTED, Settled.REFUNDED, Settled.ESTIMATED))
            actual = Charge(*[self.random.choice((0, self.random.randrange(200), -3)) for _ in range(3)])
            for permit in pair[:2]:
                permit.commit_tokens(Charge(0) if settled is Settled.REFUNDED else actual, self.memory.now, settled)
            await self.look()

    async def release(self) -> None:
        """Also what has ended already."""
        if self.pairs:
            pair = self.random.choice(self.pairs)
            for permit in pair[:2]:
                permit.release(self.memory.now)
            if self.random.random() < 0.5:
                self.pairs.remove(pair)
            await self.look()

    async def withdraw(self) -> None:
        if self.pairs:
            pair = self.random.choice(self.pairs)
            self.pairs.remove(pair)
            self.memory.gate(0).engine.withdraw(pair.memory, self.memory.now)
            self.shared.gate(pair.gate).engine.withdraw(pair.shared, self.memory.now)
            await self.look()

    async def give_up(self) -> None:
        if self.waiting:
            one = self.waiting.pop(self.random.randrange(len(self.waiting)))
            for task in one[:2]:
                task.cancel()
            await asyncio.gather(*one[:2], return_exceptions=True)
            self.seen["given up"] += 1
            await self.look()

    async def pass_time(self, by: int) -> None:
        await self.shared.pass_time(by)
        await self.look()

    async def swap(self, *rules: Rule) -> None:
        await self.memory.swap(*rules)
        await self.shared.swap(*rules)
        await self.look()

    async def look(self, *, is_new: bool = False) -> None:
        """Compare what has become of calls."""
        await self.memory.settled()
        await self.shared.settled()
        for one in self.waiting.copy():
            assert one.memory.done() == one.shared.done(), (one, _outcome(one.memory), _outcome(one.shared))
            if one.memory.done():
                self.waiting.remove(one)
                self._compare_outcomes(one)
        self.seen["waited"] += is_new and bool(self.waiting)

    async def compare(self) -> None:
        """Compare what is counted."""
        there, here = _counts(await self.shared.states()), _counts(await self.memory.states())
        assert there == here, {key: (there.get(key), here.get(key)) for key in here if there.get(key) != here.get(key)}
        ours, theirs = _totals(self.memory), _totals(self.shared)
        assert theirs == ours, (theirs - ours, ours - theirs)
        assert self.shared.waits == self.memory.waits

    def _compare_outcomes(self, one: Waiting) -> None:
        here, there = one.memory.result(), one.shared.result()
        if isinstance(here, Refusal) or isinstance(there, Refusal):
            assert there == here, (there, here)
            self.seen["refused"] += 1
            return
        self.pairs.append(Pair(here, there, one.gate))
        self.seen["admitted"] += 1


def _outcome(task: asyncio.Task[Outcome]) -> object:
    return task.result() if task.done() else "waits"


def _counts(states: dict[BucketKey, BucketState]) -> dict[BucketKey, object]:
    """What is counted; each gate forgets by itself the buckets in which nothing is."""
    return {
        key: (state.windows, state.in_flight)
        for key, state in states.items()
        if state.in_flight or any(window.used for window in state.windows.values())
    }


def _totals(house: House) -> Counter[str]:
    totals: Counter[str] = Counter()
    for gate in house.gates:
        totals.update(asdict(gate.engine.summary().totals))
    return totals
