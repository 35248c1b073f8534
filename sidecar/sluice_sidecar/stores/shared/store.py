"""The buckets that all gates share: asked for every call, and done without while they cannot be.

Theory of operation
    The gate's own engine counts what this gate admits, whatever the mode.

    Shared. Whether the limits have room is decided by one script on the server, for all buckets of the call at once.
    The engine has admitted it by then, without telling anybody (it knows the provider's own word), and takes it back if
    there is no room. What becomes of the call later is owed to the store (`sluice_sidecar.stores.shared.owed`), and is
    sent off the call's path. Who waits has a ticket there, and asks again when a script tells this gate to, when by the
    answer there should be room, and at the end of its patience.

    Local. The first call that is not answered in time ends it for all: the engine decides alone, by its share of the
    limits (`sluice.core.sharing`) or as their `failurePolicy` says. Its counts are there already. What it admits is
    owed.

    Once a second the gate says that it lives, in either mode. When that is answered again, what is owed is written
    first; then the store decides again. One that has lost its memory (it names another epoch) is told again all that
    each gate has counted, and decides when they had the time to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Final

from sluice.core.decisions import Reason, Refusal
from sluice.core.keeping import keep
from sluice.core.keys import BucketKey
from sluice.core.limits import MILLISECOND, SECOND, Mode, StoreFailure
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import RuleBook
from sluice.core.sharing import local_share, too_large
from sluice.core.states import BucketState
from sluice.core.windows import NEVER
from sluice.core.words import Feedback
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import StoreHealth, StoreMode
from sluice_sidecar.logs import whereabouts
from sluice_sidecar.stores.shared import pictures
from sluice_sidecar.stores.shared.asking import Asking
from sluice_sidecar.stores.shared.client import PATIENCE, Client, StoreError
from sluice_sidecar.stores.shared.keyspace import FORGOTTEN, Booking, Forgotten, Keyspace
from sluice_sidecar.stores.shared.scripts import Scripts
from sluice_sidecar.stores.shared.word import Speaker

logger = logging.getLogger(__name__)

BEAT: Final = 1.0
"""Seconds between two signs of life; also how often a store that is away is looked for."""
HICCUP: Final = 0.05
"""Seconds after which a store is looked at again that has just failed to answer, the first time."""
STEADY: Final = 10 * SECOND
"""Nanoseconds without a failure after which one counts as the first."""
PACES: Final = 3
"""Questions of which one must be answered fast enough before the store decides again."""
RENEWAL: Final = 5
"""Beats after which permits are renewed: a third of their life."""
RETRY_AFTER: Final = SECOND
"""Nanoseconds after which a call may try again that is refused because the store is away."""
ENDING: Final = 2.0
"""Seconds in the end in which what is owed is still sent."""
KEEPS_ALL: Final = "noeviction"
"""The `maxmemory-policy` with which a full server says so, and forgets nothing."""
LONGEST_TICKET: Final = 16
"""Digits: the server counts tickets with doubles."""


class SharedStore:
    """Belongs to one event loop: `start` it there, `close` it in the end."""

    def __init__(
        self, gate: Gate, client: Client, health: StoreHealth, name: str, wall: Callable[[], int], scripts: Scripts
    ) -> None:
        self.health = health
        self.gate = gate
        self.client = client
        self.name = name
        self.scripts = scripts
        self._ahead = wall() - gate.clock()
        self._rules = RuleBook()
        self.keyspaces: dict[str, Keyspace] = {}
        self.waiting: dict[tuple[str, int], Asking] = {}
        """Calls that wait, by provider and ticket."""
        self.joining: set[Asking] = set()
        """Those that are about to have a ticket: they have their places already."""
        self.era = 0
        """Changes whenever what is enforced does."""
        self._beats = 0
        self._owing = asyncio.Event()
        self._look = asyncio.Event()
        self._hiccup = HICCUP
        self._steady_at = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: asyncio.Task[None] | None = None
        self._slices_timer: asyncio.TimerHandle | None = None
        self._speaker = Speaker(name)
        self._evicts: bool | None = None
        self._telling: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look for the store once, then go on with or without it."""
        await self._beat()
        self._tasks = [asyncio.create_task(self._keep_beating()), asyncio.create_task(self._keep_paying())]

    async def close(self) -> None:
        """Send what is still owed, for `ENDING`, and let go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._slices_timer is not None:
            self._slices_timer.cancel()
        for keyspace in self.keyspaces.values():
            keyspace.slices.give_back()
        try:
            async with asyncio.timeout(ENDING):
                while self._owes:
                    await self._pay()
        except (StoreError, TimeoutError):
            logger.warning("the store could not be told of everything that was counted last")
        await self._stop_listening()
        await self.client.close()

    def apply(self, rules: RuleBook, providers: Iterable[str]) -> None:
        """Put other rules in force."""
        self._rules = rules
        providers = set(providers)
        added = providers - self.keyspaces.keys()
        for provider in added:
            self.keyspaces[provider] = Keyspace(
                self.health.prefix, provider, self.name, self.client, self.scripts, self._ahead, self._owing.set
            )
        for keyspace in self.keyspaces.values():
            keyspace.slices.give_back()  # to where they were taken from, by the limits of before
        self._enforce()
        self._renew()
        if added:
            self._look.set()
            if self._listener is not None:
                self._listener.cancel()  # the next one hears of these providers too

    @property
    def queued(self) -> int:
        """Calls that wait for room in the store."""
        return len(self.waiting) + len(self.joining)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def acquire(self, call: Call) -> Permit | Refusal:
        """As `Gate.acquire`."""
        arrived, era = self.gate.clock(), self.era
        while True:
            if era != self.era:
                call, era = self.rematched(call), self.era
            if self.health.mode is StoreMode.SHARED:
                outcome = await Asking(self, call, arrived).outcome()
            else:
                outcome = await self._decide_alone(call, arrived)
            if outcome is not None:
                return outcome

    def _refused_alone(self, call: Call) -> Refusal | None:
        """Refused because the store is away, and for nothing that the call itself could change."""
        for key, limits, _ in call.applied:
            if limits.mode is not Mode.ENFORCE:
                continue
            if limits.failure_policy is StoreFailure.DENY:
                cap, limit = next(iter(limits.caps.items()))
                return Refusal(Reason.STORE_UNAVAILABLE, key, cap, limit, 0, call.demand.requests, RETRY_AFTER)
            found = too_large(call.demand, limits)
            if found is not None and too_large(call.demand, self._rules.limits_of(key)) is None:
                return Refusal(Reason.STORE_UNAVAILABLE, key, found[0], found[1], 0, found[2], RETRY_AFTER)
        return None

    async def _decide_alone(self, call: Call, arrived: int) -> Permit | Refusal | None:
        now = self.gate.clock()
        self.health.decided(StoreMode.LOCAL)
        refusal = self._refused_alone(call)
        if refusal is not None:
            return self.gate.engine.refuse(call, refusal, now, now - arrived)
        if call.patience != NEVER:
            call = call._replace(patience=max(0, call.patience - (now - arrived)))
        permit = await self.gate.acquire_here(call)
        if isinstance(permit, Permit) and permit.lease:
            keyspace = self.keyspaces[_provider(call)]
            forms = [keyspace.forms.of(bucket) for bucket in permit.limited]
            booking = Booking(keyspace, permit, keyspace.server_time(permit.admitted_at), forms, is_new=True)
            booking.amend(call.demand.requests, permit.charge)
            permit.elsewhere = booking
        return permit

    def is_full(self, waiter: Waiter) -> bool:
        settings = self.gate.engine.settings
        if self.queued >= settings.max_waiters:
            return True
        blocked = {bucket.key for bucket in waiter.blocked_by}
        return any(self.queued_in(key) >= settings.max_queue for key in blocked)

    def queued_in(self, key: BucketKey) -> int:
        """Calls that wait for room in this bucket."""
        everybody = chain(self.waiting.values(), self.joining)
        return sum(any(bucket.key == key for bucket in each.blocked_by) for each in everybody)

    def rematched(self, call: Call) -> Call:
        """The same call under the rules that are in force now."""
        rules = self.gate.engine.rules
        applied = tuple([each._replace(limits=rules.limits_of(each.key)) for each in call.applied])
        return call._replace(applied=tuple([each for each in applied if not each.limits.is_unset]))

    # -- modes ---------------------------------------------------------------------------------------------------

    def _enforce(self) -> None:
        """Tell the engine what it decides."""
        self.era += 1
        engine, now = self.gate.engine, self.gate.clock()
        is_shared = self.health.mode is StoreMode.SHARED
        self.gate.recall()
        engine.counts_only = is_shared
        engine.swap(self._rules if is_shared else local_share(self._rules, self.health.gates), now)
        for waiting in tuple(self.waiting.values()):
            waiting.ask_again()

    def go_local(self, problem: str) -> None:
        """The store does not decide any more."""
        before = self.health.mode
        self.health.local(problem)
        if before is not self.health.mode:
            for keyspace in self.keyspaces.values():
                keyspace.slices.give_back()
            self._enforce()
            self._look_soon()

    def _look_soon(self) -> None:
        """It may have been a hiccup: look again before the next beat, but later each time if it comes and goes."""
        now = self.gate.clock()
        self._hiccup = min(2 * self._hiccup, BEAT) if now < self._steady_at else HICCUP
        self._steady_at = now + STEADY
        asyncio.get_running_loop().call_later(self._hiccup, self._look.set)

    def _go_shared(self, gates: int) -> None:
        before = self.health.mode
        self.health.shared(gates)
        if before is not self.health.mode:
            self._enforce()

    # -- what is done beside the calls ---------------------------------------------------------------------------

    async def _keep_beating(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._look.wait()
            self._look.clear()
            try:
                await self._beat()
            except Exception as error:  # noqa: BLE001  the next beat may go better
                self.go_local("could not be spoken with")
                logger.error("a beat failed: %s", whereabouts(error))  # noqa: TRY400

    async def _beat(self) -> None:
        self._beats += 1
        try:
            await self._hear_all()
            if self._beats % RENEWAL == 0 or self.health.mode is StoreMode.LOCAL:
                self._renew()
            if self.health.mode is StoreMode.LOCAL:
                await self._pay()
                await self._check_pace()
                await self._check_eviction()
                await self._check_channels()
                await self._stop_listening()  # over that connection nothing may come any more
            if self._listener is None or self._listener.done():
                self._listener = asyncio.create_task(self._listen())
        except StoreError as error:
            self.go_local(str(error))
            self._tell_owed()
            return
        self._go_shared(max((keyspace.gates for keyspace in self.keyspaces.values()), default=1))
        self._nudge_first()

    async def _check_pace(self) -> None:
        """See that a store that is to decide again is fast enough for that, now that there are connections."""
        took = NEVER
        for _ in range(PACES):  # one of them may have met this gate busy
            before = self.gate.clock()
            await self._hear_all()
            took = min(took, self.gate.clock() - before)
            if took <= PATIENCE * SECOND:
                return
        raise StoreError(f"is too slow: it took {took / MILLISECOND:.0f} ms to answer")

    async def _check_channels(self) -> None:
        """See that gates may wake each other: a user's rights may lack that alone. Nobody waits by this ticket."""
        await asyncio.gather(*[self.client.publish(each.keys.wakes, b"0") for each in self.keyspaces.values()])

    async def _check_eviction(self) -> None:
        """Say it once if the server would drop counts when it is full."""
        if self._evicts is None:
            policy = await self.client.eviction()
            self._evicts = policy not in ("", KEEPS_ALL)
            if self._evicts:
                logger.warning(
                    "the store %s drops keys when it is full (maxmemory-policy %s), and counts with them: set %s",
                    self.health.address, policy, KEEPS_ALL,
                )  # fmt: skip

    def _renew(self) -> None:
        """Calls in flight go on, under the limits that are in force now."""
        for keyspace in self.keyspaces.values():
            for booking in keyspace.live:
                self.heed_limits(booking)
            keyspace.renew()

    def heed_limits(self, booking: Booking) -> None:
        """See to it that its buckets know the limits that are in force."""
        self.gate.engine.visit(booking.keys, self.gate.clock(), lambda bucket, _: bucket)

    async def _hear_all(self) -> None:
        keyspaces = tuple(self.keyspaces.values())
        heard = await asyncio.gather(*[self._hear_of(each) for each in keyspaces], return_exceptions=True)
        for keyspace, error in zip(keyspaces, heard, strict=True):
            if isinstance(error, Forgotten):
                self.go_local(FORGOTTEN)
                self._tell_again(keyspace)
        for keyspace, error in zip(keyspaces, heard, strict=True):
            if isinstance(error, Forgotten):
                await keyspace.flush()
        for error in heard:
            if isinstance(error, BaseException):
                raise error

    async def _hear_of(self, keyspace: Keyspace) -> None:
        is_new = not keyspace.epoch
        try:
            await keyspace.mend()
            await keyspace.beat(self.gate.clock)
        finally:
            if is_new and keyspace.epoch and self.health.mode is StoreMode.LOCAL:
                self._tell_again(keyspace)  # what was owed stood in slots of our own wall clock

    def _tell_again(self, keyspace: Keyspace) -> None:
        engine = self.gate.engine
        every = engine.keys()
        keys = [key for key in every if key.provider == keyspace.provider]
        keyspace.tell_again(engine.visit(keys, self.gate.clock(), lambda bucket, now: (bucket, keep(bucket, now))))

    async def _keep_paying(self) -> None:
        while True:
            await self._owing.wait()
            self._owing.clear()
            if self.health.mode is StoreMode.SHARED:
                try:
                    await self._pay()
                except StoreError as error:
                    self.go_local(str(error))
                except Exception as error:  # noqa: BLE001  what is owed stays owed
                    self.go_local("could not be spoken with")
                    logger.error("what is owed could not be sent: %s", whereabouts(error))  # noqa: TRY400

    def look_after_slices(self) -> None:
        """There are slices, which end."""
        if self._slices_timer is None:
            end = min(keyspace.slices.next_end for keyspace in self.keyspaces.values())
            delay = max(0, end - self.gate.clock()) / SECOND
            self._slices_timer = asyncio.get_running_loop().call_later(delay + 0.0005, self._give_back_slices)

    def _give_back_slices(self) -> None:
        self._slices_timer = None
        now = self.gate.clock()
        for keyspace in self.keyspaces.values():
            keyspace.slices.give_back(now)
            if keyspace.owed:
                self._owing.set()
        if any(keyspace.slices.next_end != NEVER for keyspace in self.keyspaces.values()):
            self.look_after_slices()

    async def _pay(self) -> None:
        try:
            await asyncio.gather(*[each.flush() for each in self.keyspaces.values() if each.owes])
        finally:
            self._tell_owed()

    def _tell_owed(self) -> None:
        if owes := self._owes:
            self._owing.set()
        self.health.unsent_since = (self.health.unsent_since or self.gate.clock()) if owes else None

    @property
    def _owes(self) -> bool:
        return any(each.owes for each in self.keyspaces.values())

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    async def _listen(self) -> None:
        """Hear who may get on, and what the provider says to other gates."""
        waking = {keyspace.keys.wakes: provider for provider, keyspace in self.keyspaces.items()}
        words = {keyspace.keys.word: provider for provider, keyspace in self.keyspaces.items()}
        try:
            async for channel, message in self.client.listen((*waking, *words)):
                if channel in words:
                    self._hear(words[channel], message)
                    continue
                if not (message.isdigit() and len(message) <= LONGEST_TICKET):
                    logger.warning("the store's channel %r brought something that no gate sent", channel)
                    continue
                waiting = self.waiting.get((waking[channel], int(message)))
                if waiting is not None:
                    waiting.ask_again()
        except StoreError:
            return  # the next beat listens again; until then it looks after those who wait

    def _nudge_first(self) -> None:
        """Let the first that wait here ask again: a word that there is room may have been lost."""
        seen: set[BucketKey] = set()
        for waiting in self.waiting.values():
            blocked = {bucket.key for bucket in waiting.blocked_by}
            if not blocked <= seen:
                waiting.ask_again()
            seen |= blocked

    # -- what is seen --------------------------------------------------------------------------------------------

    async def pictures(self, states: Iterable[BucketState]) -> list[BucketState]:
        """These buckets as the store counts them; as this gate does, while the store does not answer."""
        states = list(states)
        if self.health.mode is not StoreMode.SHARED:
            return states
        return await pictures.of_all(states, self.gate, self.keyspaces, self.queued_in)

    # -- the provider's own word ---------------------------------------------------------------------------------

    def heard(self, account: BucketKey, feedback: Feedback, pause: int) -> None:
        """See `sluice_sidecar.gate.Store`. While the store is away the others hear it from the provider themselves."""
        message = self._speaker.message(account, feedback, pause, self.gate.clock())
        keyspace = self.keyspaces.get(account.provider)
        if message is not None and keyspace is not None and self.health.mode is StoreMode.SHARED:
            telling = asyncio.get_running_loop().create_task(self._tell(keyspace, message))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell(self, keyspace: Keyspace, message: bytes) -> None:
        with suppress(StoreError):
            await self.client.publish(keyspace.keys.word, message)

    def _hear(self, provider: str, message: bytes) -> None:
        said = self._speaker.heard(provider, message)
        if said is not None:
            self.gate.engine.hear_elsewhere(*said, self.gate.clock())
            self.gate.rearm()


def _provider(call: Call) -> str:
    return call.applied[0].key.provider
