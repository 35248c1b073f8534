"""Whether the tokens that calls use are told at all: where they are not, limits on tokens count estimates unseen."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

FEWEST: Final = 5
"""Calls of a minute without which nothing is judged: of fewer, all may be chance."""


class Missing(StrEnum):
    """Why the tokens that calls use are not known."""

    NO_STREAM = "NoUsageStream"
    """Calls are admitted, and nobody speaks for their permits."""
    NO_USAGE = "NoUsage"
    """Calls are followed to their end, and their answers tell no usage that is understood."""


ADVICE: Final[Mapping[Missing, str]] = {
    Missing.NO_STREAM: (
        "calls are admitted, and for most of them no usage stream comes: their slots are freed too early, and limits "
        "on tokens count estimates. See that Envoy runs ext_proc to the right of ratelimit, that it sends request "
        "headers, and forwards the metadata envoy.filters.http.ratelimit"
    ),
    Missing.NO_USAGE: (
        "calls are answered, and most answers tell no usage that is understood: limits on tokens count estimates. See "
        "that --usage-source fits Envoy, and --usage-headers and the provider's profile what the provider sends"
    ),
}
"""What it means, and where to look."""


def missing(committed: int, untold: int, expired: int, fewest: int = FEWEST) -> Missing | None:
    """Judge the calls of some time; None if all is well, or nothing is to be said.

    `committed` told what they used. `untold` were answered with 2xx, came to their end, and did not tell what they
    should have told. Of `expired` nobody spoke for the permit. What fails, is cut, or is known to tell nothing is none
    of these.
    """
    ended = committed + untold + expired
    if ended < fewest or 2 * committed >= ended:
        return None
    return Missing.NO_STREAM if expired > untold else Missing.NO_USAGE
