"""Every built-in profile is sound and knows its provider's paths; what a file or a document says goes before it."""

from __future__ import annotations

import pytest

from helpers.examples import shape_of
from helpers.responses import Recorded, recorded
from sluice.core.words import RefusedAs
from sluice.errors import InvalidDocument
from sluice.schema.yamltext import Tree
from sluice.usage.headers import usage_from_headers
from sluice.usage.profiles import BUILT_IN, Api, Catalog, Profile
from sluice.usage.profiles.catalog import BASES, WITHOUT_ADDRESS, built_in
from sluice.usage.profiles.declaration import SHAPE
from sluice.usage.profiles.profile import Combine, Counter, EstimationMode, ModelPlace, Weights
from sluice.usage.tokens import Usage

PROFILES = [BUILT_IN.profile(name) for name in BUILT_IN.names]
every_profile = pytest.mark.parametrize("profile", PROFILES, ids=[profile.provider for profile in PROFILES])

RECORDED = recorded()
every_response = pytest.mark.parametrize("response", RECORDED, ids=[response.name for response in RECORDED])


def shape(provider: str, path: str) -> str:
    return shape_of(provider, path).name


def mistakes(**texts: str) -> list[str]:
    with pytest.raises(InvalidDocument) as caught:
        Catalog.of_texts({f"{name}.yaml": text for name, text in texts.items()})
    return [f"{problem.field}: {problem.message}" for problem in caught.value.problems]


def test_there_is_a_profile_for_each_provider_people_call() -> None:
    assert BUILT_IN.names == (
        "anthropic",
        "azure",
        "bedrock",
        "cohere",
        "deepseek",
        "fireworks",
        "gemini",
        "groq",
        "llamacpp",
        "mistral",
        "ollama",
        "openai",
        "openrouter",
        "sglang",
        "together",
        "vertex",
        "vllm",
        "xai",
    )


@every_profile
def test_the_last_api_takes_what_no_other_takes(profile: Profile) -> None:
    assert [shape.name for shape in profile.shapes if shape.takes("/any/thing")] == [profile.shapes[-1].name]


@every_profile
def test_no_two_apis_have_one_name(profile: Profile) -> None:
    assert len({shape.name for shape in profile.shapes}) == len(profile.shapes)


@every_profile
def test_an_api_that_costs_tokens_says_where_they_are_told(profile: Profile) -> None:
    silent = [s.name for s in profile.shapes if not s.free and not (s.response.fields.input_tokens)]

    assert silent == []


@every_profile
def test_a_model_in_the_path_stands_behind_a_segment_that_is_named(profile: Profile) -> None:
    assert all(bool(s.request.model_after) == (s.request.model is ModelPlace.PATH) for s in profile.shapes)


@every_profile
def test_every_profile_says_where_its_facts_come_from(profile: Profile) -> None:
    assert profile.sources
    assert [source for source in profile.sources if not source.at.startswith("https://")] == []


@every_profile
def test_every_profile_has_a_name_for_people(profile: Profile) -> None:
    assert profile.title != profile.provider


@every_profile
def test_a_refusal_with_codes_goes_before_one_of_the_same_status_without(profile: Profile) -> None:
    statuses_without: set[int] = set()
    for refusal in profile.word.refusals:
        assert refusal.status not in statuses_without
        statuses_without |= set() if refusal.codes else {refusal.status}


def test_the_profiles_without_an_address_are_known() -> None:
    assert tuple(profile.provider for profile in PROFILES if not profile.upstream) == WITHOUT_ADDRESS


def test_every_family_has_a_base_of_its_own_family() -> None:
    assert {api: BUILT_IN.profile(name).api for api, name in BASES.items()} == {api: api for api in Api}


def test_every_api_that_may_be_shared_is_there() -> None:
    words = SHAPE.fields["like"].type.allowed.removeprefix("one of ").split(", ")
    there = {f"{profile.provider}/{shape.name}" for profile in PROFILES for shape in profile.shapes}

    assert [word for word in words if word not in there] == []


@every_response
def test_the_path_of_a_recorded_response_is_one_that_costs_tokens(response: Recorded) -> None:
    assert shape_of(response.provider, response.path).free is False


@pytest.mark.parametrize(
    ("provider", "path", "api"),
    [
        ("openai", "/v1/chat/completions", "completions"),
        ("openai", "/v1/completions", "completions"),
        ("openai", "/v1/responses", "responses"),
        ("openai", "/v1/responses/resp_1", "responses"),
        ("openai", "/v1/embeddings", "embeddings"),
        ("openai", "/v1/models", "free"),
        ("azure", "/openai/deployments/mine/chat/completions", "deployments"),
        ("azure", "/openai/deployments/mine/embeddings", "deployment-embeddings"),
        ("azure", "/openai/v1/chat/completions", "completions"),
        ("azure", "/openai/v1/responses", "responses"),
        ("anthropic", "/v1/messages", "messages"),
        ("anthropic", "/v1/messages/count_tokens", "free"),
        ("gemini", "/v1beta/models/gemini-2.5-flash:generateContent", "generate-content"),
        ("gemini", "/v1beta/models/gemini-2.5-flash:streamGenerateContent", "generate-content"),
        ("gemini", "/v1beta/models/gemini-2.5-flash:countTokens", "free"),
        ("gemini", "/v1beta/models/gemini-embedding-001:batchEmbedContents", "embeddings"),
        ("gemini", "/v1beta/openai/chat/completions", "openai"),
        ("gemini", "/v1beta/openai/embeddings", "openai-embeddings"),
        ("vertex", "/v1/projects/p/locations/l/publishers/google/models/m:generateContent", "generate-content"),
        ("vertex", "/v1/projects/p/locations/l/publishers/anthropic/models/m@1:streamRawPredict", "anthropic"),
        ("vertex", "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", "count-tokens"),
        ("vertex", "/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "openai"),
        ("bedrock", "/model/eu.anthropic.claude%3A0/converse", "converse"),
        ("bedrock", "/model/eu.anthropic.claude%3A0/converse-stream", "converse"),
        ("bedrock", "/model/arn%3Aaws%3Abedrock%3Aprofile%2Fa/invoke", "invoke"),
        ("bedrock", "/model/eu.anthropic.claude%3A0/invoke-with-response-stream", "invoke"),
        ("bedrock", "/model/eu.anthropic.claude%3A0/count-tokens", "free"),
        ("bedrock", "/openai/v1/chat/completions", "openai"),
        ("bedrock", "/anthropic/v1/messages", "anthropic"),
        ("mistral", "/v1/fim/completions", "completions"),
        ("cohere", "/v2/chat", "chat"),
        ("cohere", "/v2/embed", "embed"),
        ("cohere", "/v2/rerank", "rerank"),
        ("cohere", "/compatibility/v1/chat/completions", "openai"),
        ("groq", "/openai/v1/responses", "responses"),
        ("deepseek", "/anthropic/v1/messages", "anthropic"),
        ("deepseek", "/anthropic/v1/messages/count_tokens", "free"),
        ("openrouter", "/api/v1/messages", "anthropic"),
        ("xai", "/v1/chat/completions", "completions"),
        ("fireworks", "/inference/v1/embeddings", "embeddings"),
        ("llamacpp", "/completion", "native"),
        ("llamacpp", "/v1/completions", "completions"),
        ("ollama", "/api/generate", "native"),
        ("ollama", "/api/embed", "embed"),
        ("ollama", "/v1/chat/completions", "openai"),
        ("ollama", "/v1/messages", "anthropic"),
        ("ollama", "/api/tags", "free"),
    ],
)
def test_a_path_tells_the_api(provider: str, path: str, api: str) -> None:
    assert shape(provider, path) == api


@pytest.mark.parametrize("name", ["bedrock-invoke-anthropic.json", "bedrock-invoke-llama.json"])
def test_usage_in_headers_is_read_by_the_profile(name: str) -> None:
    told = next(response for response in RECORDED if response.name == name)
    fields = BUILT_IN.profile(told.provider).shape("invoke").response.headers
    read = usage_from_headers(told.headers.items(), fields)

    assert read == Usage(told.input_tokens, told.output_tokens, None, False, told.cache_read, told.cache_write)


def test_an_openai_call_counts_the_larger_of_input_and_output_and_an_azure_call_their_sum() -> None:
    combined = {name: BUILT_IN.profile(name).counting.combine for name in ("openai", "azure")}

    assert combined == {"openai": Combine.LARGEST, "azure": Combine.SUM}


def test_anthropic_reserves_no_declared_cap_and_counts_no_cache_reads() -> None:
    counting = BUILT_IN.profile("anthropic").counting

    assert (counting.mode, counting.weights) == (EstimationMode.LEARNED, Weights(cache_read=0))


def test_bedrock_counts_the_output_of_some_models_many_times_once_it_is_there() -> None:
    counting = BUILT_IN.profile("bedrock").counting

    assert [each.weights for each in counting.models] == [
        Weights(cache_read=0, output=output) for output in (1500, 1000, 500)
    ]
    assert counting.admission == Weights(cache_read=0)


def test_a_profile_that_is_like_another_has_what_it_does_not_say_from_there() -> None:
    openai, groq = BUILT_IN.profile("openai"), BUILT_IN.profile("groq")

    assert groq.api is Api.OPENAI
    assert groq.upstream == "https://api.groq.com"
    assert groq.shape("responses") == openai.shape("responses")
    assert groq.shape("completions").request.output_caps == openai.shape("completions").request.output_caps
    assert groq.shape("completions").response.usage == ("usage", "x_groq.usage")


def test_a_list_that_a_profile_says_replaces_the_other_whole() -> None:
    assert BUILT_IN.profile("deepseek").word.counters == ()
    assert [refusal.refused_as for refusal in BUILT_IN.profile("azure").word.refusals] == [
        RefusedAs.RATE_LIMITED,
        RefusedAs.OVERLOADED,
    ]


def test_new_apis_are_tried_before_those_of_the_other_profile() -> None:
    assert [shape.name for shape in BUILT_IN.profile("deepseek").shapes] == [
        "anthropic",
        *(shape.name for shape in BUILT_IN.profile("openai").shapes),
    ]


def test_an_api_can_be_like_one_of_another_provider() -> None:
    messages, here = BUILT_IN.profile("anthropic").shape("messages"), BUILT_IN.profile("vertex").shape("anthropic")

    assert here.response == messages.response
    assert here.request.output_caps == messages.request.output_caps
    assert here.paths == ("**/publishers/anthropic/models/**",)


def test_what_is_inherited_can_be_taken_back() -> None:
    xai, gemini = BUILT_IN.profile("xai").shape("completions"), BUILT_IN.profile("gemini").shape("openai")

    assert (xai.request.stream_usage, xai.response.envoy_reads) == ("", "")
    assert gemini.response.fields.output_tokens == ()


def test_building_a_profile_changes_no_other() -> None:
    before = built_in("openai")
    Catalog().profile("openai", None, {"apis": [{"name": "completions", "request": {"outputCaps": ["most"]}}]})

    assert built_in("openai") == before
    assert BUILT_IN.profile("openai").shape("completions").request.output_caps[0] == "max_tokens"


MINE = """
provider: openai
like: openai
upstream: https://llm.example.com
word:
  counters:
  - {of: tokens, limit: x-limit, remaining: x-left, reset: x-reset, resetIs: Seconds}
"""


def test_a_file_of_ones_own_goes_before_the_built_in_profile() -> None:
    profile = Catalog.of_texts({"openai.yaml": MINE}).profile("openai")

    assert profile.upstream == "https://llm.example.com"
    assert [counter.remaining for counter in profile.word.counters] == ["x-left"]
    assert profile.shape("responses") == BUILT_IN.profile("openai").shape("responses")


def test_what_a_document_says_goes_before_a_file() -> None:
    catalog = Catalog.of_texts({"openai.yaml": MINE})
    profile = catalog.profile("openai", None, {"word": {"counters": []}, "counting": {"combine": "Sum"}})

    assert profile.upstream == "https://llm.example.com"
    assert profile.word.counters == ()
    assert profile.counting.combine is Combine.SUM


def test_what_a_document_says_may_be_like_an_api_of_another_provider() -> None:
    api: dict[str, Tree] = {"name": "claude", "like": "anthropic/messages", "paths": ["/claude/**"]}
    profile = BUILT_IN.profile("openai", None, {"apis": [api]})

    assert profile.shapes[0].response == BUILT_IN.profile("anthropic").shape("messages").response
    assert profile.shapes[0].paths == ("/claude/**",)


def test_a_file_may_bring_a_provider_that_is_not_built_in() -> None:
    catalog = Catalog.of_texts({"acme.yaml": "provider: acme\nlike: mistral\ntitle: Acme\n"})

    assert "acme" in catalog.names
    assert catalog.profile("acme").shapes == BUILT_IN.profile("mistral").shapes
    assert catalog.profile("acme").title == "Acme"
    assert (catalog.profile("acme").upstream, catalog.profile("acme").sources) == ("", ())


def test_a_stranger_speaks_like_the_base_of_its_family_and_counts_each_token_once() -> None:
    stranger = BUILT_IN.profile("acme", Api.GEMINI)

    assert stranger.shapes == BUILT_IN.profile("gemini").shapes
    assert stranger.counting.weights == Weights()
    assert stranger.sources == ()


def test_a_stranger_of_no_family_has_no_profile() -> None:
    with pytest.raises(KeyError):
        BUILT_IN.profile("acme")


def test_counters_that_say_no_form_of_reset_tell_durations() -> None:
    catalog = Catalog.of_texts(
        {"acme.yaml": "provider: acme\nlike: openai\nword: {counters: [{of: requests, limit: x-limit}]}\n"}
    )

    assert catalog.profile("acme").word.counters == (
        Counter(BUILT_IN.profile("openai").word.counters[0].of, "x-limit"),
    )


def test_every_mistake_of_a_file_is_told() -> None:
    assert mistakes(
        acme="provider: acme\nupstreams: x\napis: [{name: chat, like: openai/chats}]\ncounting: {mode: Some}\n"
    ) == [
        "upstreams: unknown field; did you mean upstream?",
        f'apis[0].like: must be {SHAPE.fields["like"].type.allowed}, not "openai/chats"',
        'counting.mode: must be one of Learned, Declared, Fixed, not "Some"',
        f"api: is required: the profile is like no other; or give it `like` ({', '.join(BUILT_IN.names)})",
    ]


def test_a_profile_that_is_like_none_there_is_told_so_with_its_other_mistakes() -> None:
    assert mistakes(acme="provider: acme\nlike: opnai\ncounting: {mode: Some}\n") == [
        'counting.mode: must be one of Learned, Declared, Fixed, not "Some"',
        f"like: opnai is not a built-in profile ({', '.join(BUILT_IN.names)}); did you mean openai?",
    ]


@pytest.mark.parametrize(("field", "meant"), [("Like", "like"), ("likes", "like")])
def test_what_is_misspelt_is_not_said_to_be_missing_too(field: str, meant: str) -> None:
    assert mistakes(acme=f"provider: acme\n{field}: openai\n") == [
        f"{field}: unknown field; did you mean {meant}?",
    ]


def test_a_provider_has_one_file() -> None:
    assert mistakes(a="provider: acme\nlike: openai\n", b="provider: acme\nlike: opnai\n", c=MINE) == [
        f"like: opnai is not a built-in profile ({', '.join(BUILT_IN.names)}); did you mean openai?",
        "provider: is acme in a.yaml too: a provider has one profile; keep one of the files",
    ]


def test_a_file_of_ones_own_holds_whatever_the_family() -> None:
    catalog = Catalog.of_texts({"openai.yaml": MINE})

    assert catalog.profile("openai", Api.GEMINI) == catalog.profile("openai")
    assert catalog.files == {"openai": "openai.yaml"}


def test_a_file_that_is_like_nothing_says_all_itself() -> None:
    known = ", ".join(BUILT_IN.names)

    assert mistakes(acme="provider: acme\n", ajax="provider: ajax\nlike: acme\n") == [
        f"api: is required: the profile is like no other; or give it `like` ({known})",
        f"apis: is required: the profile is like no other; or give it `like` ({known})",
        f"like: acme is not a built-in profile ({known})",
    ]


def test_a_file_holds_one_profile() -> None:
    assert mistakes(acme="provider: acme\n---\nprovider: ajax\n") == [": holds 2 documents: a profile's file has one"]
    assert mistakes(acme="") == [": holds 0 documents: a profile's file has one"]


@pytest.mark.parametrize("header", ["*", "x-left-*", "a*b"])
def test_a_header_is_named_in_full(header: str) -> None:
    """To Envoy a `*` stands for others: a caller's key might be among them."""
    text = f"provider: acme\nlike: openai\nword: {{counters: [{{of: requests, remaining: '{header}'}}]}}\n"
    (mistake,) = mistakes(acme=text)
    assert mistake.startswith("word.counters[0].remaining: must be the name of an HTTP header")
