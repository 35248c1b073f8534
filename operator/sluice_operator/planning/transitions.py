"""What is worth an event in the step from one status to the next.

Only the two statuses are compared, and the older one is what the API server holds: so a restarted operator does not
say again what was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from sluice_operator.planning import conditions
from sluice_operator.planning.conditions import Kind, Reason
from sluice_operator.planning.usage import HIGH


class Told(NamedTuple):
    """An event, but for the object that it is about."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


_WARNINGS: Final = frozenset(
    {
        Reason.INVALID,
        Reason.CONFLICTED,
        Reason.NO_ROOM,
        Reason.NO_GATES,
        Reason.COMMITS_MISSING,
        Reason.STORE_AWAY,
        Reason.THROTTLED,
        Reason.OVERLOADED,
        Reason.SPEND_CAP_REACHED,
    }
)
_NEWS: Final = frozenset({Reason.ACCEPTED, Reason.PROGRAMMED})
"""Told whenever it comes to be so."""
_RELIEF: Final = {
    Reason.COMMITTED: (Reason.COMMITS_MISSING,),
    Reason.STORE_HEALTHY: (Reason.STORE_AWAY,),
    Reason.NOT_THROTTLED: (Reason.THROTTLED, Reason.OVERLOADED, Reason.SPEND_CAP_REACHED),
}
"""Told only after one of the others: the usual state needs no event. `Pending` is usual too, whenever a gate starts."""
_TOLD: Final = (
    Kind.ACCEPTED,
    Kind.PROGRAMMED,
    Kind.COMMITS_HEALTHY,
    Kind.STORE_HEALTHY,
    Kind.PROVIDER_THROTTLED,
)
"""`Ready` follows the first two, and would say everything twice."""


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Told]:
    """The events of a change of status; both as `status.ours` gives them."""
    before, after = conditions.by_type(old), conditions.by_type(new)
    for kind in _TOLD:
        was, becomes = before.get(kind, {}).get("reason"), after[kind]["reason"]
        if becomes != was:
            message = after[kind]["message"]
            if becomes in _WARNINGS:
                yield Told("Warning", becomes, message)
            elif becomes in _NEWS or (becomes in _RELIEF and was in _RELIEF[Reason(becomes)]):
                yield Told("Normal", becomes, message)
    yield from _pressed(old.get("pressure"), new.get("pressure", ()))


def _pressed(before: object, after: Iterable[Mapping[str, Any]]) -> Iterator[Told]:
    known = before if isinstance(before, list) else []
    for bucket in after:
        if bucket in known:
            continue
        models = f" for {', '.join(bucket['models'])}" if "models" in bucket else ""
        named = f"{bucket['scope']} {bucket['subject'] or 'without a name'}"
        if bucket["level"] == "Full":
            yield Told("Warning", "LimitReached", f"{named} has used up {bucket['cap']}{models}.")
        else:
            yield Told("Normal", "LimitNear", f"{named} has used {HIGH} % or more of {bucket['cap']}{models}.")
