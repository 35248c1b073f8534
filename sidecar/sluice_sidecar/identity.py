"""Who is calling: from what Envoy saw of a request to the subject of a bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from sluice.config.merge import Provider
from sluice.config.types import SubjectKind, SubjectSource
from sluice.core.keys import Scope

LONGEST: Final = 256
"""Characters of a subject that are kept as they are; a longer one is known by its hash, so that keys stay small."""

ENTRIES: Final = {"user": Scope.USER, "org": Scope.ORG, "project": Scope.PROJECT}
"""The entry of the descriptor in which each scope's subject comes."""


def fixed_subjects(provider: Provider, environ: Mapping[str, str]) -> dict[Scope, str]:
    """The subjects that no caller has a say in: constants, and variables of the gate's own environment."""
    fixed = {}
    for scope, source in provider.subjects.items():
        if source.kind is SubjectKind.CONSTANT:
            fixed[scope] = source.value
        elif source.kind is SubjectKind.ENV:
            fixed[scope] = environ.get(source.value, "")
    return fixed


def subject(source: SubjectSource | None, text: str) -> str:
    """The subject that a header's value stands for. A key is known by its hash only, here and everywhere after."""
    if not text:
        return ""
    if source is not None and source.kind is SubjectKind.API_KEY:
        key = text[7:] if text[:7].lower() == "bearer " else text
        return "key-" + _hash(key.strip())[:16]
    return text if len(text) <= LONGEST else "sha256-" + _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
