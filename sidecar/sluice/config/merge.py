"""Many documents into one configuration, and what changed between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sluice.config.types import Estimation, FailurePolicy, ProviderLimits, SubjectSource
from sluice.core.keys import Scope
from sluice.core.rules import Rule, RuleBook
from sluice.usage.profiles import Api


@dataclass(frozen=True, slots=True)
class Provider:
    """What holds for every call to one provider, whatever document said it."""

    name: str
    api: Api
    upstream: str
    failure_policy: FailurePolicy
    estimation: Estimation
    subjects: Mapping[Scope, SubjectSource]
    """Where the subject of each scope that is limited is read."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything in force at one time: immutable, swapped whole."""

    documents: tuple[ProviderLimits, ...]
    rules: RuleBook
    providers: Mapping[str, Provider]


def merge(documents: Iterable[ProviderLimits]) -> Configuration:
    """One configuration of all documents, in their order."""
    documents = tuple(documents)
    return Configuration(documents, RuleBook(tuple(_rules(documents))), MappingProxyType(_providers(documents)))


def _rules(documents: Iterable[ProviderLimits]) -> Iterable[Rule]:
    for document in documents:
        for entry in document.limits:
            yield Rule(document.provider, entry.scope, entry.limits, entry.subjects, entry.models)


def _providers(documents: Iterable[ProviderLimits]) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    for document in documents:
        known = providers.get(document.provider)
        subjects = dict(known.subjects) if known else {}
        subjects.update((entry.scope, entry.subject) for entry in document.limits)
        providers[document.provider] = Provider(
            document.provider,
            document.api,
            document.upstream,
            document.failure_policy,
            document.estimation,
            MappingProxyType(subjects),
        )
    return providers
