"""The conditions of an object, as the Gateway API has them: what each type and reason means, and when it changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

LONGEST_MESSAGE: Final = 1024
"""Bytes of a message: a page for a person; the schema takes 32768 characters."""


class Kind(StrEnum):
    """What a condition is about. The value is its `type`, and the order is that of the status."""

    ACCEPTED = "Accepted"
    PROGRAMMED = "Programmed"
    READY = "Ready"
    COMMITS_HEALTHY = "CommitsHealthy"
    STORE_HEALTHY = "StoreHealthy"
    PROVIDER_THROTTLED = "ProviderThrottled"


class Truth(StrEnum):
    """Whether it is so."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why it is so, for programs. Each belongs to one status of one type, and of `Ready` where that is in its way."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    CONFLICTED = "Conflicted"
    NO_ROOM = "NoRoom"

    PROGRAMMED = "Programmed"
    PENDING = "Pending"
    NO_GATES = "NoGates"
    NOT_ACCEPTED = "NotAccepted"
    """Nothing of the object is in force."""

    READY = "Ready"

    COMMITTED = "Committed"
    COMMITS_MISSING = "CommitsMissing"
    NO_CALLS = "NoCalls"

    STORE_HEALTHY = "StoreHealthy"
    STORE_AWAY = "StoreAway"

    THROTTLED = "Throttled"
    OVERLOADED = "Overloaded"
    SPEND_CAP_REACHED = "SpendCapReached"
    NOT_THROTTLED = "NotThrottled"

    NO_REPORTS = "NoReports"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is so, is not, or is not known."""

    kind: Kind
    truth: Truth
    reason: Reason
    message: str
    """Sentences for a platform engineer, at most `LONGEST_MESSAGE` bytes once written."""


def condition(kind: Kind, *, holds: bool | None, reason: Reason, message: str) -> Condition:
    """A condition; `holds` is None where that is not known."""
    truth = Truth.UNKNOWN if holds is None else Truth.TRUE if holds else Truth.FALSE
    return Condition(kind, truth, reason, message)


def written(
    conditions: Iterable[Condition], generation: int, before: Mapping[str, Mapping[str, Any]], now: float
) -> list[dict[str, Any]]:
    """The conditions as they stand in a status. `before` are those that stand there now, by type.

    The time of the last transition is kept while the status of a condition stays the same, as the API conventions say.
    """
    return [
        {
            "type": str(each.kind),
            "status": str(each.truth),
            "observedGeneration": generation,
            "lastTransitionTime": _since(each, before.get(each.kind, {}), now),
            "reason": str(each.reason),
            "message": shortened(each.message, LONGEST_MESSAGE),
        }
        for each in conditions
    ]


def by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The conditions of a status that are ours, in the order of `Kind`, whoever wrote it and in whatever order."""
    conditions = status.get("conditions")
    listed = conditions if isinstance(conditions, list) else []
    found = {each.get("type"): each for each in listed if isinstance(each, Mapping)}
    return {kind: found[kind] for kind in Kind if kind in found}


def shortened(text: str, most: int) -> str:
    """The text, cut so that it takes at most so many bytes."""
    encoded = text.encode()
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "…"


def _since(new: Condition, before: Mapping[str, Any], now: float) -> str:
    since = before.get("lastTransitionTime")
    if before.get("status") == new.truth and isinstance(since, str):
        return since
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
