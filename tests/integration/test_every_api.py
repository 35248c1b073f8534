"""Every provider's API through a real Envoy, with both sources of usage: what its calls cost, however they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from helpers.examples import EXAMPLES, Example
from helpers.responses import recorded
from helpers.system import System, limits, running_system
from sluice.core.buckets import Charge
from sluice.usage.counting import scale_of
from sluice.usage.estimate import Estimate
from sluice.usage.headers import usage_from_headers
from sluice.usage.profiles import BUILT_IN
from sluice.usage.settlement import settle
from sluice_sidecar.envoy_config import UsageSource
from standin import Recording

ROOM = 10_000_000
CAPS = {"tokensPerMinute": ROOM, "inputTokensPerMinute": ROOM, "outputTokensPerMinute": ROOM, "maxConcurrent": 4}
PROMPT = "How many tokens does this question cost, and who counts them? " * 8
INPUT = len(PROMPT) // 4
NOTHING_EXPECTED = Estimate(0, 0, None)
SAMPLES = {sample.name: sample for sample in recorded()}
RECORDINGS = {
    sample.name: Recording({"content-type": sample.content_type, **sample.headers}, sample.body)
    for sample in recorded()
}
STREAMS = [example for example in EXAMPLES if example.content_type != "application/json"]


@pytest.fixture(params=list(UsageSource))
async def system(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    def documents(upstream: str) -> str:
        return "\n---\n".join(limits(name, upstream, CAPS) for name in BUILT_IN.names)

    async with running_system(documents, request.param, recordings=RECORDINGS) as running:
        yield running


def asked(system: System, example: Example, **script: str) -> Any:
    """A call that is answered by the example; its user has the example's name."""
    sample = SAMPLES[example.name]
    headers = {"x-user-id": example.name, "x-standin-recording": example.name}
    headers |= {f"x-standin-{name}": value for name, value in script.items()}
    streams = example in STREAMS
    body = {
        "model": "m",
        "prompt": PROMPT,
        **({"stream": True, "stream_options": {"include_usage": True}} if streams else {}),
    }
    return system.client.post(f"{system.url}/{sample.provider}{sample.path}", json=body, headers=headers)


def used(system: System, user: str) -> Charge:
    windows = {cap.value: state.used for cap, state in system.bucket(user).windows.items()}
    return Charge(*(windows[name] for name in ("tokensPerMinute", "inputTokensPerMinute", "outputTokensPerMinute")))


def cost(example: Example) -> Charge | None:
    """What a whole answer costs by its provider's own count; None where it tells nothing."""
    sample = SAMPLES[example.name]
    usage = usage_from_headers(sample.headers.items(), example.response.headers) if sample.headers else example.usage
    model = sample.path.partition("/model/")[2].partition("/")[0] or "m"
    scale = scale_of(BUILT_IN.profile(sample.provider).counting, model)
    return None if usage is None else settle(200, usage, NOTHING_EXPECTED, complete=True, scale=scale).charge


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
