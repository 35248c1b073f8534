"""One trace of calls, ends and jumps of time, told to a gate that counts for itself and to gates that share Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest

from helpers.house import Place, memory_house, shared_house
from helpers.ledger import PROVIDER, org, project, user
from helpers.twins import GATES, Twins
from sluice.core.keys import Scope
from sluice.core.limits import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Limits, Mode
from sluice.core.rules import Rule
from sluice.core.windows import SLOTS

STEPS = 2000
US = 1000
PERIODS = (MINUTE, HOUR, DAY)
SHORT_JUMPS = (0, US, SECOND - US, SECOND, SECOND + US, 7 * SECOND)
LONG_JUMPS = sorted(
    span + by
    for length in PERIODS
    for span in (length // SLOTS, length, length + length // SLOTS)
    for by in (-US, 0, US)
)
SEEDS = [*range(3), *[pytest.param(seed, marks=pytest.mark.thorough) for seed in range(3, 9)]]


def some_rules(random: Random) -> list[Rule]:
    """Every cap of every scope: sizes differ, what is capped does not."""

    def some(least: int, most: int) -> int:
        return random.randint(least, most)

    def every(mode: Mode = Mode.ENFORCE, max_concurrent: int | None = None) -> Limits:
        return Limits(
            some(4, 12), some(30, 90), some(90, 400),
            some(200, 600), some(900, 4000), some(3000, 9000),
            some(200, 600), some(900, 4000), some(3000, 9000),
            some(200, 600), some(900, 4000), some(3000, 9000),
            max_concurrent, mode=mode,
        )  # fmt: skip

    return [
        user(limits=every()),
        user("ann", limits=every(max_concurrent=some(1, 4))),
        Rule(PROVIDER, Scope.USER, every(), (), ("small*",)),
        org(limits=every(max_concurrent=some(3, 6))),
        org("lenient", limits=every(Mode.SHADOW, max_concurrent=2)),
        project(limits=every()),
    ]


@asynccontextmanager
async def twins_under(rules: list[Rule], place: Place, random: Random) -> AsyncIterator[Twins]:
    async with AsyncExitStack() as houses:
        memory = await houses.enter_async_context(memory_house(rules))
        shared = await houses.enter_async_context(shared_house(place, rules, GATES))
        yield Twins(memory, shared, random)


async def ask(twins: Twins, *tokens: int) -> None:
    random = twins.random
    await twins.ask(
        random.choice((0, random.randrange(100), *tokens)),
        user=random.choice(("ann", "bob", "")),
        org=random.choice(("strict", "lenient")),
        project=random.choice(("web", "app")),
        model=random.choice(("large", "small-1")),
    )


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_trace_is_decided_alike_and_counted_alike(place: Place, seed: int) -> None:
    random = Random(seed)
    async with twins_under(some_rules(random), place, random) as twins:
        for number in range(STEPS):
            choice = random.choices(
                ("ask", "commit", "release", "withdraw", "jump", "leap", "swap"), (50, 20, 20, 6, 12, 2, 1)
            )
            try:
                match choice:
                    case ["ask"]:
                        await ask(twins, 30, 5000)
                    case ["commit"]:
                        await twins.commit()
                    case ["release"]:
                        await twins.release()
                    case ["withdraw"]:
                        await twins.withdraw()
                    case ["jump"]:
                        await twins.pass_time(random.choice(SHORT_JUMPS))
                    case ["leap"]:
                        await twins.pass_time(random.choice(LONG_JUMPS))
                    case _:
                        await twins.swap(*some_rules(random))
                if number % 10 == 0:
                    await twins.compare()
            except AssertionError as error:
                error.add_note(f"in step {number}: {choice}")
                raise
        assert min(twins.seen["admitted"], twins.seen["refused"]) > STEPS // 20


def some_patient_rules(random: Random) -> list[Rule]:
    """One bucket a call, and nobody's patience ends: there it is plain who is next.

    A call that waits in several is looked at again in memory whenever one of them has room, in the store when it is the
    first in one of them: until then the others may know of it as waiting where there is room by now, or the reverse.
    """

    def some(least: int, most: int) -> Limits:
        cap = random.randint(least, most)
        return Limits(12 * cap, tokens_per_minute=400 * cap, max_concurrent=cap, max_wait=DAY)

    return [user(limits=some(1, 3)), user("ann", limits=some(1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_who_waits_goes_on_alike(place: Place, seed: int) -> None:
    random = Random(seed)
    async with twins_under(some_patient_rules(random), place, random) as twins:
        for number in range(STEPS // 4):
            choice = random.choices(("ask", "commit", "release", "give up", "jump", "swap"), (40, 20, 30, 6, 15, 1))
            try:
                match choice:
                    case ["ask"]:
                        await ask(twins, 30)
                    case ["commit"]:
                        await twins.commit()
                    case ["release"]:
                        await twins.release()
                    case ["give up"]:
                        await twins.give_up()
                    case ["jump"]:  # gates look at who waits half a millisecond after the time
                        await twins.pass_time(random.choice((1, 5, 9, 13, 150)) * 100 * MILLISECOND + MILLISECOND)
                    case _:
                        await twins.swap(*some_patient_rules(random))
                if number % 10 == 0:
                    await twins.compare()
            except AssertionError as error:
                error.add_note(f"in step {number}: {choice}")
                raise
        assert min(twins.seen[what] for what in ("admitted", "waited", "given up")) > STEPS // 200
