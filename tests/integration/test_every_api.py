"""Every provider's API through a real Envoy, with both sources of usage: what its calls cost, however they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from helpers.examples import EXAMPLES, Example
from helpers.replay import SAMPLES, cost, headers, replaying, used
from helpers.system import System
from sluice_sidecar.envoy_config import UsageSource

PROMPT = "How many tokens does this question cost, and who counts them? " * 8
INPUT = len(PROMPT) // 4
STREAMS = [example for example in EXAMPLES if example.content_type != "application/json"]


@pytest.fixture(params=list(UsageSource))
async def system(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    async with replaying(request.param) as running:
        yield running


def asked(system: System, example: Example, **script: str) -> Any:
    """A call that is answered by the example."""
    sample = SAMPLES[example.name]
    body: dict[str, Any] = {"model": "m", "prompt": PROMPT}
    if example in STREAMS:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    behaviour = {f"x-standin-{name}": value for name, value in script.items()}
    url = f"{system.url}/{sample.provider}{sample.path}"
    return system.client.post(url, json=body, headers=headers(example.name) | behaviour)


async def test_a_whole_answer_costs_what_its_provider_counts(system: System) -> None:
    async def call(example: Example) -> None:
        async with asked(system, example) as answer:
            assert (answer.status, await answer.read()) == (200, example.body)

    await asyncio.gather(*map(call, EXAMPLES))
    await system.settled()
    costs = {example.name: cost(example) for example in EXAMPLES}
    charged = {name: used(system, name) if expected else None for name, expected in costs.items()}
    assert charged == costs


async def test_a_stream_that_its_client_leaves_costs_its_input_and_what_was_seen(system: System) -> None:
    async def leave(example: Example) -> None:
        async with asked(system, example, hold="middle") as answer:
            await answer.content.readany()
            assert system.bucket(example.name).in_flight == 1
            answer.close()

    await asyncio.gather(*map(leave, STREAMS))
    await system.settled()
    assert dearer_than_their_input(system) == [example.name for example in STREAMS]


async def test_a_stream_that_its_provider_breaks_off_costs_its_input_and_what_was_seen(system: System) -> None:
    async def break_off(example: Example) -> None:
        async with asked(system, example, cut="middle") as answer:
            with contextlib.suppress(aiohttp.ClientError):
                await answer.read()

    await asyncio.gather(*map(break_off, STREAMS))
    await system.settled()
    assert dearer_than_their_input(system) == [example.name for example in STREAMS]


def dearer_than_their_input(system: System) -> list[str]:
    """The streams that were charged once, and no less than what their callers sent."""
    found = []
    for example in STREAMS:
        bucket, charge = system.bucket(example.name), used(system, example.name)
        once = bucket.admitted == bucket.estimated + bucket.committed == 1
        if once and charge.tokens and charge.input_tokens >= INPUT:
            found.append(example.name)
    return found
