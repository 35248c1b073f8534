"""Long answers, read for their usage: what a reader takes for each size, and what it keeps of them."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from time import process_time
from typing import Final, NamedTuple

from bench.machine import resident_bytes
from helpers.bodies import BODIES, MB, Body

SIZES: Final = (1, 4, 16, 64, 100)
"""Megabytes."""


class Reading(NamedTuple):
    """A body of one size that was read."""

    megabytes: int
    seconds: float
    """CPU time of the reader alone."""
    kept: int
    """Bytes that it took at most meanwhile: what Python counted in the first megabyte, or what the process grew by."""
    right: bool
    """It told the usage that it should."""


def curve(body: Body, sizes: Sequence[int] = SIZES) -> Iterator[Reading]:
    """Read it once to count what is kept of it, and have everything loaded; and then in each size."""
    kept = _kept(body)
    for megabytes in sizes:
        reading = _read(body, megabytes)
        yield reading._replace(kept=max(kept, reading.kept))


def measure(sizes: Sequence[int] = SIZES) -> dict[str, list[Reading]]:
    """The curve of each kind of body."""
    return {body.name: list(curve(body, sizes)) for body in BODIES}


def _kept(body: Body) -> int:
    pieces, reader = list(body.pieces(MB)), body.reader()
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _read(body: Body, megabytes: int) -> Reading:
    gc.collect()
    reader, seconds, most = body.reader(), 0.0, 0
    before = resident_bytes()
    for at, piece in enumerate(body.pieces(megabytes * MB)):
        began = process_time()
        reader.feed(piece)
        seconds += process_time() - began
        if at % 16 == 0:
            most = max(most, resident_bytes())
    began = process_time()
    right = reader.finish() == body.usage
    return Reading(megabytes, seconds + process_time() - began, max(0, most - before), right)
