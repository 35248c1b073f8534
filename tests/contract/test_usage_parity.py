"""What a real Envoy reads of every provider's answers, beside what our own readers read of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import pytest
import pytest_asyncio
from aiohttp import web

from helpers.examples import EXAMPLES, Example
from helpers.mesh import SUBJECTS, Mesh, limits_of, running_mesh
from helpers.recording import Observed, post
from helpers.responses import recorded
from sluice.config.merge import Configuration, merge
from sluice.usage.profiles import BUILT_IN
from sluice.usage.tokens import MAX_USED, Usage
from sluice_sidecar.extproc import usage_told
from sluice_sidecar.protos import USAGE_NAMESPACE, TokenUsage

pytestmark = pytest.mark.asyncio(loop_scope="module")

TARGETS = {told.name: f"/{told.provider}{told.path}" for told in recorded()}
HEADERS = {told.name: told.headers for told in recorded()}
UNTOLD = {
    # Beside the places that OpenAI has for them.
    **{f"together-chat.{form}": {"cache_read"} for form in ("json", "sse")},
    **{f"sglang-chat.{form}": {"reasoning"} for form in ("json", "sse")},
    # An answer without output says that it has none of it.
    "mistral-embeddings.json": {"output_tokens"},
}
"""What Envoy does not tell as we do: details that it does not know, and a 0 for nothing."""


def configuration(upstream: str) -> Configuration:
    providers = sorted({told.provider for told in recorded()})
    return merge([limits_of(name, BUILT_IN.profile(name).api, upstream, User=SUBJECTS["header"]) for name in providers])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh(configuration) as mesh:
        yield mesh


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
async def test_the_gate_learns_the_same_whether_envoy_reads_or_itself(mesh: Mesh, example: Example) -> None:
    stream = await watched(mesh, example)
    pieces = [message.response_body.body for kind, message in stream.messages if kind == "response_body"]
    if not example.response.envoy_reads:
        reader = example.reader()
        for piece in pieces:
            reader.feed(piece)
        assert (reader.finish(), b"".join(pieces)) == (example.usage, example.body)
        return
    read = usage_of(stream)
    assert read is not None
    assert example.usage is not None
    differing = {name for name in Usage._fields if getattr(read, name) != getattr(example.usage, name)}
    assert (differing, pieces) == (UNTOLD.get(example.name, set()), [])
    assert not any(getattr(read, name) for name in differing)


@pytest.mark.parametrize("count", [MAX_USED + 1, 2**53, 2**63])
async def test_a_count_that_no_call_uses_is_not_believed_of_envoy_either(mesh: Mesh, count: int) -> None:
    told = {"prompt_tokens": count, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": count}}
    usage = usage_of(await answered(mesh, "/openai/v1/chat/completions", json.dumps({"usage": told}).encode()))
    assert usage is not None
    assert usage.partial
    assert (usage.input_tokens, usage.cache_read) == (None, None)


async def watched(mesh: Mesh, example: Example) -> Observed:
    """The usage stream of a call that is answered so."""
    headers = {"content-type": example.content_type, **HEADERS[example.name]}
    return await answered(mesh, TARGETS[example.name], example.body, headers)


async def answered(
    mesh: Mesh,
    target: str,
    body: bytes,
    headers: Mapping[str, str] = MappingProxyType({"content-type": "application/json"}),
) -> Observed:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, headers=headers)

    mesh.provider.answer = answer
    before = len(mesh.gate.streams)
    await mesh.call(post(target))
    await mesh.gate.until(lambda: len(mesh.gate.streams) > before and mesh.gate.streams[before].ended.is_set())
    return mesh.gate.streams[before]


def usage_of(stream: Observed) -> Usage | None:
    """What Envoy has read."""
    usage = None
    for _, message in stream.messages:
        told = message.metadata_context.typed_filter_metadata
        if USAGE_NAMESPACE in told:
            usage = usage_told(TokenUsage.FromString(told[USAGE_NAMESPACE].value))
    return usage
