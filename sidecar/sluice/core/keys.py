"""The name of a bucket."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

OVERFLOW: Final = "\x00overflow"
"""The subject of the bucket that newcomers share once the cap on keys is reached.

NUL cannot stand in an HTTP header, so no caller that comes through Envoy can name it.
"""
OVERFLOW_SHOWN: Final = "(overflow)"
"""How the subject of that bucket is called where people read."""


class Scope(StrEnum):
    """Whose quota a bucket holds. The value is the word of the limits document."""

    USER = "User"
    ORG = "Org"
    PROJECT = "Project"
    PROVIDER = "Provider"
    """The provider's own quota, of which no limits document speaks: see `sluice.core.upstream`."""


SCOPES: Final = (Scope.USER, Scope.ORG, Scope.PROJECT)
"""The scopes that a limit may have."""


class BucketKey(NamedTuple):
    """One `(provider, scope, subject)`, and the models it is narrowed to.

    A tuple of strings, so two different keys never compare equal, whatever characters they hold.
    """

    provider: str
    scope: Scope
    subject: str
    """Empty for the bucket that callers without an identity share."""
    models: str = ""
    """Empty for every model; else the patterns of the limit that has `match.models`, sorted, with commas; or, of the
    provider's own quota, the one model's name."""
