"""Every provider's calls through a real Envoy: which API a path is taken for, and where its facts are found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from helpers.examples import shape_of
from helpers.mesh import SUBJECTS, Mesh, limits_of, running_mesh
from helpers.recording import post
from helpers.responses import Recorded, recorded
from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import Configuration, merge
from sluice.usage.profiles import BUILT_IN

pytestmark = pytest.mark.asyncio(loop_scope="module")


def configuration(upstream: str) -> Configuration:
    limits = [limits_of(name, BUILT_IN.profile(name).api, upstream, User=SUBJECTS["header"]) for name in BUILT_IN.names]
    return merge(limits)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh(configuration) as mesh:
        yield mesh


@pytest.mark.parametrize("sample", recorded(), ids=lambda sample: sample.name)
async def test_a_path_is_taken_for_the_api_that_reads_its_answers(mesh: Mesh, sample: Recorded) -> None:
    call = await mesh.call(post(f"/{sample.provider}{sample.path}?x=/v1/messages"))
    shape = shape_of(sample.provider, sample.path)
    assert (call.facts["provider"], call.facts["api"]) == (sample.provider, shape.name)
    assert call.received[0].target == f"{sample.path}?x=/v1/messages"


SONNET = "eu.anthropic.claude-sonnet-4-5-20250929-v1"
# A path, and the model that a call to it is for; its body names another one.
IN_PATH = {
    "/bedrock/model/amazon.nova-pro-v1/converse": "amazon.nova-pro-v1",
    f"/bedrock/model/{SONNET}%3A0/converse-stream": f"{SONNET}:0",
    f"/bedrock/model/{SONNET}:0/invoke": f"{SONNET}:0",
    "/bedrock/model/amazon.nova-pro-v1%3A0%3A300k/converse": "amazon.nova-pro-v1:0:300k",
    "/bedrock/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx.y-v1%3A0/converse": (
        "arn:aws:bedrock:us-east-1:1:inference-profile/x.y-v1:0"
    ),
    "/azure/openai/deployments/my-gpt/chat/completions?api-version=2025-01-01": "my-gpt",
    "/azure/openai/deployments/my%20gpt/embeddings": "my gpt",
    "/vertex/v1/projects/models/locations/l/publishers/google/models/gemini-2.5-pro:generateContent": "gemini-2.5-pro",
    "/vertex/v1/projects/p/locations/l/publishers/anthropic/models/claude-x@20250929:streamRawPredict": (
        "claude-x@20250929"
    ),
    "/gemini/v1beta/models/gemini-2.5-flash:embedContent": "gemini-2.5-flash",
    "/gemini/v1beta/models/gem%C3%A9ni%FF:x": "gem\u00e9ni?",
    # Some servers look at no case of letters.
    "/azure/OpenAI/Deployments/mine/chat/completions": "mine",
}


async def test_a_model_is_read_from_the_path_where_its_api_has_it_there(mesh: Mesh) -> None:
    for target, model in IN_PATH.items():
        call = await mesh.call(post(target, b'{"model": "another"}'))
        assert call.facts.get("model") == model, target


# What a body says, by where it is sent.
IN_BODY = {
    "/cohere/v2/chat": ({"model": "m", "max_tokens": 9, "stream": True}, {"max_output_tokens": "9", "stream": "true"}),
    "/ollama/api/chat": ({"model": "m", "options": {"num_predict": 9}}, {"max_output_tokens": "9"}),
    "/mistral/v1/chat/completions": ({"model": "m", "max_tokens": 9, "n": 2}, {"max_output_tokens": "9", "n": "2"}),
    "/openai/v1/completions": ({"model": "m", "n": 2, "best_of": 5}, {"n": "5"}),
    "/openai/v1/embeddings": ({"model": "m", "max_tokens": 9}, {}),
}


async def test_a_body_is_read_for_the_facts_that_its_api_knows(mesh: Mesh) -> None:
    for target, (body, facts) in IN_BODY.items():
        call = await mesh.call(post(target, json.dumps(body).encode()))
        told = {name: call.facts[name] for name in call.facts.keys() - {"provider", "api", "bytes", "stream_usage"}}
        assert told == {"model": "m", **facts}, target
    body = json.dumps({"inferenceConfig": {"maxTokens": 9}}).encode()
    call = await mesh.call(post("/bedrock/model/m/converse", body))
    assert (call.facts["model"], call.facts["max_output_tokens"]) == ("m", "9")


async def test_a_segment_is_taken_as_it_is_spelled() -> None:
    api = {"name": "z", "paths": ["/v1/**"], "request": {"model": "Path", "modelAfter": ["fine-tuned", "v1.models"]}}

    def spelled(upstream: str) -> Configuration:
        return merge(parse(limits("openai", upstream, {"requestsPerMinute": 9}, profile={"apis": [api]}), "test"))

    async with running_mesh(spelled) as mesh:
        for path, model in {"fine-tuned/a": "a", "v1.models/b": "b", "v1xmodels/c": None, "fintuned/d": None}.items():
            call = await mesh.call(post(f"/openai/v1/{path}"))
            assert call.facts.get("model") == model, path
