"""The ledger: admitted = committed + estimated + refunded + not settled yet, for each bucket and for all together."""

from __future__ import annotations

from sluice.core.buckets import Charge
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


def rebook(permit: Permit, actual: Charge) -> bool:
    """Replace what is booked for a permit, where it is booked. True if that makes room somewhere."""
    difference = actual.tokens - permit.tokens
    if difference:
        for windows in permit.windows:
            for window in windows:
                window.amend(permit.admitted_at, 0, difference)
    is_lower = difference < 0
    if permit.parts or permit.elsewhere is not None:
        of_input, of_output = actual.input_tokens - permit.input_tokens, actual.output_tokens - permit.output_tokens
        if permit.elsewhere is not None:
            permit.elsewhere.amend(0, Charge(difference, of_input, of_output))
        for window in permit.parts:
            window.amend(permit.admitted_at, of_input, of_output)
        is_lower = is_lower or of_input < 0 or of_output < 0
    permit.tokens, permit.input_tokens, permit.output_tokens = actual
    return is_lower
