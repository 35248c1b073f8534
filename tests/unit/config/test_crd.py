"""The CRD: its schema is structural and bounded, and says what the declaration says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sluice.config.crd import crd, crd_text
from sluice.config.declaration import DOCUMENT
from sluice.config.document import from_manifest, to_manifest
from sluice.config.entries import CALL_HEADERS, SECRET_HEADERS
from sluice.schema.declare import Object, Sequence, Type
from sluice.schema.yamltext import read

SPEC = crd()["spec"]
VERSION = SPEC["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, f"{path}.{name}")
    if "items" in schema:
        yield from parts(schema["items"], f"{path}[]")


PARTS = {path: part for path, part in parts(ROOT) if path.startswith((".spec", ".status"))}


def of_type(name: str) -> list[str]:
    return [path for path, part in PARTS.items() if part["type"] == name]


def validations(path: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = PARTS[path].get("x-kubernetes-validations", [])
    return rules


def constraints(declared: Type) -> Iterator[Any]:
    if isinstance(declared, Sequence):
        yield from constraints(declared.item)
    elif isinstance(declared, Object):
        yield from declared.constraints
        for field in declared.fields.values():
            yield from constraints(field.type)


def test_the_names_are_those_of_the_document() -> None:
    assert (SPEC["group"], VERSION["name"], SPEC["names"]["kind"]) == ("sluice.dev", "v1alpha1", "ProviderLimits")
    assert (SPEC["names"]["plural"], SPEC["names"]["shortNames"]) == ("providerlimits", ["plim"])
    assert SPEC["scope"] == "Namespaced"
    assert VERSION["subresources"] == {"status": {}}


@pytest.mark.parametrize("path", of_type("integer"))
def test_every_number_has_bounds(path: str) -> None:
    assert 0 <= PARTS[path]["minimum"] <= PARTS[path]["maximum"] < 2**53


@pytest.mark.parametrize("path", of_type("string"))
def test_every_text_is_bounded(path: str) -> None:
    part = PARTS[path]

    assert part.get("enum") or part.get("maxLength") or part.get("format") == "date-time"


@pytest.mark.parametrize("path", of_type("array"))
def test_every_list_is_bounded_and_says_how_it_is_merged(path: str) -> None:
    assert 0 < PARTS[path]["maxItems"] <= 64
    assert PARTS[path]["x-kubernetes-list-type"] in {"atomic", "set", "map"}


@pytest.mark.parametrize("path", of_type("object"))
def test_every_field_has_a_description_and_none_is_left_open(path: str) -> None:
    part = PARTS[path]

    assert all(field["description"].endswith((".", "%.", "…")) for field in part["properties"].values())
    assert not {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & part.keys()


@pytest.mark.parametrize("path", [path for path, part in PARTS.items() if "pattern" in part])
def test_a_pattern_holds_for_the_whole_text(path: str) -> None:
    assert re.fullmatch(r"\^\(.*\)\$", PARTS[path]["pattern"])


def test_the_fields_of_spec_are_those_of_the_declaration() -> None:
    def names(declared: Type, path: str) -> Iterator[str]:
        if isinstance(declared, Sequence):
            yield from names(declared.item, f"{path}[]")
        elif isinstance(declared, Object):
            for name, field in declared.fields.items():
                yield f"{path}.{name}"
                yield from names(field.type, f"{path}.{name}")

    declared = set(names(DOCUMENT.fields["spec"].type, ".spec"))

    assert {path for path in PARTS if path.startswith(".spec.") and not path.endswith("[]")} == declared


def test_every_constraint_is_also_a_rule_for_the_api_server() -> None:
    rules = {rule["rule"] for path in PARTS for rule in validations(path)}

    assert [each.says for each in constraints(DOCUMENT) if not each.rules] == []
    assert {rule.holds for each in constraints(DOCUMENT) for rule in each.rules} <= rules


@pytest.mark.parametrize("rule", [rule for path in PARTS for rule in validations(path)], ids=lambda rule: rule["rule"])
def test_a_rule_says_what_is_wrong_in_one_line(rule: dict[str, Any]) -> None:
    (message,) = (rule[name] for name in ("message", "messageExpression") if name in rule)

    assert 10 < len(message) < 250
    assert "\n" not in message


def test_a_message_may_repeat_the_value_of_a_field() -> None:
    *_, secret, call, _ = validations(".spec.limits[].subject")

    assert secret["messageExpression"] == (
        'self.header + " carries a secret, and subjects are shown: use {apiKey: true}, a hash of it"'
    )
    assert all(header in secret["rule"] for header in SECRET_HEADERS)
    assert all(header in call["rule"] for header in CALL_HEADERS)


def test_a_default_changes_nothing_of_what_a_document_means() -> None:
    def defaults(schema: dict[str, Any]) -> dict[str, Any]:
        return {name: part["default"] for name, part in schema["properties"].items() if "default" in part}

    entry = {"scope": "User", "subject": {"apiKey": True}, "requestsPerMinute": 0}
    bare = {"provider": "openai", "limits": [entry]}
    filled = {
        "provider": "openai",
        **defaults(PARTS[".spec"]),
        "limits": [entry | defaults(PARTS[".spec.limits[]"])],
    }
    documents = [
        from_manifest({**to_head(), "spec": json.loads(json.dumps(spec))}, "the API server") for spec in (bare, filled)
    ]

    assert filled["failurePolicy"] == "Allow"
    assert filled["limits"][0]["maxWait"] == "0s"
    assert to_manifest(documents[0]) == to_manifest(documents[1])


def to_head() -> dict[str, Any]:
    return {"apiVersion": "sluice.dev/v1alpha1", "kind": "ProviderLimits", "metadata": {"name": "openai"}}


def test_the_columns_are_those_that_people_look_for() -> None:
    columns = [(column["name"].upper(), column.get("priority", 0)) for column in VERSION["additionalPrinterColumns"]]

    assert [name for name, priority in columns if priority == 0] == [
        "PROVIDER",
        "READY",
        "SIDECARS",
        "RPM",
        "TPM",
        "IN-FLIGHT",
        "REJECTED",
        "AGE",
    ]


def test_conditions_are_told_apart_by_their_type() -> None:
    conditions = PARTS[".status.conditions"]

    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    assert set(conditions["items"]["required"]) == {"type", "status", "lastTransitionTime", "reason", "message"}


def test_the_text_is_small_enough_for_kubectl_apply_and_reads_back() -> None:
    # `kubectl apply` keeps the whole text in an annotation, and annotations have 256 KiB.
    assert len(crd_text().encode()) < 128 * 1024
    assert [document.tree for document in read(crd_text())] == [json.loads(json.dumps(crd()))]
