"""The limits document, declared once: the parser, the reference and the schema for Kubernetes are read from here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from typing import Final

from sluice.config.durations import parse_duration
from sluice.config.schema import (
    AlwaysTrue,
    Anything,
    Constraint,
    Duration,
    Field,
    Integer,
    Mistake,
    Object,
    Rule,
    Sequence,
    Text,
    Word,
    is_sound,
    shortened,
)
from sluice.config.types import FailurePolicy, SubjectKind
from sluice.config.yamltext import Tree
from sluice.core.keys import Scope
from sluice.core.limits import MAX_COUNT, MINUTE, REQUEST_CAPS, TOKEN_CAPS, Cap, Mode
from sluice.usage.estimate import DEFAULT_OUTPUT_TOKENS
from sluice.usage.profiles import PROFILES, Api

API_VERSION: Final = "sluice.dev/v1alpha1"
KIND: Final = "ProviderLimits"

MAX_ENTRIES: Final = 64
"""Entries of one document, and patterns of one list: what constraints that compare each with each stay cheap for."""
MAX_PAIRS: Final = 256
"""Subjects times models of one entry: each pair is a claim, and the claims of all documents are compared."""
MAX_WAIT: Final = 5 * MINUTE
"""The longest wait: clients and load balancers give up on a silent call at about this age."""

SECRET_HEADERS: Final = ("api-key", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-goog-api-key")
"""Headers that carry what must not be shown, and a subject is shown in `/status` and in metrics."""
CALL_HEADERS: Final = ("connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade")
"""Headers that the call itself needs: a subject's header is removed before the provider sees the call."""

_UNFIT_VARIABLE: Final = "(.*_)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)"

_LABEL: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME_PART: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PORT: Final = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PRINTING: Final = "[^\\x00-\\x1f\\x7f-\\x9f]+"

NAME: Final = Text(rf"{_NAME_PART}(\.{_NAME_PART})*", "a name of lower-case letters, digits, `-` and `.`", 253)
"""What Kubernetes takes for the name of an object: it bounds the whole, not the parts."""
PROVIDER: Final = Text(_LABEL, "a name of lower-case letters, digits and `-`", 63)
UPSTREAM: Final = Text(
    rf"https?://{_LABEL}(\.{_LABEL})*(:{_PORT})?",
    "http:// or https://, a host in lower case and, if need be, :port, and nothing behind it",
    270,
)
HEADER: Final = Text("[A-Za-z0-9!#$%&'*+.^_`|~-]+", "the name of an HTTP header", 128)
CONSTANT: Final = Text(_PRINTING, "text without control characters", 256)
VARIABLE: Final = Text("[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable", 128)
PATTERN: Final = Text("[^,\\x00-\\x1f\\x7f-\\x9f]+", "text without commas and control characters", 256)
PATTERNS: Final = Sequence(PATTERN, least=1, most=MAX_ENTRIES, distinct=True)
COUNT: Final = Integer(0, MAX_COUNT)
WAIT: Final = Duration(MAX_WAIT)
SCOPE: Final = Word(tuple(Scope))


def _header_is_fit(subject: dict[str, Tree]) -> Iterator[Mistake]:
    header = str(subject.get("header")).lower()
    if header in SECRET_HEADERS:
        yield Mistake(
            "header", f"{header} carries a secret, and subjects are shown: use {{apiKey: true}}, a hash of it"
        )
    elif header in CALL_HEADERS:
        yield Mistake("header", f"{header} belongs to the call itself, and a subject's header is removed: use another")


def _variable_is_fit(subject: dict[str, Tree]) -> Iterator[Mistake]:
    variable = subject.get("env")
    if isinstance(variable, str) and re.fullmatch(_UNFIT_VARIABLE, variable.upper()):
        yield Mistake(
            "env", f"{shortened(variable)} is the name of a secret, and subjects are shown: use another variable"
        )


SUBJECT: Final = Object(
    {
        SubjectKind.HEADER: Field(
            HEADER,
            "The request header that names the subject, in any case. It is removed before the provider sees the call.",
            example="x-user-id",
        ),
        SubjectKind.CONSTANT: Field(CONSTANT, "The same subject for every call.", example="team-a"),
        SubjectKind.ENV: Field(
            VARIABLE, "The environment variable of the gate that holds the subject.", example="POD_NAMESPACE"
        ),
        SubjectKind.API_KEY: Field(AlwaysTrue(), "A hash of the caller's API key is the subject.", example="true"),
    },
    constraints=(
        Constraint(
            "A header that carries a secret ("
            + ", ".join(SECRET_HEADERS)
            + ") or that the call itself needs ("
            + ", ".join(CALL_HEADERS)
            + ") names no subject.",
            _header_is_fit,
            (
                Rule(
                    f"!has(self.header) || !(self.header.lowerAscii() in {list(SECRET_HEADERS)})",
                    "{self.header} carries a secret, and subjects are shown: use {apiKey: true}, a hash of it",
                    "header",
                ),
                Rule(
                    f"!has(self.header) || !(self.header.lowerAscii() in {list(CALL_HEADERS)})",
                    "{self.header} belongs to the call itself, and a subject's header is removed: use another",
                    "header",
                ),
            ),
        ),
        Constraint(
            "A variable named like a secret (…KEY, …TOKEN, …SECRET, …PASSWORD, …CREDENTIALS) names no subject.",
            _variable_is_fit,
            (
                Rule(
                    f"!has(self.env) || !self.env.upperAscii().matches('^{_UNFIT_VARIABLE}$')",
                    "{self.env} is the name of a secret, and subjects are shown: use another variable",
                    "env",
                ),
            ),
        ),
    ),
    exactly_one=True,
)


def _pairs_are_few(match: dict[str, Tree]) -> Iterator[Mistake]:
    if len(_words(match, "subjects")) * len(_words(match, "models")) > MAX_PAIRS:
        yield Mistake("", _TOO_MANY_PAIRS)


_TOO_MANY_PAIRS: Final = f"has more than {MAX_PAIRS} pairs of a subject and a model: use patterns, or several entries"

MATCH: Final = Object(
    {
        "subjects": Field(
            PATTERNS, "The subjects the entry is for; `*` stands for any run of characters.", example="[alice, team-*]"
        ),
        "models": Field(
            PATTERNS, "The models the entry is for, as the call names them; `*` as above.", example="[gpt-5*]"
        ),
    },
    constraints=(
        Constraint(
            f"A `match` has at most {MAX_PAIRS} pairs of a subject and a model.",
            _pairs_are_few,
            (
                Rule(
                    "!has(self.subjects) || !has(self.models) "
                    f"|| size(self.subjects) * size(self.models) <= {MAX_PAIRS}",
                    _TOO_MANY_PAIRS,
                ),
            ),
        ),
    ),
)


def _has_a_cap(entry: dict[str, Tree]) -> Iterator[Mistake]:
    if not any(cap in entry for cap in Cap) and _is_spelt(entry, ENTRY):
        yield Mistake("", "limits nothing: set at least one of " + ", ".join(Cap))


def _periods_in_order(entry: dict[str, Tree]) -> Iterator[Mistake]:
    for caps in (REQUEST_CAPS, TOKEN_CAPS):
        counts = [(cap, count) for cap in caps.values() if (count := _count(entry, cap)) is not None]
        for (shorter, count), (longer, bound) in pairwise(counts):
            if count > bound:
                yield Mistake(shorter, f"{count} can never be reached: {longer} is {bound}; lower it, or leave it out")


def _waits_for_room(entry: dict[str, Tree]) -> Iterator[Mistake]:
    wait = entry.get("maxWait")
    closed = [cap for cap in Cap if _count(entry, cap) == 0]
    if closed and isinstance(wait, str) and is_sound(WAIT, wait) and parse_duration(wait):
        yield Mistake("maxWait", f"nothing to wait for: {closed[0]} 0 never lets a call through; leave maxWait out")


def _orders() -> Iterator[Rule]:
    for caps in (REQUEST_CAPS, TOKEN_CAPS):
        minute, hour, day = caps.values()
        # As `pairwise` has it: the first and the third are neighbours where there is no second.
        for shorter, longer, unless in (
            (minute, hour, ""),
            (hour, day, ""),
            (minute, day, f"has(self.{hour}) || "),
        ):
            yield Rule(
                f"!has(self.{shorter}) || !has(self.{longer}) || {unless}self.{shorter} <= self.{longer}",
                f"can never be reached: {longer} is below it; lower it, or leave it out",
                shorter,
            )


_CLOSED: Final = " || ".join(f"has(self.{cap}) && self.{cap} == 0" for cap in Cap)


def _count(entry: dict[str, Tree], cap: Cap) -> int | None:
    count = entry.get(cap)
    return count if isinstance(count, int) and is_sound(COUNT, count) else None


def _cap(what: str, example: int) -> Field:
    return Field(COUNT, f"{what} Absent: no cap; 0 lets nothing through.", example=str(example))


ENTRY: Final = Object(
    {
        "scope": Field(SCOPE, "Whose quota it is: each user, org or project has a bucket of its own.", required=True),
        "subject": Field(
            SUBJECT,
            "Where the subject is read. One source holds for all entries of a scope, so it need be given only once.",
            example="{header: x-user-id}",
        ),
        "match": Field(
            MATCH, "Narrows the entry to some subjects or models. Absent: everybody, every model.", default={}
        ),
        Cap.REQUESTS_PER_MINUTE: _cap("Calls in any 60 seconds.", 60),
        Cap.REQUESTS_PER_HOUR: _cap("Calls in any 60 minutes.", 1000),
        Cap.REQUESTS_PER_DAY: _cap("Calls in any 24 hours.", 10000),
        Cap.TOKENS_PER_MINUTE: _cap("Tokens, input and output together, in any 60 seconds.", 90000),
        Cap.TOKENS_PER_HOUR: _cap("Tokens in any 60 minutes.", 1000000),
        Cap.TOKENS_PER_DAY: _cap("Tokens in any 24 hours.", 5000000),
        Cap.MAX_CONCURRENT: _cap("Calls in flight at the same time.", 3),
        "maxWait": Field(WAIT, "How long a call may wait for room before it is refused.", default="0s", example="10s"),
        "mode": Field(
            Word(tuple(Mode)),
            "Enforce refuses calls; Shadow counts them, says what would have been refused, and lets them pass.",
            default=Mode.ENFORCE,
        ),
    },
    constraints=(
        Constraint(
            "An entry has at least one cap.",
            _has_a_cap,
            (
                Rule(
                    " || ".join(f"has(self.{cap})" for cap in Cap),
                    "limits nothing: set at least one of " + ", ".join(Cap),
                ),
            ),
        ),
        Constraint(
            "The cap of a shorter period is not above the cap of a longer one.", _periods_in_order, tuple(_orders())
        ),
        Constraint(
            "An entry with a cap of 0 has no maxWait: there is nothing to wait for.",
            _waits_for_room,
            (
                Rule(
                    f"!has(self.maxWait) || self.maxWait.matches('^[0hms]+$') || !({_CLOSED})",
                    "nothing to wait for: a cap of 0 never lets a call through; leave maxWait out",
                    "maxWait",
                ),
            ),
        ),
    ),
)


def _is_complete(spec: dict[str, Tree]) -> Iterator[Mistake]:
    provider = spec.get("provider")
    if not is_sound(PROVIDER, provider) or provider in PROFILES or not _is_spelt(spec, SPEC):
        return
    for name in ("api", "upstream"):
        if name not in spec:
            yield Mistake(name, f"is required: {provider} is not a built-in provider ({', '.join(PROFILES)})")


def _scopes_have_a_source(spec: dict[str, Tree]) -> Iterator[Mistake]:
    entries = _entries(spec)
    named = {entry["scope"] for _, entry in entries if "subject" in entry or not _is_spelt(entry, ENTRY)}
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
        claims = [(entry["scope"], *claim) for claim in claims_of(_words(match, "subjects"), _words(match, "models"))]
        rival = next((owners[claim] for claim in claims if claim in owners), None)
        if rival is None:
            owners.update(dict.fromkeys(claims, place))
        else:
            yield Mistake(place, f"is for the same calls as spec.{rival}: make them one, or give each its own match")


def claims_of(subjects: Iterable[str], models: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What an entry claims: each pair of its patterns, where `*` stands for everything.

    No two entries of a scope share a claim, or it would be left to their order which of them applies.
    """
    return product(tuple(subjects) or ("*",), tuple(models) or ("*",))


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


def _is_spelt(tree: dict[str, Tree], declared: Object) -> bool:
    """True if every field is known. What seems to be missing may else be misspelt, and one mistake is said once."""
    return tree.keys() <= declared.fields.keys()


def _words(match: Tree, name: str) -> list[str]:
    words = match.get(name, []) if isinstance(match, dict) else []
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


ESTIMATION: Final = Object(
    {
        "defaultOutputTokens": Field(
            Integer(1, MAX_COUNT),
            "Output tokens that are reserved for a call that declares no cap on its output; never more than a quarter "
            "of the smallest token cap it meets.",
            default=DEFAULT_OUTPUT_TOKENS,
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


SPEC: Final = Object(
    {
        "provider": Field(
            PROVIDER,
            "The provider's name, and the first segment of the path that its calls take through the gate: "
            + ", ".join(PROFILES)
            + " are built in; any other name needs `api` and `upstream`.",
            required=True,
            example="openai",
            immutable=True,
        ),
        "api": Field(Word(tuple(Api)), "The API it speaks. Default: the built-in provider's own."),
        "upstream": Field(
            UPSTREAM,
            "Where calls are sent. Default: the built-in provider's own.",
            example="https://api.openai.com",
        ),
        "failurePolicy": Field(
            Word(tuple(FailurePolicy)),
            "What becomes of calls while the gate cannot decide: Allow lets them go on, uncounted; Deny refuses them.",
            default=FailurePolicy.ALLOW,
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
            "A provider that is not built in has `api` and `upstream`.",
            _is_complete,
            tuple(
                Rule(
                    f"self.provider in {list(PROFILES)} || has(self.{name})",
                    f"{{self.provider}} is not a built-in provider ({', '.join(PROFILES)})",
                    name,
                    missing=True,
                )
                for name in ("api", "upstream")
            ),
        ),
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
                for scope in Scope
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

DOCUMENT: Final = Object(
    {
        "apiVersion": Field(Word((API_VERSION,)), "The version of this format.", required=True),
        "kind": Field(Word((KIND,)), "What the document is.", required=True),
        "metadata": Field(
            Object(
                {"name": Field(NAME, "The document's name; no other document has it.", required=True, example="openai")}
                | {name: Field(Anything(), "Kubernetes' own.") for name in _KEPT_BY_KUBERNETES}
            ),
            "The name, and what Kubernetes keeps beside it, which is not looked at.",
            required=True,
        ),
        "spec": Field(SPEC, "The provider and its limits.", required=True),
        "status": Field(Anything(), "What the operator wrote of it; not looked at."),
    }
)
