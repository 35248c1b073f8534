"""The limits files: read whole, and looked at again and again.

Theory of operation
    Every look reads every file. Contents are compared, not times or sizes: so an edit in place, a file renamed over
    another, a file more or less in a folder and the kubelet's swap of a ConfigMap's `..data` link are all the same
    to us, on any file system, and need no notification service. Limits files are small; a look costs some 0.1 ms.

    A writer may be half done when we look, and half a file may well be a sound document. So a change counts once two
    looks in a row, `SETTLE` apart, have seen the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sluice.config.document import parse
from sluice.config.merge import Configuration, merge
from sluice.config.types import ProviderLimits
from sluice.errors import InvalidDocument, Problem
from sluice.schema import yamltext
from sluice.usage.profiles import BUILT_IN, Catalog

INTERVAL: Final = 0.25
"""Seconds between two looks."""
SETTLE: Final = 0.1
"""Seconds that a change must hold still: together with `INTERVAL`, a good one is live well within a second."""
SUFFIXES: Final = (".yaml", ".yml", ".json")
LARGEST: Final = 4 * 1024 * 1024
"""Bytes read of one file: more than the parser takes, so that it is the one to complain."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the files said at one look. Two readings are equal if nobody could tell them apart."""

    files: tuple[tuple[str, bytes], ...]
    """`(path, what is in it)`, in the order of the command line, each folder's files sorted by name."""
    problems: tuple[Problem, ...]
    """Files that could not be read."""

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file's bytes, in hexadecimal, by its path."""
        return {path: hashlib.sha256(content).hexdigest() for path, content in self.files}


def read(paths: Sequence[Path]) -> Reading:
    """Read files, and of folders every `*.yaml`, `*.yml` and `*.json` that is not hidden."""
    contents: list[tuple[str, bytes]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for path in paths:
        try:
            files = list(_files(path))
            if not files:
                # As for a file that is emptied: more often a slip than a wish to lift every limit.
                kinds = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
                problems.append(Problem(str(path), "", "", f"holds no file to read ({kinds}): write one"))
        except OSError as error:
            problems.append(Problem(str(path), "", "", f"cannot be read: {error.strerror or error}"))
            continue
        for file in files:
            if (same := os.path.realpath(file)) in seen:
                problems.append(Problem(str(file), "", "", "is given twice: name it once, by itself or by its folder"))
                continue
            seen.add(same)
            try:
                with file.open("rb") as stream:
                    contents.append((str(file), stream.read(LARGEST)))
            except OSError as error:
                problems.append(Problem(str(file), "", "", f"cannot be read: {error.strerror or error}"))
    return Reading(tuple(contents), tuple(problems))


def configuration(reading: Reading, catalog: Catalog = BUILT_IN) -> Configuration:
    """What the files put in force together; raises `InvalidDocument` with every mistake of every file."""
    return merge(documents(reading, catalog), catalog)


def catalog(folder: Path | None) -> Catalog:
    """The built-in profiles, and those of a folder; raises `InvalidDocument` with every mistake of every file."""
    if folder is None:
        return BUILT_IN
    reading = read([folder])
    texts, problems = {}, list(reading.problems)
    for source, content in reading.files:
        try:
            texts[source] = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(_not_utf_8(source, error))
    known = BUILT_IN
    try:
        known = Catalog.of_texts(texts)
    except InvalidDocument as error:
        problems += error.problems
    if problems:
        raise InvalidDocument(problems)
    return known


def documents(reading: Reading, catalog: Catalog = BUILT_IN) -> tuple[ProviderLimits, ...]:
    """The documents of all files, each sound by itself; raises `InvalidDocument` with every mistake of every file."""
    problems = list(reading.problems)
    sound: list[ProviderLimits] = []
    for source, content in reading.files:
        try:
            text = content.decode("utf-8-sig")
            found = parse(text, source, catalog)
        except UnicodeDecodeError as error:
            problems.append(_not_utf_8(source, error))
            continue
        except InvalidDocument as error:
            problems += error.problems
            continue
        if not found and next(yamltext.read(text), None) is None:
            # A file that is emptied is more often a slip than a wish to lift every limit; an empty List says that wish.
            problems.append(Problem(source, "", "", "holds no document: write one, or remove the file"))
        sound += found
    if problems:
        raise InvalidDocument(problems)
    return tuple(sound)


class Watch:
    """Tells each change of the files, once it has settled."""

    def __init__(
        self, paths: Sequence[Path], last: Reading, *, interval: float = INTERVAL, settle: float = SETTLE
    ) -> None:
        self._paths = tuple(paths)
        self._last = last
        self._interval = interval
        self._settle = settle

    async def change(self) -> Reading:
        """Wait for the files to say something else than at the last change, and for them to hold still."""
        while True:
            await asyncio.sleep(self._interval)
            reading = await self._look()
            while reading != self._last:
                await asyncio.sleep(self._settle)
                before, reading = reading, await self._look()
                if reading == before:
                    self._last = reading
                    return reading

    async def _look(self) -> Reading:
        # A file system may hang (a volume that is gone); calls must not.
        return await asyncio.to_thread(read, self._paths)


def _not_utf_8(source: str, error: UnicodeDecodeError) -> Problem:
    return Problem(source, "", "", f"is not UTF-8: byte {error.start + 1} cannot be read")


def _files(path: Path) -> Iterator[Path]:
    """The file itself; of a folder, those in it that may hold limits. Raises `OSError`."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.iterdir()):
        # A mounted ConfigMap holds `..data` and its folders beside the links to its files.
        if file.suffix in SUFFIXES and not file.name.startswith(".") and not file.is_dir():
            yield file
