"""One decision on the wire: what the script is given, and what its answer says.

Where there is no room, the script tells what the buckets without room count, and the engine's own code says what that
means: how long until there is, and for which cap. So a refusal reads the same whichever store has counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sluice.core.buckets import Bucket, Demand, Obstacle
from sluice.core.keys import BucketKey
from sluice.core.limits import Limits
from sluice.core.windows import NEVER, SlidingWindow
from sluice_sidecar.stores.shared.names import CALL_CODES, PART_CODES, Keys, StoredBucket

ADMITTED: Final = 1
NO_ROOM: Final = 0

_HEAD: Final = struct.Struct("<dddddd")
_SLOT: Final = struct.Struct("<ddd")
_MICROSECOND: Final = 1000


class Form(NamedTuple):
    """What is sent of a bucket with every call, made once for its limits."""

    stored: StoredBucket
    codes: tuple[bytes, ...]
    """Of its windows of calls, then of parts."""
    args: tuple[str | bytes | int, ...]
    limits: Limits
    windows: int


class Forms:
    """The forms of a provider's buckets."""

    MOST: Final = 10_000

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._forms: dict[BucketKey, Form] = {}

    def of(self, bucket: Bucket) -> Form:
        form = self._forms.get(bucket.key)
        if form is None or form.limits is not bucket.limits or form.windows != len(bucket.windows) + len(bucket.parts):
            if len(self._forms) >= self.MOST:
                self._forms.clear()  # those that are in use come back at once
            form = self._forms[bucket.key] = _form(self._keys.bucket(bucket.key), bucket)
        return form


def _form(stored: StoredBucket, bucket: Bucket) -> Form:
    args: list[str | bytes | int] = []
    codes = []
    for windows, names in ((bucket.windows, CALL_CODES), (bucket.parts, PART_CODES)):
        for window in windows:
            codes.append(names[window.length])
            args += (names[window.length], _cap(window.first_limit), _cap(window.second_limit))
    head = (int(bucket.is_shadow), _cap(bucket.max_concurrent), len(codes))
    return Form(stored, tuple(codes), (*head, *args), bucket.limits, len(codes))


def _cap(limit: int) -> int:
    return -1 if limit == NEVER else limit


def obstacles(
    told: Iterable[Sequence[Any]], buckets: Sequence[Bucket], demand: Demand, server: int, now: int
) -> list[tuple[Bucket, Obstacle]]:
    """What stands in the way in each bucket that the script names; `server` is its time in µs, `now` ours in ns."""
    found = []
    at = server * _MICROSECOND
    for number, in_flight, *rest in told:
        bucket = buckets[number - 1]
        seen = Bucket(bucket.key, bucket.limits)
        seen.in_flight = in_flight
        heads = iter(rest[5:])
        for mine, windows in ((seen.windows, bucket.windows), (seen.parts, bucket.parts)):
            capped = {window.length: window for window in mine}
            for window, head, older in zip(windows, heads, heads, strict=False):
                if window.length in capped:
                    _fill(capped[window.length], head, older)
        for obstacle in seen.obstacles(at, demand, Demand(*rest[:5])):
            clears_at = obstacle.clears_at
            if clears_at is not None and clears_at != NEVER:
                clears_at += now - at
            found.append((bucket, obstacle._replace(clears_at=clears_at)))
    return found


def totals(head: bytes) -> tuple[int, int, int]:
    """The newest slot of a window, and both totals."""
    newest, _, _, first, second, _ = _HEAD.unpack(head)
    return int(newest), int(first), int(second)


def _fill(window: SlidingWindow, head: bytes, older: bytes) -> None:
    """Count what the script told: every slot, or where there is room the totals alone, in the newest."""
    newest, newest_first, newest_second, first, second, _ = map(int, _HEAD.unpack(head))
    slots = [int(value) for slot in _SLOT.iter_unpack(older) for value in slot]
    if older:
        slots += (newest, newest_first, newest_second)
    else:
        slots += (newest, first, second)
    window.add_slots(slots)
