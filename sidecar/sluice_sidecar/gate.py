"""The engine on an event loop: it waits for whoever queues, and holds what is in force."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Protocol

from sluice.config.merge import Configuration, Provider
from sluice.config.types import SubjectSource
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine
from sluice.core.keys import BucketKey, Scope
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import RuleBook
from sluice.core.states import BucketState, Summary
from sluice.core.windows import NEVER
from sluice.core.words import Feedback
from sluice.usage.counting import Scale, scale_of
from sluice.usage.learning import Kind, Learner, Lesson
from sluice.usage.word import Dialect
from sluice_sidecar.identity import fixed_subjects, told_subjects
from sluice_sidecar.logs import whereabouts

logger = logging.getLogger(__name__)

HOUSEKEEPING = 0.25
"""Seconds between two looks at leases and idle buckets."""
MOST_MODELS = 256
"""Of so many models of a provider it is remembered how they count: their names come from callers."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the gate knows of one provider, ready for the hot path."""

    provider: Provider
    fixed: Mapping[Scope, str]
    """The subjects that no caller has a say in."""
    told: tuple[tuple[str, Scope, SubjectSource], ...]
    """The others: the entry of the descriptor that tells each of them, and where Envoy read it."""
    scale: Callable[[str], Scale]
    """How the provider counts the calls of a model."""
    dialect: Dialect
    """How the provider speaks of its own limits."""


class Store(Protocol):
    """The buckets that several gates share."""

    @property
    def queued(self) -> int:
        """Calls that wait for room there."""

    async def acquire(self, call: Call) -> Permit | Refusal:
        """See `Gate.acquire`."""

    def apply(self, rules: RuleBook, providers: Iterable[str]) -> None:
        """Put rules in force, here as well as in the engine."""

    def heard(self, account: BucketKey, feedback: Feedback, pause: int) -> None:
        """The provider has spoken of its own limits, and is not asked for so many ns: the other gates should know."""

    async def pictures(self, states: Iterable[BucketState]) -> list[BucketState]:
        """The same buckets, as all gates together have used them."""


class Gate:
    """One engine and the configuration in force. All of it belongs to one event loop.

    `clock` gives nanoseconds, as fast as the loop's own clock does (`clock.now`, or one that `clock.continued` made).
    """

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self.engine = engine
        self.clock = clock
        self.learner = Learner()
        self.policies: Mapping[str, Policy] = MappingProxyType({})
        self.store: Store | None = None
        """None: what this gate counts is all there is."""
        self._queued: dict[Waiter, asyncio.Future[Permit | Refusal | None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = NEVER
        self._housekeeper: asyncio.Task[None] | None = None

    def apply(self, configuration: Configuration, environ: Mapping[str, str]) -> None:
        """Put a configuration in force, between one call and the next. `environ` serves `{env: …}` subjects."""
        self.policies = MappingProxyType(
            {
                name: Policy(
                    provider,
                    fixed_subjects(provider, environ),
                    told_subjects(provider),
                    lru_cache(MOST_MODELS)(partial(scale_of, provider.profile.counting)),
                    Dialect.of(provider.profile.word),
                )
                for name, provider in configuration.providers.items()
            }
        )
        self.learner.keep(frozenset(self.policies))
        if self.store is None:
            self.engine.swap(configuration.rules, self.clock())
        else:
            self.store.apply(configuration.rules, configuration.providers)
        self.rearm()

    def start(self) -> None:
        """Begin housekeeping; call it on the loop that will serve."""
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_house())

    async def close(self) -> None:
        """End housekeeping. Whoever still waits is not told: end the servers first."""
        if self._timer is not None:
            self._timer.cancel()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)

    async def acquire(self, call: Call) -> Permit | Refusal:
        """Admit or refuse a call, waiting as long as its limits allow.

        A caller that is cancelled while it waits has consumed nothing and holds nothing.
        """
        if self.store is not None and call.applied:
            return await self.store.acquire(call.bounded())
        outcome = await self.acquire_here(call)
        assert outcome is not None  # noqa: S101 - for the type checker: only a store recalls
        return outcome

    async def acquire_here(self, call: Call, *, tell: bool = True) -> Permit | Refusal | None:
        """As the engine decides: see `Engine.acquire`. None if it was to be decided otherwise meanwhile (`recall`)."""
        outcome = self.engine.acquire(call, self.clock(), tell=tell)
        if not isinstance(outcome, Waiter):
            return outcome
        waiter = outcome
        told: asyncio.Future[Permit | Refusal | None] = asyncio.get_running_loop().create_future()
        waiter.notify = lambda verdict: None if told.done() else told.set_result(verdict)
        self._queued[waiter] = told
        self.rearm()
        try:
            return await told
        except asyncio.CancelledError:
            self.engine.cancel(waiter, self.clock())
            self.rearm()
            raise
        finally:
            del self._queued[waiter]

    def recall(self) -> None:
        """Take back whoever waits in the engine's queues."""
        for waiter, told in tuple(self._queued.items()):
            if not told.done():
                self.engine.cancel(waiter, self.clock())
                told.set_result(None)

    def hear(self, permit: Permit, feedback: Feedback) -> None:
        """The provider has spoken of its own limits."""
        pause = self.engine.hear(permit, feedback, self.clock())
        self.rearm()
        if self.store is not None and pause is not None and permit.call.upstream is not None:
            self.store.heard(permit.call.upstream, feedback, pause)

    def summary(self) -> Summary:
        """The totals, and how many calls wait or are in flight now."""
        summary = self.engine.summary()
        return summary if self.store is None else replace(summary, queued=summary.queued + self.store.queued)

    def learn(self, kind: Kind, lesson: Lesson) -> None:
        """A call has ended well: whatever is in force, later ones may be judged by it."""
        policy = self.policies.get(kind.provider)
        if policy is not None:
            self.learner.learn(kind, lesson, policy.provider.estimation.quantile)

    def rearm(self) -> None:
        """Look after whoever waits; for everybody who has told the engine of something that may make room."""
        wake = self.engine.next_wake
        if wake >= self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = wake
        # Half a millisecond late rather than a rounding error early.
        self._timer = asyncio.get_running_loop().call_later(max(0, wake - self.clock()) / 1e9 + 0.0005, self._tick)

    def _tick(self) -> None:
        self._armed, self._timer = NEVER, None
        self._advance()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            self._advance()

    def _advance(self) -> None:
        try:
            self.engine.advance(self.clock())
        except Exception as error:  # noqa: BLE001  the next look may go better; without one no permit would ever expire
            logger.error("the time could not be told to the engine: %s", whereabouts(error))  # noqa: TRY400
        self.rearm()
