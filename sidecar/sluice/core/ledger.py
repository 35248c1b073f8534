"""The ledger: admitted = committed + estimated + refunded + not settled yet, for each bucket and for all together."""

from __future__ import annotations

from sluice.core.permits import Permit, Settled
from sluice.core.states import Totals


def count_settled(totals: Totals, permit: Permit, sign: int) -> None:
    """Enter a permit under the way it was settled (`sign` 1), or take it out again (-1)."""
    settled = permit.settled
    if settled is Settled.COMMITTED:
        totals.committed += sign
        totals.committed_tokens += sign * permit.tokens
        for bucket in permit.buckets:
            bucket.committed += sign
    elif settled is Settled.ESTIMATED:
        totals.estimated += sign
        totals.estimated_tokens += sign * permit.tokens
        for bucket in permit.buckets:
            bucket.estimated += sign
    elif settled is Settled.REFUNDED:
        totals.refunded += sign
        for bucket in permit.buckets:
            bucket.refunded += sign
