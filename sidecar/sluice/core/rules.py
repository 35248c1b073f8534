"""Which limits meet a call: an immutable book of rules, swapped whole when the configuration changes.

Of the rules of one scope the most specific one applies: a rule that names the subject before one that matches it
by pattern before one for everybody; among those, likewise by model; among equals the one that stands first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Limits

EXACT: Final = 1 << 20
"""Above the length of any pattern: a name always beats a pattern."""
NO_LIMITS: Final = Limits()
"""Those of a bucket that no rule speaks of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `spec.limits`. A `*` in a pattern stands for any run of characters; empty tuples match all."""

    provider: str
    scope: Scope
    limits: Limits
    subjects: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    key_models: str = field(init=False, repr=False, compare=False)
    """Its models as they stand in a `BucketKey`."""
    name: str = field(init=False, repr=False, compare=False)
    """What tells it from the other rules of its provider, whatever its limits become: `User alice,team-* gpt-5*`."""

    def __post_init__(self) -> None:
        models = ",".join(sorted(self.models))
        subjects = ",".join(sorted(self.subjects)) or "*"
        object.__setattr__(self, "key_models", models)
        object.__setattr__(self, "name", f"{self.scope} {subjects} {models}".rstrip())


class Applied(NamedTuple):
    """A bucket that a call touches, and the limits in force for it."""

    key: BucketKey
    limits: Limits
    rule: str = ""
    """The name of the rule that says so."""


def fits(patterns: Iterable[str], value: str) -> bool:
    """True if one of the patterns is the value, or describes it."""
    return any(_matches(pattern, value) if "*" in pattern else pattern == value for pattern in patterns)


def _specificity(patterns: tuple[str, ...], value: str) -> int:
    """How narrowly the patterns match: -1 not at all, 0 by matching everything, more for longer patterns."""
    if not patterns:
        return 0
    best = -1
    for pattern in patterns:
        if "*" not in pattern:
            if pattern == value:
                return EXACT
        elif _matches(pattern, value):
            best = max(best, len(pattern))
    return best


def _matches(pattern: str, value: str) -> bool:
    """True if the value fits a pattern with a `*`, each of which stands for any run of characters.

    No other character is special, unlike in `fnmatch`. Taking each part where it first occurs is enough, so that no
    value, however long, makes this try the parts in all their places.
    """
    head, *parts, tail = pattern.split("*")
    at, end = len(head), len(value) - len(tail)
    if at > end or not value.startswith(head) or not value.endswith(tail):
        return False
    for part in parts:
        found = value.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Every rule in force. Immutable: a reader sees one book or the next one, never a mix."""

    rules: tuple[Rule, ...] = ()
    _scopes: Mapping[str, Mapping[Scope, tuple[Rule, ...]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scopes: dict[str, dict[Scope, tuple[Rule, ...]]] = {}
        for rule in self.rules:
            if not rule.limits.is_unset:
                of_provider = scopes.setdefault(rule.provider, {})
                of_provider[rule.scope] = (*of_provider.get(rule.scope, ()), rule)
        object.__setattr__(self, "_scopes", scopes)

    def match(self, provider: str, subjects: Mapping[Scope, str], model: str = "") -> tuple[Applied, ...]:
        """The buckets that a call touches, one a scope at most; empty where nothing limits it.

        A scope whose subject the call does not name falls into the bucket of the empty subject, so that a
        caller gains nothing by leaving its name out.
        """
        applied = []
        for scope, rules in self._scopes.get(provider, {}).items():
            subject = subjects.get(scope, "")
            rule = _most_specific(rules, subject, model)
            if rule is not None:
                key = BucketKey(provider, scope, subject, rule.key_models)
                applied.append(Applied(key, rule.limits, rule.name))
        return tuple(applied)

    def limits_of(self, key: BucketKey) -> Limits:
        """The limits in force for a bucket that exists; unset limits if no rule speaks of it any more."""
        rules = self._scopes.get(key.provider, {}).get(key.scope, ())
        rule = governing((rule for rule in rules if rule.key_models == key.models), key.subject)
        return NO_LIMITS if rule is None else rule.limits


def governing(rules: Iterable[Rule], subject: str) -> Rule | None:
    """Of the rules of one scope and one set of models, the one that holds for the subject's bucket."""
    rule = max(rules, key=lambda rule: _specificity(rule.subjects, subject), default=None)
    return None if rule is None or _specificity(rule.subjects, subject) < 0 else rule


def _most_specific(rules: Sequence[Rule], subject: str, model: str) -> Rule | None:
    if len(rules) == 1 and not rules[0].subjects and not rules[0].models:
        return rules[0]  # the usual case: one rule, for everybody
    best: Rule | None = None
    best_rank = (-1, -1)
    for rule in rules:
        rank = (_specificity(rule.subjects, subject), _specificity(rule.models, model))
        if min(rank) >= 0 and rank > best_rank:
            best, best_rank = rule, rank
    return best
