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

SUBJECT_ENTRIES: Final[Mapping[Scope, str]] = {Scope.USER: "user", Scope.ORG: "org", Scope.PROJECT: "project"}
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


def told_subjects(provider: Provider) -> tuple[tuple[str, Scope, SubjectSource], ...]:
    """The subjects that come with a call: the entry of its descriptor, the scope, and where Envoy read it."""
    return tuple(
        (entry, scope, source)
        for scope, entry in SUBJECT_ENTRIES.items()
        if (source := provider.subjects.get(scope)) is not None
        and source.kind in (SubjectKind.HEADER, SubjectKind.API_KEY)
    )


def subject(source: SubjectSource, text: str) -> str:
    """The subject that a header's value stands for; empty if it names nobody.

    A key is known by its hash only, here and everywhere after, and is the same key with and without `Bearer`.
    """
    if source.kind is SubjectKind.API_KEY:
        scheme, *rest = text.split(maxsplit=1) or ("",)
        key = "".join(rest).rstrip() if scheme.lower() == "bearer" else text.strip()
        return "key-" + _hash(key)[:16] if key else ""
    return text if len(text) <= LONGEST else "sha256-" + _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
