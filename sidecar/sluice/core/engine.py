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
    `_waiters`; `_unclaimed` and `_expired` permits. All of it changes under one lock, in the public functions here.
    Time is an argument; a `now` before one already seen counts as that one, so a clock that steps back breaks nothing.
"""

from __future__ import annotations

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
from sluice.core.upstream import Heard, Upstreams, UpstreamState, marks_of
from sluice.core.waiting import Waiters
from sluice.core.windows import NEVER
from sluice.core.words import Feedback

SWEEP: Final = 250
"""Buckets looked at for idleness each time the engine is told of time: some 100 µs."""
REFUSALS_SEEN: Final = 10 * MINUTE
"""How long the last refusal of a bucket can be seen if nothing else keeps the bucket."""
REMEMBERED: Final = 4096
"""Expired permits that a late claim can still settle."""


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
        self._waiters = Waiters()
        self._leases = 0
        self._in_flight = 0
        self._unclaimed: dict[str, Permit] = {}
        self._expired: dict[str, Permit] = {}
        self._upstreams = Upstreams()
        self._totals = Totals()
        self.assumed_until: int | None = None
        """Every bucket is made as if its caps had been used up evenly until then; None: as if nothing had been used."""
        self.counts_only = False
        """True: whether limits have room is decided elsewhere, for all gates; what this one admits is counted here.

        Whoever sets it sees to it that nobody waits.
        """

    # -- calls ---------------------------------------------------------------------------------------------------

    def acquire(self, call: Call, now: int, *, tell: bool = True) -> Permit | Refusal | Waiter:
        """Admit the call, refuse it, or put it into the queue. Amounts count as if they were from 0 to `MAX_AMOUNT`.

        Without `tell` a call that is admitted is counted, but nobody is told of it until `confirm` or `withdraw`.
        """
        with self._lock:
            now = self._advance_clock(now)
            if not call.applied:
                self._totals.unlimited += 1
                return Permit(self, "", call, (), now, 0)
            call = call.bounded()
            buckets = tuple([self._bucket(key, limits) for key, limits, _ in call.applied])
            if self._upstreams.buckets:
                buckets += self._upstreams.touched(call)
            for bucket in self._judged(call, buckets):
                if not bucket.admits(now, call.demand):
                    return self._consider_newcomer(call, buckets, now, tell=tell)
            return self._admit(call, buckets, now, 0, tell=tell)

    def confirm(self, permit: Permit, now: int, waited: int) -> None:
        """A call that was admitted without telling anybody goes out, after so many ns: now it can be claimed."""
        with self._lock:
            permit.waited = waited
            self._tell(permit, self._advance_clock(now))

    def refuse(self, call: Call, refusal: Refusal, now: int, waited: int) -> Refusal:
        """Somebody else has refused the call, in a bucket that it touches."""
        with self._lock:
            self._advance_clock(now)
            for key, limits, _ in call.applied:
                self._bucket(key, limits)
            return self._refuse(call, refusal, waited)

    def tell_shadow(self, call: Call, obstacles: Sequence[tuple[Bucket, Obstacle]], now: int) -> None:
        """Somebody else has let the call pass, though limits in shadow mode had no room for it."""
        with self._lock:
            self._tell_shadow(call, obstacles, self._advance_clock(now))

    def cancel(self, waiter: Waiter, now: int) -> None:
        """The caller has left the queue: it has consumed nothing, also if it was admitted just before."""
        with self._lock:
            now = self._advance_clock(now)
            if waiter.pending:
                self._waiters.leave(waiter)
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
            if permit.elsewhere is not None:
                permit.elsewhere.amend(-demand.requests, NO_CHARGE)
                permit.elsewhere.free()
            if permit.is_told:
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
            if permit.elsewhere is not None:
                permit.elsewhere.amend(failed, NO_CHARGE)

    def hear(self, permit: Permit, feedback: Feedback, now: int) -> int | None:
        """Take what the provider's answer to this call says of the provider's own limits.

        Returns the nanoseconds until the provider is asked again, 0 where it is asked now; None if nothing is kept.
        """
        with self._lock:
            now = self._advance_clock(now)
            return self._heard(self._upstreams.hear(permit, feedback, now), now)

    def hear_elsewhere(self, key: BucketKey, feedback: Feedback, now: int) -> None:
        """Take what another gate has heard of an account; `key` is as in `Call.upstream`."""
        with self._lock:
            now = self._advance_clock(now)
            self._heard(self._upstreams.hear_elsewhere(key, feedback, now), now)

    # -- time and limits -----------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Time has passed: free what nobody claimed, look at whoever waits, forget some idle buckets."""
        with self._lock:
            now = self._advance_clock(now)
            self._expire(now)
            for waiter in self._waiters.due(now):
                self._pump(self._reconsider(waiter, now), now)
            self._forget_idle(now)
            self._upstreams.forget_idle(now)

    @property
    def next_wake(self) -> int:
        """When `advance` is next due for somebody who waits; `NEVER` if nobody does.

        Leases and idle buckets want it a few times a second besides.
        """
        with self._lock:
            return self._waiters.next_wake

    def swap(self, rules: RuleBook, now: int) -> None:
        """Put other rules in force. Counts, permits and queues stay; whoever waits is looked at again at once."""
        with self._lock:
            now = self._advance_clock(now)
            self.rules = rules
            waiters = list(self._waiters.by_ticket.values())
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

    def _judged(self, call: Call, buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
        """Of the buckets that a call touches, those in which this engine looks for room. Those of limits come first."""
        return buckets[len(call.applied) :] if self.counts_only else buckets

    def _admit(self, call: Call, buckets: tuple[Bucket, ...], now: int, waited: int, *, tell: bool = True) -> Permit:
        demand = call.demand
        for bucket in buckets:
            bucket.charge(now, demand)
        self._leases += 1
        permit = Permit(self, f"{self.settings.name}{self._leases}", call, buckets, now, waited)
        if self._upstreams.buckets:
            permit.marks = marks_of(permit)
        self._in_flight += demand.slots
        self._totals.admitted += 1
        if tell:
            self._tell(permit, now)
        else:
            permit.is_told = False
        return permit

    def _tell(self, permit: Permit, now: int) -> None:
        permit.is_told = True
        permit.deadline = now + self.settings.lease
        self._unclaimed[permit.lease] = permit
        self._telemetry.acquired(permit)

    def _heard(self, heard: Heard | None, now: int) -> int | None:
        if heard is None:
            return None
        upstream, is_new, is_paused = heard
        if is_new:
            self._upstreams.stop(self._waiters.by_ticket.values(), upstream)
        if is_paused and upstream.queue is not None:
            for waiter in tuple(upstream.queue.waiters.values()):
                self._pump(self._reconsider(waiter, now) if waiter.pending else (), now)
        self._pump((upstream,), now)
        return max(0, upstream.paused_until - now)

    def _refuse(self, call: Call, refusal: Refusal, waited: int) -> Refusal:
        self._totals.rejected += 1
        bucket = self._buckets.get(refusal.key) or self._upstreams.buckets.get(refusal.key)
        if bucket is not None:  # else it is one of those that share the overflow's
            bucket.refuse(self._now, refusal)
        self._telemetry.rejected(call, refusal, waited)
        return refusal

    def _consider_newcomer(
        self, call: Call, buckets: tuple[Bucket, ...], now: int, *, tell: bool
    ) -> Permit | Refusal | Waiter:
        waiter = self._waiters.newcomer(call, buckets, now, tell=tell)
        verdict = self._verdict(waiter, now)
        if verdict is None and self._is_full(waiter):
            bucket, obstacle = self._obstacles(waiter, now)[0]
            verdict = obstacle.refusal(Reason.QUEUE_FULL, bucket.key, None)
        if isinstance(verdict, Refusal):
            return self._refuse(call, verdict, 0)
        if verdict is not None:
            return verdict
        self._waiters.join(waiter)
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
            return self._waiters.stay(waiter)
        self._waiters.leave(waiter)
        waiter.outcome = verdict
        if isinstance(verdict, Refusal):
            self._refuse(waiter.call, verdict, now - waiter.arrived)
        if waiter.notify is not None:
            waiter.notify(verdict)
        return waiter.buckets

    def _obstacles(self, waiter: Waiter, now: int, *, shadow: bool = False) -> list[tuple[Bucket, Obstacle]]:
        """What stands in the way now, with those ahead in the queues served first."""
        found = []
        for bucket in self._judged(waiter.call, waiter.buckets):
            if bucket.is_shadow is shadow:
                ahead = bucket.kept_back(waiter.ticket)
                found += [(bucket, obstacle) for obstacle in bucket.obstacles(now, waiter.call.demand, ahead)]
        return found

    def _verdict(self, waiter: Waiter, now: int) -> Permit | Refusal | None:
        """Admitted, refused, or None for: it waits (then `deadline` and `wake` say until when)."""
        obstacles = self._obstacles(waiter, now)
        if not obstacles:
            self._tell_shadow(waiter.call, self._obstacles(waiter, now, shadow=True), now)
            return self._admit(waiter.call, waiter.buckets, now, now - waiter.arrived, tell=waiter.tell)
        return waiter.judge(obstacles, now)

    def _tell_shadow(self, call: Call, obstacles: Sequence[tuple[Bucket, Obstacle]], now: int) -> None:
        """Say once of a call what a limit in shadow mode had no room for: its worst obstacle."""
        if not obstacles:
            return
        bucket, obstacle = max(obstacles, key=lambda found: -1 if found[1].clears_at is None else found[1].clears_at)
        reason = {None: Reason.NO_FREE_SLOT, NEVER: Reason.OVERSIZED_REQUEST}.get(
            obstacle.clears_at, Reason.WOULD_EXCEED
        )
        after = None if obstacle.clears_at in (None, NEVER) else obstacle.clears_at - now
        refusal = obstacle.refusal(reason, bucket.key, after)
        self._totals.would_reject += 1
        self._buckets[bucket.key].would_reject += 1
        self._buckets[bucket.key].last_refusal = (now, refusal)
        self._telemetry.would_reject(call, refusal)

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
            waiter = self._waiters.by_ticket[ticket]
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
        if permit.elsewhere is not None:
            permit.elsewhere.free()

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
