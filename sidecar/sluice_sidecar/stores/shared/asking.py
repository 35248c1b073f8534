"""One call that the store is asked for: once, or again and again while it waits for room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sluice.core.buckets import Bucket, Charge
from sluice.core.decisions import Reason, Refusal
from sluice.core.limits import SECOND, Sharing
from sluice.core.permits import Call, Permit, Waiter
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.shared import decision
from sluice_sidecar.stores.shared.client import PATIENCE, Ask, StoreError, Unreadable
from sluice_sidecar.stores.shared.decision import Form
from sluice_sidecar.stores.shared.keyspace import FORGOTTEN, LIFE, SILENCE, Booking

if TYPE_CHECKING:
    from sluice_sidecar.stores.shared.store import SharedStore

NEWCOMER: Final = ""
"""The ticket of a call that has none."""
WAITS: Final = "new"
"""The ticket of a call that asks for one."""

_WITH_SHADOWS: Final = 5
"""Fields of an answer that also tells what limits in shadow mode had no room for."""


class Asking:
    """A call on its way. The engine counts it while the store is asked, so that the provider's own word is heeded."""

    def __init__(self, store: SharedStore, call: Call, arrived: int) -> None:
        self._store = store
        self._era = store.era
        self._gate = store.gate
        self._call = call
        self._arrived = arrived
        self._keyspace = store.keyspaces[call.applied[0].key.provider]
        self._ticket: str | int = NEWCOMER
        self._buckets: tuple[Bucket, ...] = ()
        self._forms: list[Form] = []
        """Of these buckets, as the store was asked last."""
        self._waiter: Waiter | None = None
        self._again = asyncio.Event()
        self._is_leased = _is_leased(call)
        self._asked_at = arrived

    @property
    def blocked_by(self) -> tuple[Bucket, ...]:
        """The buckets in which it waits for room."""
        return () if self._waiter is None else self._waiter.blocked_by

    def ask_again(self) -> None:
        """There may be room, or somebody else decides by now."""
        self._again.set()

    async def outcome(self) -> Permit | Refusal | None:
        """None if the store does not decide any more."""
        try:
            while self._store.health.mode is StoreMode.SHARED:
                self._heed_rules()
                permit = await self._gate.acquire_here(self._call, tell=False)
                if not isinstance(permit, Permit) or not permit.buckets:
                    return permit
                self._buckets = permit.limited
                if self._is_leased and self._ticket == NEWCOMER and self._has_used_slices(permit):
                    return permit
                reply = await self._ask(permit)
                if reply is None:
                    return None
                if reply[0] == decision.ADMITTED:
                    self._be_out_of_the_queues()  # the script has taken it out of those there
                    return self._admitted(permit, reply)
                refusal = self._without_room(permit, reply)
                if refusal is not None:
                    return refusal
                if isinstance(self._ticket, int):
                    await self._wait()
            return None
        finally:
            self._leave()

    def _heed_rules(self) -> None:
        """Other rules may have come into force while it waited."""
        if self._era != self._store.era:
            self._era, before = self._store.era, self._call
            self._call = self._store.rematched(before)
            self._is_leased = _is_leased(self._call)
            if len(self._call.applied) < len(before.applied):
                self._leave()  # the queue of a bucket that nothing limits any more, and with it the others

    async def _ask(self, permit: Permit) -> Any:
        """What the store says of a call that the engine has counted; None if it does not answer."""
        self._asked_at = before = self._gate.clock()
        ask = None
        try:
            await self._meet()
            ask = self._question(permit)
            # At once: who is cancelled learns of it a turn of the loop later, and the answer may come in that turn.
            ask.late = lambda reply: self._give_back(permit, reply)
            reply = await self._store.client.ask(ask)
        except BaseException as error:
            self._gate.engine.withdraw(permit, self._gate.clock())
            if ask is not None:
                ask.settle_late()
                # It may have been admitted there all the same, and hold a place until the end of its life.
                Booking(self._keyspace, permit, 0, self._forms).free()
                if isinstance(error, Unreadable):
                    self._keyspace.suspects.update(ask.keys)
            if not isinstance(error, StoreError):
                raise
            self._store.health.waits.observe((self._gate.clock() - before) / SECOND)
            self._store.go_local(str(error))
            return None
        self._store.health.decided(StoreMode.SHARED, self._gate.clock() - before)
        return reply

    async def _meet(self) -> None:
        """A provider that has just come into the limits: the store is about to be heard of it."""
        if not self._keyspace.epoch:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._keyspace.met.wait()
            except TimeoutError:
                raise StoreError("was not heard of a provider in time") from None

    def _has_used_slices(self, permit: Permit) -> bool:
        """Admit the call without asking, if there are slices of all its buckets that it fits into."""
        now, keyspace = self._gate.clock(), self._keyspace
        demand = self._call.demand
        used = keyspace.slices.use(self._buckets, demand, now, keyspace.ahead)
        if used is None:
            return False
        held = {part.form.stored: part.leases.pop() for part in used if part.leases and demand.slots}
        permit.elsewhere = Booking(keyspace, permit, used[0].at, [part.form for part in used], held)
        permit.counted = tuple([count for part in used for count in part.counted])
        self._gate.engine.confirm(permit, now, now - self._arrived)
        self._store.health.decided(StoreMode.SHARED)
        return True

    def _question(self, permit: Permit) -> Ask:
        keyspace, keys = self._keyspace, self._keyspace.keys
        patience = 0 if self._waiter is None else max(0, self._waiter.deadline - self._gate.clock()) // 1000
        names = [keys.gates, keys.tickets, keys.epoch, keys.recovery]
        args: list[Any] = [keys.prefix, keyspace.epoch, self._store.name, SILENCE, permit.lease, LIFE, self._ticket]
        leased = self._is_leased and self._ticket == NEWCOMER
        demand, slices = permit.call.demand, keyspace.slices
        more = slices.wanted(self._buckets, demand, self._asked_at, keyspace.ahead) if leased else 0
        args += (patience, more, *demand)
        self._forms = [keyspace.forms.of(bucket) for bucket in self._buckets]
        for form in self._forms:
            names += form.stored
            args += form.args
        return Ask(self._store.scripts.acquire, names, args)

    def _admitted(self, permit: Permit, reply: Any) -> Permit:
        now, engine = self._gate.clock(), self._gate.engine
        _, server, counted, more, *_ = reply
        permit.elsewhere = booking = Booking(self._keyspace, permit, server, self._forms)
        permit.counted = tuple(counted)
        if more:
            self._add_slices(permit, reply)
        if self._era != self._store.era:
            self._store.heed_limits(booking)
            booking.renew()
            self._keyspace.tell()
        engine.confirm(permit, now, now - self._arrived)
        if len(reply) == _WITH_SHADOWS:
            engine.tell_shadow(self._call, self._obstacles(reply[4], reply[1], now), now)
        return permit

    def _add_slices(self, permit: Permit, reply: Any) -> None:
        _, server, counted, more, *_ = reply
        slices, demand = self._keyspace.slices, permit.call.demand
        slices.add(self._buckets, self._forms, demand, permit.lease, more, counted, server, self._asked_at)
        if self._era == self._store.era:
            self._store.look_after_slices()
        else:
            slices.give_back()

    def _without_room(self, permit: Permit, reply: Any) -> Refusal | None:
        """Refused; or None for: it is to be asked again, at once for a place in the queues, later with one."""
        now, engine = self._gate.clock(), self._gate.engine
        engine.withdraw(permit, now)
        if reply[0] != decision.NO_ROOM:
            self._store.go_local(FORGOTTEN)
            return None
        if self._ticket == WAITS:
            self._store.joining.discard(self)
            self._ticket = int(reply[2])
            self._store.waiting[self._keyspace.provider, self._ticket] = self
        if self._era != self._store.era:
            self._again.set()  # what it was refused by is not in force any more
            return None
        is_new, self._waiter = self._waiter is None, self._waiter or Waiter(self._call, self._buckets, 0, self._arrived)
        obstacles = self._obstacles(reply[3], reply[1], now)
        refusal = self._waiter.judge(obstacles, now)
        if refusal is None and is_new and self._store.is_full(self._waiter):
            bucket, obstacle = obstacles[0]
            refusal = obstacle.refusal(Reason.QUEUE_FULL, bucket.key, None)
        if refusal is not None:
            return engine.refuse(self._call, refusal, now, now - self._arrived)
        if self._ticket == NEWCOMER:
            self._ticket = WAITS
            self._store.joining.add(self)
        return None

    def _obstacles(self, told: Any, server: int, now: int) -> list[tuple[Bucket, Any]]:
        return decision.obstacles(told, self._buckets, self._call.demand, server, now)

    async def _wait(self) -> None:
        """Until somebody says that there may be room, there should be some, or patience ends."""
        assert self._waiter is not None  # noqa: S101 - for the type checker
        try:
            # Half a millisecond late rather than a rounding error early.
            async with asyncio.timeout(max(0, self._waiter.wake - self._gate.clock()) / SECOND + 0.0005):
                await self._again.wait()
        except TimeoutError:
            pass
        self._again.clear()

    def _leave(self) -> None:
        if isinstance(self._ticket, int):
            self._keyspace.leave(self._ticket, [self._keyspace.forms.of(bucket).stored for bucket in self._buckets])
        self._be_out_of_the_queues()

    def _be_out_of_the_queues(self) -> None:
        self._store.joining.discard(self)
        if isinstance(self._ticket, int):
            self._store.waiting.pop((self._keyspace.provider, self._ticket), None)
        self._ticket = NEWCOMER

    def _give_back(self, permit: Permit, reply: Any) -> None:
        """The store has admitted the call, or let it wait, when nobody waited for its answer any more."""
        if reply[0] == decision.ADMITTED:
            _, server, _, more, *_ = reply
            demand = permit.call.demand
            booking = Booking(self._keyspace, permit, server, self._forms)
            booking.amend(-demand.requests, Charge(-demand.tokens, -demand.input_tokens, -demand.output_tokens))
            booking.free()
            if more:
                self._add_slices(permit, reply)
        elif reply[0] == decision.NO_ROOM and reply[2]:
            self._keyspace.leave(reply[2], [self._keyspace.forms.of(bucket).stored for bucket in self._buckets])


def _is_leased(call: Call) -> bool:
    return all(limits.sharing is Sharing.LEASED for _, limits, _ in call.applied)
