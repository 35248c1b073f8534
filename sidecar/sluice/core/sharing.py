"""What a gate enforces while it cannot reach the store that it shares with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sluice.core.limits import Limits, Mode, StoreFailure
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
