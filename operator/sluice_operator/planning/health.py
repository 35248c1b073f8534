"""How the calls fare: `CommitsHealthy`, `StoreHealthy` and `ProviderThrottled`, in sentences.

The messages hold no numbers, or a busy gate would change them with every report; numbers stand in `status.usage`.
"""

from __future__ import annotations

from typing import Final

from sluice.usage.commits import ADVICE, missing
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
    """As the gate itself judges, over more time. Calls that fail, are cut, or have nothing to tell do not count."""
    holds: bool | None = True
    reason, message = Reason.COMMITTED, "Of most calls that ended in the last 5 minutes the tokens used are known."
    why = missing(recent.committed, recent.untold, recent.expired, FEWEST)
    if not recent.committed + recent.estimated + recent.expired:
        holds, reason, message = None, Reason.NO_CALLS, "No call has ended in the last 5 minutes."
    elif why is not None:
        holds, reason, message = False, Reason.COMMITS_MISSING, f"{ADVICE[why][0].upper()}{ADVICE[why][1:]}."
    return condition(Kind.COMMITS_HEALTHY, holds=holds, reason=reason, message=message)


def _store(usage: Usage) -> Condition:
    told = []
    if usage.storeless:
        told.append(
            f"The store that gates share cannot be used by {named(usage.storeless)}: see the gate's log. Until it can, "
            "each decides alone, as the failurePolicy of each limit says."
        )
    if usage.unsaved:
        told.append(
            f"The counts of {named(usage.unsaved)} are not saved: see the gate's log. Limits hold meanwhile; a restart "
            "would forget what was counted since."
        )
    if told:
        return condition(Kind.STORE_HEALTHY, holds=False, reason=Reason.STORE_AWAY, message=" ".join(told))
    message = "Every gate that answers reaches the store of its counts."
    return condition(Kind.STORE_HEALTHY, holds=True, reason=Reason.STORE_HEALTHY, message=message)


def _throttled(recent: Recent) -> Condition:
    if not recent.throttled:
        message = "The provider has refused no call for its own limits in the last 5 minutes."
        return condition(Kind.PROVIDER_THROTTLED, holds=False, reason=Reason.NOT_THROTTLED, message=message)
    if recent.spend_capped:
        reason = Reason.SPEND_CAP_REACHED
        message = (
            "The provider itself said in the last 5 minutes that no more may be spent: pay, or raise the cap there. "
            "The gates ask it again every few minutes."
        )
    elif recent.throttled > recent.overloaded:
        reason = Reason.THROTTLED
        message = (
            "The provider itself said in the last 5 minutes that its limits are reached: what these limits let through "
            "is more than it takes. Lower them, or ask it for more."
        )
    else:
        reason = Reason.OVERLOADED
        message = "The provider itself said in the last 5 minutes that it is overloaded: no limit can help."
    return condition(Kind.PROVIDER_THROTTLED, holds=True, reason=reason, message=message)
