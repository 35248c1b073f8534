"""A storm of calls that end at random points, through a real Envoy: no slot stays taken, and the books balance."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any, Final

import aiohttp
import pytest

from helpers.system import System, limits, running_system
from sluice_sidecar.envoy_config import UsageSource

CALLS: Final = int(os.environ.get("SLUICE_STORM_CALLS", "1000"))
AT_ONCE: Final = 40
USERS: Final = ("alice", "bob", "carol", "dave", "erin")
CAPS: Final = {"requestsPerDay": 10**6, "tokensPerDay": 10**9, "maxConcurrent": 4, "maxWait": "5s"}
SECONDS_TO_SETTLE: Final = 2.5
"""The lease, and the longest until it is looked at: a client may leave between the gate's answer and Envoy's stream."""

CHAT: Final = "/openai/v1/chat/completions"
MESSAGES: Final = "/anthropic/v1/messages"
WAYS: Final[tuple[Mapping[str, str], ...]] = (
    {},
    {"stream": "yes", "chunk-delay-ms": "3"},
    {"stream": "yes", "chunk-delay-ms": "3", "omit-usage": "1"},
    {"delay-ms": "20"},
    {"status": "500"},
    {"status": "429"},
    {"cut": "start"},
    {"stream": "yes", "cut": "middle"},
    {"stream": "yes", "hold": "middle"},
    {"hold": "start"},
)


class Told(Counter[tuple[str, str]]):
    """What callers saw: (user, how it ended): number."""


async def one_call(system: System, random: Random, told: Told) -> None:
    user, way = random.choice(USERS), dict(random.choice(WAYS))
    path = random.choice((CHAT, MESSAGES))
    body: dict[str, Any] = {"model": "m", "max_tokens": 30, "messages": [{"role": "user", "content": "Hi"}]}
    if way.pop("stream", ""):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"x-user-id": user} | {f"x-standin-{name}": value for name, value in way.items()}
    patience = random.uniform(0.001, 0.2) if "hold" in way or random.random() < 0.3 else 30
    try:
        async with (
            asyncio.timeout(patience),
            system.client.post(system.url + path, json=body, headers=headers) as answer,
        ):
            await answer.read()
            told[user, str(answer.status)] += 1
            if answer.status == 200 and "omit-usage" not in way:
                told[user, "whole"] += 1
    except TimeoutError:
        told[user, "left"] += 1
    except aiohttp.ClientError:
        told[user, "broken"] += 1


async def storm(system: System, seed: int) -> Told:
    told, random = Told(), Random(seed)
    left = iter(range(CALLS))

    async def caller() -> None:
        for _ in left:
            await one_call(system, random, told)

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return told


@pytest.mark.timeout(60 + CALLS / 20)  # on a busy machine; a thousand calls take some seconds
@pytest.mark.parametrize("usage", list(UsageSource))
async def test_after_a_storm_every_slot_is_free_and_every_call_is_accounted_for(usage: UsageSource) -> None:
    def documents(upstream: str) -> str:
        return "\n---\n".join(limits(name, upstream, CAPS) for name in ("openai", "anthropic"))

    async with running_system(documents, usage) as system:
        told = await storm(system, seed=3)
        await system.until(lambda: (system.snapshot().in_flight, system.snapshot().queued) == (0, 0), SECONDS_TO_SETTLE)
        snapshot = system.snapshot()
        seen = len(system.provider.seen)
    for state in snapshot.buckets:
        assert state.admitted == state.committed + state.estimated + state.refunded
        assert {cap.value: window.used for cap, window in state.windows.items()}["requestsPerDay"] == state.admitted
    for user in USERS:
        mine = [state for state in snapshot.buckets if state.key.subject == user]
        assert sum(state.committed for state in mine) >= told[user, "whole"] > 0
        assert sum(state.refunded for state in mine) >= told[user, "500"] + told[user, "429"] > 0
        assert sum(state.estimated for state in mine) > 0
    totals = snapshot.totals
    assert totals.admitted == totals.committed + totals.estimated + totals.refunded
    assert seen <= totals.admitted <= CALLS
    assert totals.rejected == 0
