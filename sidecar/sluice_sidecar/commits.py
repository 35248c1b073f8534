"""Says when the tokens that calls use are not told any more, within a minute: in the log, and to whoever asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sluice.core.limits import MINUTE, SECOND
from sluice.usage.commits import ADVICE, Missing, missing
from sluice_sidecar.recent import SLOT, RecentCounts

logger = logging.getLogger(__name__)

EVERY: Final = SLOT / SECOND
"""Seconds between two looks."""


class CommitWatch:
    """Looks at what became of the last minute's calls. Belongs to one event loop."""

    def __init__(self, recent: RecentCounts) -> None:
        self._recent = recent
        self.missing: Mapping[str, Missing] = MappingProxyType({})
        """The providers of whose calls the tokens are not known, and why."""

    def look(self) -> None:
        """Judge anew, and say in the log what has changed."""
        tallies = self._recent.by_provider(MINUTE)
        judged = {name: missing(tally.committed, tally.untold, tally.expired) for name, tally in tallies.items()}
        found = {name: why for name, why in judged.items() if why is not None}
        for name, why in found.items():
            if self.missing.get(name) is not why:
                logger.error("%s: %s", name, ADVICE[why])
        for name in self.missing.keys() - found.keys():
            if name in tallies and tallies[name].committed:
                logger.info("%s: the tokens that calls use are told again", name)
        self.missing = MappingProxyType(found)

    async def run(self) -> None:
        """Look again and again; cancel it to end it."""
        while True:
            await asyncio.sleep(EVERY)
            self.look()
