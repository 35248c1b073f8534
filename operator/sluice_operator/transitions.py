"""What is worth an event in the step from one status to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from sluice_operator import conditions
from sluice_operator.conditions import Kind


class Told(NamedTuple):
    """An event, but for the object that it is about."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Told]:
    """The events of a change of status."""
    before, after = conditions.by_type(old), conditions.by_type(new)
    for kind in (Kind.ACCEPTED, Kind.PROGRAMMED):
        was, becomes = before.get(kind, {}), after[kind]
        if (was.get("status"), was.get("reason")) != (becomes["status"], becomes["reason"]):
            yield Told("Normal" if becomes["status"] == "True" else "Warning", becomes["reason"], becomes["message"])
