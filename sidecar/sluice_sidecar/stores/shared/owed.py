"""What a gate owes the store: what calls really used, which of them have ended, and what was admitted without it.

Theory of operation
    Differences are added up by bucket, window and slot, as the server counts, so that what is owed stays small however
    long the store is away: at most 61 slots a window, and nothing of buckets whose slots have all left, nor of calls
    that began and ended without the store. They are sent in numbered batches, one after the other, each of them until
    it is acknowledged; the server carries a batch out once. So nothing is lost, and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sluice.core.buckets import Charge
from sluice.core.keeping import KeptBucket
from sluice.core.windows import SLOTS
from sluice_sidecar.stores.shared.names import CALL_CODES, PART_CODES, SLOT_LENGTHS, StoredBucket

MOST_BUCKETS: Final = 32
"""In one batch."""
MOST_LEASES: Final = 200
"""Of one bucket in one batch; the others come in the next."""

LOOKED_AT: Final = 2
"""Debts that are looked at for each new one, whether there is still any use in them."""

_PARTS: Final = frozenset(PART_CODES.values())


@dataclass(slots=True)
class Debt:
    """What is owed of one bucket."""

    slots: dict[bytes, dict[int, list[int]]] = field(default_factory=dict)
    """By window and slot: how much more is to be counted of its two amounts; less, below 0."""
    ended: set[str] = field(default_factory=set)
    """Leases whose calls have ended."""
    alive: dict[str, bool] = field(default_factory=dict)
    """Leases that live on: True if the store may know of them by now."""


class Batch:
    """What is sent together."""

    __slots__ = ("args", "keys", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: list[bytes] = []
        self.args: list[str | bytes | int] = []

    def add(self, stored: StoredBucket, debt: Debt) -> Debt | None:
        """Take a bucket's debt; returns what is left of it, if it is too much."""
        ended = [debt.ended.pop() for _ in range(min(len(debt.ended), MOST_LEASES))]
        alive = [debt.alive.popitem()[0] for _ in range(min(len(debt.alive), MOST_LEASES))]
        self.keys += stored
        self.args += (len(ended), *ended, len(alive), *alive, len(debt.slots))
        for code, slots in debt.slots.items():
            self.args += (code, len(slots))
            for slot in sorted(slots):
                self.args += (slot, *slots[slot])
        return Debt({}, debt.ended, debt.alive) if debt.ended or debt.alive else None


class Owed:
    """Everything owed of one provider's buckets."""

    def __init__(self) -> None:
        self._debts: dict[StoredBucket, Debt] = {}
        self._sent: Batch | None = None
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._debts) or self._sent is not None

    @property
    def batches(self) -> int:
        """So many, or a few more, hold what is owed now."""
        return (self._sent is not None) + -(-len(self._debts) // MOST_BUCKETS)

    def amend(self, stored: StoredBucket, codes: Iterable[bytes], at: int, requests: int, charge: Charge) -> None:
        """So much more was used in the slots of `at`, in µs of the server's clock."""
        tokens, input_tokens, output_tokens = charge
        if stored not in self._debts:
            self._look_at_some(at)
        slots = self._debt(stored).slots
        for code in codes:
            of_window = slots.setdefault(code, {})
            amounts = of_window.setdefault(at // SLOT_LENGTHS[code], [0, 0])
            if code in _PARTS:
                amounts[0] += input_tokens
                amounts[1] += output_tokens
            else:
                amounts[0] += requests
                amounts[1] += tokens
            if len(of_window) > SLOTS + 1:
                newest = max(of_window)
                slots[code] = {slot: each for slot, each in of_window.items() if slot >= newest - SLOTS}

    def ended(self, stored: StoredBucket, lease: str) -> None:
        """A call has ended of which the store may know."""
        debt = self._debt(stored)
        if debt.alive.pop(lease, True):
            debt.ended.add(lease)

    def alive(self, stored: StoredBucket, lease: str, *, is_new: bool) -> None:
        """A call goes on; if it is new, the store was never told of it before."""
        self._debt(stored).alive.setdefault(lease, not is_new)

    def tell_again(self, stored: StoredBucket, kept: KeptBucket, ahead: int) -> None:
        """All that this gate has counted in a bucket; its slots are of our clock, the server's is ahead by so many ns.

        A slot of ours becomes the one in which it ends there, so that nothing leaves its window too early.
        """
        slots = self._debt(stored).slots
        for counts, codes in ((kept.calls, CALL_CODES), (kept.parts, PART_CODES)):
            for length, told in counts.items():
                of_window = slots.setdefault(codes[length], {})
                size = length // SLOTS
                for number, first, second in zip(told[0::3], told[1::3], told[2::3], strict=True):
                    amounts = of_window.setdefault(((number + 1) * size - 1 + ahead) // size, [0, 0])
                    amounts[0] += first
                    amounts[1] += second

    def forget(self) -> None:
        """The store has forgotten everything: what was owed is part of what it is told again."""
        self._debts.clear()
        self._sent = None

    def next_batch(self, last: int) -> Batch | None:
        """What is to be sent now: the batch that was not acknowledged yet, or the next one; None if nothing is owed.

        `last` is the number of the last batch that the server knows.
        """
        if self._sent is None and self._debts:
            self._number = max(self._number, last) + 1
            self._sent = Batch(self._number)
            for stored in tuple(self._debts)[:MOST_BUCKETS]:
                left = self._sent.add(stored, self._debts.pop(stored))
                if left is not None:
                    self._debts[stored] = left
        return self._sent

    def acknowledged(self) -> None:
        """The batch was carried out."""
        self._sent = None

    def _debt(self, stored: StoredBucket) -> Debt:
        debt = self._debts.get(stored)
        if debt is None:
            debt = self._debts[stored] = Debt()
        return debt

    def _look_at_some(self, at: int) -> None:
        """Drop those that the store would take no notice of; the others go to the end, to be looked at again later."""
        for _ in range(min(LOOKED_AT, len(self._debts))):
            stored = next(iter(self._debts))
            debt = self._debts.pop(stored)
            if debt.ended or debt.alive or any(_counts(code, slots, at) for code, slots in debt.slots.items()):
                self._debts[stored] = debt


def _counts(code: bytes, slots: Iterable[int], at: int) -> bool:
    """True if some of these slots have not left the window yet; a slot more is allowed for clocks that differ."""
    return max(slots, default=0) >= at // SLOT_LENGTHS[code] - SLOTS - 1
