"""What a queue keeps back, against the plain sum over those that wait."""

from __future__ import annotations

from random import Random

from sluice.core.buckets import NOTHING, Demand, Queue
from sluice.core.permits import Call, Waiter


class Line:
    """A queue, and the same in plain words."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.waiters: dict[int, Waiter] = {}
        self.blocked: set[int] = set()
        self.newest = 0

    def join(self, random: Random) -> None:
        self.newest += 1
        demand = Demand(random.randrange(2), random.randrange(3), random.randrange(100))
        waiter = self.waiters[self.newest] = Waiter(Call((), demand), (), self.newest, 0)
        self.queue.join(waiter)

    def block(self, ticket: int) -> None:
        self.queue.block(ticket)
        self.blocked.add(ticket)

    def unblock(self, ticket: int) -> None:
        assert self.queue.unblock(ticket) is (ticket in self.blocked)
        self.blocked.discard(ticket)

    def leave(self, ticket: int) -> None:
        self.queue.leave(self.waiters.pop(ticket))
        self.blocked.discard(ticket)

    def check(self, ticket: int) -> None:
        expected = NOTHING
        for other, waiter in self.waiters.items():
            if other < ticket and (other in self.blocked or other == min(self.waiters)):
                expected = expected.plus(waiter.call.demand)
        assert self.queue.kept_back(ticket) == expected
        assert self.queue.blocked == sorted(self.blocked)


def test_kept_back_is_what_those_blocked_before_and_the_first_of_all_ask_together() -> None:
    random = Random(1)
    for _ in range(200):
        line = Line()
        for _ in range(60):
            if not line.waiters or random.random() < 0.3:
                line.join(random)
            else:
                act = random.choice((line.block, line.block, line.unblock, line.leave))
                act(random.choice((min(line.waiters), *line.waiters)))
            line.check(random.choice((line.newest + 1, random.randint(0, line.newest))))
