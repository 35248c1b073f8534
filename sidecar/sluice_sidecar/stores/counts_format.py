"""The text of a file of counts: written, and read strictly.

Theory of operation
    A head that names format and version, then one line a save:

        sluice counts 1
        1c291ca3 {"axis":…,"monotonic":…,"wall":…,"boot":"…","buckets":[["openai","User","alice","",{"minute":[…]}],…]}

    Before the JSON stands its CRC-32. The first line holds every bucket, each later one those that have changed since,
    whole; the last word on a bucket counts. A bucket is its key, its windows of requests and tokens by their period
    and, where there are any, its windows of input and output: of each slot its number and its two amounts.

    Every line says when it was written: on the time axis of the engine, by which slots are numbered, on the machine's
    monotonic clock, and on the wall clock.

    A save that was cut, because the gate was killed as it wrote, is a last line without its end: what stands before it
    is sound. Whatever else does not check is damage, and nothing behind it is believed.
"""

from __future__ import annotations

import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sluice.core.buckets import Counts
from sluice.core.keeping import KeptBucket
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE
from sluice.core.windows import SLOTS
from sluice.errors import SluiceError

HEAD: Final = b"sluice counts 1\n"
LONGEST: Final = 2 * DAY
"""Nanoseconds that are believed to have passed at most: by then nothing that was kept counts any more."""

_PERIODS: Final = {"minute": MINUTE, "hour": HOUR, "day": DAY}
_NAMES: Final = {length: name for name, length in _PERIODS.items()}
_SCOPES: Final = {str(scope): scope for scope in Scope}
_LATEST: Final = 2**62
_OTHER_VERSION: Final = re.compile(rb"sluice counts (\d{1,9})\n")


class Unreadable(SluiceError):
    """Nothing can be taken from the file; the message says why, in a few words."""


class Moment(NamedTuple):
    """One time on three clocks, in nanoseconds."""

    axis: int
    """On the engine's time axis."""
    monotonic: int
    wall: int
    """Since 1970."""
    boot: str
    """Names the life of the machine in which `monotonic` was read; empty if that is not known."""


class Kept(NamedTuple):
    """What a file says."""

    moment: Moment
    """Of its last sound save."""
    buckets: tuple[KeptBucket, ...]
    damage: str
    """What is wrong behind that save; empty if nothing is."""
    is_cut: bool
    """True if the gate was killed as it wrote one more."""


def passed(since: Moment, now: Moment) -> int:
    """Nanoseconds from one moment to another, whose `axis` does not matter; never below 0.

    In one life of the machine the monotonic clock tells them, whatever became of the wall clock. After a restart of the
    machine, or on another one, there is only the wall clock: one that was put back tells of no time, one that was put
    forward of too much.
    """
    if since.boot and since.boot == now.boot and since.monotonic <= now.monotonic:
        return min(now.monotonic - since.monotonic, LONGEST)
    return min(max(0, now.wall - since.wall), LONGEST)


def bucket_texts(buckets: Iterable[KeptBucket]) -> bytes:
    """Some buckets of a save, with commas between them; empty if there are none."""
    return ",".join(map(_bucket_text, buckets)).encode("ascii")


def line(moment: Moment, texts: Iterable[bytes]) -> list[bytes]:
    """One save, from the texts of its buckets. In pieces: to join them takes long where there are many buckets."""
    pieces = [_write(moment._asdict())[:-1].encode("ascii"), b',"buckets":[']
    for text in filter(None, texts):
        pieces += (text, b",")
    pieces[-1:] = [b"]}"] if pieces[-1] == b"," else [pieces[-1], b"]}"]
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return [b"%08x " % checksum, *pieces, b"\n"]


def read(data: bytes) -> Kept:
    """What a file says; raises `Unreadable` if that is nothing, and no other error whatever the bytes are."""
    if not data.startswith(HEAD):
        raise Unreadable(_wrong_head(data))
    *lines, rest = data[len(HEAD) :].split(b"\n")
    moment, damage = None, ""
    buckets: dict[BucketKey, KeptBucket] = {}
    for number, each in enumerate(lines, start=2):
        try:
            moment, changed = _save(each, 0 if moment is None else moment.axis)
        except _Wrong as error:
            damage = f"line {number} {error}"
            break
        buckets.update(changed)
    if moment is None:
        raise Unreadable(damage or "holds no whole save")
    return Kept(moment, tuple(buckets.values()), damage, bool(rest) and not damage)


class _Wrong(Exception):
    """A line that is not as it was written; the message goes on after its number."""


_write: Final[Callable[[Any], str]] = json.JSONEncoder(separators=(",", ":")).encode


def _bucket_text(kept: KeptBucket) -> str:
    fields: list[Any] = [*kept.key, _named(kept.calls)]
    if kept.parts:
        fields.append(_named(kept.parts))
    return _write(fields)


def _named(counts: Counts) -> dict[str, Any]:
    return {_NAMES[length]: slots for length, slots in counts.items()}


def _wrong_head(data: bytes) -> str:
    if not data:
        return "is empty"
    version = _OTHER_VERSION.match(data)
    if version is None:
        return "is no file of counts"
    return f"has version {int(version[1])} of the format, of another version of Sluice; this one reads version 1"


def _save(text: bytes, since: int) -> tuple[Moment, dict[BucketKey, KeptBucket]]:
    """A line without its end, that was not written before `since`: else slots before it would be yet to come."""
    checksum, body = text[:8], text[9:]
    if checksum != b"%08x" % zlib.crc32(body):
        raise _Wrong("does not match its checksum")
    try:
        save = json.loads(body)
        moment = _moment(save, since)
        return moment, dict(_bucket(each, moment.axis) for each in _list(save["buckets"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise _Wrong("is not as a gate writes it") from None


def _moment(save: Any, since: int) -> Moment:
    moment = Moment(save["axis"], save["monotonic"], save["wall"], save["boot"])
    if not (all(type(time) is int and 0 <= time < _LATEST for time in moment[:3]) and type(moment.boot) is str):
        raise ValueError
    if moment.axis < since:
        raise ValueError
    return moment


def _bucket(fields: Any, axis: int) -> tuple[BucketKey, KeptBucket]:
    provider, scope, subject, models, calls, *parts = _list(fields)
    if not (type(provider) is type(subject) is type(models) is str and len(parts) <= 1):
        raise ValueError
    key = BucketKey(provider, _SCOPES[scope], subject, models)
    return key, KeptBucket(key, _counts(calls, axis), _counts(parts[0], axis) if parts else {})


def _counts(windows: Any, axis: int) -> Counts:
    if type(windows) is not dict:
        raise ValueError
    return {(length := _PERIODS[name]): _slots(slots, axis // (length // SLOTS)) for name, slots in windows.items()}


def _slots(slots: Any, newest: int) -> list[int]:
    """Slots in time order, none of which is yet to come, with amounts of at least 0."""
    checked = array("q", _list(slots))  # it takes integers alone, of at most 64 bits
    numbers = checked[0::3]
    if not checked or len(checked) % 3 or min(checked[1::3]) < 0 or min(checked[2::3]) < 0:
        raise ValueError
    if numbers[-1] > newest or any(earlier >= later for earlier, later in pairwise(numbers)):
        raise ValueError
    return checked.tolist()


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError
    return value
