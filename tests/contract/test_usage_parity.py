"""What a real Envoy reads of the recorded answers, beside what our own readers read of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from helpers.mesh import SUBJECTS, Mesh, limits_of, running_mesh
from helpers.recording import Observed, post
from sluice.config.merge import Configuration, merge
from sluice.usage.profiles import BUILT_IN
from sluice.usage.readers import reader_for
from sluice.usage.tokens import Usage
from sluice_sidecar.extproc import usage_told
from sluice_sidecar.protos import USAGE_NAMESPACE, TokenUsage

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESPONSES = Path(__file__).parents[1] / "data" / "responses"
SAMPLES: dict[str, dict[str, Any]] = json.loads((RESPONSES / "expected.json").read_text())


def configuration(upstream: str) -> Configuration:
    providers = {sample["provider"] for sample in SAMPLES.values()}
    return merge([limits_of(name, BUILT_IN.profile(name).api, upstream, User=SUBJECTS["header"]) for name in providers])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh(configuration) as mesh:
        yield mesh


@pytest.mark.parametrize("name", SAMPLES)
async def test_envoy_and_the_gate_read_the_same(mesh: Mesh, name: str) -> None:
    sample, body = SAMPLES[name], (RESPONSES / name).read_bytes()
    provider, path, content_type = sample["provider"], sample["path"], sample["content_type"]
    (shape, *_) = [shape for shape in BUILT_IN.profile(provider).shapes if shape.takes(path)]
    reader = reader_for(shape.response, content_type)
    assert reader is not None
    stream = await watched(mesh, f"/{provider}{path}", body, content_type)
    if shape.response.envoy_reads:
        assert "response_body" not in stream.kinds
        reader.feed(body)
        assert usage_of(stream) == reader.finish()
    else:
        for kind, message in stream.messages:
            if kind == "response_body":
                reader.feed(message.response_body.body)
        usage = reader.finish()
        assert usage is not None
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        assert counts == {count: sample[count] for count in counts}


async def watched(mesh: Mesh, target: str, body: bytes, content_type: str) -> Observed:
    """The usage stream of a call that is answered so."""

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, headers={"content-type": content_type})

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
