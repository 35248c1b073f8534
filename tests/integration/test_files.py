"""Pictures, sound and other files in calls through a real Envoy: what they reserve, and what they are charged."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from random import Random
from typing import Any

import aiohttp
import pytest

from helpers.system import System, limits, running_system
from sluice.core.limits import Cap

MINUTE = 40_000
FILE = Random(1).randbytes(1_000_000)
PICTURE = base64.b64encode(FILE).decode()
CHAT = "openai/v1/chat/completions"
JSON = {"content-type": "application/json"}


def document(upstream: str) -> str:
    counting = {"counting": {"combine": "Sum"}}
    return limits("openai", upstream, {"tokensPerMinute": MINUTE}, profile=counting)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(document) as running:
        yield running


def asking(content: Any) -> BytesIO:
    return BytesIO(json.dumps({"model": "m", "max_tokens": 100, "messages": [{"content": content}]}).encode())


def showing(picture: str) -> BytesIO:
    return asking([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}])


def sent(system: System, body: Any, headers: dict[str, str], path: str = CHAT, **script: object) -> Any:
    behaviour = {f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()}
    headers = headers | behaviour | {"x-user-id": "alice"}
    return system.client.post(f"{system.url}/{path}", data=body, headers=headers)


async def call(system: System, body: BytesIO, input_tokens: int) -> int:
    """The status of a call that uses so much, and 90 tokens of output."""
    async with sent(system, body, JSON, input_tokens=input_tokens, output_tokens=90) as answer:
        await answer.read()
        return int(answer.status)


def booked(system: System) -> int:
    return system.bucket("alice").windows[Cap.TOKENS_PER_MINUTE].used


async def test_a_picture_is_admitted_where_as_text_it_never_would_be_and_costs_what_is_told(system: System) -> None:
    assert await call(system, showing(PICTURE), 1100) == 200
    await system.settled()
    assert booked(system) == 1190
    assert await call(system, asking("a text " * MINUTE), 1100) == 429


async def test_a_file_reserves_a_token_for_512_bytes(system: System) -> None:
    async with sent(system, showing(PICTURE), JSON, omit_usage="true") as answer:
        assert answer.status == 200
    await system.settled()
    assert booked(system) == pytest.approx(len(PICTURE) // 512 + 100, abs=50)


async def test_a_form_with_a_file_reaches_its_provider(system: System) -> None:
    form = aiohttp.FormData({"model": "whisper-1"})
    form.add_field("file", BytesIO(FILE), filename="speech.mp3")
    async with sent(system, form, {}, "openai/v1/audio/transcriptions"):
        pass
    assert [seen.path for seen in system.provider.seen] == ["/v1/audio/transcriptions"]


async def test_a_prompt_that_looks_like_a_file_is_charged_in_full(system: System) -> None:
    assert await call(system, asking(PICTURE), 10 * MINUTE) == 200
    await system.settled()
    assert booked(system) == 10 * MINUTE + 90
    assert await call(system, asking("short"), 1) == 429
