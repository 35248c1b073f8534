"""Usage that a provider tells in its response headers, before the body has begun."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sluice.usage.profiles.profile import UsageFields
from sluice.usage.tokens import MAX_DIGITS, Tally, Usage

USAGE_HEADERS: Final = UsageFields(
    input_tokens=(("x-usage-input-tokens",),),
    output_tokens=(("x-usage-output-tokens",),),
    provider_total=(("x-usage-total-tokens",),),
)
"""The headers that are read of every provider: names of our own, for a provider or a filter of one's own. Those of its
API stand in the profile."""


def usage_from_headers(headers: Iterable[tuple[str, bytes | str]], fields: UsageFields = USAGE_HEADERS) -> Usage | None:
    """What the response headers tell; None if none of these fields is there.

    Names are in lower case, as Envoy hands them on. A value is digits and nothing else; an empty one counts as absent,
    any other as malformed. Of a header that stands twice the last one counts.
    """
    told = {name: _count(value) for name, value in headers if name in fields.names}
    if not told:
        return None
    tally = Tally(fields)
    tally.add(told)
    return tally.usage()


def _count(value: bytes | str) -> int | str | None:
    """The value as JSON would give it: a number, None for nothing, anything else for something malformed."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    text = text.strip()
    if not text:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else "malformed"
