"""Admission: who may call now, who waits, who is refused.

Theory of operation
    A call touches one bucket a scope. It is admitted if every bucket has room for it: a slot first, then every window.
    Then it is recorded in all of them; otherwise in none. A refused call leaves no trace but a count of refusals.

    Waiting. A call that has no room now may wait up to the `maxWait` of each bucket that stands in its way, counted
    from its arrival. It is refused at once, with the time until it would fit, where that time is later. Whoever waits
    stands in the queue of every bucket it touches, and is marked as blocked in those that had no room for it. What
    the blocked ask for is kept back in their buckets: a later call passes only where there is room for both, so nobody
    is overtaken in a bucket it waits for, and nobody waits behind a call that only another bucket holds up. The one
    exception makes sure that a call which needs room in several buckets gets it: the first in a queue has its demand
    kept back wherever it is blocked.

    When room comes (a release, a lower commit, somebody gives up, time passes, limits change) those blocked in the
    buckets concerned are looked at in order of arrival, until such a bucket has nothing left to give.

    Permits. A permit is held by whoever claims its lease (the stream that watches the call). One that nobody claims
    within `lease` ns is freed at that deadline, its estimate standing; a claim that comes later still settles it.

State
    `_buckets`, and `_upstreams` (see `sluice.core.upstream`); per bucket its windows, `in_flight` and `queue`;
    `_unclaimed` and `_expired` permits; `_wakes`. All of it changes under one lock, in the public functions here. Time
    is an argument; a `now` before one already seen counts as that one, so a clock that steps back breaks nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from threading import RLock
from typing import Final

from sluice.core.buckets import NO_CHARGE, Bucket, Charge, Look, Obstacle, Seen, Sweep
from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import OVERFLOW, BucketKey
from sluice.core.ledger import count_settled, rebook
from sluice.core.limits import MINUTE, SECOND, Limits
from sluice.core.permits import Call, Permit, Settled, Waiter
from sluice.core.rules import RuleBook
from sluice.core.states import BucketState, Snapshot, Summary, Totals, picture
from sluice.core.telemetry import DebugLog, Telemetry
from sluice.core.upstream import Upstreams, UpstreamState, marks_of
from sluice.core.windows import NEVER
from sluice.core.words import Feedback

SWEEP: Final = 250
"""Buckets looked at for idleness each time the engine is told of time: some 100 µs."""
REFUSALS_SEEN: Final = 10 * MINUTE
"""How long the last refusal of a bucket can be seen if nothing else keeps the bucket."""
REMEMBERED: Final = 4096
"""Expired permits that a late claim can still settle."""
SLACK: Final = 64
"""Entries of `_wakes` that may be out of date before it is worth tidying up."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of one engine."""

    lease: int = 2 * SECOND
    """Nanoseconds in which an admitted call must be claimed."""
    max_keys: int = 100_000
    """Buckets held at once; newcomers past it share one overflow bucket a scope. Idle ones are forgotten."""
    max_queue: int = 256
    """Calls that may wait for room in one bucket, so that no subject fills the places of all."""
    max_waiters: int = 1024
    """Calls that may wait at once, over all buckets."""
    name: str = ""
    """Stands before every lease, so that a lease of an earlier process is not taken for one of this one's."""


class Engine:
    """Thread-safe. Every `now` is in nanoseconds of one clock that does not follow the wall clock's changes."""

    def __init__(
        self,
        rules: RuleBook | None = None,
        settings: EngineSettings | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.rules = rules or RuleBook()
        self.settings = settings or EngineSettings()
        self._telemetry: Telemetry = telemetry or DebugLog()
        self._lock = RLock()
        self._now = -NEVER
        self._buckets: dict[BucketKey, Bucket] = {}
        self._sweep = Sweep(SWEEP)
        self._tickets = 0
        self._waiters: dict[int, Waiter] = {}
        self._wakes: list[tuple[int, int, Waiter]] = []
        self._leases = 0
        self._in_flight = 0
        self._unclaimed: dict[str, Permit] = {}
        self._expired: dict[str, Permit] = {}
        self._upstreams = Upstreams()
        self._totals = Totals()
        self.assumed_until: int | None = None
        """Every bucket is made as if its caps had been used up evenly until then; None: as if nothing had been used."""

    # -- calls ---------------------------------------------------------------------------------------------------

    def acquire(self, call: Call, now: int) -> Permit | Refusal | Waiter:
        """Admit the call, refuse it, or put it into the queue. Amounts count as if they were from 0 to `MAX_AMOUNT`."""
        with self._lock:
            now = self._advance_clock(now)
            if not call.applied:
                self._totals.unlimited += 1
                return Permit(self, "", call, (), now, 0)
            demand = call.demand.bounded()
            if demand is not call.demand:
                call = call._replace(demand=demand)
            buckets = tuple([self._bucket(key, limits) for key, limits, _ in call.applied])
            if self._upstreams.buckets:
                buckets += self._upstreams.touched(call)
            for bucket in buckets:
                if not bucket.admits(now, demand):
                    return self._consider_newcomer(call, buckets, now)
            return self._admit(call, buckets, now, 0)

    def cancel(self, waiter: Waiter, now: int) -> None:
        """The caller has left the queue: it has consumed nothing, also if it was admitted just before."""
        with self._lock:
            now = self._advance_clock(now)
            if waiter.pending:
                self._dequeue(waiter)
                self._pump(waiter.buckets, now)
            elif isinstance(waiter.outcome, Permit):
                self.withdraw(waiter.outcome, now)

    def withdraw(self, permit: Permit, now: int) -> None:
        """Undo an admission of which the caller was never told: as if it had not been."""
        with self._lock:
            now = self._advance_clock(now)
            if permit.released or permit.settled is not None:
                return
            permit.settled, permit.released = Settled.REFUNDED, True
            self._unclaimed.pop(permit.lease, None)
            self._totals.admitted -= 1
            demand = permit.call.demand
            for bucket in permit.buckets:
                bucket.admitted -= 1
                bucket.in_flight -= demand.slots
            for windows in permit.windows:
                for window in windows:
                    window.amend(permit.admitted_at, -demand.requests, 0)
            rebook(permit, NO_CHARGE)
            for upstream, mark in permit.marks:
                upstream.give_back(demand, mark)
            self._in_flight -= demand.slots
            self._telemetry.released(permit)
            self._pump(permit.buckets, now)

    def claim(self, lease: str, now: int) -> Permit | None:
        """The permit of that lease, for whoever now speaks for the call and will release it; None if there is none.

        From here on it has no deadline. A lease can be claimed once. An expired one is still given, already
        released, so that what the call used can be committed.
        """
        with self._lock:
            self._advance_clock(now)
            return self._unclaimed.pop(lease, None) or self._expired.pop(lease, None)

    def commit(self, permit: Permit, actual: Charge, now: int, settled: Settled = Settled.COMMITTED) -> bool:
        """See `Permit.commit_tokens`."""
        with self._lock:
            now = self._advance_clock(now)
            if not permit.buckets or permit.settled in (Settled.COMMITTED, Settled.REFUNDED, settled):
                return False
            count_settled(self._totals, permit, -1)
            is_lower = rebook(permit, actual.bounded())
            permit.settled = settled
            count_settled(self._totals, permit, 1)
            self._telemetry.committed(permit)
            if is_lower:
                self._pump(permit.buckets, now)
            return True

    def release(self, permit: Permit, now: int) -> bool:
        """See `Permit.release`."""
        with self._lock:
            now = self._advance_clock(now)
            if permit.released or not permit.buckets:
                return False
            self._unclaimed.pop(permit.lease, None)
            self._free(permit)
            self._telemetry.released(permit)
            self._pump(permit.buckets, now)
            return True

    def repeated(self, permit: Permit, failed: int, now: int) -> None:
        """The call has been made more than once: each of the attempts that failed is a request besides."""
        with self._lock:
            self._advance_clock(now)
            for windows in permit.windows:
                for window in windows:
                    window.amend(permit.admitted_at, failed, 0)

    def hear(self, permit: Permit, feedback: Feedback, now: int) -> None:
        """Take what the provider's answer to this call says of the provider's own limits."""
        with self._lock:
            now = self._advance_clock(now)
            upstream, is_new, is_paused = self._upstreams.hear(permit, feedback, now)
            if upstream is None:
                return
            if is_new:
                self._upstreams.stop(self._waiters.values(), upstream)
            if is_paused and upstream.queue is not None:
                for waiter in tuple(upstream.queue.waiters.values()):
                    self._pump(self._reconsider(waiter, now) if waiter.pending else (), now)
            self._pump((upstream,), now)

    # -- time and limits -----------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Time has passed: free what nobody claimed, look at whoever waits, forget some idle buckets."""
        with self._lock:
            now = self._advance_clock(now)
            self._expire(now)
            while self._wakes and self._wakes[0][0] <= now:
                wake, _, waiter = heapq.heappop(self._wakes)
                if waiter.pending and waiter.wake == wake:
                    self._pump(self._reconsider(waiter, now), now)
            self._forget_idle(now)
            self._upstreams.forget_idle(now)

    @property
    def next_wake(self) -> int:
        """When `advance` is next due for somebody who waits; `NEVER` if nobody does.

        Leases and idle buckets want it a few times a second besides.
        """
        with self._lock:
            while self._wakes:
                wake, _, waiter = self._wakes[0]
                if waiter.pending and waiter.wake == wake:
                    return wake
                heapq.heappop(self._wakes)
            return NEVER

    def swap(self, rules: RuleBook, now: int) -> None:
        """Put other rules in force. Counts, permits and queues stay; whoever waits is looked at again at once."""
        with self._lock:
            now = self._advance_clock(now)
            self.rules = rules
            waiters = list(self._waiters.values())
            for bucket in {bucket for waiter in waiters for bucket in waiter.buckets}:
                self._refresh(bucket)
            for waiter in waiters:
                self._reconsider(waiter, now)

    # -- what is seen --------------------------------------------------------------------------------------------

    def current_state(self, key: BucketKey, now: int) -> BucketState | None:
        """The state of one bucket; None if nothing was ever counted in it, or all of it has left."""
        return next(iter(self.visit((key,), now, picture)), None)

    def visit(self, keys: Iterable[BucketKey], now: int, look: Look[Seen], *, make: bool = False) -> list[Seen]:
        """What `look` finds in these buckets, at one moment; those that are not there are left out, or made."""
        with self._lock:
            now = self._advance_clock(now)
            known = (self._bucket(key, self.rules.limits_of(key)) if make else self._buckets.get(key) for key in keys)
            buckets = [bucket for bucket in known if bucket is not None]
            for bucket in buckets:
                self._refresh(bucket)
            return [look(bucket, now) for bucket in buckets]

    def keys(self) -> tuple[BucketKey, ...]:
        """Every bucket's key: to look at many with `current_state`, a few at a time."""
        with self._lock:
            return tuple(self._buckets)

    def snapshot(self, now: int) -> Snapshot:
        """Every bucket, at one moment. It takes some 15 µs a bucket, in which nobody is admitted."""
        with self._lock:
            pictures = tuple(self.visit(self._buckets, now, picture))
            return Snapshot(replace(self._totals), len(self._waiters), self._in_flight, pictures)

    def upstreams(self, now: int) -> tuple[UpstreamState, ...]:
        """What is known of the provider's own limits, where something is."""
        with self._lock:
            now = self._advance_clock(now)
            return tuple(upstream.picture(now) for upstream in self._upstreams.buckets.values())

    def summary(self) -> Summary:
        """The totals, and how many calls wait or are in flight now."""
        with self._lock:
            return Summary(replace(self._totals), len(self._waiters), self._in_flight)

    # -- within --------------------------------------------------------------------------------------------------

    def _advance_clock(self, now: int) -> int:
        self._now = max(self._now, now)
        return self._now

    def _bucket(self, key: BucketKey, limits: Limits) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self.settings.max_keys and key.subject != OVERFLOW:
                overflow = key._replace(subject=OVERFLOW)
                # The limits for everybody; where only some are limited, those of this newcomer.
                everybodys = self.rules.limits_of(overflow)
                return self._bucket(overflow, limits if everybodys.is_unset else everybodys)
            bucket = self._buckets[key] = Bucket(key, limits)
            if self.assumed_until is not None:
                bucket.assume_used(self._now, self.assumed_until)
        elif bucket.limits is not limits:
            bucket.apply(limits)
        return bucket

    def _refresh(self, bucket: Bucket) -> None:
        limits = self.rules.limits_of(bucket.key)
        if limits.is_unset and bucket.key.subject == OVERFLOW:
            return  # nothing limits everybody: those of the last newcomer stay
        if bucket.limits is not limits:
            bucket.apply(limits)

    def _admit(self, call: Call, buckets: tuple[Bucket, ...], now: int, waited: int) -> Permit:
        demand = call.demand
        for bucket in buckets:
            bucket.charge(now, demand)
        self._leases += 1
        permit = Permit(self, f"{self.settings.name}{self._leases}", call, buckets, now, waited)
        permit.deadline = now + self.settings.lease
        if self._upstreams.buckets:
            permit.marks = marks_of(permit)
        self._unclaimed[permit.lease] = permit
        self._in_flight += demand.slots
        self._totals.admitted += 1
        self._telemetry.acquired(permit)
        return permit

    def _refuse(self, call: Call, refusal: Refusal, waited: int) -> Refusal:
        self._totals.rejected += 1
        (self._buckets.get(refusal.key) or self._upstreams.buckets[refusal.key]).refuse(self._now, refusal)
        self._telemetry.rejected(call, refusal, waited)
        return refusal

    def _consider_newcomer(self, call: Call, buckets: tuple[Bucket, ...], now: int) -> Permit | Refusal | Waiter:
        self._tickets += 1
        waiter = Waiter(call, buckets, self._tickets, now)
        verdict = self._verdict(waiter, now)
        if verdict is None and self._is_full(waiter):
            bucket, obstacle = self._obstacles(waiter, now)[0]
            verdict = obstacle.refusal(Reason.QUEUE_FULL, bucket.key, None)
        if isinstance(verdict, Refusal):
            return self._refuse(call, verdict, 0)
        if verdict is not None:
            return verdict
        for bucket in buckets:
            bucket.join(waiter)
        self._waiters[waiter.ticket] = waiter
        self._stay(waiter)
        return waiter

    def _is_full(self, waiter: Waiter) -> bool:
        """True if it may not join the queues."""
        if len(self._waiters) >= self.settings.max_waiters:
            return True
        longest = self.settings.max_queue
        return any(b.queue is not None and len(b.queue.blocked) >= longest for b in waiter.blocked_by)

    def _reconsider(self, waiter: Waiter, now: int) -> Sequence[Bucket]:
        """Settle a waiting call if it can be settled now. Returns the buckets where those behind it may get on."""
        verdict = self._verdict(waiter, now)
        if verdict is None:
            return self._stay(waiter)
        self._dequeue(waiter)
        waiter.outcome = verdict
        if isinstance(verdict, Refusal):
            self._refuse(waiter.call, verdict, now - waiter.arrived)
        if waiter.notify is not None:
            waiter.notify(verdict)
        return waiter.buckets

    def _obstacles(self, waiter: Waiter, now: int, *, shadow: bool = False) -> list[tuple[Bucket, Obstacle]]:
        """What stands in the way now, with those ahead in the queues served first."""
        found = []
        for bucket in waiter.buckets:
            if bucket.is_shadow is shadow:
                ahead = bucket.kept_back(waiter.ticket)
                found += [(bucket, obstacle) for obstacle in bucket.obstacles(now, waiter.call.demand, ahead)]
        return found

    def _verdict(self, waiter: Waiter, now: int) -> Permit | Refusal | None:
        """Admitted, refused, or None for: it waits (then `deadline` and `wake` say until when)."""
        obstacles = self._obstacles(waiter, now)
        if not obstacles:
            self._tell_shadow(waiter, now)
            return self._admit(waiter.call, waiter.buckets, now, now - waiter.arrived)
        for bucket, obstacle in obstacles:
            if obstacle.clears_at == NEVER:
                return obstacle.refusal(Reason.OVERSIZED_REQUEST, bucket.key, None)
        clears_at = max((o.clears_at for _, o in obstacles if o.clears_at is not None), default=now)
        retry_after = clears_at - now if clears_at > now else None
        waiter.blocked_by = tuple(bucket for bucket, _ in obstacles)
        waiter.deadline = min(waiter.latest(bucket) for bucket in waiter.blocked_by)
        for bucket, obstacle in obstacles:
            if obstacle.clears_at is None and waiter.latest(bucket) <= now:
                return obstacle.refusal(Reason.NO_FREE_SLOT, bucket.key, retry_after)
        late = [
            (obstacle.clears_at, bucket, obstacle)
            for bucket, obstacle in obstacles
            if obstacle.clears_at is not None and obstacle.clears_at > waiter.latest(bucket)
        ]
        if late:
            _, bucket, obstacle = max(late, key=lambda found: found[0])
            return obstacle.refusal(obstacle.reason, bucket.key, retry_after)
        waiter.wake = min([waiter.deadline, *(o.clears_at for _, o in obstacles if o.clears_at is not None)])
        return None

    def _tell_shadow(self, waiter: Waiter, now: int) -> None:
        """Say once of a call what a limit in shadow mode had no room for: its worst obstacle."""
        obstacles = self._obstacles(waiter, now, shadow=True)
        if not obstacles:
            return
        bucket, obstacle = max(obstacles, key=lambda found: -1 if found[1].clears_at is None else found[1].clears_at)
        reason = {None: Reason.NO_FREE_SLOT, NEVER: Reason.OVERSIZED_REQUEST}.get(
            obstacle.clears_at, Reason.WOULD_EXCEED
        )
        after = None if obstacle.clears_at in (None, NEVER) else obstacle.clears_at - now
        refusal = obstacle.refusal(reason, bucket.key, after)
        self._totals.would_reject += 1
        bucket.would_reject += 1
        bucket.last_refusal = (now, refusal)
        self._telemetry.would_reject(waiter.call, refusal)

    def _stay(self, waiter: Waiter) -> list[Bucket]:
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
        if len(self._wakes) > 2 * len(self._waiters) + SLACK:
            self._wakes = [(other.wake, ticket, other) for ticket, other in self._waiters.items()]
            heapq.heapify(self._wakes)
        return cleared

    def _dequeue(self, waiter: Waiter) -> None:
        waiter.pending = False
        del self._waiters[waiter.ticket]
        for bucket in waiter.buckets:
            if bucket.queue is not None:
                bucket.queue.leave(waiter)
                if not bucket.queue.waiters:
                    bucket.queue = None

    def _pump(self, buckets: Iterable[Bucket], now: int) -> None:
        """Room may have come in these buckets: look at those blocked there, in order of arrival, while there is some.

        One pass is enough: what becomes of a call changes nothing for those that came before it.
        """
        ticket = 0
        roomy = {bucket for bucket in buckets if bucket.queue is not None}
        while roomy:
            ticket = min(NEVER if b.queue is None else b.queue.next_blocked(ticket) for b in roomy)
            if ticket == NEVER:
                return
            waiter = self._waiters[ticket]
            roomy.update(self._reconsider(waiter, now))
            if waiter.pending:
                # Those behind it find no more room than it did.
                roomy.difference_update(b for b in waiter.blocked_by if b.queue is not None and b.queue.all_take_slots)

    def _free(self, permit: Permit) -> None:
        permit.released = True
        if permit.settled is None:
            permit.settled = Settled.ESTIMATED
            count_settled(self._totals, permit, 1)
        slots = permit.call.demand.slots
        self._in_flight -= slots
        for bucket in permit.buckets:
            bucket.in_flight -= slots

    def _expire(self, now: int) -> None:
        due = list(takewhile(lambda permit: permit.deadline <= now, self._unclaimed.values()))
        for permit in due:
            del self._unclaimed[permit.lease]
            self._expired[permit.lease] = permit
            if len(self._expired) > REMEMBERED:
                del self._expired[next(iter(self._expired))]
            self._free(permit)
            self._totals.expired_permits += 1
            self._telemetry.expired(permit)
            self._pump(permit.buckets, now)

    def _forget_idle(self, now: int) -> None:
        # Who was refused and why stays to be seen for a while, where that costs nobody a place.
        since = now - REFUSALS_SEEN if len(self._buckets) <= self.settings.max_keys // 2 else now
        for key, bucket in self._sweep.some(self._buckets):
            if bucket.is_idle(now) and (bucket.last_refusal is None or bucket.last_refusal[0] <= since):
                del self._buckets[key]
