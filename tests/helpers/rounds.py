"""Gates that share a store under faults drawn by a seed, one after the other, and everything that their callers saw."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from helpers.faults import FAULTS, Bench, Fault
from helpers.gates import RETURN_SECONDS, Callers, Gates
from helpers.history import Allowance, Bound, Counted, Violation, judge
from helpers.relay import Way
from sluice_sidecar import clock
from sluice_sidecar.health import StoreMode

logger = logging.getLogger(__name__)

MINUTE = 60_000_000_000
CLOCKS_APART = 20_000_000
"""Nanoseconds by which the server's clock may run ahead of ours within a minute."""
LONGEST_BREAK = 1.2
"""Seconds that a fault lasts at most."""
ORG = "acme"


@dataclass(frozen=True, slots=True)
class Caps:
    """What every user may, and the organisation of all."""

    requests: int = 12
    tokens: int = 1000
    permits: int = 3
    org_requests: int = 40

    def entries(self, policy: str, **more: object) -> tuple[dict[str, object], dict[str, object]]:
        """Of a limits document."""
        user = {"requestsPerMinute": self.requests, "tokensPerMinute": self.tokens, "maxConcurrent": self.permits}
        org = {"scope": "Org", "subject": {"header": "x-org"}, "requestsPerMinute": self.org_requests}
        return {**user, "failurePolicy": policy, **more}, {**org, "failurePolicy": policy, **more}

    def bounds(
        self, users: Sequence[str], orgs: Sequence[str], gates: int, alone: tuple[int, int] | None
    ) -> list[Bound]:
        """`alone`: from when until when gates may have decided alone, each by its share."""

        def bound(bucket: str, counted: Counted, most: int) -> Bound:
            length = 0 if counted is Counted.PERMITS else MINUTE - CLOCKS_APART
            # What a gate has counted itself counts in its share, however often it decides alone.
            allowances = [] if alone is None else [Allowance(*alone, gates * (most // gates))]
            return Bound(bucket, counted, most, length, allowances)

        found = [bound(f"Org {org}", Counted.REQUESTS, self.org_requests) for org in orgs]
        for user in users:
            found.append(bound(f"User {user}", Counted.REQUESTS, self.requests))
            found.append(bound(f"User {user}", Counted.TOKENS, self.tokens))
            found.append(bound(f"User {user}", Counted.PERMITS, self.permits))
        return found


async def _reset_now_and_then(bench: Bench) -> None:
    bench.relay.cut_after(2000, Way.REPLIES)


async def _pass_on(bench: Bench) -> None:
    await bench.relay.heal()


async def _nothing(_: Bench) -> None:
    """A round without a fault."""


ROUNDS: tuple[Fault, ...] = (
    Fault("nothing", _nothing, _nothing, ""),
    *(fault for fault in FAULTS if not fault.password and not fault.persists and not fault.oldest),
    Fault("connections reset", _reset_now_and_then, _pass_on, ""),
)


@dataclass(slots=True)
class Story:
    """What happened."""

    faults: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    orgs: list[str] = field(default_factory=list)
    began: int = field(default_factory=clock.now)
    ended: int = 0

    def violations(self, gates: Gates, caps: Caps, *, alone: bool) -> list[Violation]:
        span = (self.began, self.ended) if alone else None
        return judge(gates.history, caps.bounds(self.users, self.orgs, len(gates.each), span))


async def play(
    bench: Bench,
    gates: Gates,
    provider: str,
    seed: object,
    rounds: int,
    *,
    per_gate: int = 4,
    faults: Sequence[Fault] = ROUNDS,
) -> Story:
    """Let callers call, with other users and another organisation in each round, and those of before."""
    rng = random.Random(str(seed))
    story = Story()
    await gates.know_each_other()
    for number in range(rounds):
        fault = rng.choice(faults)
        story.faults.append(fault.name)
        users = [f"{number}-{name}" for name in ("alice", "bob", "carol", "dave")]
        org = f"{ORG}-{number}"
        story.users += users
        story.orgs.append(org)
        callers = Callers(
            gates, provider, [*users, *rng.sample(story.users, 2)], tokens=90, per_gate=per_gate, longest=0.01,
            seed=rng.randrange(2**32), org=org, buckets=_named(org),
        )  # fmt: skip
        callers.start()
        await callers.made(rng.randrange(1, 4))  # before all that is allowed is used up
        await _for_a_while(fault, bench, rng.random() * LONGEST_BREAK)
        await gates.until(StoreMode.SHARED, 2 * RETURN_SECONDS)
        await callers.made(5)
        await callers.stop()
    story.ended = clock.now()
    logger.info("seed %s: %s; %d calls", seed, ", ".join(story.faults), len(gates.history))
    return story


def _named(org: str) -> Callable[[str], tuple[str, ...]]:
    return lambda user: (f"User {user}", f"Org {org}")


async def _for_a_while(fault: Fault, bench: Bench, seconds: float) -> None:
    ending: Callable[[Bench], Awaitable[None]] = fault.mend_it
    await fault.break_it(bench)
    await asyncio.sleep(seconds)  # how long it lasts, by the seed
    await ending(bench)
