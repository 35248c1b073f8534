"""Many documents into one configuration, and what changed between two of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from sluice.config.declaration import KIND
from sluice.config.entries import claims_of
from sluice.config.types import FailurePolicy, LimitEntry, ProviderLimits, StreamUsage, SubjectSource
from sluice.core.keys import Scope
from sluice.core.limits import Limits
from sluice.core.rules import Rule, RuleBook
from sluice.errors import InvalidDocument, Problem
from sluice.schema.durations import format_duration
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import BUILT_IN, Catalog, Profile

_Claim: TypeAlias = tuple[str, Scope, str, str]
"""Provider, scope, and one of an entry's pairs of patterns: see `claims_of`."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What holds for every call to one provider, whatever document said it."""

    name: str
    profile: Profile
    upstream: str
    failure_policy: FailurePolicy
    estimation: Estimation
    """With a mode: where the document says none, that of the profile."""
    subjects: Mapping[Scope, SubjectSource]
    """Where the subject of each scope that is limited is read."""
    stream_usage: StreamUsage = StreamUsage.ESTIMATE


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything in force at one time: immutable, swapped whole."""

    documents: tuple[ProviderLimits, ...]
    rules: RuleBook
    providers: Mapping[str, Provider]


def merge(documents: Iterable[ProviderLimits], catalog: Catalog = BUILT_IN) -> Configuration:
    """One configuration of all documents; raises `InvalidDocument` with every conflict between them."""
    documents = tuple(documents)
    problems = tuple(conflicts(documents))
    if problems:
        raise InvalidDocument(problems)
    rules = tuple(rule for document in documents for rule in rules_of(document))
    return Configuration(documents, RuleBook(rules), MappingProxyType(_providers(documents, catalog)))


def rules_of(document: ProviderLimits) -> tuple[Rule, ...]:
    """The rules of a document, one an entry, in their order."""
    return tuple(
        Rule(
            document.provider,
            entry.scope,
            replace(entry.limits, sharing=document.sharing),
            entry.subjects,
            entry.models,
        )
        for entry in document.limits
    )


def conflicts(documents: Iterable[ProviderLimits]) -> Iterator[Problem]:
    """Where a document contradicts one that stands before it; the message names the earlier one.

    Who comes first is the caller's to say: the order of files, or the age of objects.
    """
    claims = Claims()
    for document in documents:
        yield from claims.against(document)
        claims.add(document)


class Claims:
    """What the documents so far lay claim to: their names, their providers' facts, the calls of each entry."""

    def __init__(self) -> None:
        self._names: dict[str, ProviderLimits] = {}
        self._providers: dict[str, ProviderLimits] = {}
        self._sources: dict[tuple[str, Scope], tuple[ProviderLimits, SubjectSource]] = {}
        self._entries: dict[_Claim, tuple[ProviderLimits, int]] = {}

    def against(self, document: ProviderLimits) -> Iterator[Problem]:
        """Where the document contradicts what has been claimed; each message names the document that came first."""
        yield from self._same_name(document)
        yield from self._differing_facts(document)
        yield from self._differing_sources(document)
        yield from self._rival_entries(document)

    def add(self, document: ProviderLimits) -> None:
        """Claim what the document says; what is claimed already stays with the document that came first."""
        self._names.setdefault(document.name, document)
        self._providers.setdefault(document.provider, document)
        for scope, source in _sources(document).items():
            self._sources.setdefault((document.provider, scope), (document, source))
        for index, entry in enumerate(document.limits):
            for claim in _claims(document, entry):
                self._entries.setdefault(claim, (document, index))

    def _same_name(self, document: ProviderLimits) -> Iterator[Problem]:
        if known := self._names.get(document.name):
            yield _problem(document, "metadata.name", f"is the name of {_named(known)} too: give each its own")

    def _differing_facts(self, document: ProviderLimits) -> Iterator[Problem]:
        if known := self._providers.get(document.provider):
            there = _provider_facts(known)
            here = _provider_facts(document)
            for name in {**here, **there}:
                if here.get(name) != there.get(name):
                    value, other = here.get(name, "unset"), there.get(name, "unset")
                    message = f"is {value}, and {_named(known)} says {other}: a provider has one"
                    yield _problem(document, f"spec.{name}", message)

    def _differing_sources(self, document: ProviderLimits) -> Iterator[Problem]:
        for scope, source in _sources(document).items():
            known, there = self._sources.get((document.provider, scope), (document, source))
            if source != there:
                message = (
                    f"reads the {scope} from {_told(source)}, and {_named(known)} from {_told(there)}: use one source"
                )
                yield _problem(document, "spec.limits", message)

    def _rival_entries(self, document: ProviderLimits) -> Iterator[Problem]:
        for index, entry in enumerate(document.limits):
            owners = (self._entries.get(claim) for claim in _claims(document, entry))
            if owner := next(filter(None, owners), None):
                message = f"is for the same calls as spec.limits[{owner[1]}] of {_named(owner[0])}: keep one of them"
                yield _problem(document, f"spec.limits[{index}]", message)


def diff(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """What changes, a line each, such as `openai User *: requestsPerMinute 60 -> 100`; empty where nothing does."""
    before, after = _facts(old), _facts(new)
    lines: list[str] = []
    for thing in sorted(before.keys() | after.keys()):
        was, becomes = before.get(thing), after.get(thing)
        if was is None:
            told = ", ".join(f"{name} {value}" for name, value in (becomes or {}).items())
            lines.append(f"{thing}: added ({told})")
        elif becomes is None:
            lines.append(f"{thing}: removed")
        else:
            changed = [name for name in {**was, **becomes} if was.get(name) != becomes.get(name)]
            lines += [f"{thing}: {name} {was.get(name, 'unset')} -> {becomes.get(name, 'unset')}" for name in changed]
    return tuple(lines)


def _claims(document: ProviderLimits, entry: LimitEntry) -> Iterator[_Claim]:
    for subjects, models in claims_of(entry.subjects, entry.models):
        yield document.provider, entry.scope, subjects, models


def _problem(document: ProviderLimits, field: str, message: str) -> Problem:
    return Problem(document.source, f"{KIND}/{document.name}", field, message)


def _named(document: ProviderLimits) -> str:
    return f"{KIND}/{document.name}" + (f" in {document.source}" if document.source else "")


def _told(source: SubjectSource) -> str:
    return f"{source.kind} {source.value}".strip()


def _sources(document: ProviderLimits) -> dict[Scope, SubjectSource]:
    return {entry.scope: entry.subject for entry in reversed(document.limits)}


def _providers(documents: tuple[ProviderLimits, ...], catalog: Catalog) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    for document in documents:
        known = providers.get(document.provider)
        profile = catalog.profile(document.provider, document.api, document.profile)
        providers[document.provider] = Provider(
            document.provider,
            profile,
            document.upstream,
            document.failure_policy,
            replace(document.estimation, mode=document.estimation.mode or profile.counting.mode),
            MappingProxyType({**(known.subjects if known else {}), **_sources(document)}),
            document.stream_usage,
        )
    return providers


def _facts(configuration: Configuration) -> dict[str, dict[str, str]]:
    """Everything that a configuration says, by the thing that it says it of."""
    facts: dict[str, dict[str, str]] = {}
    for document in configuration.documents:
        of_provider = facts.setdefault(document.provider, _provider_facts(document))
        of_provider.update((f"{scope} from", _told(source)) for scope, source in _sources(document).items())
        for rule in rules_of(document):
            facts[f"{rule.provider} {rule.name}"] = _limit_facts(rule.limits)
    return facts


def _provider_facts(document: ProviderLimits) -> dict[str, str]:
    """What every document of a provider has to agree on, by its path below `spec`."""
    return {
        "api": document.api,
        "upstream": document.upstream,
        "failurePolicy": document.failure_policy,
        **({"profile": json.dumps(document.profile, sort_keys=True)} if document.profile else {}),
        "streamUsage": document.stream_usage,
        **({"estimation.mode": document.estimation.mode} if document.estimation.mode else {}),
        "estimation.charsPerToken": str(document.estimation.bytes_per_token),
        "estimation.defaultOutputTokens": str(document.estimation.default_output_tokens),
        "estimation.quantile": str(document.estimation.quantile),
    }


def _limit_facts(limits: Limits) -> dict[str, str]:
    facts = {str(cap): str(count) for cap, count in limits.caps.items()}
    return facts | {
        "maxWait": format_duration(limits.max_wait),
        "mode": limits.mode,
        "failurePolicy": limits.failure_policy,
        "sharing": limits.sharing,
    }
