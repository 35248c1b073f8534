"""Reading limits documents: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice.config.document import from_manifest, parse, to_manifest
from sluice.config.types import FailurePolicy, LimitEntry, ProviderLimits, StreamUsage, SubjectKind, SubjectSource
from sluice.core.keys import Scope
from sluice.core.limits import MINUTE, SECOND, Limits, Mode, Sharing, StoreFailure
from sluice.errors import InvalidDocument, Problem
from sluice.schema.yamltext import MAX_BYTES, write
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import BUILT_IN, Api, Catalog
from sluice.usage.profiles.profile import EstimationMode

DOCUMENTS = Path(__file__).parents[2] / "data" / "documents"
VALID = sorted((DOCUMENTS / "valid").glob("*.yaml"))
INVALID = sorted((DOCUMENTS / "invalid").glob("*.yaml"))


def problems_of(text: str, catalog: Catalog = BUILT_IN) -> tuple[Problem, ...]:
    with pytest.raises(InvalidDocument) as raised:
        parse(text, "limits.yaml", catalog)
    return raised.value.problems


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": "openai"},
        "spec": {"provider": "openai", **spec},
    }


def entry(**fields: Any) -> dict[str, Any]:
    return {"scope": "User", "subject": {"header": "x-user-id"}, "requestsPerMinute": 60, **fields}


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_document_with_one_mistake_is_refused_for_that_mistake_alone(path: Path) -> None:
    text = path.read_text()
    field, _, message = text.splitlines()[0].removeprefix("# expect: ").partition(": ")

    (problem,) = problems_of(text)

    assert problem.source == "limits.yaml"
    assert problem.field == field
    assert message in problem.message


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_document_survives_being_written_and_read_again(path: Path) -> None:
    documents = parse(path.read_text(), path.name)

    assert parse(write(map(to_manifest, documents)), path.name) == documents
    assert tuple(from_manifest(to_manifest(document), path.name) for document in documents) == documents
    assert parse(json.dumps({"kind": "List", "items": list(map(to_manifest, documents))}), path.name) == documents


@pytest.mark.parametrize(
    ("name", "count"), [("empty", 0), ("minimal", 1), ("many-documents", 2), ("kubectl-get", 1), ("json", 1)]
)
def test_each_document_of_a_file_is_read(name: str, count: int) -> None:
    assert len(parse((DOCUMENTS / "valid" / f"{name}.yaml").read_text(), name)) == count


def test_every_field_arrives_where_it_belongs() -> None:
    (document,) = parse((DOCUMENTS / "valid" / "every-field.yaml").read_text(), "limits.yaml")

    assert document == ProviderLimits(
        name="everything.of-it",
        provider="openai",
        api=Api.OPENAI,
        upstream="http://127.0.0.1:8080",
        failure_policy=FailurePolicy.DENY,
        stream_usage=StreamUsage.INJECT,
        sharing=Sharing.LEASED,
        estimation=Estimation(EstimationMode.LEARNED, 64, 2**53 - 1, 99),
        limits=(
            LimitEntry(
                Scope.USER,
                SubjectSource(SubjectKind.HEADER, "x-user-id"),
                ("alice", "team-*", "[odd]?"),
                ("gpt-5*",),
                Limits(
                    *(60, 1000, 10_000),
                    *(90_000, 1_000_000, 2**53 - 1),
                    *(80_000, 800_000, 4_000_000),
                    *(16_000, 160_000, 800_000),
                    max_concurrent=3,
                    max_wait=5 * MINUTE,
                    mode=Mode.SHADOW,
                    failure_policy=StoreFailure.DENY,
                ),
            ),
            LimitEntry(
                Scope.ORG,
                SubjectSource(SubjectKind.ENV, "POD_NAMESPACE"),
                (),
                (),
                Limits(max_concurrent=100, max_wait=90 * SECOND + SECOND // 2, failure_policy=StoreFailure.ALLOW),
            ),
            LimitEntry(Scope.PROJECT, SubjectSource(SubjectKind.API_KEY), (), (), Limits(tokens_per_day=0)),
        ),
    )
    assert document.source == "limits.yaml"


def test_what_is_absent_has_the_profiles_values_and_the_defaults() -> None:
    (document,) = parse((DOCUMENTS / "valid" / "minimal.yaml").read_text(), "limits.yaml")

    assert document == ProviderLimits(
        "openai",
        "openai",
        Api.OPENAI,
        "https://api.openai.com",
        FailurePolicy.ALLOW,
        Estimation(None, 4, 256, 90),
        (),
    )


def test_a_scope_has_the_source_that_one_of_its_entries_names() -> None:
    (document,) = parse((DOCUMENTS / "valid" / "one-source-for-a-scope.yaml").read_text(), "limits.yaml")

    assert {entry.subject for entry in document.limits} == {SubjectSource(SubjectKind.HEADER, "x-user-id")}


def test_all_mistakes_of_all_documents_are_reported_at_once() -> None:
    text = """
apiVersion: sluice.dev/v1alpha1
kind: ProviderLimits
metadata: {name: openai}
spec:
  provider: openai
  failurePolicy: Maybe
  limits:
  - {scope: User, subject: {header: cookie}, requestsPerMinute: y, requestsPerHour: 9, requestsPerDay: 1, maxWait: 1h}
  - {scope: User, match: {subjects: [alice]}, mode: Off}
  - {scope: Org, tokensPerDay: -1}
---
kind: ProviderLimits
metadata: {name: Two}
spec: {provider: acme, api: OpenAI}
---
apiVersion: v1
kind: Secret
---
[
"""

    found = {(problem.document, problem.field) for problem in problems_of(text)}

    assert found == {
        ("ProviderLimits/openai", "spec.failurePolicy"),
        ("ProviderLimits/openai", "spec.limits[0].subject.header"),
        ("ProviderLimits/openai", "spec.limits[0].requestsPerMinute"),
        ("ProviderLimits/openai", "spec.limits[0].requestsPerHour"),
        ("ProviderLimits/openai", "spec.limits[0].maxWait"),
        ("ProviderLimits/openai", "spec.limits[1]"),
        ("ProviderLimits/openai", "spec.limits[1].mode"),
        ("ProviderLimits/openai", "spec.limits[2].subject"),
        ("ProviderLimits/openai", "spec.limits[2].tokensPerDay"),
        ("document 2", "apiVersion"),
        ("document 2", "metadata.name"),
        ("document 2", "spec.upstream"),
        ("document 3", "apiVersion"),
        ("document 3", "kind"),
        ("", ""),
    }


def test_a_problem_says_where_it_is_in_one_line() -> None:
    (problem,) = problems_of(write([manifest(limits=[entry(maxWait="6m")])]))

    assert str(problem) == (
        "limits.yaml: ProviderLimits/openai: spec.limits[0].maxWait: "
        'must be a duration from 0s to 5m, such as 500ms, 10s or 1m30s, not "6m"'
    )


def test_an_item_of_a_list_is_named_by_its_place_where_it_has_no_name() -> None:
    (problem,) = problems_of("kind: List\nitems:\n- kind: Pod\n")

    assert problem.document == "document 1, item 1"


def test_a_hostile_number_of_mistakes_is_cut_short() -> None:
    *shown, last = problems_of("---\n".join(["spec: 1\n"] * 30_000))

    assert len(shown) == 100
    assert last.message == "has more mistakes: only the first 100 are reported"


def test_a_hostile_number_of_unknown_fields_is_cut_short() -> None:
    tree = manifest()
    tree["spec"] |= {f"requestsPerMinut{number}": 1 for number in range(30_000)}

    assert len(problems_of(json.dumps(tree))) == 101


def test_a_message_repeats_little_of_what_it_was_given() -> None:
    (problem,) = problems_of(write([manifest(api="x" * 100_000 + "\n")]))

    assert problem.message == f'must be one of OpenAI, Anthropic, Gemini, Bedrock, Cohere, Ollama, not "{"x" * 40}…"'


@pytest.mark.parametrize("value", [None, True, 1, 1.5, -1, 10**30, "", "x", [], [[]], {}, {"a": {}}, float("nan")])
@pytest.mark.parametrize("field", ["apiVersion", "kind", "metadata", "spec", "provider", "limits", "scope", "match"])
def test_no_value_of_any_type_in_any_place_is_more_than_a_mistake(field: str, value: object) -> None:
    tree = manifest(limits=[entry(), entry(match={"subjects": ["alice"]})])
    for place in (tree, tree["spec"], tree["spec"]["limits"][1]):
        if field in place:
            place[field] = value

    with contextlib.suppress(InvalidDocument):
        from_manifest(tree, "the API server")


def test_a_written_document_is_read_alike_by_a_reader_of_yaml_1_1() -> None:
    words = [
        "on",
        "y",
        "1e3",
        "0o17",
        "017",
        "1_000",
        "~",
        "null",
        "2026-01-02",
        "<<",
        "=",
        "1:30",
        "",
        " a",
        "# b",
        "é",
    ]
    tree = manifest(limits=[entry(match={"subjects": words})])
    text = write([tree, tree])

    assert list(yaml.safe_load_all(text)) == [tree, tree]
    assert "&" not in text


def test_the_size_of_a_text_is_bounded() -> None:
    text = write([manifest()])

    assert parse(text + "#" * (MAX_BYTES - len(text)), "limits.yaml")
    (problem,) = problems_of(text + "#" * (MAX_BYTES - len(text) + 1))
    assert problem.message == f"has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read"


# -- with profiles of one's own --------------------------------------------------------------------------------------


ACME = Catalog.of_texts({"acme.yaml": "provider: acme\nlike: gemini\nupstream: https://llm.acme.example\n"})


def messages(catalog: Catalog, **spec: Any) -> list[tuple[str, str]]:
    return [(problem.field, problem.message) for problem in problems_of(json.dumps(manifest(**spec)), catalog)]


def test_what_the_file_of_a_provider_says_need_not_be_said_again() -> None:
    (document,) = parse(json.dumps(manifest(provider="acme")), "limits.yaml", ACME)

    assert (document.api, document.upstream) == (Api.GEMINI, "https://llm.acme.example")


def test_an_upstream_of_the_document_goes_before_that_of_the_file() -> None:
    (document,) = parse(json.dumps(manifest(provider="acme", upstream="http://llm")), "limits.yaml", ACME)

    assert document.upstream == "http://llm"


def test_a_family_that_is_not_that_of_the_file_is_told_with_the_other_mistakes() -> None:
    assert messages(ACME, provider="acme", api="OpenAI", upstrem="http://llm") == [
        ("spec.upstrem", "unknown field; did you mean upstream?"),
        ("spec.api", "is OpenAI, and the profile in acme.yaml is of Gemini: leave it out, or mend the file"),
    ]


def test_a_file_without_an_address_leaves_it_to_the_document() -> None:
    catalog = Catalog.of_texts({"acme.yaml": "provider: acme\nlike: openai\n"})

    assert messages(catalog, provider="acme") == [
        ("spec.upstream", "is required: acme.yaml has none either; give it here or there")
    ]


@pytest.mark.parametrize(
    ("catalog", "hint"),
    [
        (BUILT_IN, "outside Kubernetes the provider's file in --profiles may say it instead"),
        (ACME, "those of --profiles are of acme"),
    ],
)
def test_a_provider_nobody_knows_is_told_of_the_files_that_may_say_what_is_missing(catalog: Catalog, hint: str) -> None:
    found = messages(catalog, provider="hyperion")

    assert [field for field, _ in found] == ["spec.api", "spec.upstream"]
    assert [message.rpartition("; ")[2] for _, message in found] == [hint, hint]
