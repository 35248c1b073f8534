"""Leased: a gate takes a slice of a bucket ahead, and admits calls within it without asking.

Theory of operation
    With a call that the store is asked for, the gate asks for some more like it: as many as it expects until the slot
    of time ends (a sixtieth of a minute: one second). The store books them as if they had been admitted, and gives no
    more than what is left divided by twice the number of gates. So nothing is ever admitted that is not booked, and
    nothing is booked in an earlier slot than the one it is admitted in: the limit holds as it does without slices.

    A slice ends by our clock: when the slot would end if the store had answered in the very moment in which it was
    asked. It has answered later, so the slot lasts longer than the slice.

    The price is what a slice holds and nobody uses: it is missing to the others until the slot ends, and is given back
    then. Where somebody waits no slices are given; those that are out may still be used until they end.

    How many are asked for follows demand: what was asked for in this slot so far, or in the last one, for the time that
    is left of this one, less what is held already. In a slot that has just begun one call says little of the next: then
    at most as many as there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sluice.core.buckets import NOTHING, Bucket, Charge, Demand
from sluice.core.keys import BucketKey
from sluice.core.limits import MILLISECOND, SECOND
from sluice.core.windows import NEVER
from sluice_sidecar.stores.shared.decision import Form
from sluice_sidecar.stores.shared.owed import Owed

LENGTH: Final = SECOND
"""Nanoseconds of the slot in which a slice may be used: the shortest slot of any window."""
APART: Final = MILLISECOND
"""Nanoseconds by which two clocks may run apart in a slot: each is corrected by up to 500 µs a second (adjtimex(2))."""
MOST: Final = 1000
"""Calls that are asked for ahead at once."""
MOST_BUCKETS: Final = 10_000
"""Of so many buckets it is known how many calls there were lately."""

_US: Final = 1000


class Slice:
    """What this gate may still admit in one bucket."""

    __slots__ = ("at", "bucket", "counted", "ends", "form", "leases", "left")

    def __init__(self, bucket: Bucket, form: Form, at: int, ends: int) -> None:
        self.bucket = bucket
        self.form = form
        """Of its bucket, under the limits by which it was taken."""
        self.at = at
        """The server's time in µs at which it was taken."""
        self.ends = ends
        """When it may not be used any more, by our clock in ns."""
        self.left = NOTHING
        self.leases: list[str] = []
        self.counted: tuple[int, ...] = ()
        """What the bucket's windows counted then."""


class Rate:
    """Calls that touched a bucket, in this slot of the server's clock and in the last one."""

    __slots__ = ("before", "calls", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.calls = 0
        self.before = 0

    def reach(self, slot: int) -> None:
        if slot != self.slot:
            self.before = self.calls if slot == self.slot + 1 else 0
            self.slot, self.calls = slot, 0


class Slices:
    """The slices of one provider's buckets."""

    def __init__(self, owed: Owed) -> None:
        self._owed = owed
        self._slices: dict[BucketKey, Slice] = {}
        self._rates: dict[BucketKey, Rate] = {}
        self.next_end: int = NEVER
        """When the first of them ends."""

    def use(self, buckets: Sequence[Bucket], demand: Demand, now: int, ahead: int) -> tuple[Slice, ...] | None:
        """Take a call out of the slices of all its buckets; None, and nothing is taken, if one of them cannot have it.

        `ahead` is as in `Keyspace`. The last lease in each of them is the call's, if it takes a slot.
        """
        slot = (now + ahead) // LENGTH
        found = []
        for bucket in buckets:
            rate = self._rates.get(bucket.key)
            if rate is None:
                if len(self._rates) >= MOST_BUCKETS:
                    self._rates.clear()
                rate = self._rates[bucket.key] = Rate(slot)
            rate.reach(slot)
            rate.calls += 1
            part = self._slices.get(bucket.key)
            if part is not None and now < part.ends and _holds(part, bucket, demand):
                found.append(part)
        if len(found) < len(buckets):
            return None
        for part in found:
            part.left = part.left.minus(demand)
        return tuple(found)

    def wanted(self, buckets: Sequence[Bucket], demand: Demand, now: int, ahead: int) -> int:
        """How many more calls like this one are likely until the slot ends, beyond those that there are slices for."""
        return max(0, min([MOST, *(self._likely(bucket.key, demand, now, ahead) for bucket in buckets)]))

    def _likely(self, key: BucketKey, demand: Demand, now: int, ahead: int) -> int:
        rate, part = self._rates.get(key), self._slices.get(key)
        if rate is None:
            return 0
        passed = (now + ahead) % LENGTH
        rest = LENGTH - passed
        likely = max(min(rate.calls - 1, rate.calls * rest // max(1, passed)), rate.before * rest // LENGTH)
        return likely if part is None or now >= part.ends else likely - _calls_in(part.left, demand)

    def add(
        self,
        buckets: Sequence[Bucket],
        forms: Sequence[Form],
        demand: Demand,
        lease: str,
        more: int,
        counted: Sequence[int],
        at: int,
        asked: int,
    ) -> None:
        """The store has given so many further calls; it was asked at `asked`, by our clock, and answered at `at`."""
        ends = asked + LENGTH - at * _US % LENGTH - APART
        first = 0
        for bucket, form in zip(buckets, forms, strict=True):
            codes = len(form.codes)
            part = self._slices.get(bucket.key)
            if part is not None and (part.at * _US // LENGTH != at * _US // LENGTH or part.form is not form):
                self._give_back(part)
                part = None
            if part is None:
                part = self._slices[bucket.key] = Slice(bucket, form, at, ends)
            part.left = part.left.plus(Demand(*(more * amount for amount in demand)))
            part.counted = tuple(counted[first : first + 2 * codes])
            if demand.slots and form.limits.max_concurrent is not None:
                part.leases += [f"{lease}+{number}" for number in range(1, more + 1)]
            first += 2 * codes
        self.next_end = min(self.next_end, ends)

    def give_back(self, now: int = NEVER) -> None:
        """Owe the store what is left of the slices that have ended by `now`; of all, if nothing is said."""
        for key, part in tuple(self._slices.items()):
            if part.ends <= now:
                del self._slices[key]
                self._give_back(part)
        self.next_end = min((part.ends for part in self._slices.values()), default=NEVER)

    def forget(self) -> None:
        """The store knows nothing of them any more."""
        self._slices.clear()
        self.next_end = NEVER

    def _give_back(self, part: Slice) -> None:
        form, owed = part.form, self._owed
        _, requests, tokens, input_tokens, output_tokens = part.left
        if form.codes and any(part.left):
            owed.amend(form.stored, form.codes, part.at, -requests, Charge(-tokens, -input_tokens, -output_tokens))
        for lease in part.leases:
            owed.ended(form.stored, lease)


def _calls_in(left: Demand, demand: Demand) -> int:
    """Such calls for which there is enough, but for slots."""
    return min((amount // asked for amount, asked in zip(left[1:], demand[1:], strict=True) if asked), default=0)


def _holds(part: Slice, bucket: Bucket, demand: Demand) -> bool:
    if demand.slots and bucket.max_concurrent != NEVER and not part.leases:
        return False
    left = part.left
    return all(asked <= amount for asked, amount in zip(demand[1:], left[1:], strict=True))
