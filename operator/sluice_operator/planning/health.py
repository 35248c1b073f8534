"""How the calls fare: `CommitsHealthy`, `StoreHealthy` and `ProviderThrottled`, in sentences.

The messages hold no numbers, or a busy gate would change them with every report; numbers stand in `status.usage`.
"""

from __future__ import annotations

from typing import Final

from sluice_operator.planning.conditions import Condition, Kind, Reason, condition
from sluice_operator.planning.progress import named
from sluice_operator.planning.reports import Recent
from sluice_operator.planning.usage import Usage

FEWEST: Final = 20
"""Calls that have to have ended before commits are judged: of fewer, a half may be chance."""


def health(recent: Recent | None, usage: Usage) -> tuple[Condition, ...]:
    """The three conditions; `recent` is the provider's, None if nothing of the object is in force."""
    if recent is None:
        message = "Nothing of the object is in force: see the condition Accepted."
        return _unknown(Reason.NOT_ACCEPTED, message)
    if not usage.answered:
        return _unknown(Reason.NO_REPORTS, "No gate has answered.")
    return _commits(recent), _store(usage), _throttled(recent)


def _unknown(reason: Reason, message: str) -> tuple[Condition, ...]:
    kinds = (Kind.COMMITS_HEALTHY, Kind.STORE_HEALTHY, Kind.PROVIDER_THROTTLED)
    return tuple(condition(kind, holds=None, reason=reason, message=message) for kind in kinds)


def _commits(recent: Recent) -> Condition:
    """Calls that the provider turned down are not looked at: they had nothing to commit."""
    ended = recent.committed + recent.estimated
    holds: bool | None = True
    reason, message = Reason.COMMITTED, "Of most calls that ended in the last 5 minutes the tokens used are known."
    if not ended:
        holds, reason, message = None, Reason.NO_CALLS, "No call has ended in the last 5 minutes."
    elif ended >= FEWEST and 2 * recent.committed < ended:
        holds, reason = False, Reason.COMMITS_MISSING
        message = (
            "Of more than half of the calls that ended in the last 5 minutes nobody told the tokens used, so limits on "
            "tokens count estimates: see that Envoy runs ext_proc, and that --usage-source fits it and the provider."
        )
    return condition(Kind.COMMITS_HEALTHY, holds=holds, reason=reason, message=message)


def _store(usage: Usage) -> Condition:
    if not usage.storeless:
        message = "Every gate that answers reaches the store of its counts."
        return condition(Kind.STORE_HEALTHY, holds=True, reason=Reason.STORE_HEALTHY, message=message)
    message = f"The store of the counts is out of reach for {named(usage.storeless)}: see the gate's log."
    return condition(Kind.STORE_HEALTHY, holds=False, reason=Reason.STORE_AWAY, message=message)


def _throttled(recent: Recent) -> Condition:
    if not recent.throttled:
        message = "The provider has refused no call for its own limits in the last 5 minutes."
        return condition(Kind.PROVIDER_THROTTLED, holds=False, reason=Reason.NOT_THROTTLED, message=message)
    message = (
        "The provider itself answered 429 or 529 in the last 5 minutes: what these limits let through is more than it "
        "takes. Lower them, or ask it for more."
    )
    return condition(Kind.PROVIDER_THROTTLED, holds=True, reason=Reason.THROTTLED, message=message)
