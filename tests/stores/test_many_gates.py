"""Gates in processes of their own, all asked at once by many clients: nothing is admitted beyond a limit."""

from __future__ import annotations

from collections import Counter

import pytest

from helpers.crowd import Crowd, all_crowds
from helpers.history import Bound, Counted, judge
from helpers.redis import RedisServer
from helpers.system import limits
from sluice.core.limits import MINUTE

GATES, CLIENTS, CALLS = 4, 16, 60
REQUESTS, PLACES = 700, 9


@pytest.mark.parametrize("sharing", ["Exact", "Leased"])
async def test_four_gates_with_sixteen_clients_each_admit_no_request_too_many(
    server: RedisServer, sharing: str
) -> None:
    await server.ask("FLUSHALL")
    counted = {"match": {"subjects": ["counted"]}, "requestsPerMinute": REQUESTS, "failurePolicy": "Deny"}
    held = {"match": {"subjects": ["held"]}, "maxConcurrent": PLACES, "maxWait": "20s", "failurePolicy": "Deny"}
    document = limits("openai", "http://127.0.0.1:1", counted, held, sharing=sharing)
    crowds = [
        Crowd(f"gate-{number}", server.url, document, "openai", ("counted", "held"), CLIENTS, CALLS)
        for number in range(GATES)
    ]

    seen = await all_crowds(crowds)

    bounds = [
        Bound("counted", Counted.REQUESTS, REQUESTS, MINUTE),
        Bound("held", Counted.PERMITS, PLACES),
    ]
    assert [str(violation) for violation in judge(seen, bounds)] == []
    admitted = Counter(bucket for call in seen if call.admitted for bucket in call.buckets)
    asked = Counter(bucket for call in seen for bucket in call.buckets)
    assert asked["counted"] > 2 * REQUESTS
    assert 0.95 * REQUESTS < admitted["counted"] <= REQUESTS
    assert admitted["held"] == asked["held"]
