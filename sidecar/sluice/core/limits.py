"""What a bucket may let through: caps over three periods, calls in flight, and how long to wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

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
    INPUT_TOKENS_PER_MINUTE = "inputTokensPerMinute"
    INPUT_TOKENS_PER_HOUR = "inputTokensPerHour"
    INPUT_TOKENS_PER_DAY = "inputTokensPerDay"
    OUTPUT_TOKENS_PER_MINUTE = "outputTokensPerMinute"
    OUTPUT_TOKENS_PER_HOUR = "outputTokensPerHour"
    OUTPUT_TOKENS_PER_DAY = "outputTokensPerDay"
    MAX_CONCURRENT = "maxConcurrent"

    @property
    def attribute(self) -> str:
        """The field of `Limits` that holds it."""
        return self.name.lower()


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
INPUT_TOKEN_CAPS: Final = {
    MINUTE: Cap.INPUT_TOKENS_PER_MINUTE,
    HOUR: Cap.INPUT_TOKENS_PER_HOUR,
    DAY: Cap.INPUT_TOKENS_PER_DAY,
}
OUTPUT_TOKEN_CAPS: Final = {
    MINUTE: Cap.OUTPUT_TOKENS_PER_MINUTE,
    HOUR: Cap.OUTPUT_TOKENS_PER_HOUR,
    DAY: Cap.OUTPUT_TOKENS_PER_DAY,
}
CAPS_BY_LENGTH: Final = (REQUEST_CAPS, TOKEN_CAPS, INPUT_TOKEN_CAPS, OUTPUT_TOKEN_CAPS)
"""Each amount's caps, from the shortest period to the longest."""
CALL_CAPS: Final = {length: (REQUEST_CAPS[length], TOKEN_CAPS[length]) for length in (MINUTE, HOUR, DAY)}
"""What the windows of calls count: requests, and tokens as the provider sums them up."""
PART_CAPS: Final = {length: (INPUT_TOKEN_CAPS[length], OUTPUT_TOKEN_CAPS[length]) for length in (MINUTE, HOUR, DAY)}
"""What the windows of parts count: input tokens and output tokens, for providers that limit them apart."""

Period: TypeAlias = tuple[int, int | None, int | None]
"""A length in ns, and the caps of the two amounts that are counted over it."""


class Mode(StrEnum):
    """What a limit does with a call that it has no room for."""

    ENFORCE = "Enforce"
    SHADOW = "Shadow"
    """Count, say what would have been refused, let pass."""


class StoreFailure(StrEnum):
    """What a limit does while the store that gates share cannot be reached. The value is the word of the document."""

    LOCAL_SHARE = "LocalShare"
    """Each gate enforces its even share of the caps alone."""
    DENY = "Deny"
    """No call passes."""
    ALLOW = "Allow"
    """Every call passes, counted."""


class Sharing(StrEnum):
    """How a limit's capacity is taken from the store that gates share. The value is the word of the document."""

    EXACT = "Exact"
    """The store is asked for every call."""
    LEASED = "Leased"
    """A gate takes slices ahead, and decides in memory within them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The caps of one bucket. None means no cap; every cap is from 0 to `MAX_COUNT`; 0 lets nothing through."""

    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    input_tokens_per_minute: int | None = None
    input_tokens_per_hour: int | None = None
    input_tokens_per_day: int | None = None
    output_tokens_per_minute: int | None = None
    output_tokens_per_hour: int | None = None
    output_tokens_per_day: int | None = None
    max_concurrent: int | None = None
    max_wait: int = 0
    """Nanoseconds a call may queue for this bucket."""
    mode: Mode = Mode.ENFORCE
    failure_policy: StoreFailure = StoreFailure.LOCAL_SHARE
    """Only where gates share a store."""
    sharing: Sharing = Sharing.EXACT
    """Only where gates share a store."""
    periods: tuple[Period, ...] = field(init=False, repr=False, compare=False)
    """Each period in which requests or tokens are capped, with these two caps."""
    parts: tuple[Period, ...] = field(init=False, repr=False, compare=False)
    """Each period in which input tokens or output tokens are capped, with these two caps."""
    smallest_token_cap: int | None = field(init=False, repr=False, compare=False)
    """The smallest cap on tokens that is enforced; None if there is none."""
    smallest_input_cap: int | None = field(init=False, repr=False, compare=False)
    """The smallest cap on input tokens that is enforced; None if there is none."""
    smallest_output_cap: int | None = field(init=False, repr=False, compare=False)
    """The smallest cap on output tokens that is enforced; None if there is none."""

    def __post_init__(self) -> None:
        # Asked for with every call: found once.
        for name, value in (
            ("periods", self._periods(CALL_CAPS)),
            ("parts", self._periods(PART_CAPS)),
            ("smallest_token_cap", self._smallest(TOKEN_CAPS)),
            ("smallest_input_cap", self._smallest(INPUT_TOKEN_CAPS)),
            ("smallest_output_cap", self._smallest(OUTPUT_TOKEN_CAPS)),
        ):
            object.__setattr__(self, name, value)

    @property
    def caps(self) -> dict[Cap, int]:
        """The caps that are set."""
        counts = {cap: getattr(self, cap.attribute) for cap in Cap}
        return {cap: count for cap, count in counts.items() if count is not None}

    @property
    def is_unset(self) -> bool:
        """True if no cap is set: such limits admit everything and count nothing."""
        return self.max_concurrent is None and not self.periods and not self.parts

    def _periods(self, caps: Mapping[int, tuple[Cap, Cap]]) -> tuple[Period, ...]:
        every = (
            (length, getattr(self, first.attribute), getattr(self, second.attribute))
            for length, (first, second) in caps.items()
        )
        return tuple(period for period in every if period[1] is not None or period[2] is not None)

    def _smallest(self, caps: Mapping[int, Cap]) -> int | None:
        if self.mode is Mode.SHADOW:
            return None
        counts = [getattr(self, cap.attribute) for cap in caps.values()]
        return min((count for count in counts if count is not None), default=None)
