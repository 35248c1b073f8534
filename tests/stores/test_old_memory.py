"""A server that comes back from a snapshot has the same epoch, and an old memory."""

from __future__ import annotations

import pytest

from helpers.gates import sharing
from helpers.redis import running_redis
from helpers.system import limits
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice_sidecar.health import StoreMode

ALICE = BucketKey("openai", Scope.USER, "alice")

pytestmark = pytest.mark.timeout(120)  # a memory is old after five seconds


async def test_what_a_snapshot_lacks_is_told_again_and_never_counts_too_little() -> None:
    document = limits("openai", "http://127.0.0.1:9", {"requestsPerDay": 1000})
    async with running_redis() as redis, sharing(redis.url, document, gates=2) as gates:
        await gates.know_each_other()
        first, second = gates.each
        assert await first.admitted("openai", "alice", 1)
        await gates.settled()
        await redis.ask("SAVE")
        for _ in range(7):
            assert await first.admitted("openai", "alice", 1)
            assert await second.admitted("openai", "alice", 1)
            await gates.beaten(1)
        redis.kill()
        await gates.until(StoreMode.LOCAL)
        await redis.restart()
        await gates.until(StoreMode.SHARED)

        stored = await gates.stored(ALICE, Cap.REQUESTS_PER_DAY)
        assert stored >= gates.own(ALICE, Cap.REQUESTS_PER_DAY) == 15
