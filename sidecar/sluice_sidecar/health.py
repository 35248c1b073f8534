"""What the gate says of itself: whether it is ready, which limits are in force, and how it stands with its counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sluice.core.limits import SECOND
from sluice.errors import Problem
from sluice_sidecar.histogram import Histogram

logger = logging.getLogger(__name__)

LATE: Final = 10.0
"""Seconds without a save after which something is wrong with the folder."""
STORE_WAITS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 1.0)
"""Seconds that a decision waited for the store. The store is given up before 0.02: what lies above tells of a gate that
was too busy to look."""


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


class StoreMode(StrEnum):
    """Who decides, where gates share a store."""

    SHARED = "Shared"
    """The store, for all gates."""
    LOCAL = "Local"
    """This gate alone, by the failure policy of each limit."""


def _none_yet() -> dict[StoreMode, int]:
    return dict.fromkeys(StoreMode, 0)


@dataclass(slots=True, kw_only=True)
class StoreHealth:
    """How it stands with the store that gates share, and what it has decided. Changed by the store's adapter alone.

    What changes is told in the log here, and nowhere else: once for each change of mode, and once for a store that is
    not there from the start. Another problem while the mode stays the same is no news.
    """

    address: str
    """As people may see it: without secrets."""
    prefix: str
    """Of all its keys. Gates with the same address and prefix share their counts."""
    clock: Callable[[], int]
    mode: StoreMode = StoreMode.LOCAL
    since: int = field(init=False)
    """When it came into that mode, by that clock."""
    problem: str = "not reached yet"
    """Why the gate decides alone; empty while the store decides."""
    gates: int = 1
    """Gates that share the store, this one included, as it was last told."""
    entered: dict[StoreMode, int] = field(default_factory=_none_yet)
    """How often each mode has been entered. The start is no change."""
    unsent_since: int | None = None
    """Since when the store lacks something that it is owed; None while it lacks nothing."""
    decisions: dict[StoreMode, int] = field(default_factory=_none_yet)
    """Decisions that were made in each mode."""
    waits: Histogram = field(default_factory=lambda: Histogram(STORE_WAITS))
    """How long decisions waited for the store, also those that it did not answer in time."""
    _told: StoreMode | None = field(default=None, init=False, repr=False)
    """The mode that the log spoke of last."""

    def __post_init__(self) -> None:
        self.since = self.clock()

    @property
    def is_healthy(self) -> bool:
        return self.mode is StoreMode.SHARED

    @property
    def changes(self) -> int:
        """Changes of mode so far."""
        return sum(self.entered.values())

    @property
    def age(self) -> float:
        """Seconds in this mode."""
        return (self.clock() - self.since) / SECOND

    @property
    def unsent(self) -> float:
        """Seconds for which the store has lacked something that it is owed; 0 while it lacks nothing."""
        return 0.0 if self.unsent_since is None else (self.clock() - self.unsent_since) / SECOND

    def shared(self, gates: int) -> None:
        """The store decides, for so many gates. To be called as often as their number is known anew."""
        self.gates = gates
        self.problem = ""
        away = self._come_into(StoreMode.SHARED)
        if self._told is not StoreMode.SHARED:
            after = "" if self._told is None else f", after {away:.1f} s without it"
            logger.info("the store %s decides%s: %s", self.address, after, sharing(gates))
            self._told = StoreMode.SHARED

    def local(self, problem: str) -> None:
        """The gate decides alone: the store cannot be used, for this reason. To be called for another reason, too."""
        self.problem = problem
        self._come_into(StoreMode.LOCAL)
        if self._told is not StoreMode.LOCAL:
            logger.warning("the store %s cannot be used: %s; %s", self.address, problem, meanwhile(self.gates))
            self._told = StoreMode.LOCAL

    def decided(self, mode: StoreMode, waited: int = 0) -> None:
        """A decision was made in this mode, for which the store was waited for so many nanoseconds; 0 if it was not."""
        self.decisions[mode] += 1
        if waited:
            self.waits.observe(waited / SECOND)

    def _come_into(self, mode: StoreMode) -> float:
        """Be in that mode; returns the seconds in the one before, 0 if it is the same."""
        if mode is self.mode:
            return 0.0
        lasted = self.age
        self.mode, self.since = mode, self.clock()
        self.entered[mode] += 1
        return lasted


def sharing(gates: int) -> str:
    """How many gates share a store, in words."""
    return "1 gate shares it" if gates == 1 else f"{gates} gates share it"


def meanwhile(gates: int) -> str:
    """What happens while a store cannot be used, in words."""
    return f"until it can, each limit's failurePolicy decides (gates known: {gates})"


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
    """None if counts are kept in memory alone, or in a store that gates share."""
    store: StoreHealth | None = None
    """None if the gate counts for itself."""
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
