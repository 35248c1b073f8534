"""Streams that are not asked for their usage, through a real Envoy: they are charged all the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from helpers.system import System, limits, running_system
from sluice.config.types import StreamUsage
from sluice_sidecar.envoy_config import UsageSource

CAPS = {"requestsPerMinute": 100, "tokensPerMinute": 100_000, "maxConcurrent": 4}
CALL = {"model": "m", "stream": True, "max_tokens": 50, "messages": [{"role": "user", "content": "How many tokens?"}]}
ASKING = {**CALL, "stream_options": {"include_usage": True}}
WORD = 5.5
"""Characters of a token of the stand-in's."""

both_sources = pytest.mark.parametrize("source", list(UsageSource))


async def streamed(system: System, user: str, body: Mapping[str, Any], **script: object) -> list[Any]:
    """The events of a stream, as its caller sees them."""
    headers = {"x-user-id": user} | {
        f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()
    }
    async with system.client.post(f"{system.url}/openai/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200
        lines = (await answer.read()).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def used(system: System, user: str) -> int:
    windows = {cap.value: state for cap, state in system.bucket(user).windows.items()}
    return windows["tokensPerMinute"].used


@both_sources
async def test_a_stream_that_was_asked_in_its_callers_place_is_charged_what_it_says(source: UsageSource) -> None:
    def document(upstream: str) -> str:
        return limits("openai", upstream, CAPS, streamUsage=StreamUsage.INJECT)

    async with running_system(document, source) as system:
        hidden = await streamed(system, "alice", CALL, input_tokens=30, output_tokens=12)
        shown = await streamed(system, "bob", ASKING, input_tokens=30, output_tokens=12)
        await system.settled()
        assert (used(system, "alice"), used(system, "bob")) == (42, 42)
        assert system.snapshot().totals.committed == 2
    assert shown[-1]["usage"]["total_tokens"] == 42
    assert [event["choices"] for event in hidden] == [event["choices"] for event in shown[:-1]]
    assert not any(event.get("usage") for event in hidden)


@both_sources
@pytest.mark.parametrize("words", [4, 400])
async def test_a_stream_that_nobody_asked_is_charged_what_went_by(source: UsageSource, words: int) -> None:
    async with running_system(lambda upstream: limits("openai", upstream, CAPS), source) as system:
        events = await streamed(system, "alice", CALL, output_tokens=words, chunks=words)
        await system.settled()
        bucket = system.bucket("alice")
    assert (bucket.estimated, bucket.committed) == (1, 0)
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert WORD * words * 0.8 < len(text) < WORD * words * 1.2
    input_tokens = -(-len(json.dumps(CALL)) // 4)
    assert used(system, "alice") == input_tokens - (-len(text) // 4)
