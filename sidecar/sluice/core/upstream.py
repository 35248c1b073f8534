"""The provider's own word as a bucket: it narrows what our limits let through, or pauses it, and never widens it.

Theory of operation
    Whose. A provider limits an account, by model. The account is known by its key, so there is an upstream bucket for
    each (provider, hash of the key, model) of which something that matters was heard, and one of the key alone for what
    concerns all of its models, a spend cap. A call touches them besides the buckets of its limits: it is admitted to
    all or to none, waits for them as long as the most patient of its limits has it, and if it is refused it has
    consumed nothing. Calls that nothing enforced limits (no limits, or all in shadow mode) are not held up.

    Quotas. A word tells of a quota what remains, of which limit, and when it is whole again. Where the limit is told,
    it comes back evenly until then, as a token bucket does; else all at once in the end, when the quota is forgotten.
    From what remains is taken off what was admitted after the call whose answer told it. A call that asks for more
    than the whole limit passes when the quota is whole: estimates may be too high, and a word refuses nobody for ever.
    A quota of which at least half remains is not kept: it holds nobody up who does not ask for half of it at once. One
    that was not heard of for `LONGEST_PAUSE` holds nobody up either, for then the provider is asked again: it may have
    raised the limit, and while nobody calls it cannot say so.

    Order. Answers come in any order. A word replaces what an earlier admitted call told of the same quota; the word of
    a call admitted before the one that spoke last is old, and is ignored. So no old word can widen a newer one.

    Elsewhere. Other gates tell what they have heard of the same account. How old that is cannot be known here, so their
    words stand beside this gate's own and narrow further what these let through: of each quota the narrowest that was
    told, until it is whole again, or the answer to a later call of this gate tells of it. A pause is heeded if it ends
    later, and says nothing of how often this gate was refused.

    Pauses. A provider that refuses a call is not asked again for a while:
        RateLimited  as long as it says, at most `LONGEST_PAUSE`. If it does not say: 1 s, and twice as long each time
                     it refuses a call that was admitted since, up to `LONGEST_BACKOFF`.
        Overloaded   as long as it says, at most `LONGEST_OVERLOAD`. If it does not say, nothing at first: an overload
                     hits a call here and there, and the others must not pay for it. `OVERLOADS` in a row pause like
                     the refusals above, up to `LONGEST_OVERLOAD`.
        SpendCap     `SPEND_PAUSE`, or longer if it says so, for all models of the key: somebody has to pay first.
    A refusal of a call that was under way when the pause began tells nothing new, unless it names a later time. A call
    that is served, and was admitted since, ends the doubling.

    Bounds. At most `MOST` buckets; of a newcomer past it nothing is kept, which only means that the provider says it
    again. What was heard can be seen for `RECENT` after; then the bucket is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from sluice.core.buckets import NOTHING, RECENT, Bucket, Demand, Obstacle, Sweep
from sluice.core.decisions import Reason
from sluice.core.keys import BucketKey
from sluice.core.limits import MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.windows import NEVER
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

LONGEST_PAUSE: Final = 10 * MINUTE
"""A provider that asks for more is asked again after this: nobody is shut out for long by one odd answer."""
FIRST_BACKOFF: Final = SECOND
LONGEST_BACKOFF: Final = MINUTE
LONGEST_OVERLOAD: Final = 30 * SECOND
OVERLOADS: Final = 5
"""In a row, without a call that was served between them."""
SPEND_PAUSE: Final = 5 * MINUTE
NEWS: Final = SECOND
"""A pause that is longer by less is no news to those who wait: they see it when they are looked at next."""
MOST: Final = 10_000
MOST_ELSEWHERE: Final = 32
"""Quotas of one account that other gates may tell of."""
SWEEP: Final = 100
"""Buckets looked at for idleness each time the engine is told of time."""

_FIELD: Final = {
    Amount.REQUESTS: Demand._fields.index("requests"),
    Amount.TOKENS: Demand._fields.index("tokens"),
    Amount.INPUT_TOKENS: Demand._fields.index("input_tokens"),
    Amount.OUTPUT_TOKENS: Demand._fields.index("output_tokens"),
}
_REASONS: Final = {
    RefusedAs.RATE_LIMITED: Reason.PROVIDER_LIMIT,
    RefusedAs.OVERLOADED: Reason.PROVIDER_OVERLOADED,
    RefusedAs.SPEND_CAP: Reason.PROVIDER_SPEND_CAP,
}
_NO_CAPS: Final = Limits()


@dataclass(frozen=True, slots=True)
class QuotaState:
    """One of the provider's own limits, as far as it is known."""

    name: str
    of: Amount
    remaining: int
    limit: int | None
    reset: int
    """Nanoseconds until it is whole again."""


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """What is known of one account at a provider; an immutable picture of one moment."""

    key: BucketKey
    heard: int
    """Nanoseconds since its last word."""
    paused: int
    """Nanoseconds until it is asked again; 0 where it is asked now."""
    paused_for: RefusedAs | None
    """Why it is paused, or was last; None if it never was."""
    quotas: tuple[QuotaState, ...]
    queued: int
    rejected: int


class KnownQuota:
    """A quota as it was told, and what was taken of it since."""

    __slots__ = ("back", "holds_until", "limit", "of", "remaining", "resets_at", "since", "told_at")

    def __init__(self, quota: Quota, told_at: int, since: int) -> None:
        self.of = quota.of
        self.remaining = quota.remaining
        self.limit = quota.limit
        self.told_at = told_at
        self.resets_at = told_at + quota.reset
        self.holds_until = told_at + min(quota.reset, LONGEST_PAUSE)
        self.since = since
        """What its bucket had taken when the call was admitted whose answer told this."""
        self.back = 0
        """What was given back since, by calls that never went out."""

    def left(self, now: int, taken: int) -> int:
        """What remains at `now`, before the reset; below 0 where more was admitted than was there."""
        left = self.remaining - (taken - self.since) + self.back
        if self.limit is not None:
            left += (self.limit - self.remaining) * (now - self.told_at) // (self.resets_at - self.told_at)
        return left

    def clears_at(self, now: int, taken: int, asked: int, before: int) -> int:
        """When there is room for `asked` and for what was asked before it; `now` if there is."""
        if now >= self.holds_until:
            return now
        needed = before + (asked if self.limit is None else min(asked, self.limit))
        short = needed - self.left(now, taken)
        if short <= 0 or not asked:
            return now
        if self.limit is None or self.limit == self.remaining:
            return self.holds_until
        period, gain = self.resets_at - self.told_at, self.limit - self.remaining
        return min(self.holds_until, now + -(-short * period // gain))


class Upstream(Bucket):
    """What is known of one account at a provider, for one model or for all. Only the engine changes it."""

    __slots__ = ("_backoff", "_overloads", "_paused_at", "_spoke_last", "elsewhere", "heard_at", "paused_for",
                 "paused_until", "quotas", "taken")  # fmt: skip

    def __init__(self, key: BucketKey) -> None:
        super().__init__(key, _NO_CAPS)
        self.quotas: dict[str, KnownQuota] = {}
        self.elsewhere: dict[str, KnownQuota] = {}
        """What other gates were told."""
        self.taken: Demand = NOTHING
        """All that was ever admitted here."""
        self.paused_until = -NEVER
        self.paused_for: RefusedAs | None = None
        """Why it is paused, or was last."""
        self.heard_at = -NEVER
        self._paused_at = -NEVER
        self._backoff = 0
        self._overloads = 0
        self._spoke_last = -NEVER
        """When the call was admitted that told the quotas."""

    def apply(self, limits: Limits) -> None:
        """No limits of ours hold here, whichever are put in force."""
        super().apply(_NO_CAPS)

    # -- what is heard -------------------------------------------------------------------------------------------

    def hear(self, feedback: Feedback, admitted_at: int, mark: Demand, now: int) -> bool:
        """Take what came with the answer to a call. True if there is a pause now of which those who wait must hear.

        `mark` is what this bucket had taken when the call was admitted, the call included.
        """
        self.heard_at = now
        if admitted_at >= self._spoke_last and feedback.quotas:
            self._spoke_last = admitted_at
            for quota in feedback.quotas:
                if quota.name in self.elsewhere and admitted_at >= self.elsewhere[quota.name].told_at:
                    del self.elsewhere[quota.name]
                if _matters(quota, admitted_at, now):
                    self.quotas[quota.name] = KnownQuota(quota, now, mark[_FIELD[quota.of]])
                else:
                    self.quotas.pop(quota.name, None)
        if feedback.refused_as is not None:
            return self._refused(feedback.refused_as, feedback.retry_after, admitted_at, now)
        self._overloads = 0
        if admitted_at > self._paused_at:
            self._backoff = 0
        return False

    def hear_elsewhere(self, feedback: Feedback, now: int) -> bool:
        """Take what another gate was told: as if all calls of this one had been admitted before that. As `hear`."""
        self.heard_at = now
        for quota in feedback.quotas:
            if quota.name not in self.elsewhere and len(self.elsewhere) >= MOST_ELSEWHERE:
                self.elsewhere = {name: known for name, known in self.elsewhere.items() if now < known.holds_until}
            if _matters(quota, now, now) and (quota.name in self.elsewhere or len(self.elsewhere) < MOST_ELSEWHERE):
                taken, known = self.taken[_FIELD[quota.of]], self.elsewhere.get(quota.name)
                told = KnownQuota(quota, now, taken)
                if known is None or now >= known.holds_until or told.left(now, taken) <= known.left(now, taken):
                    self.elsewhere[quota.name] = told
        if feedback.refused_as is None:
            return False
        longest = LONGEST_OVERLOAD if feedback.refused_as is RefusedAs.OVERLOADED else LONGEST_PAUSE
        return self._pause_until(feedback.refused_as, now, now + min(feedback.retry_after or 0, longest))

    def _refused(self, kind: RefusedAs, told: int | None, admitted_at: int, now: int) -> bool:
        if kind is RefusedAs.SPEND_CAP:
            return self._pause(kind, now, min(max(told or 0, SPEND_PAUSE), LONGEST_PAUSE))
        longest = LONGEST_PAUSE if kind is RefusedAs.RATE_LIMITED else LONGEST_OVERLOAD
        if kind is RefusedAs.OVERLOADED:
            self._overloads += 1
        if told:
            return self._pause(kind, now, min(told, longest))
        if admitted_at <= self._paused_at or (kind is RefusedAs.OVERLOADED and self._overloads < OVERLOADS):
            return False
        self._backoff = min(max(2 * self._backoff, FIRST_BACKOFF), LONGEST_BACKOFF, longest)
        return self._pause(kind, now, self._backoff)

    def _pause(self, kind: RefusedAs, now: int, length: int) -> bool:
        if now + length > max(self.paused_until, now):
            self._paused_at = now
        return self._pause_until(kind, now, now + length)

    def _pause_until(self, kind: RefusedAs, now: int, end: int) -> bool:
        gained = end - max(self.paused_until, now)
        if gained <= 0:
            return False
        self.paused_until, self.paused_for = end, kind
        return gained >= NEWS

    def _known(self) -> Iterator[tuple[str, KnownQuota]]:
        """Every quota, whoever was told of it."""
        return chain(self.quotas.items(), self.elsewhere.items())

    # -- admission -----------------------------------------------------------------------------------------------

    def admits(self, now: int, demand: Demand) -> bool:
        if self.queue is not None or now < self.paused_until:
            return False
        for _, known in self._known():
            at = _FIELD[known.of]
            if known.clears_at(now, self.taken[at], demand[at], 0) > now:
                return False
        return True

    def charge(self, now: int, demand: Demand) -> None:
        super().charge(now, demand)
        self.taken = self.taken.plus(demand)

    def give_back(self, demand: Demand, mark: Demand) -> None:
        """Undo the admission of a call that never went out, and whose `mark` was this.

        A word that came later knows of no such call, and needs nothing back.
        """
        for _, known in self._known():
            at = _FIELD[known.of]
            if mark[at] > known.since:
                known.back += demand[at]

    def obstacles(self, now: int, demand: Demand, ahead: Demand) -> list[Obstacle]:
        found = []
        if now < self.paused_until and self.paused_for is not None:
            reason = _REASONS[self.paused_for]
            found.append(Obstacle(Amount.REQUESTS, 0, 0, demand.requests, self.paused_until, ahead.requests, reason))
        for _, known in self._known():
            at = _FIELD[known.of]
            clears_at = known.clears_at(now, self.taken[at], demand[at], ahead[at])
            if clears_at > now:
                left = max(0, known.left(now, self.taken[at]))
                limit = left if known.limit is None else known.limit
                found.append(
                    Obstacle(known.of, limit, limit - left, demand[at], clears_at, ahead[at], Reason.PROVIDER_LIMIT)
                )
        return found

    def picture(self, now: int) -> UpstreamState:
        """What is known at `now`."""
        narrowest: dict[str, QuotaState] = {}
        for name, known in self._known():
            left = max(0, known.left(now, self.taken[_FIELD[known.of]]))
            if now < known.holds_until and (name not in narrowest or left < narrowest[name].remaining):
                narrowest[name] = QuotaState(name, known.of, left, known.limit, known.resets_at - now)
        paused = max(0, self.paused_until - now)
        queued = 0 if self.queue is None else len(self.queue.blocked)
        return UpstreamState(
            self.key, now - self.heard_at, paused, self.paused_for, tuple(narrowest.values()), queued, self.rejected
        )

    def is_idle(self, now: int) -> bool:
        if self.heard_at > now - RECENT or self.paused_until > now or not super().is_idle(now):
            return False
        return all(known.holds_until <= now for _, known in self._known())


def _matters(quota: Quota, admitted_at: int, now: int) -> bool:
    """True if it may hold a call up: not much of it remains, and it is not whole again by now."""
    if quota.limit is not None and 2 * quota.remaining >= quota.limit:
        return False
    # It may have been told when the call began; answers can be long in coming.
    return admitted_at + quota.reset > now


class Heard(NamedTuple):
    """What has come of a word."""

    upstream: Upstream
    """The bucket that it concerns."""
    is_new: bool
    is_paused: bool
    """True if there is a pause now of which those who wait must hear."""


class Upstreams:
    """Every upstream bucket of an engine."""

    def __init__(self) -> None:
        self.buckets: dict[BucketKey, Upstream] = {}
        self._sweep = Sweep(SWEEP)

    def touched(self, call: Call) -> tuple[Upstream, ...]:
        """The buckets that a call touches."""
        key = call.upstream
        if key is None or all(each.limits.mode is Mode.SHADOW for each in call.applied):
            return ()
        found = (self.buckets.get(key), self.buckets.get(key._replace(models="")) if key.models else None)
        return tuple([bucket for bucket in found if bucket is not None])

    def stop(self, waiters: Iterable[Waiter], bucket: Upstream) -> None:
        """Let those that wait for something else wait for a new bucket too, if they touch it."""
        for waiter in waiters:
            if bucket in self.touched(waiter.call):
                waiter.buckets += (bucket,)
                bucket.join(waiter)

    def hear(self, permit: Permit, feedback: Feedback, now: int) -> Heard | None:
        """Take what came with the answer to a call; None if nothing has to be known of it."""
        found = self._found(permit.call.upstream, feedback, permit.admitted_at, now)
        if found is None:
            return None
        bucket, is_new, feedback = found
        # A call that was admitted before there was this bucket came before all that the bucket has taken.
        mark = dict(permit.marks).get(bucket, NOTHING)
        return Heard(bucket, is_new, bucket.hear(feedback, permit.admitted_at, mark, now))

    def hear_elsewhere(self, key: BucketKey, feedback: Feedback, now: int) -> Heard | None:
        """Take what came with the answer to a call of another gate; likewise."""
        found = self._found(key, feedback, now, now)
        if found is None:
            return None
        bucket, is_new, feedback = found
        return Heard(bucket, is_new, bucket.hear_elsewhere(feedback, now))

    def _found(
        self, key: BucketKey | None, feedback: Feedback, admitted_at: int, now: int
    ) -> tuple[Upstream, bool, Feedback] | None:
        """The bucket that a word concerns, whether it is new, and what the word says of it."""
        if key is None:
            return None
        if feedback.refused_as is RefusedAs.SPEND_CAP:
            key, feedback = key._replace(models=""), feedback._replace(quotas=())
        bucket = self.buckets.get(key)
        if bucket is not None:
            return bucket, False, feedback
        says_much = any(_matters(quota, admitted_at, now) for quota in feedback.quotas)
        if not (says_much or feedback.refused_as) or len(self.buckets) >= MOST:
            return None
        return self.buckets.setdefault(key, Upstream(key)), True, feedback

    def forget_idle(self, now: int) -> None:
        for key, bucket in self._sweep.some(self.buckets):
            if bucket.is_idle(now):
                del self.buckets[key]


def marks_of(permit: Permit) -> tuple[tuple[Upstream, Demand], ...]:
    """What each upstream bucket that a call touches had taken when the call was just admitted."""
    return tuple([(bucket, bucket.taken) for bucket in permit.buckets if isinstance(bucket, Upstream)])
