"""One entry of `spec.limits`, declared: whose quota it is, for what it is, and its caps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from typing import Final

from sluice.config.types import SubjectKind
from sluice.core.keys import SCOPES
from sluice.core.limits import CAPS_BY_LENGTH, MAX_COUNT, MINUTE, Cap, Mode, StoreFailure
from sluice.schema.declare import (
    AlwaysTrue,
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
from sluice.schema.durations import parse_duration
from sluice.schema.yamltext import Tree

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

_PRINTING: Final = "[^\\x00-\\x1f\\x7f-\\x9f]+"

HEADER: Final = Text("[A-Za-z0-9!#$%&'*+.^_`|~-]+", "the name of an HTTP header", 128)
CONSTANT: Final = Text(_PRINTING, "text without control characters", 256)
VARIABLE: Final = Text("[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable", 128)
PATTERN: Final = Text("[^,\\x00-\\x1f\\x7f-\\x9f]+", "text without commas and control characters", 256)
PATTERNS: Final = Sequence(PATTERN, least=1, most=MAX_ENTRIES, distinct=True)
COUNT: Final = Integer(0, MAX_COUNT)
WAIT: Final = Duration(MAX_WAIT)
SCOPE: Final = Word(SCOPES)


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
    if len(words(match, "subjects")) * len(words(match, "models")) > MAX_PAIRS:
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
    if not any(cap in entry for cap in Cap) and is_spelt(entry, ENTRY):
        yield Mistake("", _LIMITS_NOTHING)


def _periods_in_order(entry: dict[str, Tree]) -> Iterator[Mistake]:
    for caps in CAPS_BY_LENGTH:
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
    for caps in CAPS_BY_LENGTH:
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


_LIMITS_NOTHING: Final = (
    "limits nothing: set at least one cap, such as requestsPerMinute, tokensPerDay or maxConcurrent"
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
        Cap.TOKENS_PER_MINUTE: _cap("Tokens as the provider counts them, input and output, in any 60 seconds.", 90000),
        Cap.TOKENS_PER_HOUR: _cap("Tokens in any 60 minutes.", 1000000),
        Cap.TOKENS_PER_DAY: _cap("Tokens in any 24 hours.", 5000000),
        Cap.INPUT_TOKENS_PER_MINUTE: _cap("Input tokens alone, in any 60 seconds.", 80000),
        Cap.INPUT_TOKENS_PER_HOUR: _cap("Input tokens alone, in any 60 minutes.", 800000),
        Cap.INPUT_TOKENS_PER_DAY: _cap("Input tokens alone, in any 24 hours.", 4000000),
        Cap.OUTPUT_TOKENS_PER_MINUTE: _cap("Output tokens alone, in any 60 seconds.", 16000),
        Cap.OUTPUT_TOKENS_PER_HOUR: _cap("Output tokens alone, in any 60 minutes.", 160000),
        Cap.OUTPUT_TOKENS_PER_DAY: _cap("Output tokens alone, in any 24 hours.", 800000),
        Cap.MAX_CONCURRENT: _cap("Calls in flight at the same time.", 3),
        "maxWait": Field(WAIT, "How long a call may wait for room before it is refused.", default="0s", example="10s"),
        "mode": Field(
            Word(tuple(Mode)),
            "Enforce refuses calls; Shadow counts them, says what would have been refused, and lets them pass.",
            default=Mode.ENFORCE,
        ),
        "failurePolicy": Field(
            Word(tuple(StoreFailure)),
            "What becomes of calls while the gate is there and the store that it shares with other gates is not: "
            "LocalShare lets each gate enforce its even share of the caps alone; Deny refuses them; Allow lets them "
            "pass, counted. Without a shared store it does nothing. Not `spec.failurePolicy`, which is about a gate "
            "that cannot be asked itself.",
            default=StoreFailure.LOCAL_SHARE,
        ),
    },
    constraints=(
        Constraint(
            "An entry has at least one cap.",
            _has_a_cap,
            (Rule(" || ".join(f"has(self.{cap})" for cap in Cap), _LIMITS_NOTHING),),
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


def claims_of(subjects: Iterable[str], models: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What an entry claims: each pair of its patterns, where `*` stands for everything.

    No two entries of a scope share a claim, or it would be left to their order which of them applies.
    """
    return product(tuple(subjects) or ("*",), tuple(models) or ("*",))


def is_spelt(tree: dict[str, Tree], declared: Object) -> bool:
    """True if every field is known. What seems to be missing may else be misspelt, and one mistake is said once."""
    return tree.keys() <= declared.fields.keys()


def words(match: Tree, name: str) -> list[str]:
    """The texts in one of the lists of a `match`, sound or not."""
    listed = match.get(name, []) if isinstance(match, dict) else []
    return [word for word in listed if isinstance(word, str)] if isinstance(listed, list) else []
