"""What a gate asks its shared store for a decision: the commands that the bench puts to Redis without a gate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Final

from bench.redis_server import Command
from sluice.core.buckets import Bucket, Demand
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Limits
from sluice_sidecar.stores.shared.decision import Forms
from sluice_sidecar.stores.shared.keyspace import LIFE, SILENCE
from sluice_sidecar.stores.shared.names import Keys
from sluice_sidecar.stores.shared.scripts import Scripts

KEYS: Final = Keys("sluice", "bench", "gate-1")
EPOCH: Final = b"0123456789abcdef"
LIMITS: Final = Limits(requests_per_minute=10**9, requests_per_hour=10**9)
CALL: Final = Demand(0, 1, 0)
"""As the rate limit service asks for it, which is not told of a call's end."""


def scripts() -> list[Command]:
    """What the server must be told before it is asked: the script, and that it has remembered everything so far."""
    return [(b"SCRIPT", b"LOAD", Scripts().acquire.text.encode()), (b"SET", KEYS.epoch, EPOCH)]


def acquires(buckets: int, number: int, subjects: int) -> Iterator[Command]:
    """`number` decisions, an `EVALSHA` each, over so many buckets of two windows; each user in turn.

    Ids are new every time, so that no decision is taken for one that was made before.
    """
    return islice(_acquires(buckets, subjects), number)


def _acquires(buckets: int, subjects: int) -> Iterator[Command]:
    forms, sha = Forms(KEYS), Scripts().acquire.sha
    for number in count():
        subject_of = {Scope.USER: f"user-{number % subjects}", Scope.ORG: "acme", Scope.PROJECT: "web"}
        touched = [Bucket(BucketKey("bench", *each), LIMITS) for each in list(subject_of.items())[:buckets]]
        asked = [forms.of(bucket) for bucket in touched]
        names = [KEYS.gates, KEYS.tickets, KEYS.epoch, KEYS.recovery, *(key for form in asked for key in form.stored)]
        call = (KEYS.prefix, EPOCH, "gate-1", SILENCE, f"gate-1-{number}", LIFE, "", 0, 0, *CALL)
        words = ("EVALSHA", sha, len(names), *names, *call, *(word for form in asked for word in form.args))
        yield [word if isinstance(word, bytes) else str(word).encode() for word in words]
