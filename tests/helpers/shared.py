"""What tests of gates that share a store have in common: opening them, and counting what their store is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from helpers.house import House, Place
from sluice.core.rules import Rule


class Open(Protocol):
    """Makes so many gates under these rules."""

    async def __call__(self, *rules: Rule, gates: int = 2) -> House: ...


@dataclass(slots=True)
class Asked:
    """Scripts that the server ran, once the time is over in which they are counted."""

    scripts: int = 0


@contextmanager
def asked(place: Place | None) -> Iterator[Asked]:
    """Count the scripts that are run meanwhile: questions, and what is owed where it is sent by then."""
    assert place is not None
    counted = Asked()
    before = _scripts(place)
    yield counted
    counted.scripts = _scripts(place) - before


def _scripts(place: Place) -> int:
    told = place.node.info("commandstats")
    return sum(int(told.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("evalsha", "eval"))
