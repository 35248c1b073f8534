"""What a limits document says once it is read: every value here is sound, and nothing inside checks it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sluice.core.keys import Scope
from sluice.core.limits import Limits, Sharing
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import Api


class FailurePolicy(StrEnum):
    """What becomes of calls while the gate itself cannot be asked. The value is the word of the document."""

    ALLOW = "Allow"
    DENY = "Deny"


class StreamUsage(StrEnum):
    """What is done about a stream that is not asked for its usage. The value is the word of the document."""

    ESTIMATE = "Estimate"
    INJECT = "Inject"


class SubjectKind(StrEnum):
    """Where a subject is read. The value is the field of `subject` in the document."""

    HEADER = "header"
    CONSTANT = "constant"
    ENV = "env"
    API_KEY = "apiKey"


@dataclass(frozen=True, slots=True)
class SubjectSource:
    """Where the subject of a scope is read."""

    kind: SubjectKind
    value: str = ""
    """The header's name in lower case, the constant itself, or the variable's name; empty for `apiKey`."""


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """One entry of `spec.limits`."""

    scope: Scope
    subject: SubjectSource
    """The source of the whole scope: entries that leave `subject` out carry the one their scope names elsewhere."""
    subjects: tuple[str, ...]
    """`match.subjects`; empty for everybody. A `*` stands for any run of characters."""
    models: tuple[str, ...]
    """`match.models`; empty for every model."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """One document: a provider and its limits, with every default filled in."""

    name: str
    provider: str
    api: Api
    upstream: str
    """`http://` or `https://`, a host in lower case, and a port where one was given; never a path."""
    failure_policy: FailurePolicy
    estimation: Estimation
    limits: tuple[LimitEntry, ...]
    profile: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """`spec.profile` as it stands: what is said in place of the provider's profile."""
    source: str = field(default="", compare=False)
    """The file it was read from: for messages only."""
    namespace: str = field(default="", compare=False)
    """`metadata.namespace`, where the document has one: a gate does not look at it."""
    stream_usage: StreamUsage = StreamUsage.ESTIMATE
    sharing: Sharing = Sharing.EXACT
    """Of all its limits, whatever the `Limits` of an entry say: `merge.rules_of` puts it into each rule."""
