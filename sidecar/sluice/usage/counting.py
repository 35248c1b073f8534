"""Tokens as a provider counts them: its weights, and what it reserves of a call before it knows.

`tokens` is what the provider's own limit on tokens counts: each kind of token by its weight, input and output added up.
`input_tokens` are the input kinds alone, by the same weights. `output_tokens` are the output as it is: providers that
limit it apart weigh nothing there. A count is rounded up, and stays from 0 to `MAX_COUNT`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sluice.core.buckets import Charge
from sluice.core.limits import MAX_COUNT
from sluice.core.rules import fits
from sluice.usage.profiles.profile import Combine, Counting, FailedRequests, Weights


class Scale(NamedTuple):
    """How a provider counts the calls of one model."""

    weights: Weights = Weights()
    combine: Combine = Combine.SUM
    failed_requests: FailedRequests = FailedRequests.FREE
    admission: Weights | None = None
    """The weights of a reservation, where they differ."""

    def reservation(self, input_tokens: int, output_tokens: int) -> Charge:
        """What is reserved for a call that is expected to take so much; nothing is expected to come from a cache."""
        weights = self.admission or self.weights
        counted = min(-(-input_tokens * weights.input // 100), MAX_COUNT)
        brought = -(-output_tokens * weights.output // 100)
        tokens = counted + brought if self.combine is Combine.SUM else max(counted, brought)
        return Charge(min(tokens, MAX_COUNT), counted, min(output_tokens, MAX_COUNT))

    def charge(self, input_tokens: int, output_tokens: int, cache_read: int = 0, cache_write: int = 0) -> Charge:
        """What a call costs that took so much; `cache_read` and `cache_write` are parts of the input."""
        weights = self.weights
        cache_read = min(cache_read, input_tokens)
        cache_write = min(cache_write, input_tokens - cache_read)
        fresh = input_tokens - cache_read - cache_write
        weighted = fresh * weights.input + cache_read * weights.cache_read + cache_write * weights.cache_write
        counted = min(-(-weighted // 100), MAX_COUNT)
        tokens = min(counted - (-output_tokens * weights.output // 100), MAX_COUNT)
        return Charge(tokens, counted, min(output_tokens, MAX_COUNT))

    def input_within(self, tokens: int) -> int:
        """The most input for which no more than so many tokens are reserved."""
        weights = self.admission or self.weights
        return min(tokens * 100 // weights.input, MAX_COUNT) if weights.input else MAX_COUNT

    def output_within(self, tokens: int, input_tokens: int) -> int:
        """The most output for which no more than so many tokens are reserved beside so much input, from 0."""
        weights = self.admission or self.weights
        if not weights.output:
            return MAX_COUNT
        taken = -(-input_tokens * weights.input // 100) if self.combine is Combine.SUM else 0
        return min(max(0, tokens - taken) * 100 // weights.output, MAX_COUNT)

    def fresh_input(self, charge: Charge) -> int | None:
        """The input that would have cost as much if no cache had had a part in it; None where input costs nothing."""
        return min(charge.input_tokens * 100 // self.weights.input, MAX_COUNT) if self.weights.input else None


PLAIN: Final = Scale()
"""Every token counts once."""
FREE: Final = Scale(Weights(0, 0, 0, 0))
"""No token counts."""


def scale_of(counting: Counting, model: str) -> Scale:
    """How calls of that model are counted."""
    weights = counting.weights
    if counting.models:
        weights = next((each.weights for each in counting.models if fits(each.match, model)), weights)
    return Scale(weights, counting.combine, counting.failed_requests, counting.admission)
