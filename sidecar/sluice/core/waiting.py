"""Everybody who waits, over all buckets, and when each of them is to be looked at again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from sluice.core.buckets import Bucket
from sluice.core.permits import Call, Waiter
from sluice.core.windows import NEVER

SLACK: Final = 64
"""Entries of the heap that may be out of date before it is worth tidying up."""


class Waiters:
    """The calls in the queues, by their tickets, which only grow. Only the engine changes it."""

    def __init__(self) -> None:
        self.by_ticket: dict[int, Waiter] = {}
        self._tickets = 0
        self._wakes: list[tuple[int, int, Waiter]] = []

    def __len__(self) -> int:
        return len(self.by_ticket)

    def newcomer(self, call: Call, buckets: tuple[Bucket, ...], now: int, *, tell: bool) -> Waiter:
        """A call that may have to wait; it is in no queue yet."""
        self._tickets += 1
        return Waiter(call, buckets, self._tickets, now, tell=tell)

    def join(self, waiter: Waiter) -> None:
        """It stands in the queues of its buckets from now on."""
        for bucket in waiter.buckets:
            bucket.join(waiter)
        self.by_ticket[waiter.ticket] = waiter
        self.stay(waiter)

    def stay(self, waiter: Waiter) -> list[Bucket]:
        """It goes on waiting, for room in the buckets it is blocked by. Returns those that have room for it by now."""
        cleared = []
        for bucket in waiter.buckets:
            if bucket.queue is None:
                continue
            if bucket in waiter.blocked_by:
                bucket.queue.block(waiter.ticket)
            elif bucket.queue.unblock(waiter.ticket):
                cleared.append(bucket)
        heapq.heappush(self._wakes, (waiter.wake, waiter.ticket, waiter))
        if len(self._wakes) > 2 * len(self.by_ticket) + SLACK:
            self._wakes = [(other.wake, ticket, other) for ticket, other in self.by_ticket.items()]
            heapq.heapify(self._wakes)
        return cleared

    def leave(self, waiter: Waiter) -> None:
        """It waits no more."""
        waiter.pending = False
        del self.by_ticket[waiter.ticket]
        for bucket in waiter.buckets:
            if bucket.queue is not None:
                bucket.queue.leave(waiter)
                if not bucket.queue.waiters:
                    bucket.queue = None

    def due(self, now: int) -> Iterator[Waiter]:
        """Those whose time has come, one after the other; what is done about one may change who is next."""
        while self._wakes and self._wakes[0][0] <= now:
            wake, _, waiter = heapq.heappop(self._wakes)
            if waiter.pending and waiter.wake == wake:
                yield waiter

    @property
    def next_wake(self) -> int:
        """When the next one is due; `NEVER` if nobody waits."""
        while self._wakes:
            wake, _, waiter = self._wakes[0]
            if waiter.pending and waiter.wake == wake:
                return wake
            heapq.heappop(self._wakes)
        return NEVER
