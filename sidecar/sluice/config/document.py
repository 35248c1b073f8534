"""The limits document: text in, values or every mistake out; and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from sluice.config import declaration
from sluice.config.types import (
    FailurePolicy,
    LimitEntry,
    ProviderLimits,
    StreamUsage,
    SubjectKind,
    SubjectSource,
)
from sluice.core.keys import Scope
from sluice.core.limits import Cap, Limits, Mode, Sharing, StoreFailure
from sluice.errors import InvalidDocument, Problem
from sluice.schema.declare import Mistake, Object, is_sound, mistakes, with_defaults
from sluice.schema.durations import format_duration, parse_duration
from sluice.schema.yamltext import Tree, Unreadable, read
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import BUILT_IN, Api, Catalog
from sluice.usage.profiles.profile import EstimationMode

MAX_PROBLEMS: Final = 100
"""Mistakes reported of one text: more than a person reads, and a bound on what a hostile text can make us write."""


class _Manifest(NamedTuple):
    """A tree that has to be a limits document, and what a person calls it."""

    label: str
    tree: Tree


def parse(text: str, source: str, catalog: Catalog = BUILT_IN) -> tuple[ProviderLimits, ...]:
    """The documents of a YAML text, in their order; `source` is the file's name for messages.

    What a document need not say of its provider is that which its profile in the catalog says.
    Empty documents are skipped, and the items of a `kind: List` (what `kubectl get -o yaml` prints) count as
    documents. Raises `InvalidDocument` with every mistake, up to `MAX_PROBLEMS` of them.
    """
    manifests: list[_Manifest] = []
    unreadable: list[Problem] = []
    try:
        manifests.extend(_manifests(text))
    except Unreadable as error:
        unreadable.append(Problem(source, "", "", str(error)))
    return _checked(manifests, source, catalog, unreadable)


def from_manifest(manifest: Mapping[str, Any], source: str) -> ProviderLimits:
    """One document that has been read already, such as the API server's JSON; raises `InvalidDocument`."""
    tree = dict(manifest)
    (document,) = _checked([_Manifest(_label(tree, "document"), tree)], source, BUILT_IN)
    return document


def to_manifest(document: ProviderLimits) -> dict[str, Any]:
    """The document as plain mappings and lists, defaults written out; reading it gives the document back."""
    return {
        "apiVersion": declaration.API_VERSION,
        "kind": declaration.KIND,
        "metadata": {"name": document.name},
        "spec": {
            "provider": document.provider,
            "api": str(document.api),
            "upstream": document.upstream,
            "failurePolicy": str(document.failure_policy),
            "streamUsage": str(document.stream_usage),
            "sharing": str(document.sharing),
            **({"profile": document.profile} if document.profile else {}),
            "estimation": _estimation_to_manifest(document.estimation),
            "limits": [_entry_to_manifest(entry) for entry in document.limits],
        },
    }


def _manifests(text: str) -> Iterator[_Manifest]:
    for number, tree in read(text):
        place = f"document {number}"
        items = tree.get("items") if isinstance(tree, dict) and tree.get("kind") == "List" else None
        if isinstance(items, list):
            for count, item in enumerate(items, start=1):
                yield _Manifest(_label(item, f"{place}, item {count}"), item)
        else:
            yield _Manifest(_label(tree, place), tree)


def _label(tree: Tree, place: str) -> str:
    metadata = tree.get("metadata") if isinstance(tree, dict) and tree.get("kind") == declaration.KIND else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{declaration.KIND}/{name}" if is_sound(declaration.NAME, name) else place


def _checked(
    manifests: Iterable[_Manifest], source: str, catalog: Catalog, unreadable: Iterable[Problem] = ()
) -> tuple[ProviderLimits, ...]:
    manifests = tuple(manifests)
    declared = declaration.document(catalog)
    found = (
        Problem(source, manifest.label, mistake.field, mistake.message)
        for manifest in manifests
        for mistake in _mistakes(declared, manifest.tree)
    )
    problems = list(islice(found, MAX_PROBLEMS))
    if next(found, None):
        problems.append(Problem(source, "", "", f"has more mistakes: only the first {MAX_PROBLEMS} are reported"))
    problems.extend(unreadable)
    if problems:
        raise InvalidDocument(problems)
    return tuple(_built(with_defaults(declared, manifest.tree), source, catalog) for manifest in manifests)


def _mistakes(declared: Object, tree: Tree) -> Iterator[Mistake]:
    head = {name: declared.fields[name].type for name in ("apiVersion", "kind")}
    strange = [
        name for name in head if isinstance(tree, dict) and name in tree and not is_sound(head[name], tree[name])
    ]
    if not isinstance(tree, dict) or not strange:
        return mistakes(declared, tree)
    # Another kind of object: what its fields should be is not ours to say.
    return (mistake for name in strange for mistake in mistakes(head[name], tree[name], name))


def _built(document: Any, source: str, catalog: Catalog) -> ProviderLimits:
    """The values of a sound tree that has its defaults."""
    metadata, spec = document["metadata"], _of_profile(document["spec"]["provider"], catalog) | document["spec"]
    namespace = metadata.get("namespace")
    subjects: dict[str, SubjectSource] = {}
    for entry in spec["limits"]:
        if "subject" in entry:
            subjects.setdefault(entry["scope"], _subject(entry["subject"]))
    return ProviderLimits(
        name=metadata["name"],
        provider=spec["provider"],
        api=Api(spec["api"]),
        upstream=spec["upstream"],
        failure_policy=FailurePolicy(spec["failurePolicy"]),
        stream_usage=StreamUsage(spec["streamUsage"]),
        sharing=Sharing(spec["sharing"]),
        estimation=_estimation(spec["estimation"]),
        limits=tuple(_entry(entry, subjects[entry["scope"]]) for entry in spec["limits"]),
        profile=spec.get("profile", {}),
        source=source,
        namespace=namespace if isinstance(namespace, str) else "",
    )


def _of_profile(provider: str, catalog: Catalog) -> dict[str, Any]:
    if provider not in catalog.names:
        return {}
    profile = catalog.profile(provider)
    return {"api": profile.api, **({"upstream": profile.upstream} if profile.upstream else {})}


def _estimation(estimation: Mapping[str, Any]) -> Estimation:
    return Estimation(
        mode=EstimationMode(estimation["mode"]) if "mode" in estimation else None,
        bytes_per_token=estimation["charsPerToken"],
        default_output_tokens=estimation["defaultOutputTokens"],
        quantile=estimation["quantile"],
    )


def _subject(subject: Mapping[str, Any]) -> SubjectSource:
    ((kind, value),) = subject.items()
    match SubjectKind(kind):
        case SubjectKind.API_KEY:
            return SubjectSource(SubjectKind.API_KEY)
        case SubjectKind.HEADER:
            return SubjectSource(SubjectKind.HEADER, value.lower())
        case other:
            return SubjectSource(other, value)


def _entry(entry: Mapping[str, Any], subject: SubjectSource) -> LimitEntry:
    caps: dict[str, Any] = {cap.attribute: entry.get(cap) for cap in Cap}
    return LimitEntry(
        scope=Scope(entry["scope"]),
        subject=subject,
        subjects=tuple(entry["match"].get("subjects", ())),
        models=tuple(entry["match"].get("models", ())),
        limits=Limits(
            **caps,
            max_wait=parse_duration(entry["maxWait"]) or 0,
            mode=Mode(entry["mode"]),
            failure_policy=StoreFailure(entry["failurePolicy"]),
        ),
    )


def _estimation_to_manifest(estimation: Estimation) -> dict[str, Any]:
    return {
        **({"mode": str(estimation.mode)} if estimation.mode else {}),
        "charsPerToken": estimation.bytes_per_token,
        "defaultOutputTokens": estimation.default_output_tokens,
        "quantile": estimation.quantile,
    }


def _entry_to_manifest(entry: LimitEntry) -> dict[str, Any]:
    kind, value = entry.subject.kind, entry.subject.value
    match = {"subjects": list(entry.subjects), "models": list(entry.models)}
    narrowed = {name: patterns for name, patterns in match.items() if patterns}
    return {
        "scope": str(entry.scope),
        "subject": {str(kind): True if kind is SubjectKind.API_KEY else value},
        **({"match": narrowed} if narrowed else {}),
        **{str(cap): count for cap, count in entry.limits.caps.items()},
        "maxWait": format_duration(entry.limits.max_wait),
        "mode": str(entry.limits.mode),
        "failurePolicy": str(entry.limits.failure_policy),
    }
