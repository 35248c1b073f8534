"""The limits document: text in, values or every mistake out; and back."""

from __future__ import annotations

from sluice.config.types import (
    Estimation,
    FailurePolicy,
    LimitEntry,
    ProviderLimits,
    SubjectKind,
    SubjectSource,
)

__all__ = [
    "Estimation",
    "FailurePolicy",
    "LimitEntry",
    "ProviderLimits",
    "SubjectKind",
    "SubjectSource",
]
