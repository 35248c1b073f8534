"""Token counts as providers report them: which fields count, how they add up, and which numbers are believed.

A count is an integer from 0 to `MAX_USED`. Null is the same as absent. Anything else in a count's place is
malformed: that field counts as unknown and the usage as partial, so that it is never charged for less than expected.

A stream may report usage many times. The last report wins field by field, and fields are added once, at the end:
adding up per report counts twice what is cumulative (Anthropic's `message_delta`, every chunk of Gemini).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sluice.core.limits import MAX_COUNT
from sluice.usage.profiles.profile import Summands, UsageFields

MAX_USED: Final = 1_000_000_000
"""More than any call uses: the largest contexts hold ten million tokens, and few calls ask for a hundred answers. A
provider that says more is mistaken, and must not use up somebody's day."""
MAX_DIGITS: Final = len(str(MAX_USED))
"""No count has more digits; a longer number need not be converted to be refused."""


class Usage(NamedTuple):
    """What a provider says a call used. A count is None where it was not told, or told malformed."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    provider_total: int | None = None
    """The provider's own sum, kept for comparison; charged only where a part is missing."""
    partial: bool = False
    """The call used at least `total`: a count was malformed, or its input was not told, or not its last word."""
    cache_read: int | None = None
    """The part of the input that came from a cache."""
    cache_write: int | None = None
    """The part of the input that went into one."""
    reasoning: int | None = None
    """The part of the output that nobody sees."""

    @property
    def total(self) -> int:
        """Tokens to charge, at most `MAX_COUNT`: the parts, or the provider's sum if that covers a part not told."""
        parts = (self.input_tokens or 0) + (self.output_tokens or 0)
        if self.input_tokens is None or self.output_tokens is None:
            parts = max(parts, self.provider_total or 0)
        return min(parts, MAX_COUNT)


class Tally:
    """The counts of one response, as far as it has told them."""

    def __init__(self, fields: UsageFields) -> None:
        self._fields = fields
        self._counts: dict[str, int | None] = {}  # None: told, but malformed
        self._malformed = False  # a whole report was

    def add(self, report: object) -> None:
        """Take one usage object, as decoded from JSON: any value whatever."""
        if report is None:
            return
        if not isinstance(report, dict):
            self._malformed = True
            return
        for name in self._fields.names:
            value = report.get(name) if "." not in name else _within(report, name)
            if value is not None:
                self._counts[name] = value if is_count(value) else None

    def usage(self) -> Usage | None:
        """What is known so far; None if nothing was told."""
        input_tokens = self._sum(self._fields.input_tokens)
        output_tokens = self._sum(self._fields.output_tokens)
        provider_total = self._sum(self._fields.provider_total)
        malformed = self._malformed or None in self._counts.values()
        if not malformed and input_tokens is None and output_tokens is None and provider_total is None:
            return None
        no_input = input_tokens is None and provider_total is None  # there always is some
        return Usage(
            input_tokens,
            output_tokens,
            provider_total,
            malformed or no_input,
            self._sum(self._fields.cache_read),
            self._sum(self._fields.cache_write),
            self._sum(self._fields.reasoning),
        )

    def _sum(self, summands: Summands) -> int | None:
        told = [count for names in summands if (count := self._first(names)) is not None]
        return sum(told) if told else None

    def _first(self, names: tuple[str, ...]) -> int | None:
        return next((count for name in names if (count := self._counts.get(name)) is not None), None)


def is_count(value: object) -> bool:
    """True for an integer from 0 to `MAX_USED`; false for everything else, also for True and 1.0."""
    return type(value) is int and 0 <= value <= MAX_USED


def _within(report: dict[str, Any], name: str) -> Any:
    """The value at a dotted name; None where it leads nowhere."""
    value: Any = report
    for member in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(member)
    return value
