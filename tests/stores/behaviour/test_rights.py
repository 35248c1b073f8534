"""The user that the documentation gives to gates: enough for them, and for nothing else."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from helpers.house import GATES_PASSWORD, GATES_USER, TAG, House, Place, shared_house
from helpers.ledger import user
from helpers.redis import RedisServer
from sluice.core.limits import HOUR, SECOND, Limits
from sluice.core.words import Amount, Feedback, Quota

LIMITS = Limits(requests_per_minute=50, tokens_per_day=10_000, max_concurrent=2, max_wait=HOUR)
DENIED = r"(?i)permission|no access|NOPERM|can't access|can't run"
"""However a version words it."""
FORBIDDEN = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SWAPDB", 0, 1),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("MONITOR",),
    ("SHUTDOWN",),
    ("GET", "theirs"),
    ("SET", "{theirs/openai}epoch", "1"),
    ("GET", "{oursandmore/openai}epoch"),
    ("PUBLISH", "{theirs/openai}word", "1"),
    ("SUBSCRIBE", "{theirs/openai}word"),
    ("RENAME", f"{TAG}epoch", f"{TAG}another"),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, "theirs"),
]


async def everything(house: House) -> None:
    """All that gates ask of a store."""
    permits = [await house.admit(gate=number) for number in range(2)]
    waiting, given_up = await house.queue(gate=0), await house.queue(gate=1)
    given_up.cancel()
    await house.commit(permits[0], 5)
    await house.release(*permits)
    await waiting
    await house.ask(50_000, gate=1)
    await house.states()
    await house.pass_time(6 * SECOND)
    quota = Quota("x-requests", Amount.REQUESTS, 5, 10, 60 * SECOND)
    for gate, store in zip(house.gates, house.stores, strict=True):
        call = house.call(0)
        store.heard(call.applied[0].key, Feedback((quota,)), SECOND)
        await store.client.eviction()
        gate.rearm()
    await house.settled()


@pytest.mark.parametrize("kind", ["oldest", "cluster", "TLS"])
async def test_the_user_may_do_all_that_gates_do(place_if_any: Place | None) -> None:
    assert place_if_any is not None
    node = place_if_any.node
    node.acl_log_reset()
    async with shared_house(place_if_any, [user(limits=LIMITS)], 2) as house:
        await everything(house)

        assert [(denied["object"], denied["reason"]) for denied in node.acl_log()] == []
        assert [store.health.changes for store in house.stores] == [1, 1]
        node.acl_log_reset()


@pytest.mark.parametrize("words", FORBIDDEN, ids=[" ".join(map(str, words)) for words in FORBIDDEN])
@pytest.mark.parametrize("version", ["server", "oldest"])
def test_the_user_may_do_nothing_else(
    words: tuple[str | int, ...], version: str, request: pytest.FixtureRequest
) -> None:
    server: RedisServer = request.getfixturevalue(version)
    with (
        Redis(port=server.port, username=GATES_USER, password=GATES_PASSWORD) as client,
        pytest.raises(
            (NoPermissionError, ResponseError), match=r"(?i)permission|no access|NOPERM|can't access|can't run"
        ),
    ):
        client.execute_command(*words)
