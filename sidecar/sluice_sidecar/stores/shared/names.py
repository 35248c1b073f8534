"""What things are called on the server.

Every key of one provider stands in one hash slot, by the tag in braces, so that a call's buckets are decided on
together also in a cluster. The prefix is the namespace's own and comes from the command line, never from a request:

    {team-a/openai}b:User:gpt-5*:alice     what a bucket counts, a hash; the models are quoted, the subject is the rest
    {team-a/openai}p:…                     the calls in flight, a sorted set of leases by the ends of their lives
    {team-a/openai}q:…                     who waits, a sorted set by tickets
    {team-a/openai}gates, tickets, epoch, recovery, batch:…, and the channels wake:… and word
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

from sluice.core.keys import BucketKey
from sluice.core.limits import DAY, HOUR, MINUTE
from sluice.core.windows import SLOTS

CALL_CODES: Final = {MINUTE: b"m", HOUR: b"h", DAY: b"d"}
"""Windows of requests and tokens, by their length in ns."""
PART_CODES: Final = {MINUTE: b"M", HOUR: b"H", DAY: b"D"}
"""Windows of input tokens and output tokens."""
SLOT_LENGTHS: Final = {
    code: length // SLOTS // 1000 for codes in (CALL_CODES, PART_CODES) for length, code in codes.items()
}
"""Microseconds of a slot, by the window's code."""


class StoredBucket(NamedTuple):
    """The three keys of a bucket."""

    counts: bytes
    permits: bytes
    queue: bytes


class Keys:
    """The keys of one provider."""

    def __init__(self, prefix: str, provider: str, gate: str) -> None:
        self.prefix = f"{{{prefix}/{provider}}}".encode()
        self.gates = self.prefix + b"gates"
        self.tickets = self.prefix + b"tickets"
        self.epoch = self.prefix + b"epoch"
        self.recovery = self.prefix + b"recovery"
        self.batch = self.prefix + b"batch:" + gate.encode()
        self.wakes = self.prefix + b"wake:" + gate.encode()
        """The channel on which this gate hears who may get on."""
        self.word = self.prefix + b"word"
        """The channel on which gates tell each other what the provider says."""

    def kind(self, key: bytes) -> str:
        """What one of these keys should be: bucket, queue, zset or string."""
        name = key[len(self.prefix) :]
        kinds = {b"b:": "bucket", b"q:": "queue", b"p:": "zset"}
        return "zset" if key == self.gates else kinds.get(name[:2], "string")

    def bucket(self, key: BucketKey) -> StoredBucket:
        """Two buckets never share a key: nothing before the subject has a `:` of its own, no two encode alike."""
        models = quote(key.models, safe="*,", errors="surrogatepass")
        name = f":{key.scope}:{models}:{key.subject}".encode("utf-8", "surrogatepass")
        return StoredBucket(self.prefix + b"b" + name, self.prefix + b"p" + name, self.prefix + b"q" + name)
