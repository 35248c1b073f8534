"""An event loop whose time is the test's: timers go off when the test says so, what sockets bring arrives at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

from sluice.core.limits import DAY, SECOND

START = 10 * DAY
TURNS = 10
"""Turns of the loop in which nothing but the asking task runs where nothing is left to do."""

Arguments = TypeVarTuple("Arguments")


class DrivenLoop(asyncio.SelectorEventLoop):
    """Waits for sockets in real time, so that servers can be spoken with while its own time stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        """In ns."""
        self._steps = 0

    def time(self) -> float:
        return self.now / SECOND

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        self._steps += 1
        return super().call_soon(callback, *args, context=context)

    async def is_quiet(self) -> bool:
        """True if nothing had anything to do for some turns, with the time and all sockets as they are."""
        before = self._steps
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return self._steps - before == TURNS


def driven() -> DrivenLoop:
    """The loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, DrivenLoop)
    return loop
