"""The official SDKs through a real Envoy, with both sources of usage: they read every answer, and pay what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
import pytest_asyncio
from google import genai
from mistralai.client import Mistral

from helpers.replay import BY_NAME, SAMPLES, cost, headers, replaying, used
from helpers.responses import Recorded
from helpers.system import System
from sluice_sidecar.envoy_config import UsageSource

ASKED = [{"role": "user", "content": "Hi"}]
CHAT = "/chat/completions"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=list(UsageSource), scope="module", loop_scope="module")
async def system(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    async with replaying(request.param) as running:
        yield running


def samples(*, suffix: str, provider: str | None = None) -> list[Recorded]:
    """The recorded answers to calls of such a path."""
    return [
        sample for sample in SAMPLES.values() if sample.path.endswith(suffix) and provider in (None, sample.provider)
    ]


async def paid(system: System, of: Iterable[Recorded], calls: Iterable[Awaitable[str]]) -> None:
    """Make the calls: each reads of its answer what the model said in it, and costs what it costs."""
    of = list(of)
    texts = await asyncio.gather(*calls)
    await system.settled()
    read = {sample.name: text for text, sample in zip(texts, of, strict=True)}
    assert {name: text for name, text in read.items() if text not in SAMPLES[name].output} == {}
    assert [name for name, text in read.items() if not text and "tools" not in name] == []
    assert {sample.name: used(system, sample.name) for sample in of} == {
        sample.name: cost(BY_NAME[sample.name]) for sample in of
    }


async def test_openai_at_every_provider_that_speaks_its_chat(system: System) -> None:
    async def chat(sample: Recorded) -> str:
        url = f"{system.url}/{sample.provider}{sample.path.removesuffix(CHAT)}"
        extra = headers(sample.name)
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0, default_headers=extra) as client:
            asked: dict[str, Any] = {"model": "m", "messages": ASKED}
            if not sample.name.endswith(".sse"):
                answer = await client.chat.completions.create(**asked)
                return answer.choices[0].message.content or ""
            stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            return "".join([event.choices[0].delta.content or "" async for event in stream if event.choices])

    chats = [sample for sample in samples(suffix=CHAT) if sample.provider != "mistral"]  # which has its own
    await paid(system, chats, map(chat, chats))


async def test_openai_responses_and_embeddings(system: System) -> None:
    async def respond(sample: Recorded) -> str:
        extra = headers(sample.name)
        async with openai.AsyncOpenAI(
            base_url=f"{system.url}/openai/v1", api_key="x", max_retries=0, default_headers=extra
        ) as client:
            if not sample.name.endswith(".sse"):
                return (await client.responses.create(model="m", input="Hi")).output_text
            stream = await client.responses.create(model="m", input="Hi", stream=True)
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    responses = samples(suffix="/responses", provider="openai")
    await paid(system, responses, map(respond, responses))
    name = "openai-embeddings.json"
    async with openai.AsyncOpenAI(
        base_url=f"{system.url}/openai/v1", api_key="x", max_retries=0, default_headers=headers(name)
    ) as client:
        await client.embeddings.create(model="m", input="Hi", encoding_format="float")
    await system.settled()
    assert used(system, name) == cost(BY_NAME[name])


async def test_anthropic(system: System) -> None:
    async def message(sample: Recorded) -> str:
        extra = headers(sample.name)
        async with anthropic.AsyncAnthropic(
            base_url=f"{system.url}/anthropic", api_key="x", max_retries=0, default_headers=extra
        ) as client:
            asked: dict[str, Any] = {"model": "m", "max_tokens": 20, "messages": ASKED}
            if sample.name.endswith(".sse"):
                async with client.messages.stream(**asked) as stream:
                    return "".join([text async for text in stream.text_stream])
            return "".join(block.text for block in (await client.messages.create(**asked)).content)

    messages = samples(suffix="/messages", provider="anthropic")
    await paid(system, messages, map(message, messages))


async def test_google_genai(system: System) -> None:
    async def generate(sample: Recorded) -> str:
        async with httpx.AsyncClient() as transport:
            options = genai.types.HttpOptions(
                base_url=f"{system.url}/gemini", headers=headers(sample.name), httpx_async_client=transport
            )
            models = genai.Client(api_key="x", http_options=options).aio.models
            if sample.name.endswith(".json"):
                return (await models.generate_content(model="gemini-2.5-flash", contents="Hi")).text or ""
            stream = await models.generate_content_stream(model="gemini-2.5-flash", contents="Hi")
            return "".join([piece.text or "" async for piece in stream])

    answers = [SAMPLES[f"gemini-generate-content.{form}"] for form in ("json", "sse")]
    await paid(system, answers, map(generate, answers))


async def test_mistral(system: System) -> None:
    async def chat(sample: Recorded) -> str:
        async with Mistral(api_key="x", server_url=f"{system.url}/mistral") as client:
            asked: dict[str, Any] = {"model": "m", "messages": ASKED, "http_headers": headers(sample.name)}
            if sample.name.endswith(".json"):
                return str((await client.chat.complete_async(**asked)).choices[0].message.content)
            stream = await client.chat.stream_async(**asked)
            return "".join([str(event.data.choices[0].delta.content or "") async for event in stream])

    chats = samples(suffix=CHAT, provider="mistral")
    await paid(system, chats, map(chat, chats))


async def test_ollama(system: System) -> None:
    async def chat(sample: Recorded) -> str:
        async with ollama.AsyncClient(f"{system.url}/ollama", headers=headers(sample.name)) as client:
            if sample.name.endswith(".json"):
                return (await client.chat("m", ASKED)).message.content or ""
            return "".join([part.message.content or "" async for part in await client.chat("m", ASKED, stream=True)])

    chats = samples(suffix="/api/chat", provider="ollama")
    await paid(system, chats, map(chat, chats))
