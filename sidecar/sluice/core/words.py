"""What a provider says of its own limits, in the engine's terms: what is left of a quota, and refusals."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Amount(StrEnum):
    """What a provider's own limit counts. The value is the word of profiles, of `/status` and of refusals."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "inputTokens"
    OUTPUT_TOKENS = "outputTokens"


class RefusedAs(StrEnum):
    """Why a provider refused a call that it could have served. The value is the word of profiles and of metrics."""

    RATE_LIMITED = "RateLimited"
    """A quota of the caller's is used up; it comes back by itself."""
    OVERLOADED = "Overloaded"
    """The provider has too much to do: nobody's quota."""
    SPEND_CAP = "SpendCap"
    """The account has no money left, or may not spend more: somebody has to do something about it."""


class Quota(NamedTuple):
    """One of the provider's own limits, as an answer tells it."""

    name: str
    """Tells it from others that count the same, for a minute and for a day: the header that told what is left."""
    of: Amount
    remaining: int
    limit: int | None
    """None where it was not told."""
    reset: int
    """Nanoseconds until all of the limit is there again."""


class Feedback(NamedTuple):
    """What one answer says."""

    quotas: tuple[Quota, ...] = ()
    refused_as: RefusedAs | None = None
    """None if the provider did not refuse the call."""
    retry_after: int | None = None
    """Nanoseconds; None where it was not told."""
