"""What the operator writes, as bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sluice.config.document import parse
from sluice.config.render import (
    NO_LIMITS,
    content_hash,
    document_text,
    envoy_config_map,
    limits_config_map,
    limits_text,
)
from sluice.config.types import ProviderLimits

ONE = "{apiVersion: sluice.dev/v1alpha1, kind: ProviderLimits, metadata: {name: openai}, spec: {provider: openai}}"


def read(text: str) -> tuple[ProviderLimits, ...]:
    return parse(text, "")


def test_the_text_is_read_back_as_the_documents_by_name() -> None:
    (openai,) = read(ONE)
    documents = [replace(openai, name=name) for name in ("b", "a", "a.b", "a-b")]

    text = limits_text((each.name, document_text(each, uid="u", generation=7)) for each in documents)

    assert [each.name for each in read(text)] == ["a", "a-b", "a.b", "b"]
    assert "  uid: u\n  generation: 7\n" in text


def test_a_uid_that_looks_like_a_number_stays_text() -> None:
    (openai,) = read(ONE)

    assert '  uid: "1e3"\n' in document_text(openai, uid="1e3", generation=1)


def test_no_documents_are_a_text_that_says_so() -> None:
    assert limits_text([]) == NO_LIMITS == "apiVersion: v1\nkind: List\nitems: []\n"
    assert read(NO_LIMITS) == ()


def test_the_hash_is_of_the_bytes_that_a_gate_reads() -> None:
    assert content_hash("ü\n") == hashlib.sha256("ü\n".encode()).hexdigest()


def test_a_config_map_says_whose_it_is_and_what_it_holds() -> None:
    owner = {"apiVersion": "sluice.dev/v1alpha1", "kind": "ProviderLimits", "name": "openai", "uid": "u"}

    assert limits_config_map("text", generation=3, namespace="team", owners=[owner]) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "sluice-limits",
            "namespace": "team",
            "labels": {"app.kubernetes.io/managed-by": "sluice-operator"},
            "annotations": {"sluice.dev/content-hash": content_hash("text"), "sluice.dev/generation": "3"},
            "ownerReferences": [owner],
        },
        "data": {"limits.yaml": "text"},
    }
    assert envoy_config_map("{}") == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "sluice-envoy",
            "labels": {"app.kubernetes.io/managed-by": "sluice-operator"},
            "annotations": {"sluice.dev/content-hash": content_hash("{}")},
        },
        "data": {"bootstrap.json": "{}"},
    }
