"""Who wins: which form of each object is in force.

Objects are taken in the order of their age, then of their names. Each gets in with its present form, if that is sound,
contradicts nobody who got in before, and finds room; else with its last good form, under the same conditions; else not
at all. So one bad object costs the others nothing, and of rivals the oldest is in force, always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from sluice.config.merge import Claims
from sluice.config.render import SEPARATOR
from sluice.errors import Problem
from sluice_operator.planning.forms import Form, Remembered, form_of, size_of

ROOM: Final = 1_000_000
"""Bytes for the limits text of a namespace and the owner references beside it: etcd takes 1.5 MiB for an object, and
the API server 1 MiB for a ConfigMap's data."""
OWNER_BYTES: Final = 250
"""What an object's owner reference takes: 36 bytes of uid, at most 253 of name, and the words around them."""
MOST_READ: Final = 4 * ROOM
"""Characters of the specs that are read in a namespace, the oldest first: some two seconds' work. Objects that all find
room have fewer."""
MOST_PROBLEMS: Final = 100
"""Contradictions found of one object: with a namesake each of its 64 entries may be one."""


class Verdict(StrEnum):
    """What becomes of the present form of an object. The value is the reason of its `Accepted` condition."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    CONFLICTED = "Conflicted"
    NO_ROOM = "NoRoom"


@dataclass(frozen=True, slots=True)
class Standing:
    """One object, and what of it is in force."""

    manifest: Mapping[str, Any]
    verdict: Verdict
    problems: tuple[Problem, ...]
    """What is wrong with its present form; empty if that is accepted, or finds no room."""
    form: Form | None
    """The form in force: the present one, the last good one, or none."""

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.manifest["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.manifest["metadata"]["generation"])


def standings(objects: Iterable[Mapping[str, Any]], remembered: Remembered) -> tuple[Standing, ...]:
    """What becomes of each object, the oldest first. Objects that are being deleted count as gone."""
    living = [each for each in objects if not each["metadata"].get("deletionTimestamp")]
    force = _Force(remembered)
    return tuple(force.take(each) for each in sorted(living, key=_age))


def _age(manifest: Mapping[str, Any]) -> tuple[str, str]:
    return manifest["metadata"]["creationTimestamp"], manifest["metadata"]["name"]


class _Force:
    """What is in force so far."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._claims = Claims()
        self._room = ROOM
        self._unread = MOST_READ

    def take(self, manifest: Mapping[str, Any]) -> Standing:
        self._room -= OWNER_BYTES
        self._unread -= size_of(manifest)
        present = form_of(manifest) if self._unread >= 0 else None
        verdict, problems = self._judge(present)
        if verdict is Verdict.ACCEPTED and isinstance(present, Form):
            self._let_in(present)
            return Standing(manifest, verdict, problems, present)
        metadata = manifest["metadata"]
        last = self._remembered.last_good(metadata["name"], metadata["uid"], metadata["generation"])
        if last is None or self._judge(last)[0] is not Verdict.ACCEPTED:
            return Standing(manifest, verdict, problems, None)
        self._let_in(last)
        return Standing(manifest, verdict, problems, last)

    def _let_in(self, form: Form) -> None:
        self._claims.add(form.document)
        self._room -= _size(form)

    def _judge(self, form: Form | tuple[Problem, ...] | None) -> tuple[Verdict, tuple[Problem, ...]]:
        """Of a form, of what stands against reading one, or of None for one that is not read."""
        if form is None:
            return Verdict.NO_ROOM, ()
        if not isinstance(form, Form):
            return Verdict.INVALID, form
        if problems := tuple(islice(self._claims.against(form.document), MOST_PROBLEMS)):
            return Verdict.CONFLICTED, problems
        if _size(form) > self._room:
            return Verdict.NO_ROOM, ()
        return Verdict.ACCEPTED, ()


def _size(form: Form) -> int:
    return len(form.text.encode()) + len(SEPARATOR)
