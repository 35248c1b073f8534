"""Counts that outlive the gate: what a save of many buckets takes of the event loop, and a start with them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Final

from bench.samples import Part, Stopwatch
from sluice.core.buckets import Demand
from sluice.core.engine import Engine
from sluice.core.keeping import keep, put_back
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Limits
from sluice.core.permits import Call
from sluice.core.rules import Rule, RuleBook
from sluice_sidecar.stores.counts_file import CountsFile
from sluice_sidecar.stores.counts_format import Moment, bucket_texts, line, read
from sluice_sidecar.stores.keeper import AT_ONCE

BUCKETS: Final = 100_000
CHANGED: Final = 9000
"""About as many as one core can admit calls to in a second, at three buckets a call."""
BOOK: Final = RuleBook((Rule("openai", Scope.USER, Limits(requests_per_minute=60, tokens_per_day=10**6)),))
NOW: Final = 10**15


def saves() -> Iterator[Part]:
    """A whole file, a second's changes, and what a start reads."""
    engine = Engine(BOOK)
    for number in range(BUCKETS):
        engine.acquire(Call(BOOK.match("openai", {Scope.USER: f"user-{number:06d}"}), Demand(0, 1, 123)), NOW)
    keys = engine.keys()
    gc.collect()
    looked = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        file = CountsFile(Path(name))
        for what, some in ((f"{BUCKETS:,} buckets", keys), (f"{CHANGED:,} changed ones", keys[:CHANGED])):
            start = perf_counter_ns()
            texts = _texts(engine, some, looked)
            yield Part(f"counts: look at {what}", "ms", (perf_counter_ns() - start) / 1e6)
            before, start = file.size, perf_counter_ns()
            save = line(Moment(NOW, NOW, NOW, "bench"), texts)
            if some is keys:
                file.write(save)
            else:
                file.append(save)
            yield Part(f"counts: write and sync {what}", "ms", (perf_counter_ns() - start) / 1e6)
            yield Part(f"counts: {what} in the file", "MB", (file.size - before) / 1e6)
        yield looked.part(f"counts: {AT_ONCE} buckets, between two calls")
        yield _start(file)
        file.close()


def _texts(engine: Engine, keys: Sequence[BucketKey], looked: Stopwatch) -> list[bytes]:
    texts = []
    for start in range(0, len(keys), AT_ONCE):
        with looked:
            texts.append(bucket_texts(engine.visit(keys[start : start + AT_ONCE], NOW, keep)))
    return texts


def _start(file: CountsFile) -> Part:
    gc.disable()  # as the gate does
    start = perf_counter_ns()
    started, data = Engine(), file.read()
    assert data is not None
    for bucket in read(data).buckets:
        put_back(started, bucket, NOW)
    gc.enable()
    return Part(f"counts: a start with {len(started.keys()):,} buckets", "ms", (perf_counter_ns() - start) / 1e6)
