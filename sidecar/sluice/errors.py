"""The errors of the library, each one caught by somebody."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class SluiceError(Exception):
    """The root of every error that Sluice raises on purpose."""


class Problem(NamedTuple):
    """One mistake in a limits document, said to the person who wrote it."""

    source: str
    """The file (or object) that holds the mistake."""
    document: str
    """Which document of the file: `ProviderLimits/openai`, or `document 2` where it has no name."""
    field: str
    """The path of the field, as in `spec.limits[0].maxWait`; empty for the document as a whole."""
    message: str
    """What is wrong, and what is allowed."""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.source, self.document, self.field) if part)
        return f"{place}: {self.message}"


class InvalidDocument(SluiceError):
    """Limits documents that cannot be used; carries every mistake found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
