"""What the gate says of itself: whether it is ready, and which limits are in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sluice.errors import Problem


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
