"""What a call is charged when it ends, however it ends: the endings table of ARCHITECTURE.md as one function.

Two endings are not here, because nothing is charged in them: a call that leaves the queue has reserved nothing, and
a permit whose lease runs out keeps its estimate without being settled.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sluice.core.buckets import NO_CHARGE, Charge
from sluice.core.permits import Settled
from sluice.usage.counting import PLAIN, Scale
from sluice.usage.estimate import Estimate
from sluice.usage.estimation import BYTES_PER_TOKEN
from sluice.usage.profiles.profile import FailedRequests
from sluice.usage.tokens import Usage

FIRST_REFUNDED_STATUS: Final = 300
"""From here on the provider generated nothing: a redirect asks for another call, which is admitted on its own."""

FIRST_FAILED_STATUS: Final = 400


class Settlement(NamedTuple):
    """The charge that ends a call."""

    charge: Charge | None
    """What replaces the estimate, each count from 0 to `MAX_COUNT`; None if the estimate stands."""
    settled: Settled


def settle(
    status: int | None,
    usage: Usage | None,
    estimate: Estimate,
    *,
    complete: bool,
    seen_output: int = 0,
    scale: Scale = PLAIN,
) -> Settlement:
    """Judge a call that is over.

    `status` is the response's status code, None if no response headers were seen; an informational one (1xx) is judged
    like 2xx, for what would have followed it may have cost tokens. `complete` says that the response came to its end
    and was not broken off, and that it may hold more output than was seen. `seen_output` is the number of bytes of
    output that were seen.

    A usage that is not partial is the provider's last word, so it is committed even if the client left after it.
    Without one, input and output are charged apart, and both are added up. The input is the larger of its estimate and
    of what was told. So is the output of a call that is complete: a partial usage never lowers the charge. A call that
    was broken off is charged the output that was told or seen, for providers bill that too; it is never free. What was
    seen is not bounded by the estimate, which may have been too low. A call that failed costs nothing, unless its
    provider counts such calls: then its estimate stands.

    Everything is charged by the provider's `scale`.
    """
    if status is not None and status >= FIRST_REFUNDED_STATUS:
        if status >= FIRST_FAILED_STATUS and scale.failed_requests is FailedRequests.COUNTED:
            return Settlement(None, Settled.ESTIMATED)
        return Settlement(NO_CHARGE, Settled.REFUNDED)
    told = (0, 0) if usage is None else _parts(usage, estimate)
    caches = (0, 0) if usage is None else (usage.cache_read or 0, usage.cache_write or 0)
    if usage is not None and not usage.partial:
        return Settlement(scale.charge(*told, *caches), Settled.COMMITTED)
    seen = max(told[1], -(-seen_output // BYTES_PER_TOKEN))
    if complete:
        least = max(told[0], estimate.input_tokens), max(seen, estimate.output_tokens)
        charge = scale.charge(*least, *caches)
        stands = charge == scale.reservation(estimate.input_tokens, estimate.output_tokens)
        return Settlement(None if stands else charge, Settled.ESTIMATED)
    least_input = 0 if seen else 1
    return Settlement(scale.charge(max(told[0], estimate.input_tokens, least_input), seen, *caches), Settled.ESTIMATED)


def _parts(usage: Usage, estimate: Estimate) -> tuple[int, int]:
    """Input and output of a usage. One that was not told is what is left of the provider's sum.

    Where the sum is all that was told, the input is taken to be what was expected.
    """
    input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
    if input_tokens is None:
        rest = max(0, usage.total - (output_tokens or 0))
        input_tokens = min(estimate.input_tokens, rest) if output_tokens is None else rest
    if output_tokens is None:
        output_tokens = max(0, usage.total - input_tokens)
    return input_tokens, output_tokens
