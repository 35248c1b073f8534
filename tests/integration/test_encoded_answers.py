"""Answers that come compressed although nobody asked for it: the gate reads them, whatever reads the others."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from helpers.codings import encoded, header
from helpers.examples import EXAMPLES, response_of
from helpers.responses import recorded
from helpers.system import System, limits, running_system
from sluice_sidecar.envoy_config import UsageSource
from standin import Recording

CODINGS = (("gzip",), ("deflate",), ("raw deflate",), ("br",), ("zstd",), ("gzip", "gzip"), ("br", "zstd"))
NAMES = ("openai-chat.sse", "anthropic-messages.json", "bedrock-converse-stream.events", "ollama-chat.ndjson")
SAMPLES = {sample.name: sample for sample in recorded() if sample.name in NAMES}
USAGES = {example.name: example.usage for example in EXAMPLES if example.name in NAMES}
CALLS = {f"{name} in {' then '.join(codings)}": (name, codings) for name in NAMES for codings in CODINGS}
RECORDINGS = {
    call: Recording(
        {"content-type": SAMPLES[name].content_type, "content-encoding": header(*codings)},
        encoded(SAMPLES[name].body, *codings),
    )
    for call, (name, codings) in CALLS.items()
}
EACH_ONCE = {
    "counting": {"weights": dict.fromkeys(("input", "cacheRead", "cacheWrite", "output"), "100%"), "models": []}
}


def documents(upstream: str) -> str:
    providers = {sample.provider for sample in SAMPLES.values()}
    return "\n---\n".join(limits(name, upstream, {"tokensPerDay": 10**9}, profile=EACH_ONCE) for name in providers)


async def answered(system: System) -> dict[str, tuple[int, int]]:
    """Every answer, taken as it comes: what each call was charged, and how often by its usage."""

    async def ask(client: aiohttp.ClientSession, call: str) -> None:
        sample = SAMPLES[CALLS[call][0]]
        body = {"model": "m", "max_tokens": 1, "inferenceConfig": {"maxTokens": 1}, "options": {"num_predict": 1}}
        headers = {"x-user-id": call, "x-standin-recording": call}
        url = f"{system.url}/{sample.provider}{sample.path}"
        async with client.post(url, json=body, headers=headers) as answer:
            assert await answer.read() == RECORDINGS[call].body

    async with aiohttp.ClientSession(auto_decompress=False) as client:
        await asyncio.gather(*(ask(client, call) for call in CALLS))
    await system.settled()
    buckets = {call: system.bucket(call) for call in CALLS}
    return {
        call: (sum(state.used for state in bucket.windows.values()), bucket.committed)
        for call, bucket in buckets.items()
    }


def told(call: str) -> tuple[int, int]:
    usage = USAGES[CALLS[call][0]]
    assert usage is not None
    return usage.total, 1


async def test_where_the_gate_reads_all_bodies_it_reads_encoded_ones() -> None:
    async with running_system(documents, UsageSource.BODY, recordings=RECORDINGS) as system:
        assert await answered(system) == {call: told(call) for call in CALLS}


async def test_where_envoy_reads_what_it_can_the_gate_reads_the_rest_encoded_or_not() -> None:
    async with running_system(documents, UsageSource.METADATA, recordings=RECORDINGS) as system:
        found = await answered(system)
    for call, (name, _) in CALLS.items():
        sample = SAMPLES[name]
        response = response_of(sample.provider, sample.path)
        if response.envoy_reads:
            # Envoy cannot read them, and the estimate stands.
            assert found[call][1] == 0, call
        else:
            assert found[call] == told(call), call


@pytest.mark.parametrize("usage", list(UsageSource))
async def test_a_bomb_costs_its_estimate(usage: UsageSource) -> None:
    bomb = Recording(
        {"content-type": "application/x-ndjson", "content-encoding": "gzip"}, encoded(bytes(50_000_000), "gzip")
    )
    async with running_system(documents, usage, recordings={"bomb": bomb}) as system:
        headers = {"x-user-id": "alice", "x-standin-recording": "bomb"}
        body = {"model": "m", "options": {"num_predict": 50}, "prompt": "x" * 400}
        async with system.client.post(f"{system.url}/ollama/api/chat", json=body, headers=headers) as answer:
            await answer.read()
        await system.settled()
        bucket = system.bucket("alice")
        assert (bucket.committed, bucket.estimated) == (0, 1)
        assert all(100 + 50 <= state.used < 1000 for state in bucket.windows.values())
