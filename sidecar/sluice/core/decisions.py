"""What the engine says of a call that it does not admit."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from sluice.core.keys import BucketKey
from sluice.core.limits import Cap
from sluice.core.words import Amount


class Reason(StrEnum):
    """Why a call is refused: one word for answers, metrics, logs and status alike."""

    OVERSIZED_REQUEST = "OversizedRequest"
    """It asks for more than the cap: it can never fit, and no retry helps."""
    WOULD_EXCEED = "WouldExceed"
    """It cannot fit into a window within `maxWait`."""
    NO_FREE_SLOT = "NoFreeSlot"
    """No call in flight ended within `maxWait`."""
    QUEUE_FULL = "QueueFull"
    """The gate holds as many waiting calls as it may."""
    PROVIDER_LIMIT = "ProviderLimit"
    """The provider itself said that a limit of its own is reached, and asked to wait."""
    PROVIDER_OVERLOADED = "ProviderOverloaded"
    """The provider itself said that it has too much to do."""
    PROVIDER_SPEND_CAP = "ProviderSpendCap"
    """The provider itself said that no more may be spent."""
    STORE_UNAVAILABLE = "StoreUnavailable"
    """The shared store cannot be reached, and the limit's failurePolicy is Deny."""


class Refusal(NamedTuple):
    """A refused call: it has consumed nothing."""

    reason: Reason
    key: BucketKey
    """The bucket that said no."""
    cap: Cap | Amount
    """The cap that said no; what is limited, where it is the provider's own word."""
    limit: int
    used: int
    """What the cap counted when it said no: tokens or requests in the window, or calls in flight."""
    requested: int
    """What the call asked of that cap."""
    retry_after: int | None
    """Nanoseconds until the call would fit as things stand; None where that cannot be known (a call in flight
    ends when it ends) or will never be."""
    ahead: int = 0
    """What the calls that waited before it ask of that cap together."""
