"""The state of one `(provider, scope, subject)`: its windows, its calls in flight, and who waits for it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from sluice.core.decisions import Refusal
from sluice.core.keys import BucketKey
from sluice.core.limits import MINUTE, REQUEST_CAPS, TOKEN_CAPS, Cap, Limits, Mode
from sluice.core.windows import MAX_AMOUNT, NEVER, SlidingWindow

if TYPE_CHECKING:
    from sluice.core.permits import Waiter

RECENT: Final = 5 * MINUTE
"""Nanoseconds over which what happened lately is counted, for people to see."""


class Demand(NamedTuple):
    """What one call, or several together, ask of a bucket."""

    slots: int
    requests: int
    tokens: int

    def plus(self, other: Demand) -> Demand:
        return Demand(self.slots + other.slots, self.requests + other.requests, self.tokens + other.tokens)

    def minus(self, other: Demand) -> Demand:
        return Demand(self.slots - other.slots, self.requests - other.requests, self.tokens - other.tokens)

    def bounded(self) -> Demand:
        """Every amount from 0 to `MAX_AMOUNT`, whatever a client wrote into its request."""
        slots, requests, tokens = self
        if 0 <= slots <= MAX_AMOUNT and 0 <= requests <= MAX_AMOUNT and 0 <= tokens <= MAX_AMOUNT:
            return self
        return Demand(*(min(max(amount, 0), MAX_AMOUNT) for amount in self))


NOTHING: Final = Demand(0, 0, 0)


class Obstacle(NamedTuple):
    """A cap that has no room for a demand now."""

    cap: Cap
    limit: int
    used: int
    requested: int
    clears_at: int | None
    """When it would have room as things stand; None where only the end of a call makes room; `NEVER`: it cannot."""
    ahead: int
    """What those ahead ask of it."""


class Queue:
    """The calls that wait and touch one bucket, in order of arrival (tickets only grow).

    From a later call is kept back what is asked for by those that found no room in this very bucket, so that none
    of them is overtaken here; and by the first of all, wherever it is blocked, so that a call that needs room in
    several buckets gets it in the end. The others wait for another bucket and hold up nobody here meanwhile.
    """

    __slots__ = ("_sums", "all_take_slots", "blocked", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[int, Waiter] = {}
        """All of them."""
        self.blocked: list[int] = []
        """Tickets, ascending, of those that found no room here: only they profit from room here."""
        self.all_take_slots = True
        """True if who stands behind one that waits for a slot waits for one too."""
        self._sums = [NOTHING]
        """`_sums[i] - _sums[0]` is what the first i of the blocked ask together; as far as it was needed yet."""

    def join(self, waiter: Waiter) -> None:
        self.waiters[waiter.ticket] = waiter
        self.all_take_slots = self.all_take_slots and waiter.call.demand.slots > 0

    def leave(self, waiter: Waiter) -> None:
        self.unblock(waiter.ticket)
        del self.waiters[waiter.ticket]

    def block(self, ticket: int) -> None:
        at = bisect_left(self.blocked, ticket)
        if at == len(self.blocked) or self.blocked[at] != ticket:
            self.blocked.insert(at, ticket)
            del self._sums[at + 1 :]

    def unblock(self, ticket: int) -> bool:
        """True if it was blocked here until now."""
        at = bisect_left(self.blocked, ticket)
        if at == len(self.blocked) or self.blocked[at] != ticket:
            return False
        del self.blocked[at]
        if at == 0 and len(self._sums) > 1:
            del self._sums[0]  # the usual case, and what follows stays right
        else:
            del self._sums[at + 1 :]
        return True

    def kept_back(self, ticket: int) -> Demand:
        """What a call with that ticket finds kept back for those before it."""
        at = bisect_left(self.blocked, ticket)
        sums = self._sums
        while len(sums) <= at:
            sums.append(sums[-1].plus(self.waiters[self.blocked[len(sums) - 1]].call.demand))
        demand = sums[at].minus(sums[0])
        first = next(iter(self.waiters), ticket)
        if first < ticket and (not self.blocked or self.blocked[0] != first):
            demand = demand.plus(self.waiters[first].call.demand)
        return demand


class Bucket:
    """Mutable; only the engine changes it, under its lock."""

    __slots__ = (
        "admitted",
        "committed",
        "estimated",
        "in_flight",
        "key",
        "last_refusal",
        "limits",
        "max_concurrent",
        "queue",
        "recent_refusals",
        "refunded",
        "rejected",
        "windows",
        "would_reject",
    )

    def __init__(self, key: BucketKey, limits: Limits) -> None:
        self.key = key
        self.in_flight = 0
        self.queue: Queue | None = None
        """None rather than empty: most buckets never have one."""
        self.windows: tuple[SlidingWindow, ...] = ()
        self.admitted = self.committed = self.estimated = self.refunded = self.rejected = self.would_reject = 0
        self.last_refusal: tuple[int, Refusal] | None = None
        """When, and what; also of a limit in shadow mode."""
        self.recent_refusals: SlidingWindow | None = None
        """Calls it refused; None as long as there was none: most buckets never refuse."""
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        """Put new limits in force. A period that was ever capped goes on counting; a newly capped one starts empty."""
        windows = {window.length: window for window in self.windows}
        for window in self.windows:
            window.request_cap = window.token_cap = NEVER
        for length, request_cap, token_cap in limits.periods:
            window = windows.get(length) or windows.setdefault(length, SlidingWindow(length))
            window.request_cap = NEVER if request_cap is None else request_cap
            window.token_cap = NEVER if token_cap is None else token_cap
        self.windows = tuple(windows[length] for length in sorted(windows))
        self.limits = limits
        self.max_concurrent = NEVER if limits.max_concurrent is None else limits.max_concurrent

    @property
    def is_shadow(self) -> bool:
        return self.limits.mode is Mode.SHADOW

    def admits(self, now: int, demand: Demand) -> bool:
        """True if there is room now for the demand, and nobody waits for this bucket."""
        slots, requests, tokens = demand
        if self.queue is not None or (slots and self.in_flight + slots > self.max_concurrent):
            return False
        for window in self.windows:
            if now >= window.expires:
                window.slide(now)
            if window.requests + requests > window.request_cap or window.tokens + tokens > window.token_cap:
                return False
        return True

    def charge(self, now: int, demand: Demand) -> None:
        """Record an admitted call."""
        slots, requests, tokens = demand
        self.admitted += 1
        self.in_flight += slots
        for window in self.windows:
            window.book(now, requests, tokens)

    def refuse(self, now: int, refusal: Refusal) -> None:
        """Record that it said no."""
        self.rejected += 1
        self.last_refusal = (now, refusal)
        if self.recent_refusals is None:
            self.recent_refusals = SlidingWindow(RECENT)
        self.recent_refusals.slide(now)
        self.recent_refusals.book(now, 1, 0)

    def obstacles(self, now: int, demand: Demand, ahead: Demand) -> list[Obstacle]:
        """Every cap without room now for the demand and for those ahead of it; the slot first."""
        found = []
        if demand.slots and self.in_flight + ahead.slots + demand.slots > self.max_concurrent:
            clears = NEVER if demand.slots > self.max_concurrent else None
            found.append(
                Obstacle(Cap.MAX_CONCURRENT, self.max_concurrent, self.in_flight, demand.slots, clears, ahead.slots)
            )
        for window in self.windows:
            window.slide(now)
            obstacle = _window_obstacle(window, now, demand, ahead)
            if obstacle is not None:
                found.append(obstacle)
        return found

    def kept_back(self, ticket: int) -> Demand:
        """What a call with that ticket finds kept back here for those before it."""
        return NOTHING if self.queue is None else self.queue.kept_back(ticket)

    def is_idle(self, now: int) -> bool:
        """True if forgetting this bucket changes no decision."""
        if self.in_flight or self.queue is not None:
            return False
        for window in self.windows:  # noqa: SIM110 - asked of every bucket again and again; a generator takes three times as long
            if window.empty_at > now:
                return False
        return True


def _window_obstacle(window: SlidingWindow, now: int, demand: Demand, ahead: Demand) -> Obstacle | None:
    requests, tokens = demand.requests + ahead.requests, demand.tokens + ahead.tokens
    if window.has_room(requests, tokens):
        return None
    over_tokens = window.tokens + tokens > window.token_cap
    if demand.requests > window.request_cap or demand.tokens > window.token_cap:
        over_tokens = demand.tokens > window.token_cap
        clears = NEVER
    else:
        clears = window.fits_at(now, requests, tokens)
        if clears == NEVER:
            # Those ahead fill a whole period by themselves: not before they have left it again.
            clears = now + window.length
        elif over_tokens and window.fits_at(now, requests, 0) == clears != window.fits_at(now, 0, tokens):
            over_tokens = False  # both are over, and it is the requests that hold longer
    if over_tokens:
        return Obstacle(TOKEN_CAPS[window.length], window.token_cap, window.tokens, demand.tokens, clears, ahead.tokens)
    return Obstacle(
        REQUEST_CAPS[window.length], window.request_cap, window.requests, demand.requests, clears, ahead.requests
    )
