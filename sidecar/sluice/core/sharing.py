"""What a gate enforces while it cannot reach the store that it shares with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sluice.core.buckets import Demand
from sluice.core.limits import CALL_CAPS, PART_CAPS, Cap, Limits, Mode, StoreFailure
from sluice.core.rules import RuleBook


def local_share(rules: RuleBook, gates: int) -> RuleBook:
    """The rules that one of `gates` gates enforces alone: as each limit's `failure_policy` says. `gates` is at least 1.

    The rules match the same calls and meet the same buckets: what this gate has counted there counts in its share.

    - `LocalShare`: an even share of each cap, rounded down; of a cap smaller than `gates` that is 0.
    - `Allow`: the caps as they are, in shadow: every call passes, and what would have been refused is told.
    - `Deny`: the limits as they are. Refusing those calls is left to the caller, who has to let them pass where the
      limit is in shadow.
    """
    return RuleBook(tuple(replace(rule, limits=_alone(rule.limits, gates)) for rule in rules.rules))


def _alone(limits: Limits, gates: int) -> Limits:
    match limits.failure_policy:
        case StoreFailure.LOCAL_SHARE:
            shares: dict[str, Any] = {cap.attribute: count // gates for cap, count in limits.caps.items()}
            return replace(limits, **shares)
        case StoreFailure.ALLOW:
            return replace(limits, mode=Mode.SHADOW)
        case StoreFailure.DENY:
            return limits


def too_large(demand: Demand, limits: Limits) -> tuple[Cap, int, int] | None:
    """A cap that the call could never fit under, its count, and what is asked of it; None if there is none."""
    if limits.max_concurrent is not None and demand.slots > limits.max_concurrent:
        return Cap.MAX_CONCURRENT, limits.max_concurrent, demand.slots
    for periods, names, asked in (
        (limits.periods, CALL_CAPS, (demand.requests, demand.tokens)),
        (limits.parts, PART_CAPS, (demand.input_tokens, demand.output_tokens)),
    ):
        for length, *caps in periods:
            for name, cap, amount in zip(names[length], caps, asked, strict=True):
                if cap is not None and amount > cap:
                    return name, cap, amount
    return None
