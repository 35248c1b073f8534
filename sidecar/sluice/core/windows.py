"""A sliding count of two amounts over one period: requests and tokens, or input tokens and output tokens.

Theory of operation
    A period of length W is cut into 60 slots of W/60, aligned to the time axis. What is admitted at time t is booked
    in the slot that holds t, and the slot counts until ALL of it has left the period: slot k, which ends at
    (k+1)·W/60, counts until (k+61)·W/60. So 61 slots count at most, the oldest of them in part already outside.

    Bound: what counts at t covers everything admitted in [t-W, t]. A window never admits more than an exact log over
    any closed interval of length W, and gives capacity back at most W/60 late.

    Slots are kept sparsely, in time order, three integers each (slot number, first, second) in one flat array:
    a caller seen once costs one slot, a busy one 61. The totals are kept beside them, so that a check is two
    additions. Time moves forward only; the engine sees to that.

    A slot says when it leaves by its number alone. So what is in the slots can be taken out, kept, and put back on a
    time axis that has gone on meanwhile (`slots`, `add_slots`): nothing of it leaves earlier for that, or later.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Final

from sluice.core.limits import Cap

SLOTS: Final = 60
NEVER: Final = 2**63 - 1
"""A time that does not come."""
MAX_AMOUNT: Final = 2**36
"""The most of anything that one call can count for: 2**27 such calls in one slot still fit 64 bits."""

_STRIDE: Final = 3
_NEWEST: Final = -_STRIDE
_LUMP: Final = 5
"""Slots whose share of an assumed use is booked together, so that it takes a twelfth of the place."""


class SlidingWindow:
    """Two amounts of one bucket over one period. Not thread-safe; times are in ns and never decrease."""

    __slots__ = (
        "_head",
        "_slot_length",
        "_slots",
        "caps",
        "expires",
        "first",
        "first_limit",
        "length",
        "second",
        "second_limit",
    )

    def __init__(self, length: int, caps: tuple[Cap, ...] = ()) -> None:
        self.length = length
        self.caps = caps
        """The names of the caps on the first amount and on the second; empty if nothing is ever capped."""
        self.first_limit = NEVER
        self.second_limit = NEVER
        self.first = 0
        self.second = 0
        self.expires = NEVER
        """When the oldest slot leaves; `slide` has nothing to do before that."""
        self._slot_length = length // SLOTS
        self._slots = array("q")
        self._head = 0

    def slide(self, now: int) -> None:
        """Let go of every slot that has wholly left the period at `now`."""
        if now < self.expires:
            return
        slots, head, end = self._slots, self._head, len(self._slots)
        oldest = now // self._slot_length - SLOTS
        while head < end and slots[head] < oldest:
            self.first -= slots[head + 1]
            self.second -= slots[head + 2]
            head += _STRIDE
        if head == end:
            self._slots, self._head, self.expires = array("q"), 0, NEVER
            return
        self.expires = self._leaves(slots[head])
        if head > SLOTS * _STRIDE:
            del slots[:head]
            head = 0
        self._head = head

    def has_room(self, first: int, second: int) -> bool:
        """True if that much more stays within the caps. Call `slide` first."""
        return self.first + first <= self.first_limit and self.second + second <= self.second_limit

    def book(self, now: int, first: int, second: int) -> None:
        """Count a call in the slot of `now`."""
        slots = self._slots
        slot = now // self._slot_length
        if slots and slots[_NEWEST] == slot:
            slots[-2] += first
            slots[-1] += second
        else:
            slots.append(slot)
            slots.append(first)
            slots.append(second)
            if self.expires == NEVER:
                self.expires = self._leaves(slot)
        self.first += first
        self.second += second

    def amend(self, booked_at: int, first: int, second: int) -> bool:
        """Change what was booked at `booked_at` by these differences. False if that slot has left already."""
        slots, head = self._slots, self._head
        slot = booked_at // self._slot_length
        at = len(slots) - _STRIDE
        while at >= head and slots[at] > slot:
            at -= _STRIDE
        if at < head or slots[at] != slot:
            return False
        slots[at + 1] += first
        slots[at + 2] += second
        self.first += first
        self.second += second
        return True

    def fits_at(self, now: int, first: int, second: int) -> int:
        """The first time at which that much more stays within the caps, if nothing else is booked meanwhile.

        `now` if it fits already; `NEVER` if it is more than a cap allows at all. Call `slide` first.
        """
        if first > self.first_limit or second > self.second_limit:
            return NEVER
        spare_first = self.first_limit - self.first - first
        spare_second = self.second_limit - self.second - second
        fits = now
        slots, at = self._slots, self._head
        while spare_first < 0 or spare_second < 0:
            spare_first += slots[at + 1]
            spare_second += slots[at + 2]
            fits = self._leaves(slots[at])
            at += _STRIDE
        return fits

    @property
    def slots(self) -> list[int]:
        """Number, first and second amount of each slot that counts, in time order. Call `slide` first."""
        return self._slots[self._head :].tolist()

    def add_slots(self, slots: Sequence[int]) -> None:
        """Count besides what such slots hold, in time order; the newest has begun by now. Call `slide` afterwards."""
        merged = array("q", slots) if not self._slots else _merged(self.slots, slots)
        self._slots, self._head = merged, 0
        self.first, self.second = sum(merged[1::_STRIDE]), sum(merged[2::_STRIDE])
        self.expires = self._leaves(merged[0]) if merged else NEVER

    def assume_used(self, until: int) -> None:
        """Count besides as much as the caps allow, as if it had been used evenly over the period before `until`.

        It comes back in twelfths, each of them at most a twelfth of the period and a slot after its time.
        """
        caps = [0 if limit == NEVER else limit for limit in (self.first_limit, self.second_limit)]
        newest, lumps = until // self._slot_length, SLOTS // _LUMP
        assumed = []
        for lump in range(lumps):
            share = (cap * (lump + 1) // lumps - cap * lump // lumps for cap in caps)
            assumed += [newest - _LUMP * (lumps - 1 - lump), *share]
        self.add_slots(assumed)

    @property
    def empty_at(self) -> int:
        """When the last slot leaves if nothing more is booked; 0 if nothing is counted."""
        return self._leaves(self._slots[_NEWEST]) if self._slots else 0

    def _leaves(self, slot: int) -> int:
        return (slot + SLOTS + 1) * self._slot_length


def _merged(*lists: Sequence[int]) -> array[int]:
    amounts: dict[int, tuple[int, int]] = {}
    for slots in lists:
        for slot, first, second in zip(slots[0::_STRIDE], slots[1::_STRIDE], slots[2::_STRIDE], strict=True):
            before = amounts.get(slot, (0, 0))
            amounts[slot] = min(before[0] + first, NEVER), min(before[1] + second, NEVER)
    return array("q", chain.from_iterable((slot, *amounts[slot]) for slot in sorted(amounts)))
