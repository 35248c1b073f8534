"""The folder of `--state-dir`: who holds it, and the file of counts in it. Everything here blocks.

Theory of operation
    Two files. `lock` is held (flock) as long as the gate runs, so that two gates never keep their counts in one folder;
    it stays in the end, and that it is there tells of a gate that ran before. `counts` is what was saved.

    The first save of a gate writes the whole file beside the old one, syncs it, and renames it over the old one. Later
    saves append a line and sync. A save that fails is never built upon: the next one is a whole file again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sluice.errors import SluiceError
from sluice_sidecar.stores.counts_format import HEAD

FILE: Final = "counts"
LOCK: Final = "lock"
NEW: Final = "counts.new"
ASIDE: Final = "counts.damaged"
"""The last file that could not be read. There is one at most, so that no crash loop fills a disk."""

_BUFFER: Final = 1 << 18
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


class Held(SluiceError):
    """Another gate keeps its counts in the folder."""


class CountsFile:
    """The file of counts in a folder. For one thread at a time; every method may raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.size = 0
        """Bytes in the file that this object has written; 0 if there is none that a save can be appended to."""
        self._lock = -1
        self._file = -1

    def hold(self) -> bool:
        """Hold the folder, which is made if it is not there. True if no gate held it before. Raises `Held`."""
        if self._lock >= 0:
            return False
        with suppress(FileExistsError):
            self.folder.mkdir(mode=0o700, parents=True)
        path = self.folder / LOCK
        is_first = not path.exists()
        lock = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Held(f"{self.folder}: another gate keeps its counts there") from None
            raise
        self._lock = lock
        return is_first

    def read(self) -> bytes | None:
        """What was saved; None if there is no file."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def set_aside(self) -> Path:
        """Keep the file under another name, in place of one that was kept before; it stays until `write` replaces it.

        So what is good in it is there for the next gate if this one is killed before it has saved anything.
        """
        aside = self.folder / ASIDE
        with suppress(FileNotFoundError):
            aside.unlink()
        try:
            aside.hardlink_to(self.path)
        except OSError:
            self.path.rename(aside)  # not every file system has links
        return aside

    def write(self, save: Sequence[bytes]) -> None:
        """Replace the file by one with this save alone, at once."""
        self._forget_file()
        self.hold()
        new = self.folder / NEW
        with suppress(FileNotFoundError):
            new.unlink()
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _FLAGS, 0o600)
        try:
            size = _write(file, [HEAD, *save])
            os.fsync(file)
            new.rename(self.path)
        except BaseException:
            os.close(file)
            with suppress(OSError):
                new.unlink()
            raise
        self._file, self.size = file, size
        with _opened(self.folder) as folder:
            os.fsync(folder)

    def append(self, save: Sequence[bytes]) -> None:
        """Add a save to the file that `write` has made."""
        try:
            self._check_there()
            self.size += _write(self._file, save)
            _sync(self._file)
        except BaseException:
            self._forget_file()
            raise

    def close(self) -> None:
        """Let the folder go."""
        self._forget_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_there(self) -> None:
        if os.fstat(self._file).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the file was taken away", str(self.path))

    def _forget_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self.size = -1, 0


def _write(file: int, pieces: Sequence[bytes]) -> int:
    """Returns the number of bytes."""
    with os.fdopen(file, "ab", buffering=_BUFFER, closefd=False) as stream:
        stream.writelines(pieces)
    return sum(map(len, pieces))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
