"""What a call is charged when it ends, however it ends: the endings table of ARCHITECTURE.md as one function.

Two endings are not here, because nothing is charged in them: a call that leaves the queue has reserved nothing, and
a permit whose lease runs out keeps its estimate without being settled.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sluice.core.limits import MAX_COUNT
from sluice.core.permits import Settled
from sluice.usage.estimate import BYTES_PER_TOKEN, Estimate
from sluice.usage.tokens import Usage

FIRST_REFUNDED_STATUS: Final = 300
"""From here on the provider generated nothing: a redirect asks for another call, which is admitted on its own."""

THROTTLED_STATUSES: Final = frozenset({429, 529})
"""The provider's own limits are reached, or (529, Anthropic's) it is overloaded."""


class Settlement(NamedTuple):
    """The charge that ends a call."""

    tokens: int | None
    """What replaces the estimate, from 0 to `MAX_COUNT`; None if the estimate stands."""
    settled: Settled


def settle(
    status: int | None,
    usage: Usage | None,
    estimate: Estimate,
    *,
    complete: bool,
    seen_output: int = 0,
) -> Settlement:
    """Judge a call that is over.

    `status` is the response's status code, None if no response headers were seen; an informational one (1xx) is judged
    like 2xx, for what would have followed it may have cost tokens. `complete` says that the response came to its end
    and was not broken off. `seen_output` is the number of characters of output that were seen.

    A call that was broken off is charged what was seen of it, at least its input, for providers bill that too.
    A usage that is not partial is the provider's last word, so it is committed even if the client left after it.
    A partial one never lowers the charge: the estimate stands unless the part that is known exceeds it. What was seen
    is not bounded by the estimate, which may have been too low.
    """
    if status is not None and status >= FIRST_REFUNDED_STATUS:
        return Settlement(0, Settled.REFUNDED)
    if usage is not None and not usage.partial:
        return Settlement(usage.total, Settled.COMMITTED)
    told = usage.total if usage is not None else 0
    shown = estimate.input_tokens - (-seen_output // BYTES_PER_TOKEN)
    seen = min(max(told, shown, 1), MAX_COUNT)
    if not complete:
        return Settlement(seen, Settled.ESTIMATED)
    return Settlement(seen if seen > estimate.total else None, Settled.ESTIMATED)
