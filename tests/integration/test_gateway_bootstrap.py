"""The gateway's Envoy bootstrap, which comes with the operator: the command's own, and a real Envoy runs with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers.envoy import free_port, running_envoy, short_folder, validate
from helpers.generated import GATEWAY
from helpers.program import eventually, running, sluice
from helpers.system import limits
from sluice_sidecar.envoy_files import GATEWAY_FOLDER, GATEWAY_LISTEN
from standin import StandIn

CHAT = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}

# Several starts of the program and of Envoy, on a machine that is busy with others.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def provider() -> AsyncIterator[StandIn]:
    async with StandIn() as provider:
        yield provider


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def moved(folder: Path, port: int) -> dict[str, Any]:
    """The bootstrap with its files and sockets in that folder, and on that port of loopback."""
    bootstrap: dict[str, Any] = json.loads(GATEWAY.read_text().replace(GATEWAY_FOLDER, str(folder)))
    (listener,) = bootstrap["staticResources"]["listeners"]
    listener["address"]["socketAddress"] |= {"address": "127.0.0.1", "portValue": port}
    return bootstrap


@pytest.mark.parametrize(
    "text",
    [
        limits("openai", "http://127.0.0.1:9", {"requestsPerMinute": 1}),
        limits(
            "other",
            "https://other.example",
            {"scope": "Org", "subject": {"apiKey": True}, "maxConcurrent": 1, "maxWait": "45s"},
            api="Anthropic",
            failurePolicy="Deny",
        ),
    ],
    ids=["one", "another"],
)
async def test_it_is_what_the_command_prints_whatever_the_limits_are(text: str, folder: Path) -> None:
    file = folder / "limits.yaml"
    file.write_text(text)
    where = ("--socket", f"{GATEWAY_FOLDER}/gate.sock", "--listen", GATEWAY_LISTEN)
    printed = await sluice("envoy-config", "-f", file, "--xds", folder / "xds", *where)

    assert (printed.code, printed.err) == (0, "")
    assert printed.out.replace(str(folder), GATEWAY_FOLDER) == GATEWAY.read_text()


async def test_an_envoy_with_it_starts_and_follows_the_files_of_a_gate(provider: StandIn, folder: Path) -> None:
    file, port = folder / "limits.yaml", free_port()
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 1}))
    bootstrap = moved(folder, port)

    async def status(provider_name: str) -> int:
        url = f"http://127.0.0.1:{port}/{provider_name}/v1/chat/completions"
        async with client.post(url, json=CHAT, headers={"x-user-id": "alice"}) as answer:
            return answer.status

    async def routed() -> bool:
        return await status("renamed") == 200

    async with (
        aiohttp.ClientSession() as client,
        running("-f", file, "--socket", folder / "gate.sock", "--xds", folder / "xds"),
    ):
        assert validate(bootstrap, folder) == ""
        with running_envoy(bootstrap, folder):
            assert [await status("openai") for _ in range(2)] == [200, 429]
            file.write_text(limits("renamed", provider.url, {"requestsPerMinute": 1}, api="OpenAI"))
            await eventually(routed)
            assert await status("openai") == 404
