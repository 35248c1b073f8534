"""What the operator writes: the limits of a namespace as one text, and the ConfigMaps for it and for Envoy's bootstrap.

Same documents, same bytes: the text's hash says which limits a gate runs, so nothing here depends on a clock, on the
order of a mapping or on who asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sluice.config.document import to_manifest
from sluice.config.types import ProviderLimits
from sluice.schema import yamltext

LIMITS: Final = "sluice-limits"
"""The ConfigMap that gates mount."""
LIMITS_KEY: Final = "limits.yaml"
ENVOY: Final = "sluice-envoy"
"""The ConfigMap with the Envoy bootstrap of the gateway shape."""
ENVOY_KEY: Final = "bootstrap.json"

MANAGER: Final = "sluice-operator"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
CONTENT_HASH: Final = "sluice.dev/content-hash"
"""Annotation: what `content_hash` says of the text."""
GENERATION: Final = "sluice.dev/generation"
"""Annotation: how many texts there have been, the one now included."""

SEPARATOR: Final = "---\n"
"""The line between two documents of the limits text."""
NO_LIMITS: Final = yamltext.write([{"apiVersion": "v1", "kind": "List", "items": []}])
"""The text of no documents at all. A gate takes an empty file for a slip."""


def document_text(document: ProviderLimits, *, uid: str = "", generation: int = 0) -> str:
    """One document of the limits text, defaults written out; with the object that it comes from, where there is one."""
    manifest = to_manifest(document)
    if uid:
        manifest["metadata"] |= {"uid": uid, "generation": generation}
    return yamltext.write([manifest])


def limits_text(documents: Iterable[tuple[str, str]]) -> str:
    """The limits text of `(name, document_text)` pairs: sorted by name, whatever order they come in."""
    return SEPARATOR.join(text for _, text in sorted(documents)) or NO_LIMITS


def content_hash(text: str) -> str:
    """SHA-256 of the text's bytes in hexadecimal: what a gate says of the file that it runs."""
    return hashlib.sha256(text.encode()).hexdigest()


def limits_config_map(
    text: str, *, generation: int = 1, namespace: str = "", owners: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The ConfigMap of a limits text. `owners` are owner references; an empty namespace is left out."""
    manifest = _config_map(LIMITS, LIMITS_KEY, text, namespace, owners)
    manifest["metadata"]["annotations"][GENERATION] = str(generation)
    return manifest


def envoy_config_map(
    bootstrap: str, *, namespace: str = "", owners: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The ConfigMap of an Envoy bootstrap; arguments as for `limits_config_map`."""
    return _config_map(ENVOY, ENVOY_KEY, bootstrap, namespace, owners)


def _config_map(name: str, key: str, text: str, namespace: str, owners: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            **({"namespace": namespace} if namespace else {}),
            "labels": {MANAGED_BY: MANAGER},
            "annotations": {CONTENT_HASH: content_hash(text)},
            **({"ownerReferences": list(owners)} if owners else {}),
        },
        "data": {key: text},
    }
