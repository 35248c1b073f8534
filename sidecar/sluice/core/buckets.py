"""The state of one `(provider, scope, subject)`: its windows, its calls in flight, and who waits for it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import BucketKey
from sluice.core.limits import CALL_CAPS, MINUTE, PART_CAPS, Cap, Limits, Mode, Period
from sluice.core.windows import MAX_AMOUNT, NEVER, SlidingWindow
from sluice.core.words import Amount

if TYPE_CHECKING:
    from sluice.core.permits import Waiter

AnyBucket = TypeVar("AnyBucket", bound="Bucket")
Seen = TypeVar("Seen")
Look: TypeAlias = "Callable[[Bucket, int], Seen]"
"""What is to be seen of a bucket at a time."""
Counts: TypeAlias = Mapping[int, Sequence[int]]
"""What windows of one kind hold: by the length of the window, its slots (`SlidingWindow.slots`)."""

RECENT: Final = 5 * MINUTE
"""Nanoseconds over which what happened lately is counted, for people to see."""


class Charge(NamedTuple):
    """Tokens of one call, as they are booked."""

    tokens: int
    """As the provider counts them: the parts added up, each with its weight."""
    input_tokens: int = 0
    output_tokens: int = 0

    def bounded(self) -> Charge:
        """Every count from 0 to `MAX_AMOUNT`, whatever a provider has said."""
        tokens, input_tokens, output_tokens = self
        if 0 <= tokens <= MAX_AMOUNT and 0 <= input_tokens <= MAX_AMOUNT and 0 <= output_tokens <= MAX_AMOUNT:
            return self
        return Charge(*map(_bounded, self))

    def plus(self, other: Charge) -> Charge:
        return Charge(self[0] + other[0], self[1] + other[1], self[2] + other[2])

    def times(self, often: int) -> Charge:
        return Charge(self[0] * often, self[1] * often, self[2] * often)


NO_CHARGE: Final = Charge(0)


class Demand(NamedTuple):
    """What one call, or several together, ask of a bucket."""

    slots: int
    requests: int
    tokens: int
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: Demand) -> Demand:
        return Demand(
            self[0] + other[0], self[1] + other[1], self[2] + other[2], self[3] + other[3], self[4] + other[4]
        )

    def minus(self, other: Demand) -> Demand:
        return Demand(
            self[0] - other[0], self[1] - other[1], self[2] - other[2], self[3] - other[3], self[4] - other[4]
        )

    def bounded(self) -> Demand:
        """Every amount from 0 to `MAX_AMOUNT`, whatever a client wrote into its request."""
        slots, requests, tokens, input_tokens, output_tokens = self
        if (
            0 <= slots <= MAX_AMOUNT
            and 0 <= requests <= MAX_AMOUNT
            and 0 <= tokens <= MAX_AMOUNT
            and 0 <= input_tokens <= MAX_AMOUNT
            and 0 <= output_tokens <= MAX_AMOUNT
        ):
            return self
        return Demand(*map(_bounded, self))


def _bounded(amount: int) -> int:
    return min(max(amount, 0), MAX_AMOUNT)


NOTHING: Final = Demand(0, 0, 0)


class Obstacle(NamedTuple):
    """A cap that has no room for a demand now."""

    cap: Cap | Amount
    limit: int
    used: int
    requested: int
    clears_at: int | None
    """When it would have room as things stand; None where only the end of a call makes room; `NEVER`: it cannot."""
    ahead: int
    """What those ahead ask of it."""
    reason: Reason = Reason.WOULD_EXCEED
    """Why a call is refused that cannot wait until it clears."""

    def refusal(self, reason: Reason, key: BucketKey, retry_after: int | None) -> Refusal:
        """What is said of a call that it stops, in the bucket of that key."""
        return Refusal(reason, key, self.cap, self.limit, self.used, self.requested, retry_after, self.ahead)


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

    def next_blocked(self, after: int) -> int:
        """The earliest ticket after that one of those blocked here; `NEVER` if there is none."""
        at = bisect_right(self.blocked, after)
        return self.blocked[at] if at < len(self.blocked) else NEVER

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
        "parts",
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
        """They count requests and tokens, one a period."""
        self.parts: tuple[SlidingWindow, ...] = ()
        """They count input tokens and output tokens; only where these are capped, so that nobody else pays for them."""
        self.admitted = self.committed = self.estimated = self.refunded = self.rejected = self.would_reject = 0
        self.last_refusal: tuple[int, Refusal] | None = None
        """When, and what; also of a limit in shadow mode."""
        self.recent_refusals: SlidingWindow | None = None
        """Calls it refused; None as long as there was none: most buckets never refuse."""
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        """Put new limits in force. A period that was ever capped goes on counting; a newly capped one starts empty."""
        self.windows = _applied(self.windows, limits.periods, CALL_CAPS)
        self.parts = _applied(self.parts, limits.parts, PART_CAPS)
        self.limits = limits
        self.max_concurrent = NEVER if limits.max_concurrent is None else limits.max_concurrent

    @property
    def is_shadow(self) -> bool:
        return self.limits.mode is Mode.SHADOW

    def admits(self, now: int, demand: Demand) -> bool:
        """True if there is room now for the demand, and nobody waits for this bucket."""
        slots, requests, tokens, input_tokens, output_tokens = demand
        if self.queue is not None or (slots and self.in_flight + slots > self.max_concurrent):
            return False
        for window in self.windows:
            if now >= window.expires:
                window.slide(now)
            if window.first + requests > window.first_limit or window.second + tokens > window.second_limit:
                return False
        if self.parts:
            for window in self.parts:
                window.slide(now)
                if not window.has_room(input_tokens, output_tokens):
                    return False
        return True

    def charge(self, now: int, demand: Demand) -> None:
        """Record an admitted call."""
        slots, requests, tokens, input_tokens, output_tokens = demand
        self.admitted += 1
        self.in_flight += slots
        for window in self.windows:
            window.book(now, requests, tokens)
        if self.parts:
            for window in self.parts:
                window.book(now, input_tokens, output_tokens)

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
        asked, before = demand[1:3], ahead[1:3]  # requests and tokens
        for window in self.windows:
            obstacle = _window_obstacle(window, now, asked, before)
            if obstacle is not None:
                found.append(obstacle)
        if self.parts:
            asked, before = demand[3:], ahead[3:]  # input tokens and output tokens
            for window in self.parts:
                obstacle = _window_obstacle(window, now, asked, before)
                if obstacle is not None:
                    found.append(obstacle)
        return found

    def join(self, waiter: Waiter) -> None:
        """It stands in this bucket's queue from now on."""
        if self.queue is None:
            self.queue = Queue()
        self.queue.join(waiter)

    def kept_back(self, ticket: int) -> Demand:
        """What a call with that ticket finds kept back here for those before it."""
        return NOTHING if self.queue is None else self.queue.kept_back(ticket)

    def count_besides(self, now: int, calls: Counts, parts: Counts) -> None:
        """Go on from what was counted before. Periods that nothing caps now are counted all the same."""
        self.windows = _with_counts(self.windows, calls, CALL_CAPS, now)
        self.parts = _with_counts(self.parts, parts, PART_CAPS, now)

    def assume_used(self, now: int, until: int) -> None:
        """Count as if every window had been used up evenly in the time before `until`."""
        for window in self.windows + self.parts:
            window.assume_used(until)
            window.slide(now)

    def is_idle(self, now: int) -> bool:
        """True if forgetting this bucket changes no decision."""
        if self.in_flight or self.queue is not None:
            return False
        for window in self.windows + self.parts:  # noqa: SIM110 - asked of every bucket again and again; a generator takes three times as long
            if window.empty_at > now:
                return False
        return True


class Sweep:
    """Looks at some of many buckets each time, and so at all of them in turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: Iterator[BucketKey] = iter(())

    def some(self, buckets: Mapping[BucketKey, AnyBucket]) -> Iterator[tuple[BucketKey, AnyBucket]]:
        """The next few; they may be taken away meanwhile."""
        for _ in range(min(self._most, len(buckets))):
            key = next(self._keys, None)
            if key is None:
                self._keys = iter(tuple(buckets))
                return
            bucket = buckets.get(key)
            if bucket is not None:
                yield key, bucket


def _applied(
    windows: tuple[SlidingWindow, ...], periods: Iterable[Period], caps: Mapping[int, tuple[Cap, Cap]]
) -> tuple[SlidingWindow, ...]:
    """The windows of one kind, under the caps of these periods from now on."""
    known = {window.length: window for window in windows}
    for window in windows:
        window.first_limit = window.second_limit = NEVER
    for length, first, second in periods:
        window = known.get(length) or known.setdefault(length, SlidingWindow(length, caps[length]))
        window.first_limit = NEVER if first is None else first
        window.second_limit = NEVER if second is None else second
    return tuple(known[length] for length in sorted(known))


def _with_counts(
    windows: tuple[SlidingWindow, ...], counts: Counts, caps: Mapping[int, tuple[Cap, Cap]], now: int
) -> tuple[SlidingWindow, ...]:
    known = {window.length: window for window in windows}
    for length, slots in counts.items():
        window = known.get(length) or known.setdefault(length, SlidingWindow(length, caps[length]))
        window.add_slots(slots)
        window.slide(now)
    return tuple(known[length] for length in sorted(known))


def _window_obstacle(
    window: SlidingWindow, now: int, asked: tuple[int, ...], before: tuple[int, ...]
) -> Obstacle | None:
    """The cap without room for what is asked and was asked before: two amounts each, in the order of the window's."""
    window.slide(now)
    first, second = asked[0] + before[0], asked[1] + before[1]
    if window.has_room(first, second):
        return None
    over_second = window.second + second > window.second_limit
    if asked[0] > window.first_limit or asked[1] > window.second_limit:
        over_second = asked[1] > window.second_limit
        clears = NEVER
    else:
        clears = window.fits_at(now, first, second)
        if clears == NEVER:
            # Those ahead fill a whole period by themselves: not before they have left it again.
            clears = now + window.length
        elif over_second and window.fits_at(now, first, 0) == clears != window.fits_at(now, 0, second):
            over_second = False  # both are over, and it is the first that holds longer
    limits, counted = (window.first_limit, window.second_limit), (window.first, window.second)
    at = int(over_second)
    return Obstacle(window.caps[at], limits[at], counted[at], asked[at], clears, before[at])
