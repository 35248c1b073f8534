"""Whatever bytes a file of counts holds, they are counts that an engine can have, or it is said that they are none."""

from __future__ import annotations

import zlib

import pytest

from helpers.fuzzing import SECONDS, fuzz
from sluice.core.engine import Engine
from sluice.core.keeping import KeptBucket, keep, put_back
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE
from sluice_sidecar.stores.counts_format import HEAD, Moment, Unreadable, bucket_texts, line, read

pytestmark = pytest.mark.timeout(60 + 3 * SECONDS)

ALICE = KeptBucket(BucketKey("openai", Scope.USER, "alice"), {MINUTE: [60, 1, 30, 61, 2, 3], DAY: [0, 1, 30]}, {})
TEAM = KeptBucket(BucketKey("p", Scope.ORG, "\0overflow", "gpt-5*,o4"), {HOUR: [1, 1, 0]}, {HOUR: [1, 20, 10]})
THEN = Moment(62 * MINUTE, 62 * MINUTE, 10**18, "boot")
SAVES = [b"".join(line(THEN, [bucket_texts(buckets)])) for buckets in ((ALICE, TEAM), (TEAM,), ())]
WORDS = [
    *(b"%c" % byte for byte in b'{}[]",:\\\n \0\xff'),
    b'"minute":',
    b'"hour":[1,2,3]',
    b'"day"',
    b'"buckets":[',
    b'"axis":0',
    b'"User"',
    b",60,1,30",
    b"9223372036854775807",
    b"[" * 200,
    b"1" * 5000,
    HEAD,
    b"sluice counts 2\n",
]


def repaired(data: bytes) -> bytes:
    """With the checksum of every line as it should be."""
    head, *lines = data.split(b"\n")
    return b"\n".join([head, *(b"%08x %b" % (zlib.crc32(each[9:]), each[9:]) for each in lines[:-1]), *lines[-1:]])


def test_what_a_file_of_counts_says_in_any_bytes() -> None:
    def check(data: bytes) -> None:
        try:
            kept = read(data)
        except Unreadable:
            return
        engine, now = Engine(), kept.moment.axis
        for bucket in kept.buckets:
            put_back(engine, bucket, now)
        for bucket in engine.visit(engine.keys(), now, keep):
            for slots in (*bucket.calls.values(), *bucket.parts.values()):
                assert all(amount >= 0 for amount in (*slots[1::3], *slots[2::3]))
                assert list(slots[0::3]) == sorted(set(slots[0::3]))
        again = read(HEAD + b"".join(line(kept.moment, [bucket_texts(kept.buckets)])))
        assert again == kept._replace(damage="", is_cut=False)

    fuzz("counts", check, [HEAD + b"".join(SAVES[: number + 1]) for number in range(3)], WORDS, repair=repaired)
