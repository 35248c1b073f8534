"""Who is calling: from what Envoy saw of a request to the subject of a bucket."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from sluice.config.merge import Provider
from sluice.config.types import SubjectKind, SubjectSource
from sluice.core.keys import Scope

LONGEST: Final = 256
"""Characters of a subject that are kept as they are; a longer one is known by its hash, so that keys stay small."""

ACCOUNT_ENTRY: Final = "account"
"""The entry in which the caller's key comes where no scope is told by it: whose quota it is at the provider."""
_AMAZONS: Final = "AWS4-"
_KEY_NAME: Final = re.compile(r"Credential=([^/,\s]+)")

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
        return account(text)
    return text if len(text) <= LONGEST else "sha256-" + _hash(text)


def account(text: str) -> str:
    """The hash of the key in a header or parameter; empty if there is none.

    Amazon's signatures are made anew for every call: of these it is the key's name that counts.
    """
    scheme, *rest = text.split(maxsplit=1) or ("",)
    key = "".join(rest).rstrip() if scheme.lower() == "bearer" else text.strip()
    if scheme.startswith(_AMAZONS) and (named := _KEY_NAME.search(key)):
        key = named[1]
    return "key-" + _hash(key)[:16] if key else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
