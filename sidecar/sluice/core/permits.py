"""The right to one call, and the place in the queue for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sluice.core.buckets import Bucket, Charge, Demand, Obstacle
from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.rules import Applied
from sluice.core.windows import NEVER, SlidingWindow

if TYPE_CHECKING:
    from sluice.core.engine import Engine
    from sluice.core.upstream import Upstream


class Call(NamedTuple):
    """One call that asks for admission."""

    applied: tuple[Applied, ...]
    """The buckets it touches, from `RuleBook.match`. Empty: nothing limits it."""
    demand: Demand
    """What it asks of each of them: one slot (or none, for a caller that reports no end), requests, tokens."""
    patience: int = NEVER
    """Nanoseconds this caller can wait at the most; the limits' `maxWait` may say less."""
    detail: object = None
    """The adapter's own; the engine does not look at it."""
    upstream: BucketKey | None = None
    """Whose quota it uses at the provider, and for which model; None where the provider's own word does not matter."""

    def bounded(self) -> Call:
        """Every amount that it asks for from 0 to `MAX_AMOUNT`."""
        demand = self.demand.bounded()
        return self if demand is self.demand else self._replace(demand=demand)


class Settled(StrEnum):
    """How a call's tokens came to be what they are."""

    COMMITTED = "committed"
    """The provider said what was used."""
    ESTIMATED = "estimated"
    """It never said; an estimate stands."""
    REFUNDED = "refunded"
    """The call failed, and the provider does not count it."""


class Elsewhere(Protocol):
    """Where a permit is booked besides the engine: told of every change, inside the engine, which it must not call."""

    def amend(self, requests: int, charge: Charge) -> None:
        """What is booked has changed by so much."""

    def free(self) -> None:
        """The slots are free."""


class Permit:
    """The right to one call: a slot and a reservation in every bucket it touches.

    `commit_tokens` and `release` may come in any order and any number of times; only the first of each counts.
    A permit without buckets (nothing limits the call) is inert: it does nothing, and costs nothing.
    """

    __slots__ = ("_engine", "admitted_at", "buckets", "call", "counted", "deadline", "elsewhere", "estimate",
                 "input_tokens", "is_told", "lease", "marks", "output_tokens", "parts", "released", "settled", "tokens",
                 "waited", "windows")  # fmt: skip

    def __init__(
        self, engine: Engine, lease: str, call: Call, buckets: tuple[Bucket, ...], admitted_at: int, waited: int
    ) -> None:
        self._engine = engine
        self.lease = lease
        """Its name, for whoever speaks for the call later; empty for an inert permit."""
        self.call = call
        self.buckets = buckets
        self.windows = tuple([bucket.windows for bucket in buckets])
        """Where it is booked. A window that a swap of limits adds later knows nothing of this call."""
        self.parts: tuple[SlidingWindow, ...] = ()
        """Likewise, of all buckets together: where its input and its output are booked."""
        for bucket in buckets:
            if bucket.parts:
                self.parts += bucket.parts
        self.admitted_at = admitted_at
        self.waited = waited
        """Nanoseconds it queued."""
        self.deadline = 0
        _, _, self.tokens, self.input_tokens, self.output_tokens = call.demand
        """What is booked for it now: the estimate until it is settled."""
        self.estimate = self.tokens
        self.settled: Settled | None = None
        self.released = False
        self.marks: tuple[tuple[Upstream, Demand], ...] = ()
        """What each upstream bucket that it touches had taken just after it was admitted."""
        self.is_told = True
        """False as long as the engine has admitted it for a caller who may still take it back, and told nobody."""
        self.elsewhere: Elsewhere | None = None
        self.counted: tuple[int, ...] | None = None
        """Where the store of all gates has admitted it: what each of its windows counted then, the two amounts of each
        window of calls and of parts, bucket by bucket. None: what its own windows count is all."""

    @property
    def limited(self) -> tuple[Bucket, ...]:
        """The buckets of limits that it touches, without those of the provider's own word."""
        return tuple([bucket for bucket in self.buckets if bucket.key.scope is not Scope.PROVIDER])

    @property
    def keys(self) -> tuple[BucketKey, ...]:
        """The buckets of limits that it touches; those of the provider's own word name what a caller sent."""
        return tuple([bucket.key for bucket in self.limited])

    @property
    def charge(self) -> Charge:
        """What is booked for it now, with its parts."""
        return Charge(self.tokens, self.input_tokens, self.output_tokens)

    def commit_tokens(self, actual: Charge, now: int, settled: Settled = Settled.COMMITTED) -> bool:
        """Replace the estimate by the `actual` tokens (each 0 to `MAX_AMOUNT`), booked where the estimate was.

        True if this call settled it; False if it was settled before, and nothing has changed. An estimate that
        stands, also because the permit was released unsettled, is still replaced by what the provider said.
        """
        return self._engine.commit(self, actual, now, settled)

    def release(self, now: int) -> bool:
        """Free the slots; what is booked stands. True if this call freed them."""
        return self._engine.release(self, now)


class Waiter:
    """A call in the queue. Its outcome arrives when the engine is next told of time, of a release or of a commit."""

    __slots__ = (
        "arrived",
        "blocked_by",
        "buckets",
        "call",
        "deadline",
        "notify",
        "outcome",
        "pending",
        "tell",
        "ticket",
        "wake",
    )

    def __init__(
        self, call: Call, buckets: tuple[Bucket, ...], ticket: int, arrived: int, *, tell: bool = True
    ) -> None:
        self.call = call
        self.tell = tell
        """As `Engine.acquire` was told."""
        self.buckets = buckets
        self.ticket = ticket
        self.arrived = arrived
        self.blocked_by: tuple[Bucket, ...] = ()
        """The buckets without room for it when it was last looked at."""
        self.deadline = arrived
        """When it is refused if nothing makes room before."""
        self.wake = arrived
        """When the engine looks at it again by itself."""
        self.pending = True
        """False once it has an outcome or has given up."""
        self.outcome: Permit | Refusal | None = None
        self.notify: Callable[[Permit | Refusal], None] | None = None
        """Called once with the outcome, inside the engine: it must not call the engine."""

    def latest(self, bucket: Bucket) -> int:
        """Until when it may wait for that bucket."""
        wait = bucket.limits.max_wait
        if bucket.key.scope is Scope.PROVIDER:  # nobody's limit: as long as the most patient of the call's own
            wait = max(each.limits.max_wait for each in self.buckets)
        return self.arrived + min(wait, self.call.patience)

    def judge(self, obstacles: Sequence[tuple[Bucket, Obstacle]], now: int) -> Refusal | None:
        """Refused by what stands in its way, or None for: it waits (`deadline` and `wake` say until when)."""
        for bucket, obstacle in obstacles:
            if obstacle.clears_at == NEVER:
                return obstacle.refusal(Reason.OVERSIZED_REQUEST, bucket.key, None)
        clears_at = max((o.clears_at for _, o in obstacles if o.clears_at is not None), default=now)
        retry_after = clears_at - now if clears_at > now else None
        self.blocked_by = tuple(bucket for bucket, _ in obstacles)
        self.deadline = min(self.latest(bucket) for bucket in self.blocked_by)
        for bucket, obstacle in obstacles:
            if obstacle.clears_at is None and self.latest(bucket) <= now:
                return obstacle.refusal(Reason.NO_FREE_SLOT, bucket.key, retry_after)
        late = [
            (obstacle.clears_at, bucket, obstacle)
            for bucket, obstacle in obstacles
            if obstacle.clears_at is not None and obstacle.clears_at > self.latest(bucket)
        ]
        if late:
            _, bucket, obstacle = max(late, key=lambda found: found[0])
            return obstacle.refusal(obstacle.reason, bucket.key, retry_after)
        self.wake = min([self.deadline, *(o.clears_at for _, o in obstacles if o.clears_at is not None)])
        return None
