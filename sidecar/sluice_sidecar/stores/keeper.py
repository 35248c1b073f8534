"""Keeps a gate's counts beyond its end: what has changed is saved once a second, and put back at the next start.

Theory of operation
    The engine tells of every change (`Changes`). Once a second the buckets that have changed are looked at, a few at a
    time, so that no call waits long for it, and a thread appends them to the file. A file that has doubled is written
    anew, with every bucket. What a gate that is killed has admitted since its last save is forgotten; `Saving.age`
    bounds that.

    A save takes as long as it takes; then there is a pause as long, and at least until the second is over. After one
    that failed there are five seconds. Calls go on meanwhile whatever becomes of it.

    At the start the time axis of the engine goes on where the file ends, by the time that has passed since. So slots
    leave their windows when they would have, and nothing has to be rounded, however often a gate is started.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sluice.core.buckets import Bucket
from sluice.core.decisions import Refusal
from sluice.core.keeping import keep, put_back
from sluice.core.keys import BucketKey
from sluice.core.limits import SECOND
from sluice.core.permits import Call, Permit
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.health import LATE, Saving
from sluice_sidecar.logs import whereabouts
from sluice_sidecar.settings import Failed, Start
from sluice_sidecar.stores import counts_format
from sluice_sidecar.stores.counts_file import CountsFile, Held
from sluice_sidecar.stores.counts_format import Kept, Moment, Unreadable

logger = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds from the start of one save to the next."""
RETRY: Final = 5
"""Intervals after a save that failed."""
AT_ONCE: Final = 50
"""Buckets looked at before calls have their turn: some 0.3 ms."""
SPARE: Final = 1 << 20
"""Bytes by which a file may grow before it is written anew, if it did not even double by them."""


class Changes:
    """Telemetry: the buckets in which something was counted lately."""

    def __init__(self) -> None:
        self._buckets: set[Bucket] = set()

    def take(self) -> set[Bucket]:
        """Those since the last time; some of them may be forgotten by now."""
        taken, self._buckets = self._buckets, set()
        return taken

    def acquired(self, permit: Permit) -> None:
        self._buckets.update(permit.buckets)

    def committed(self, permit: Permit) -> None:
        self._buckets.update(permit.buckets)

    def released(self, permit: Permit) -> None:
        self._buckets.update(permit.buckets)

    def expired(self, permit: Permit) -> None:
        """Nothing in a window has changed: the estimate stands."""

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        """A refused call leaves no trace in a window."""

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        """It was let pass: `acquired` tells."""


class Keeper:
    """The counts of one gate in one folder. `restore` it, `start` it, and `close` it after the last call."""

    def __init__(
        self, gate: Gate, changes: Changes, folder: Path, start: Start = Start.FULL, interval: float = INTERVAL
    ) -> None:
        self._gate = gate
        self._changes = changes
        self._start = start
        self._interval = interval
        self._file = CountsFile(folder)
        self._room = 0
        """Bytes that may be appended to the file before it is written anew."""
        self._boot = clock.boot()
        self._ending = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self.state = Saving(str(folder), clock.now, clock.now())

    # -- start ---------------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Go on from what was saved. The engine has not been told of any time yet.

        Raises `Failed` if another gate keeps its counts in the folder; whatever else is wrong is said in the log.
        """
        with _no_collections():
            await asyncio.to_thread(self._restore)

    def _restore(self) -> None:
        kept, is_first = self._found()
        if kept is not None:
            age = counts_format.passed(kept.moment, self._moment())
            self._gate.clock = clock.continued(kept.moment.axis + age)
            now = self._gate.clock()
            self.state.restored = sum(put_back(self._gate.engine, bucket, now) for bucket in kept.buckets)
            number = self.state.restored
            logger.info(
                "restored the counts of %d bucket%s, saved %.1f s ago%s",
                number, "s" * (number != 1), age / SECOND,
                "; a last save was cut off by the end" if kept.is_cut else "",
            )  # fmt: skip
            if not kept.damage:
                return
        elif is_first:
            logger.info("counts are kept in %s, which has none yet", self._file.folder)
            return
        if self._start is Start.EMPTY:
            self._gate.engine.assumed_until = self._gate.clock()
            how = "as if its limits had been used up evenly until now"
        else:
            how = "as if nothing had been used"
        logger.warning("a gate has counted here before: what is not known of it starts %s", how)

    def _found(self) -> tuple[Kept | None, bool]:
        """What the file says, and whether there is no sign of an earlier gate."""
        is_first = False
        try:
            is_first = self._file.hold()
        except Held as error:
            raise Failed(f"--state-dir {error}") from None
        except OSError as error:
            self._failed(error)
        try:
            data = self._file.read()
            if data is None:
                return None, is_first
            kept = counts_format.read(data)
        except OSError as error:
            self._set_aside(f"cannot be read: {error.strerror}")
        except Unreadable as error:
            self._set_aside(str(error))
        else:
            if kept.damage:
                self._set_aside(f"{kept.damage}; the saves before it are good")
            return kept, False
        return None, False

    def _set_aside(self, problem: str) -> None:
        where = "it stays there until the next save"
        with suppress(OSError):
            where = f"it is set aside as {self._file.set_aside()}"
        logger.error("%s: %s; %s", self._file.path, problem, where)

    # -- saves ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Save from now on."""
        self._saving = asyncio.get_running_loop().create_task(self._save_again_and_again())

    async def close(self) -> None:
        """Save once more, and let the folder go."""
        self._ending.set()
        if self._saving is not None:
            await self._saving
            await self._save()
        self._file.close()

    async def _save_again_and_again(self) -> None:
        while not self._ending.is_set():
            began = clock.now()
            await self._save()
            took = (clock.now() - began) / SECOND
            pause = RETRY * self._interval if self.state.problem else max(self._interval - took, took)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()

    async def _save(self) -> None:
        began = clock.now()
        try:
            await self._save_changes()
        except (OSError, Held) as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001  the next save may go better, and is a whole one
            self._failed(RuntimeError(whereabouts(error)))
        else:
            if self.state.problem:
                logger.info("the counts are saved in %s again", self._file.folder)
            self.state.saved(began)

    async def _save_changes(self) -> None:
        changed = self._changes.take()
        room, self._room = self._room, 0  # a save that fails leaves none: then everything is saved
        is_whole = room <= 0
        if changed or is_whole:
            # By their keys: of a bucket that was forgotten and made again, the one that counts now is meant.
            keys = self._gate.engine.keys() if is_whole else tuple({bucket.key for bucket in changed})
            texts = await self._texts(keys)
            saving = asyncio.ensure_future(asyncio.to_thread(self._put, texts, self._moment(), is_whole=is_whole))
            is_late = False
            while not (await asyncio.wait({saving}, timeout=LATE))[0]:
                is_late = True
                self._failed(TimeoutError("the last save has not ended"))
                self._changes.take()  # lest buckets that the engine forgets are held here
            size = await saving
            room = max(size, SPARE) if is_whole else room - size
            if is_late:
                return
        self._room = max(room, 0)

    async def _texts(self, keys: Sequence[BucketKey]) -> list[bytes]:
        texts = []
        for start in range(0, len(keys), AT_ONCE):
            kept = self._gate.engine.visit(keys[start : start + AT_ONCE], self._gate.clock(), keep)
            texts.append(counts_format.bucket_texts(kept))
            await asyncio.sleep(0)
        return texts

    def _put(self, texts: Sequence[bytes], moment: Moment, *, is_whole: bool) -> int:
        """Returns by how many bytes the file has grown, or how many it has anew; blocks."""
        before = 0 if is_whole else self._file.size
        save = counts_format.line(moment, texts)
        if is_whole:
            self._file.write(save)
        else:
            self._file.append(save)
        return self._file.size - before

    def _moment(self) -> Moment:
        return Moment(self._gate.clock(), clock.now(), clock.wall_now(), self._boot)

    def _failed(self, error: Exception) -> None:
        problem = str(error)
        if isinstance(error, OSError) and error.strerror:
            problem = f"{error.filename or self._file.path}: {error.strerror}"
        if problem != self.state.problem:
            logger.error("the counts cannot be saved, and calls go on: %s", problem)
        self.state.failed(problem)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A hundred thousand buckets come, and no garbage: looking for some takes most of the time then."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
