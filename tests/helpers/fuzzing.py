"""A small coverage-guided fuzzer: it mutates inputs, and keeps those that take the library by a way not taken before.

Why not Atheris, which does the same with libFuzzer: its wheels are for x86-64 alone, and its present release has none
for Python 3.11, so that half of those who clone this would see the tests skipped. Its speed would hardly be felt: what
takes the time here is feeding an input whole, in pieces and byte by byte. This runs wherever the tests do.

    make test-fuzz                                      every target, 30 s each
    make test-fuzz ARGS="-k ndjson"                     one of them
    SLUICE_FUZZ_SECONDS=600 make test-fuzz              longer
    SLUICE_FUZZ_SEED=7 make test-fuzz                   with another seed (in CI it is always 0)
    SLUICE_FUZZ_INPUT=FILE make test-fuzz ARGS="-k x"   one input again
    SLUICE_FUZZ_GROW=1 make test-fuzz                   what finds a new way goes to the corpus: commit what matters

Every run begins with the corpus, `tests/fuzz/corpus/NAME/`. Put an input there that found a mistake.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import sluice

FOLDER = Path(__file__).parents[1] / "fuzz"
SECONDS = float(os.environ.get("SLUICE_FUZZ_SECONDS", "30"))
SEED = int(os.environ.get("SLUICE_FUZZ_SEED") or (0 if "CI" in os.environ else Random().getrandbits(32)))
LONGEST = 4096
"""Bytes of an input."""

SLOW = 5.0
"""Seconds of CPU time that no input takes."""

Check = Callable[[bytes], object]
"""Tries an input. Raises whatever it likes if something is not as it should be."""


class Ways:
    """The ways through the library: pairs of lines that ran one after the other."""

    def __init__(self) -> None:
        self.known: set[tuple[int, int]] = set()
        self._found = False
        self._root = str(Path(sluice.__file__).parent)
        self._last = 0

    def new_in(self, run: Callable[[], object]) -> bool:
        """Run it, and say whether it went a way that was not known."""
        self._found, self._last, before = False, 0, sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        finally:
            sys.settrace(before)
        return self._found

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._step if frame.f_code.co_filename.startswith(self._root) else None

    def _step(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            here = hash(frame.f_code) ^ frame.f_lineno
            way = (self._last, here)
            if way not in self.known:
                self.known.add(way)
                self._found = True
            self._last = here
        return self._step


class Mutator:
    """Makes inputs from inputs."""

    def __init__(self, random: Random, words: Sequence[bytes]) -> None:
        """`words` are bytes that mean something to the target."""
        self.random = random
        self.words = words
        self._ways = (self._flip, self._byte, self._drop, self._repeat, self._word, self._number, self._move, self._cut)

    def mutated(self, data: bytes, other: bytes) -> bytes:
        """A near relative of `data`, with parts of `other` now and then."""
        random = self.random
        if random.random() < 0.15:
            data = data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]
        for _ in range(random.choice((1, 1, 2, 3, 5, 8))):
            data = random.choice(self._ways)(data)
        return data[:LONGEST]

    def _span(self, data: bytes, longest: int = 64) -> tuple[int, int]:
        start = self.random.randint(0, len(data))
        return start, min(len(data), start + self.random.randint(0, self.random.choice((2, 8, longest))))

    def _flip(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data)) if data else 0
        return data[:at] + bytes([(data[at] if data else 0) ^ 1 << self.random.randrange(8)]) + data[at + 1 :]

    def _byte(self, data: bytes) -> bytes:
        at, end = self._span(data, 1)
        return data[:at] + self.random.randbytes(1) + data[end:]

    def _drop(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[start:end] * self.random.choice((2, 3, 10, 200)) + data[end:]

    def _word(self, data: bytes) -> bytes:
        start, end = self._span(data, 8)
        return data[:start] + self.random.choice(self.words) + data[self.random.choice((start, end)) :]

    def _number(self, data: bytes) -> bytes:
        digits = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
        if not digits:
            return self._word(data)
        at = self.random.choice(digits)
        numbers = (
            b"0",
            b"-1",
            b"1.5",
            b"1e999",
            b"NaN",
            b"true",
            b"null",
            b"1000000001",
            b"9007199254740993",
            b"9" * 400,
        )
        return data[:at] + self.random.choice(numbers) + data[at + 1 :]

    def _move(self, data: bytes) -> bytes:
        start, end = self._span(data)
        rest = data[:start] + data[end:]
        to = self.random.randint(0, len(rest))
        return rest[:to] + data[start:end] + rest[to:]

    def _cut(self, data: bytes) -> bytes:
        return data[: self.random.randint(0, len(data))]


def fuzz(
    name: str,
    check: Check,
    seeds: Iterable[bytes],
    words: Sequence[bytes],
    *,
    traced: Check | None = None,
    repair: Callable[[bytes], bytes] | None = None,
    folder: Path = FOLDER,
    seconds: float = SECONDS,
    seed: int = SEED,
) -> None:
    """Try the corpus of that name, the seeds, and what can be made of them, until the time is over.

    Raises `AssertionError` for the first input that fails `check`, which is shortened and kept in a file.

    `traced` does of `check` what is enough to see the ways that an input takes. `repair` makes of a mutated input
    one that is sound where chance would never make it so (checksums); it is used half of the time.
    """
    corpus = folder / "corpus" / name
    single = os.environ.get("SLUICE_FUZZ_INPUT")
    if single:
        check(Path(single).read_bytes())
        return
    random, ways, kept = Random(seed), Ways(), [b""]
    mutator = Mutator(random, words)
    began, runs = time.monotonic(), 0

    def attempt(data: bytes) -> bool:
        nonlocal runs
        runs += 1
        try:
            _check(check, data)
        except BaseException as error:  # of these, the time limit of a test: it may be that the input has no end
            data = _shortened(check, data, type(error)) if isinstance(error, Exception) else data
            file = folder / "crashes" / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
            raise AssertionError(
                f"{name}: {error!r}, input {runs} with seed {seed}. The input, {len(data)} bytes, is in {file}.\n"
                f'Once more: SLUICE_FUZZ_INPUT={file} make test-fuzz ARGS="-k {name}"\n'
                f"When it is mended, move the file to {corpus}."
            ) from error
        return ways.new_in(lambda: (traced or check)(data))

    for data in [*(file.read_bytes() for file in sorted(corpus.glob("[!.]*"))), *seeds]:
        attempt(data)
        kept.append(data)
    while time.monotonic() - began < seconds:
        data = mutator.mutated(random.choice(kept), random.choice(kept))
        if repair is not None and random.random() < 0.5:
            data = repair(data)
        if attempt(data):
            kept.append(data)
            if "SLUICE_FUZZ_GROW" in os.environ:
                corpus.mkdir(parents=True, exist_ok=True)
                (corpus / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    print(f"{name}: {runs} inputs, {len(kept)} kept, {len(ways.known)} ways, seed {seed}")  # noqa: T201 - for `pytest -s`


def _check(check: Check, data: bytes) -> None:
    began = time.process_time()
    check(data)
    assert time.process_time() - began < SLOW, "it took too long"


def _shortened(check: Check, data: bytes, kind: type[Exception]) -> bytes:
    """What is left of an input when everything is gone that may go without the mistake going away."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            try:
                check(shorter)
            except kind:
                data = shorter
            except Exception:  # noqa: BLE001 - another mistake: not the one that is looked at
                at += size
            else:
                at += size
        size //= 2
    return data
