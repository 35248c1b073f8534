"""A house: gates that share one quota. One gate counts in memory; any number of them share a store on Redis.

What can be driven is driven: the loop's time (`helpers.driven`), which is the gates' clock too, and the server's clock,
which its scripts read from a key. So beats, patience and the renewal of permits happen when the test lets time pass.
Two things go by real time: how long an answer takes, which nothing waits for in driven time, so that no answer is late;
and the expiry of keys on the server, which nothing here takes long enough to see.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from redis import Redis

from helpers.driven import driven
from helpers.envoy import ROOT
from helpers.ledger import PROVIDER, Parts, admitted, everything, refused
from helpers.system import limits as document
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import NO_CHARGE, Charge, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, SECOND, Cap
from sluice.core.permits import Call, Permit, Settled
from sluice.core.rules import Rule, RuleBook
from sluice.core.states import BucketState
from sluice.core.telemetry import Telemetry
from sluice.core.windows import NEVER
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import StoreHealth, StoreMode
from sluice_sidecar.stores.address import StoreAddress
from sluice_sidecar.stores.shared.client import Client
from sluice_sidecar.stores.shared.scripts import Scripts
from sluice_sidecar.stores.shared.store import SharedStore

PREFIX = "ours"
TAG = f"{{{PREFIX}/{PROVIDER}}}"
"""What every key of the provider begins with."""
AHEAD = 20_000 * DAY
"""By how much the server's clock is ahead: slots of both begin at the same moments."""
GATES_USER = "gates"
GATES_PASSWORD = "a-secret"
CLOCK = "local function clock() return tonumber(redis.call('GET', string.match(KEYS[1], '^{[^}]*}') .. 'now')) end"
SETTINGS = EngineSettings(lease=3650 * DAY)
"""Tests hold permits without claiming them."""
EACH_ITS_OWN = (
    "queued",
    "admitted",
    "rejected",
    "recently_rejected",
    "would_reject",
    "committed",
    "estimated",
    "refunded",
)
"""What a gate says of a bucket that it counts for itself."""
_CONFIGURATION = merge(parse(document(PROVIDER, "http://127.0.0.1:1", {"requestsPerMinute": 1}), "test"))


def gates_rights(prefix: str = PREFIX) -> str:
    """What a user of the gates may do, as docs/shared-state.md says it."""
    (line,) = re.findall(r"(?m)^ACL SETUSER sluice (.*)$", (ROOT / "docs/shared-state.md").read_text(encoding="utf-8"))
    return str(line).replace(">…", f">{GATES_PASSWORD}").replace("team-a", prefix)


@dataclass(frozen=True, slots=True)
class Place:
    """A store that gates can share."""

    address: StoreAddress
    node: Redis
    """The server that holds the provider's keys, for the test."""
    password: Callable[[], str] | None = None
    ca: Path | None = None

    def set_time(self, now: int) -> None:
        """`now` is by the gates' clock."""
        self.node.set(f"{TAG}now", (now + AHEAD) // 1000)

    def keys(self) -> list[bytes]:
        """Every key, but for the one with the time."""
        return sorted(key for key in self.node.scan_iter() if key != f"{TAG}now".encode())

    def contents(self) -> dict[bytes, Any]:
        """All that is kept there, as it would be dumped."""
        return {key: self.node.dump(key) for key in self.keys()}

    async def until_answered(self) -> None:
        """Wait until the server has answered all that it was asked, and everybody has heard it."""
        loop, quiet = driven(), 0
        while quiet < 2:
            self.node.ping()  # after what was sent before it
            quiet = quiet + 1 if await loop.is_quiet() else 0


@dataclass(slots=True)
class House:
    """Gates under the same rules."""

    gates: list[Gate]
    place: Place | None = None
    """None: there is one gate, and what it counts is all there is."""
    stores: list[SharedStore] = field(default_factory=list)

    @property
    def now(self) -> int:
        return driven().now

    @property
    def waits(self) -> int:
        """Calls that wait."""
        return sum(gate.summary().queued for gate in self.gates)

    def gate(self, number: int) -> Gate:
        """That one, or, where there are fewer, one of them."""
        return self.gates[number % len(self.gates)]

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(
        self,
        tokens: int = 10,
        requests: int = 1,
        slots: int = 1,
        parts: Parts = (0, 0),
        *,
        gate: int = 0,
        patience: int = NEVER,
        model: str = "",
        **subjects: str,
    ) -> Call:
        """A call of `user` alice (or another), `org` acme, `project` web; `parts` are input and output."""
        named = {"user": "alice", "org": "acme", "project": "web", **subjects}
        of_scopes = {Scope(scope.capitalize()): name for scope, name in named.items()}
        applied = self.gate(gate).engine.rules.match(PROVIDER, of_scopes, model)
        return Call(applied, Demand(slots, requests, tokens, *parts), patience)

    async def ask(self, tokens: int = 10, *, gate: int = 0, **what: object) -> Permit | Refusal:
        """Ask for one call, and wait for what becomes of it."""
        return await self.gate(gate).acquire(self.call(tokens, gate=gate, **what))  # type: ignore[arg-type]

    async def admit(self, tokens: int = 10, *, gate: int = 0, **what: object) -> Permit:
        return admitted(await self.ask(tokens, gate=gate, **what))

    async def refuse(self, tokens: int = 10, *, gate: int = 0, **what: object) -> Refusal:
        return refused(await self.ask(tokens, gate=gate, **what))

    async def queue(self, tokens: int = 10, *, gate: int = 0, **what: object) -> asyncio.Task[Permit | Refusal]:
        """A call that has to wait."""
        task = asyncio.create_task(self.ask(tokens, gate=gate, **what))
        await self.settled()
        assert not task.done(), task.result()
        return task

    async def commit(self, permit: Permit, tokens: int, parts: Parts = (0, 0)) -> bool:
        is_first = permit.commit_tokens(Charge(tokens, *parts), self.now)
        await self.settled()
        return is_first

    async def refund(self, permit: Permit) -> bool:
        is_first = permit.commit_tokens(NO_CHARGE, self.now, Settled.REFUNDED)
        await self.settled()
        return is_first

    async def release(self, *permits: Permit) -> bool:
        are_first = [permit.release(self.now) for permit in permits]
        await self.settled()
        return all(are_first)

    async def withdraw(self, permit: Permit, gate: int = 0) -> None:
        self.gate(gate).engine.withdraw(permit, self.now)
        await self.settled()

    # -- time and limits -----------------------------------------------------------------------------------------

    async def pass_time(self, by: int) -> None:
        """In steps of a second where somebody waits, else at once: permits that would have been renewed are."""
        await self.settled()
        until = self.now + by
        while self.now < until:
            driven_to = min(until, self.now + SECOND) if self.waits else until
            if self.place is not None:
                self.place.set_time(driven_to)
            is_leap = driven_to > self.now + SECOND
            driven().now = driven_to
            await self.settled()
            if is_leap:
                await self.renew()

    async def renew(self) -> None:
        """Let every gate say of its calls in flight that they go on."""
        for store in self.stores:
            for keyspace in store.keyspaces.values():
                keyspace.renew()
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is under way, and a store that decides has been told everything."""
        if self.place is None:
            loop = driven()
            while not await loop.is_quiet():
                pass
            return
        await self.place.until_answered()
        while any(
            keyspace.owes
            for store in self.stores
            if store.health.mode is StoreMode.SHARED
            for keyspace in store.keyspaces.values()
        ):
            await self.place.until_answered()

    async def swap(self, *rules: Rule) -> None:
        """Put these rules in force, in all gates."""
        for gate in self.gates:
            gate.apply(replace(_CONFIGURATION, rules=RuleBook(rules)), {})
        await self.settled()

    # -- what is seen --------------------------------------------------------------------------------------------

    async def states(self) -> dict[BucketKey, BucketState]:
        """Every bucket, as people see it: all gates say the same of what they count together."""
        told: dict[BucketKey, BucketState] = {}
        for gate in self.gates:
            states = list(gate.engine.snapshot(self.now).buckets)
            for picture in states if gate.store is None else await gate.store.pictures(states):
                known = told.get(picture.key)
                told[picture.key] = picture if known is None else _together(known, picture)
        return told

    async def state(self, subject: str = "alice", scope: Scope = Scope.USER, models: str = "") -> BucketState:
        return (await self.states())[BucketKey(PROVIDER, scope, subject, models)]

    async def used(self, cap: Cap, subject: str = "alice", scope: Scope = Scope.USER) -> int:
        return (await self.state(subject, scope)).windows[cap].used

    async def in_flight(self, subject: str = "alice", scope: Scope = Scope.USER) -> int:
        return (await self.state(subject, scope)).in_flight

    def contents(self) -> object:
        """All that decides on later calls."""
        if self.place is not None:
            return self.place.contents()
        (gate,) = self.gates
        return everything(gate.engine, self.now)


def _together(known: BucketState, picture: BucketState) -> BucketState:
    """What two gates say of one bucket: they count some things together, and the rest each for itself."""
    assert known.windows == picture.windows, (known, picture)
    capped = known.max_concurrent is not None
    assert not capped or known.in_flight == picture.in_flight, (known, picture)
    return replace(
        known,
        in_flight=known.in_flight if capped else known.in_flight + picture.in_flight,
        **{name: getattr(known, name) + getattr(picture, name) for name in EACH_ITS_OWN},
    )


class Build(Protocol):
    """Makes a house of the kind under test."""

    async def __call__(
        self, *rules: Rule, settings: EngineSettings = SETTINGS, telemetry: Telemetry | None = None
    ) -> House: ...


@asynccontextmanager
async def memory_house(
    rules: Sequence[Rule], settings: EngineSettings = SETTINGS, telemetry: Telemetry | None = None
) -> AsyncIterator[House]:
    """One gate that counts for itself."""
    gate = Gate(Engine(settings=settings, telemetry=telemetry), lambda: driven().now)
    gate.start()
    house = House([gate])
    await house.swap(*rules)
    try:
        yield house
    finally:
        await gate.close()


@asynccontextmanager
async def shared_house(
    place: Place,
    rules: Sequence[Rule],
    gates: int,
    settings: EngineSettings = SETTINGS,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[House]:
    """So many gates that share an empty store, and find it at once."""
    place.node.flushall()
    house = House([], place)
    place.set_time(house.now)
    try:
        for number in range(gates):
            await move_in(house, f"gate-{number}", settings, telemetry)
        await house.swap(*rules)
        for store in house.stores:
            await store.start()
        await house.settled()
        assert {store.health.mode for store in house.stores} == {StoreMode.SHARED}
        yield house
    finally:
        for store in house.stores:
            await store.close()
        for gate in house.gates:
            await gate.close()


async def move_in(
    house: House, name: str, settings: EngineSettings = SETTINGS, telemetry: Telemetry | None = None
) -> SharedStore:
    """One more gate, under no rules yet, which has not looked for the store yet."""
    place = house.place
    assert place is not None
    gate = Gate(Engine(settings=replace(settings, name=f"{name}-"), telemetry=telemetry), lambda: driven().now)
    health = StoreHealth(address=str(place.address), prefix=PREFIX, clock=gate.clock)
    client = Client(place.address, place.password, place.ca)
    gate.store = store = SharedStore(gate, client, health, name, lambda: driven().now + AHEAD, Scripts(CLOCK))
    gate.start()
    house.gates.append(gate)
    house.stores.append(store)
    return store
