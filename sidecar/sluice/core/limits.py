"""What a bucket may let through: caps over three periods, calls in flight, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MILLISECOND: Final = 1_000_000
SECOND: Final = 1000 * MILLISECOND
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

MAX_COUNT: Final = 2**53 - 1
"""The largest cap, estimate or usage: the integers that every JSON reader holds exactly (RFC 8259, section 6)."""


class Cap(StrEnum):
    """The caps a limit may set. The value is the word of the limits document, of `/status` and of refusals."""

    REQUESTS_PER_MINUTE = "requestsPerMinute"
    REQUESTS_PER_HOUR = "requestsPerHour"
    REQUESTS_PER_DAY = "requestsPerDay"
    TOKENS_PER_MINUTE = "tokensPerMinute"
    TOKENS_PER_HOUR = "tokensPerHour"
    TOKENS_PER_DAY = "tokensPerDay"
    MAX_CONCURRENT = "maxConcurrent"

    @property
    def attribute(self) -> str:
        """The field of `Limits` that holds it."""
        return self.name.lower()


class Mode(StrEnum):
    """What a limit does with a call that it has no room for."""

    ENFORCE = "Enforce"
    SHADOW = "Shadow"
    """Count, say what would have been refused, let pass."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The caps of one bucket. None means no cap; every cap is from 0 to `MAX_COUNT`; 0 lets nothing through."""

    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None
    max_wait: int = 0
    """Nanoseconds a call may queue for this bucket."""
    mode: Mode = Mode.ENFORCE

    @property
    def caps(self) -> dict[Cap, int]:
        """The caps that are set."""
        counts = {cap: getattr(self, cap.attribute) for cap in Cap}
        return {cap: count for cap, count in counts.items() if count is not None}

    @property
    def periods(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """`(length in ns, request cap, token cap)` for each period in which something is capped."""
        every = (
            (MINUTE, self.requests_per_minute, self.tokens_per_minute),
            (HOUR, self.requests_per_hour, self.tokens_per_hour),
            (DAY, self.requests_per_day, self.tokens_per_day),
        )
        return tuple(p for p in every if p[1] is not None or p[2] is not None)

    @property
    def is_unset(self) -> bool:
        """True if no cap is set: such limits admit everything and count nothing."""
        return self.max_concurrent is None and not self.periods

    @property
    def smallest_token_cap(self) -> int | None:
        """The smallest token cap that is enforced; None if there is none."""
        if self.mode is Mode.SHADOW:
            return None
        caps = [c for c in (self.tokens_per_minute, self.tokens_per_hour, self.tokens_per_day) if c is not None]
        return min(caps, default=None)


REQUEST_CAPS: Final = {
    MINUTE: Cap.REQUESTS_PER_MINUTE,
    HOUR: Cap.REQUESTS_PER_HOUR,
    DAY: Cap.REQUESTS_PER_DAY,
}
TOKEN_CAPS: Final = {
    MINUTE: Cap.TOKENS_PER_MINUTE,
    HOUR: Cap.TOKENS_PER_HOUR,
    DAY: Cap.TOKENS_PER_DAY,
}
