"""Leased: whatever gates do, at whatever moments, no interval holds more than the limit, by what callers saw."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import pytest

from helpers.driven import driven
from helpers.history import Bound, Call, Counted, judge
from helpers.house import House
from helpers.ledger import org, user
from helpers.shared import Open
from sluice.core.buckets import Charge
from sluice.core.limits import HOUR, MILLISECOND, MINUTE, SECOND, Cap, Limits, Sharing, StoreFailure
from sluice.core.permits import Permit
from sluice.core.rules import Rule
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.shared.slices import APART

GATES = 3
STEPS = 400
TICK = 1000
"""Nanoseconds: the server's clock counts in microseconds."""
OURS = Limits(
    requests_per_minute=60, tokens_per_minute=1500, max_concurrent=12, max_wait=MINUTE,
    failure_policy=StoreFailure.DENY, sharing=Sharing.LEASED,
)  # fmt: skip
THEIRS = Limits(
    requests_per_minute=90, requests_per_hour=400, max_concurrent=20, max_wait=2 * SECOND,
    failure_policy=StoreFailure.DENY, sharing=Sharing.LEASED,
)  # fmt: skip
BOUNDS = [
    *(Bound(name, Counted.REQUESTS, 60, MINUTE) for name in ("ann", "bob")),
    *(Bound(name, Counted.TOKENS, 1500, MINUTE) for name in ("ann", "bob")),
    *(Bound(name, Counted.PERMITS, 12) for name in ("ann", "bob")),
    Bound("acme", Counted.REQUESTS, 90, MINUTE),
    Bound("acme", Counted.REQUESTS, 400, HOUR),
    Bound("acme", Counted.PERMITS, 20),
]


@dataclass(slots=True)
class Seen:
    """One call, as its caller sees it."""

    gate: int
    user: str
    tokens: int
    answered: int | None = None
    permit: Permit | None = None
    ended: int | None = None
    used: int | None = None


@dataclass(slots=True)
class Walk:
    """Gates and their callers, who do what the dice say."""

    house: House
    dice: Random
    seen: list[Seen] = field(default_factory=list)
    open: list[Seen] = field(default_factory=list)
    asking: list[asyncio.Task[None]] = field(default_factory=list)

    async def step(self) -> None:
        what = self.dice.choices([self.call, self.end, self.pass_time, self.give_up, self.break_off], (8, 6, 8, 1, 1))[
            0
        ]
        await what()
        await self.come_back()
        await self.house.settled()

    async def come_back(self) -> None:
        """Let every gate find the store again."""
        place = self.house.place
        assert place is not None
        while any(store.health.mode is StoreMode.LOCAL for store in self.house.stores):
            driven().now += SECOND // 10
            place.set_time(self.house.now)
            await place.until_answered()

    async def call(self) -> None:
        one_by_one = self.dice.random() < 0.5
        gate, name = self.dice.randrange(GATES), self.dice.choice(("ann", "ann", "bob"))
        for _ in range(self.dice.choice((1, 1, 3, 10))):
            self.asking.append(asyncio.create_task(self._ask(Seen(gate, name, self.dice.choice((0, 10, 40))))))
            if one_by_one:
                await self.house.settled()

    async def _ask(self, call: Seen) -> None:
        outcome = await self.house.ask(call.tokens, gate=call.gate, user=call.user)
        call.answered = self.house.now
        if isinstance(outcome, Permit):
            call.permit = outcome
            self.open.append(call)
            self.seen.append(call)

    async def end(self) -> None:
        self.dice.shuffle(self.open)
        for _ in range(self.dice.randrange(8)):
            if self.open:
                call = self.open.pop()
                assert call.permit is not None
                if self.dice.random() < 0.7:
                    call.used = self.dice.randrange(call.tokens + 1)
                    call.permit.commit_tokens(Charge(call.used), self.house.now)
                call.permit.release(self.house.now)
                call.ended = self.house.now

    async def pass_time(self) -> None:
        """To the moments that matter, where anything is off by one."""
        to_the_end = SECOND - self.house.now % SECOND
        any_time = self.dice.randrange(SECOND) // TICK * TICK
        ends = [to_the_end, to_the_end - TICK, to_the_end + TICK, to_the_end - APART, to_the_end - APART - TICK]
        by = self.dice.choice([TICK, 3 * MILLISECOND, 90 * MILLISECOND, any_time, SECOND, 20 * SECOND, *ends])
        await self.house.pass_time(max(by, TICK))

    async def give_up(self) -> None:
        waiting = [task for task in self.asking if not task.done()]
        if waiting:
            task = self.dice.choice(waiting)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def break_off(self) -> None:
        """One gate, or all, decide alone for a moment: they refuse."""
        for store in self.house.stores if self.dice.random() < 0.5 else [self.dice.choice(self.house.stores)]:
            store.go_local("in a test")
        self.asking.append(asyncio.create_task(self._ask(Seen(self.dice.randrange(GATES), "ann", 10))))
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(4, 12))]
)
async def test_no_interval_holds_more_than_the_limit_and_nothing_is_lost(open_house: Open, seed: int) -> None:
    rules: tuple[Rule, ...] = (user(limits=OURS), org(limits=THEIRS))
    house = await open_house(*rules, gates=GATES)
    walk = Walk(house, Random(seed))

    for _ in range(STEPS):
        await walk.step()
    for task in walk.asking:
        task.cancel()
    await asyncio.gather(*walk.asking, return_exceptions=True)
    await house.pass_time(SECOND)

    calls = [
        Call(
            f"gate-{call.gate}", number, call.answered, call.answered, True, (call.user, "acme"),
            call.tokens, call.ended, call.used,
        )
        for number, call in enumerate(walk.seen)
        if call.answered is not None
    ]  # fmt: skip
    assert len(calls) > 60
    assert [str(violation) for violation in judge(calls, BOUNDS)] == []
    states = await house.states()
    for key, state in states.items():
        ours = [call for call in walk.seen if key.subject in (call.user, "acme")]
        assert state.in_flight == sum(call in walk.open for call in ours)
        assert state.windows.get(Cap.REQUESTS_PER_HOUR, state.windows[Cap.REQUESTS_PER_MINUTE]).used <= len(ours)
