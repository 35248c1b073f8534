"""What the gate says of itself: whether it is ready, and which limits are in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sluice.core.limits import SECOND
from sluice.errors import Problem

LATE: Final = 10.0
"""Seconds without a save after which something is wrong with the folder."""


@dataclass(slots=True)
class Saving:
    """How it stands with the counts that are saved in a folder. Changed by whoever saves them."""

    folder: str
    clock: Callable[[], int]
    saved_at: int
    """When all that was counted until then was last on disk, by that clock; at first, when nothing was counted yet."""
    problem: str = ""
    """Why the last save failed; empty if it did not."""
    failures: int = 0
    """Saves that failed."""
    restored: int = 0
    """Buckets that were put back at the start."""

    @property
    def age(self) -> float:
        """Seconds of which a gate that is killed now forgets what it admitted in them, at most."""
        return (self.clock() - self.saved_at) / SECOND

    @property
    def is_healthy(self) -> bool:
        return not self.problem and self.age < LATE

    def saved(self, at: int) -> None:
        """All that was counted until `at` is on disk."""
        self.saved_at = at
        self.problem = ""

    def failed(self, problem: str) -> None:
        """A save has failed."""
        self.problem = problem
        self.failures += 1


@dataclass(slots=True)
class Health:
    """What the gate says of itself. Changed by the program as it starts, reloads and ends."""

    waiting_for: str = "start"
    """What stands between the gate and being ready; empty once it is."""
    generation: int = 0
    """How many configurations have been in force, the one now included."""
    loaded_at: float = 0.0
    """When that one was put in force: seconds since 1970."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The files it was read from, by the paths they were given by, each with the SHA-256 of its bytes."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the files as they are now; what is in force is the last good configuration."""
    saving: Saving | None = None
    """None if counts are kept in memory alone."""
    rejected: int = 0
    """Configurations that were not put in force because of their mistakes."""

    @property
    def is_ready(self) -> bool:
        return not self.waiting_for

    def loaded(self, at: float, files: Mapping[str, str]) -> None:
        """A configuration has been put in force."""
        self.generation += 1
        self.loaded_at = at
        self.files = files
        self.problems = ()

    def turned_down(self, problems: Iterable[Problem]) -> None:
        """The files are bad: what was in force stays."""
        self.rejected += 1
        self.problems = tuple(problems)
