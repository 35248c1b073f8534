"""One provider's buckets on the server: what is known of them there, what is owed to them, which calls hold a place."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sluice.core.buckets import Bucket, Charge
from sluice.core.keeping import KeptBucket
from sluice.core.keys import BucketKey
from sluice.core.limits import MILLISECOND, SECOND
from sluice.core.permits import Permit
from sluice.core.windows import NEVER
from sluice_sidecar.stores.shared.client import Client, StoreError, Unreadable
from sluice_sidecar.stores.shared.decision import Form, Forms
from sluice_sidecar.stores.shared.names import Keys, StoredBucket
from sluice_sidecar.stores.shared.owed import Owed
from sluice_sidecar.stores.shared.scripts import Script, Scripts
from sluice_sidecar.stores.shared.slices import Slices

SILENCE: Final = 3 * SECOND // 1000
"""Microseconds after its last beat in which a gate counts as alive."""
FORGOTTEN: Final = "has lost its memory: every gate tells it again what it has counted"
LIFE: Final = 15 * SECOND // MILLISECOND
"""Milliseconds for which a permit is held; those of calls that go on are renewed."""

JUMP: Final = 2 * SECOND
"""Nanoseconds by which the store's clock may have moved against ours from one beat to the next."""

_US: Final = 1000

logger = logging.getLogger(__name__)


class Forgotten(StoreError):
    """The server has lost its memory."""


class Booking:
    """One admitted call on the server: `Permit.elsewhere`."""

    __slots__ = ("_at", "_held", "_is_new", "_keyspace", "_lease", "_places")

    def __init__(
        self,
        keyspace: Keyspace,
        permit: Permit,
        at: int,
        forms: Sequence[Form],
        held: Mapping[StoredBucket, str] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        """`at` is the server's time in µs; `forms` are those of its buckets under the limits by which it was admitted.

        `held` names the permit in each bucket; None: as its lease. `is_new`: the server does not know of it yet.
        """
        self._is_new = is_new
        self._keyspace = keyspace
        self._at = at
        self._lease = permit.lease
        self._places = tuple(zip(permit.limited, forms, strict=True))
        self._held: dict[StoredBucket, str] = {}
        if permit.call.demand.slots:
            if held is None:
                held = {form.stored: self._lease for form in forms if form.limits.max_concurrent is not None}
            self._held.update(held)
            keyspace.live.add(self)

    @property
    def keys(self) -> Iterator[BucketKey]:
        """The buckets that it touches."""
        return (bucket.key for bucket, _ in self._places)

    def amend(self, requests: int, charge: Charge) -> None:
        for _, form in self._places:
            if form.codes:
                self._keyspace.owed.amend(form.stored, form.codes, self._at, requests, charge)
        self._keyspace.tell()

    def free(self) -> None:
        self._keyspace.live.discard(self)
        if self._held and not self._is_new:
            for stored, lease in self._held.items():
                self._keyspace.owed.ended(stored, lease)
            self._keyspace.tell()

    def shift(self, by: int) -> None:
        """The server's clock is further ahead than was believed, by so many µs."""
        self._at += by

    def renew(self) -> None:
        """The call goes on, and holds its place also where calls at a time are capped only now."""
        for bucket, form in self._places:
            if bucket.max_concurrent != NEVER:
                lease = self._held.setdefault(form.stored, self._lease)
                self._keyspace.owed.alive(form.stored, lease, is_new=self._is_new)
        self._is_new = False


class Keyspace:
    """Belongs to one event loop. `tell` is called whenever something is owed."""

    def __init__(
        self,
        prefix: str,
        provider: str,
        gate: str,
        client: Client,
        scripts: Scripts,
        ahead: int,
        tell: Callable[[], None],
    ) -> None:
        self.provider = provider
        self.keys = Keys(prefix, provider, gate)
        self.forms = Forms(self.keys)
        self.owed = Owed()
        self.tell = tell
        self.slices = Slices(self.owed)
        self.live: set[Booking] = set()
        """The calls in flight."""
        self.ahead = ahead
        """Nanoseconds by which the server's clock is ahead of ours."""
        self.gates = 0
        """Gates alive; 0 before it was ever heard."""
        self.epoch = ""
        """How long the server has remembered; empty before it was ever heard."""
        self.met = asyncio.Event()
        """It was heard."""
        self.suspects: set[bytes] = set()
        """Keys of which one holds what no gate wrote."""
        self._leaving: dict[int, tuple[StoredBucket, ...]] = {}
        """Tickets of calls that wait no more, of which the server does not know that yet."""
        self._gate = gate
        self._client = client
        self._scripts = scripts
        self._last = 0
        self._heard_at = 0
        """The server's time in µs at its last answer to a beat."""
        self._paying = asyncio.Lock()

    def server_time(self, now: int) -> int:
        """The server's time in µs, as far as it is known."""
        return (now + self.ahead) // _US

    async def beat(self, clock: Callable[[], int]) -> None:
        """Say that this gate lives; raises `Forgotten` if the server knows nothing of what it was told."""
        keys = self.keys
        before = clock()
        reply = await self._run(
            self._scripts.beat,
            (keys.gates, keys.epoch, keys.recovery, keys.batch),
            (self._gate, SILENCE, secrets.token_hex(8), self.epoch, self._heard_at),
        )
        server, epoch, gates, last, recovering = reply
        believed, self.ahead = self.ahead, server * _US - (before + clock()) // 2
        if self.epoch and abs(self.ahead - believed) > JUMP:
            seconds = (self.ahead - believed) / SECOND
            logger.warning("the clock of the store has jumped by %+.0f s for %s", seconds, self.provider)
        if not self.epoch:  # until now there was only our own wall clock to go by
            for booking in self.live:
                booking.shift((self.ahead - believed) // _US)
        self.gates, self._last, self._heard_at = max(1, gates), last, server
        known, self.epoch = self.epoch, epoch.decode("ascii", "replace")
        self.met.set()
        if known not in ("", self.epoch):
            raise Forgotten(FORGOTTEN)
        if recovering:
            raise StoreError("is told again what was counted before it lost its memory")

    async def mend(self) -> None:
        """Delete those of the suspects that hold what no gate wrote. Raises `StoreError`."""
        suspects = tuple(self.suspects)
        if suspects:
            deleted = await self._client.run(self._scripts.mend, suspects, [self.keys.kind(key) for key in suspects])
            self.suspects.difference_update(suspects)
            for number in deleted:
                key = suspects[number - 1]
                logger.warning("the store held under %r what no gate wrote: it is deleted, and begins anew", key)

    async def _run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> Any:
        try:
            return await self._client.run(script, keys, args)
        except Unreadable:
            self.suspects.update(keys)
            raise

    async def flush(self) -> None:
        """Send what is owed now: more may be by the time it is there. Raises `StoreError`."""
        async with self._paying:  # a batch must be acknowledged before the next one is made
            await self._flush()

    async def _flush(self) -> None:
        keys = self.keys
        # Not until nothing is owed: with a slow server and enough calls that would never be.
        for _ in range(self.owed.batches):
            batch = self.owed.next_batch(self._last)
            if batch is None:
                break
            reply = await self._run(
                self._scripts.settle,
                (keys.gates, keys.epoch, keys.batch, *batch.keys),
                (keys.prefix, self.epoch, SILENCE, LIFE, batch.number, *batch.args),
            )
            if reply[0] < 0:
                raise StoreError("has lost its memory")
            self.owed.acknowledged()
        for ticket in tuple(self._leaving):
            queues = [stored.queue for stored in self._leaving[ticket]]
            await self._run(self._scripts.leave, (keys.gates, *queues), (keys.prefix, SILENCE, ticket))
            self._leaving.pop(ticket, None)

    @property
    def owes(self) -> bool:
        """True if the server lacks something."""
        return bool(self.owed or self._leaving)

    def leave(self, ticket: int, buckets: Iterable[StoredBucket]) -> None:
        """Whoever has that ticket waits no more."""
        self._leaving[ticket] = tuple(buckets)
        self.tell()

    def renew(self) -> None:
        """Every call in flight goes on."""
        for booking in self.live:
            booking.renew()
        if self.owed:
            self.tell()

    def tell_again(self, kept: Iterable[tuple[Bucket, KeptBucket]]) -> None:
        """Owe the server all that this gate has counted, and nothing else."""
        self.owed.forget()
        self.slices.forget()
        for bucket, counts in kept:
            self.owed.tell_again(self.keys.bucket(bucket.key), counts, self.ahead)
        self.renew()

    async def peek(self, buckets: Sequence[Bucket]) -> list[tuple[int, list[bytes]]]:
        """Of each bucket the calls in flight, where they are capped, and its windows' heads. Raises `StoreError`."""
        names: list[bytes] = []
        args: list[bytes | str | int] = []
        for bucket in buckets:
            form = self.forms.of(bucket)
            names += (form.stored.counts, form.stored.permits)
            args += (len(form.codes), *form.codes)
        _, *told = await self._run(self._scripts.peek, names, args)
        return [(in_flight, heads) for in_flight, *heads in told]
