"""What became of each provider's calls in the last five minutes.

Time is cut into 60 slots of five seconds, aligned to the clock; a slot counts until all of it has left the five
minutes, so what is told covers them and up to one slot more. A `SlidingWindow` would hold two amounts; here are a dozen
that change together, so a slot is an object of its own, and an event a look-up and an addition or two. There are at
most 61 of them for each provider that the limits have ever named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sluice.core.buckets import RECENT
from sluice.core.decisions import Refusal
from sluice.core.permits import Call, Permit, Settled
from sluice.core.windows import SLOTS
from sluice.core.words import RefusedAs

SLOT: Final = RECENT // SLOTS


@dataclass(slots=True)
class Tally:
    """Counts of one provider over some time. Calls, but for the fields that say tokens."""

    admitted: int = 0
    rejected: int = 0
    would_reject: int = 0
    committed: int = 0
    estimated: int = 0
    """Ended, and the estimate stands."""
    refunded: int = 0
    expired: int = 0
    untold: int = 0
    """Answered whole and with 2xx, and did not tell the usage that they should have told."""
    throttled: int = 0
    """Refused by the provider itself, for whatever reason."""
    overloaded: int = 0
    """Of these: because it had too much to do."""
    spend_capped: int = 0
    """And because no more may be spent."""
    last_throttled_status: int = 0
    """0 if there was none."""
    committed_tokens: int = 0
    estimate_error_tokens: int = 0
    """The sum of |estimate - actual| over the committed calls."""
    underestimated: int = 0
    """Committed calls that used more than was estimated."""

    def add(self, later: Tally) -> None:
        """Count what came after this as well."""
        self.admitted += later.admitted
        self.rejected += later.rejected
        self.would_reject += later.would_reject
        self.committed += later.committed
        self.estimated += later.estimated
        self.refunded += later.refunded
        self.expired += later.expired
        self.untold += later.untold
        self.throttled += later.throttled
        self.overloaded += later.overloaded
        self.spend_capped += later.spend_capped
        self.last_throttled_status = later.last_throttled_status or self.last_throttled_status
        self.committed_tokens += later.committed_tokens
        self.estimate_error_tokens += later.estimate_error_tokens
        self.underestimated += later.underestimated


class RecentCounts:
    """Telemetry of the engine, and of what providers answer. Belongs to one event loop; `clock` is the gate's."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._slots: dict[str, deque[tuple[int, Tally]]] = {}
        self._slot = -1
        self._newest: dict[str, Tally] = {}

    def by_provider(self, length: int = RECENT) -> dict[str, Tally]:
        """The last five minutes, or fewer, of every provider of which anything was counted in them."""
        oldest = self._clock() // SLOT - length // SLOT
        told = {}
        for provider, slots in self._slots.items():
            total = Tally()
            for number, tally in slots:
                if number >= oldest:
                    total.add(tally)
            # Usage that came late took a call out again that had been counted in a slot which has left since.
            total.estimated = max(0, total.estimated)
            if total != Tally():
                told[provider] = total
        return told

    def acquired(self, permit: Permit) -> None:
        self._now(permit.call.applied[0].key.provider).admitted += 1

    def committed(self, permit: Permit) -> None:
        settled = permit.settled
        if settled is Settled.ESTIMATED:
            return  # not its last word: counted when it is released
        tally = self._now(permit.call.applied[0].key.provider)
        if permit.released:
            tally.estimated -= 1
        if settled is Settled.REFUNDED:
            tally.refunded += 1
            return
        tally.committed += 1
        tally.committed_tokens += permit.tokens
        tally.estimate_error_tokens += abs(permit.tokens - permit.estimate)
        tally.underestimated += permit.tokens > permit.estimate

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        self._now(refusal.key.provider).rejected += 1

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        self._now(refusal.key.provider).would_reject += 1

    def released(self, permit: Permit) -> None:
        if permit.settled is Settled.ESTIMATED:
            self._now(permit.call.applied[0].key.provider).estimated += 1

    def expired(self, permit: Permit) -> None:
        tally = self._now(permit.call.applied[0].key.provider)
        tally.expired += 1
        if permit.settled is Settled.ESTIMATED:
            tally.estimated += 1

    def untold(self, provider: str) -> None:
        """An answer should have told its usage, and did not."""
        self._now(provider).untold += 1

    def refused_upstream(self, provider: str, status: int, refused_as: RefusedAs) -> None:
        """The provider has refused a call that was admitted here."""
        tally = self._now(provider)
        tally.throttled += 1
        tally.overloaded += refused_as is RefusedAs.OVERLOADED
        tally.spend_capped += refused_as is RefusedAs.SPEND_CAP
        tally.last_throttled_status = status

    def _now(self, provider: str) -> Tally:
        slot = self._clock() // SLOT
        if slot != self._slot:
            self._slot, self._newest = slot, {}
        tally = self._newest.get(provider)
        if tally is None:
            tally = self._newest[provider] = Tally()
            self._slots.setdefault(provider, deque(maxlen=SLOTS + 1)).append((slot, tally))
        return tally
