"""The limits document, declared once: the parser, the reference and the schema for Kubernetes are read from here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from sluice.config.entries import ENTRY, MATCH, MAX_ENTRIES, SCOPE, SUBJECT, claims_of, is_spelt, words
from sluice.config.types import FailurePolicy, StreamUsage, SubjectKind
from sluice.core.keys import SCOPES
from sluice.core.limits import MAX_COUNT, Sharing
from sluice.schema.declare import (
    Anything,
    Constraint,
    Field,
    Integer,
    Mistake,
    Object,
    Rule,
    Sequence,
    Text,
    Word,
    is_sound,
)
from sluice.schema.yamltext import Tree
from sluice.usage.estimation import BYTES_PER_TOKEN, DEFAULT_OUTPUT_TOKENS, DEFAULT_QUANTILE
from sluice.usage.learning import MOST_BYTES
from sluice.usage.profiles import BUILT_IN, Api, Catalog
from sluice.usage.profiles.catalog import WITHOUT_ADDRESS, built_in_names
from sluice.usage.profiles.declaration import OVERRIDES, PROVIDER, UPSTREAM
from sluice.usage.profiles.profile import EstimationMode

API_VERSION: Final = "sluice.dev/v1alpha1"
KIND: Final = "ProviderLimits"

_NAME_PART: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAME: Final = Text(rf"{_NAME_PART}(\.{_NAME_PART})*", "a name of lower-case letters, digits, `-` and `.`", 253)
"""What Kubernetes takes for the name of an object: it bounds the whole, not the parts."""
_NAMES: Final = built_in_names()
_KNOWN: Final = {
    "api": (_NAMES, "is not a built-in provider"),
    "upstream": (tuple(n for n in _NAMES if n not in WITHOUT_ADDRESS), "is not a provider with a built-in address"),
}
"""The providers that need not say this, and what the others are told."""
_FILE_SAYS_IT: Final = "outside Kubernetes the provider's file in --profiles may say it instead"
_API: Final = Word(tuple(Api))


def _fits_the_profile(catalog: Catalog, spec: dict[str, Tree]) -> Iterator[Mistake]:
    provider = spec.get("provider")
    if not isinstance(provider, str) or not is_sound(PROVIDER, provider):
        return
    if file := catalog.files.get(provider):
        yield from _fits_the_file(catalog, file, provider, spec)
    elif is_spelt(spec, _SPEC):
        files = f"those of --profiles are of {', '.join(sorted(catalog.files))}" if catalog.files else _FILE_SAYS_IT
        for name, (known, complaint) in _KNOWN.items():
            if provider not in known and name not in spec:
                yield Mistake(name, f"is required: {provider} {complaint} ({', '.join(known)}); {files}")


def _fits_the_file(catalog: Catalog, file: str, provider: str, spec: dict[str, Tree]) -> Iterator[Mistake]:
    profile = catalog.profile(provider)
    api = spec.get("api")
    if api != profile.api and is_sound(_API, api):
        yield Mistake("api", f"is {api}, and the profile in {file} is of {profile.api}: leave it out, or mend the file")
    if not profile.upstream and "upstream" not in spec and is_spelt(spec, _SPEC):
        yield Mistake("upstream", f"is required: {file} has none either; give it here or there")


def _scopes_have_a_source(spec: dict[str, Tree]) -> Iterator[Mistake]:
    entries = _entries(spec)
    named = {entry["scope"] for _, entry in entries if "subject" in entry or not is_spelt(entry, ENTRY)}
    for place, entry in entries:
        if entry["scope"] not in named:
            named.add(entry["scope"])
            yield Mistake(f"{place}.subject", f"is required: no entry says where the {entry['scope']} is read")


def _scopes_have_one_source(spec: dict[str, Tree]) -> Iterator[Mistake]:
    first: dict[Tree, tuple[str, Tree]] = {}
    for place, entry in _entries(spec):
        subject = entry.get("subject")
        if not isinstance(subject, dict) or not is_sound(SUBJECT, subject):
            continue
        if "header" in subject:
            subject = {"header": str(subject["header"]).lower()}
        where, source = first.setdefault(entry["scope"], (place, subject))
        if source != subject:
            yield Mistake(
                f"{place}.subject",
                f"differs from spec.{where}.subject: a scope has one source; give it once, or alike",
            )


def _entries_are_distinct(spec: dict[str, Tree]) -> Iterator[Mistake]:
    owners: dict[tuple[Tree, str, str], str] = {}
    for place, entry in _entries(spec):
        match = entry.get("match", {})
        if not is_sound(MATCH, match):
            continue
        claims = [(entry["scope"], *claim) for claim in claims_of(words(match, "subjects"), words(match, "models"))]
        rival = next((owners[claim] for claim in claims if claim in owners), None)
        if rival is None:
            owners.update(dict.fromkeys(claims, place))
        else:
            yield Mistake(place, f"is for the same calls as spec.{rival}: make them one, or give each its own match")


def _entries(spec: dict[str, Tree]) -> list[tuple[str, dict[str, Tree]]]:
    """The entries whose scope is sound, and where they stand."""
    limits = spec.get("limits")
    if not isinstance(limits, list) or len(limits) > MAX_ENTRIES:
        return []
    return [
        (f"limits[{index}]", entry)
        for index, entry in enumerate(limits)
        if isinstance(entry, dict) and is_sound(SCOPE, entry.get("scope"))
    ]


ESTIMATION: Final = Object(
    {
        "mode": Field(
            Word(tuple(EstimationMode)),
            "What a call's output is guessed by: Declared takes the cap that it declares, Learned what calls like it "
            "have used, Fixed the default whatever it declares. Absent: as is closest to the provider's own count.",
        ),
        "charsPerToken": Field(
            Integer(1, MOST_BYTES),
            "Bytes of a request's body that are taken for one token of input, until it is learned what they are.",
            default=BYTES_PER_TOKEN,
        ),
        "defaultOutputTokens": Field(
            Integer(1, MAX_COUNT),
            "Output tokens that are reserved for a call that declares no cap on its output, until it is learned what "
            "such calls bring; never more than a quarter of the smallest token cap it meets.",
            default=DEFAULT_OUTPUT_TOKENS,
        ),
        "quantile": Field(
            Integer(1, 99),
            "Of a hundred calls so many shall use no more than what is learned: more reserve more and go over it less.",
            default=DEFAULT_QUANTILE,
        ),
    }
)

_SUBJECT_VALUES: Final = {kind: str(kind) for kind in SubjectKind} | {SubjectKind.HEADER: "header.lowerAscii()"}
# Of two entries with subjects: whatever the one has, the other has too.
_SAME_SOURCE: Final = " && ".join(
    f"(!has(a.subject.{kind}) || has(b.subject.{kind}) && a.subject.{value} == b.subject.{value})"
    for kind, value in _SUBJECT_VALUES.items()
)

_STRIPES: Final = 4
"""Rules that share the comparison of each entry with each: the API server bounds the cost of a rule to a tenth of what
an object's rules may cost together, and the largest document takes more than three such tenths."""


def _distinct(stripe: int) -> str:
    """Every n-th entry is compared with those before it, as `claims_of` has it."""
    return (
        f"!has(self.limits) || [{_keyed('subjects')}].all(subjects, [{_keyed('models')}].all(models, "
        f"self.limits.all(i, a, i % {_STRIPES} != {stripe} || self.limits.all(j, b, j >= i || a.scope != b.scope || "
        f"!{_share('subjects')} || !{_share('models')}))))"
    )


def _keyed(name: str) -> str:
    """For each entry a map with its words as keys: to look one up costs the same however many there are."""
    words = f"e.match.{name}.transformMapEntry(_, word, {{word: true}})"
    return f"self.limits.map(e, has(e.match) && has(e.match.{name}) ? {words} : {{'*': true}})"


def _share(name: str) -> str:
    shared = f"a.match.{name}.exists(word, word in {name}[j])"
    return f"(has(a.match) && has(a.match.{name}) ? {shared} : '*' in {name}[j])"


_SPEC: Final = Object(
    {
        "provider": Field(
            PROVIDER,
            "The provider's name, and the first segment of the path that its calls take through the gate: "
            + ", ".join(_NAMES)
            + " are built in; any other name needs `api` and `upstream`.",
            required=True,
            example="openai",
            immutable=True,
        ),
        "api": Field(_API, "The API it speaks. Default: the built-in provider's own."),
        "upstream": Field(
            UPSTREAM,
            "Where calls are sent. Default: the built-in provider's own.",
            example="https://api.openai.com",
        ),
        "failurePolicy": Field(
            Word(tuple(FailurePolicy)),
            "What becomes of calls while the gate itself cannot be asked: Allow lets them go on, uncounted; Deny "
            "refuses them. Not `spec.limits[].failurePolicy`, which is about a store that gates share.",
            default=FailurePolicy.ALLOW,
        ),
        "streamUsage": Field(
            Word(tuple(StreamUsage)),
            "What is done about a stream of an OpenAI-like API whose call does not ask for its usage "
            "(`stream_options.include_usage`): Estimate counts what streams; Inject asks in the caller's place, and "
            "takes the answer out of the stream again.",
            default=StreamUsage.ESTIMATE,
        ),
        "sharing": Field(
            Word(tuple(Sharing)),
            "How gates with one store share the capacity of these limits: Exact asks the store for every call; Leased "
            "takes slices ahead, for a second at most, and decides in memory within them. With either nothing is "
            "admitted beyond a limit; with Leased, capacity in slices that are not used is stranded for up to a "
            "second. Without a shared store it does nothing.",
            default=Sharing.EXACT,
        ),
        "profile": Field(
            OVERRIDES,
            "What is different from the provider's built-in profile, or that of its `api`: see docs/providers.md.",
        ),
        "estimation": Field(ESTIMATION, "How the cost of a call is guessed before it is known.", default={}),
        "limits": Field(
            Sequence(ENTRY, most=MAX_ENTRIES),
            "The limits. Absent or empty: calls pass through the gate uncounted.",
            default=[],
        ),
    },
    constraints=(
        Constraint(
            "Some entry of each scope says where the subject is read.",
            _scopes_have_a_source,
            tuple(
                Rule(
                    f"!has(self.limits) || !self.limits.exists(e, e.scope == '{scope}') "
                    f"|| self.limits.exists(e, e.scope == '{scope}' && has(e.subject))",
                    f"no entry says where the {scope} is read: give one of them a subject",
                    "limits",
                )
                for scope in SCOPES
            ),
        ),
        Constraint(
            "The entries of a scope name one source of the subject.",
            _scopes_have_one_source,
            (
                Rule(
                    "!has(self.limits) || self.limits.all(a, !has(a.subject) || self.limits.all(b, "
                    f"!has(b.subject) || a.scope != b.scope || {_SAME_SOURCE}))",
                    "the subjects of a scope differ: a scope has one source; give it once, or alike",
                    "limits",
                ),
            ),
        ),
        Constraint(
            "No two entries of a scope share both a subject and a model of their `match`.",
            _entries_are_distinct,
            tuple(
                Rule(
                    _distinct(stripe),
                    "two entries of a scope are for the same calls: make them one, or give each its own match",
                    "limits",
                )
                for stripe in range(_STRIPES)
            ),
        ),
    ),
)


def _fitting(catalog: Catalog) -> Constraint:
    return Constraint(
        "A provider that is not built in has `api` and `upstream`; one without a built-in address has `upstream`. What "
        "its file in `--profiles` says need not be said again, and `api` is not another one than there.",
        partial(_fits_the_profile, catalog),
        tuple(
            Rule(
                f"self.provider in {list(known)} || has(self.{name})",
                f"{{self.provider}} {complaint} ({', '.join(known)})",
                name,
                missing=True,
            )
            for name, (known, complaint) in _KNOWN.items()
        ),
    )


_KEPT_BY_KUBERNETES: Final = (
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "managedFields",
    "ownerReferences",
    "selfLink",
)


def document(catalog: Catalog) -> Object:
    """The declaration of a document for those who know these profiles."""
    spec = replace(_SPEC, constraints=(_fitting(catalog), *_SPEC.constraints))
    return Object(
        {
            "apiVersion": Field(Word((API_VERSION,)), "The version of this format.", required=True),
            "kind": Field(Word((KIND,)), "What the document is.", required=True),
            "metadata": Field(
                Object(
                    {
                        "name": Field(
                            NAME, "The document's name; no other document has it.", required=True, example="openai"
                        )
                    }
                    | {name: Field(Anything(), "Kubernetes' own.") for name in _KEPT_BY_KUBERNETES}
                ),
                "The name, and what Kubernetes keeps beside it, which is not looked at.",
                required=True,
            ),
            "spec": Field(spec, "The provider and its limits.", required=True),
            "status": Field(Anything(), "What the operator wrote of it; not looked at."),
        }
    )


DOCUMENT: Final = document(BUILT_IN)
"""The declaration for those who know the built-in profiles alone, such as the API server."""
