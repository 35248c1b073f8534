"""What of the gates' reports belongs to one object: its part of the status.

Two kinds of numbers
    An object's own come from its buckets: `requestsPerMinute`, `tokensPerMinute`, `inFlight`, `hottest`, `pressure` and
    `lastRefusal`. A bucket belongs to the object whose entry holds for it, as the gate itself decides that.

    What became of calls (`rejected` and the other sums of five minutes, `provider`) is counted a provider, because a
    call meets the entries of several scopes at once. Objects that share a provider show the same sums.

Over several gates a bucket is as full as it is in the gate where it is fullest, since each gate counts its own calls;
calls in flight and the sums of five minutes are added up. Gates for which a shared store decides all tell what that
store counts, each as of a moment of its own: of their calls in flight the largest number speaks for all. Where no
limit is on them the store does not count them, and each gate tells its own.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Final, TypeAlias

from sluice.config.status_schema import LONGEST_SUBJECT, MOST_HOTTEST, MOST_PRESSED
from sluice.config.types import ProviderLimits, SubjectKind
from sluice.core.keys import OVERFLOW_SHOWN, BucketKey, Scope
from sluice.core.limits import MAX_COUNT, Cap
from sluice.core.rules import Rule, governing
from sluice_operator.planning.forms import Form
from sluice_operator.planning.reports import BucketReport, Recent, Refusal, Report, Use
from sluice_operator.planning.state import Gate

RECENT_SECONDS: Final = 300
"""Seconds: an older refusal is not shown, and the gates' sums are of as long."""
MOST_COMPARED: Final = 4_000_000
"""Comparisons of a bucket's subject with a pattern: some two seconds, whatever forged gates tell."""
HIGH, RELIEVED = 80, 70
"""Percent of a window from which a bucket is under pressure, and below which it no longer is."""
MOST_MODELS: Final = 5
HASH_DIGITS: Final = 12
LARGEST_PERCENT: Final = 9999
_KEY_HASH: Final = re.compile("key-[0-9a-f]{16}")
"""The subject that a gate makes of an API key."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket over all gates."""

    key: BucketKey
    in_flight: int
    uses: Mapping[Cap, Use]
    """Each cap as in the gate where it is fullest."""
    last_refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Everything that the gates reported, by what it belongs to."""

    answered: bool
    """At least one gate has reported."""
    complete: bool
    """Every gate has."""
    storeless: Sequence[str]
    """Pods whose gates cannot use the store that they share with others."""
    unsaved: Sequence[str]
    """Pods whose gates count in memory, and cannot save it."""
    buckets: Mapping[str, Sequence[Bucket]]
    """By the uid of the object."""
    recent: Mapping[str, Recent]
    """By provider."""


def gather(gates: Sequence[Gate], forms: Iterable[Form]) -> Usage:
    """Sort what the gates reported by the objects that own these forms."""
    answers = [gate.report for gate in gates if gate.report]
    ill = [(gate.pod, gate.report.store) for gate in gates if gate.report and not gate.report.store.healthy]
    storeless = [pod for pod, store in ill if store.is_shared]
    unsaved = [pod for pod, store in ill if not store.is_shared]
    whose = _Owners(forms)
    buckets: dict[str, list[Bucket]] = {}
    # The fullest first: they are what is shown, if there are more than can be looked at.
    for bucket in sorted(_merged(answers), key=_fullness, reverse=True):
        if owner := whose.owner(bucket.key):
            buckets.setdefault(owner, []).append(bucket)
    recent: dict[str, Recent] = {}
    for report in answers:
        for provider, part in report.recent.items():
            recent[provider] = _sum(recent[provider], part) if provider in recent else part
    return Usage(bool(answers), len(answers) == len(gates), storeless, unsaved, buckets, recent)


class _Owners:
    """The object whose entry holds for a bucket: one that names it is found at once, patterns are tried in turn."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self._named: dict[BucketKey, str] = {}
        self._uids: dict[Rule, str] = {}
        self._patterns: dict[tuple[str, Scope, str], list[Rule]] = {}
        self._costs: Counter[tuple[str, Scope, str]] = Counter()
        self._left = MOST_COMPARED
        for form in forms:
            for rule in form.rules:
                models, patterns = rule.key_models, tuple(each for each in rule.subjects if "*" in each)
                for name in set(rule.subjects).difference(patterns):
                    self._named[BucketKey(rule.provider, rule.scope, name, models)] = form.uid
                if patterns or not rule.subjects:
                    # No two objects in force hold an equal rule: they would be rivals for the same calls.
                    loose = replace(rule, subjects=patterns)
                    self._uids[loose] = form.uid
                    self._patterns.setdefault((rule.provider, rule.scope, models), []).append(loose)
                    self._costs[rule.provider, rule.scope, models] += len(patterns) or 1

    def owner(self, key: BucketKey) -> str | None:
        """None for a bucket that is nobody's, and once too much was compared."""
        if (named := self._named.get(key)) is not None:
            return named
        alike = (key.provider, key.scope, key.models)
        self._left -= self._costs[alike]
        rule = governing(self._patterns.get(alike, ()), key.subject) if self._left >= 0 else None
        return self._uids[rule] if rule else None


def _merged(reports: Iterable[Report]) -> list[Bucket]:
    """The buckets of all gates, by name. What several gates tell of one store is made one before anything is added."""
    alone: list[BucketReport] = []
    shared: dict[tuple[str, str, str], list[BucketReport]] = {}
    for report in reports:
        counter = report.store.counter
        (alone if counter is None else shared.setdefault(counter, [])).extend(report.buckets)
    parts: Iterable[Bucket | BucketReport] = chain(alone, *(_united(each, max) for each in shared.values()))
    return sorted(_united(parts, _added), key=lambda bucket: bucket.key)


def _united(parts: Iterable[Bucket | BucketReport], capped: Callable[[int, int], int]) -> Iterable[Bucket]:
    """One bucket of each name. Of calls in flight that a cap is on, `capped` makes one number of every two."""
    buckets: dict[BucketKey, Bucket] = {}
    for each in parts:
        known = buckets.get(each.key)
        both = capped if Cap.MAX_CONCURRENT in each.uses else _added
        buckets[each.key] = Bucket(
            each.key,
            both(known.in_flight if known else 0, each.in_flight),
            _fuller(known.uses, each.uses) if known else each.uses,
            _later(known.last_refusal if known else None, each.last_refusal),
        )
    return buckets.values()


def _fuller(one: Mapping[Cap, Use], other: Mapping[Cap, Use]) -> dict[Cap, Use]:
    return {cap: max((uses[cap] for uses in (one, other) if cap in uses), key=_rank) for cap in {**one, **other}}


def _rank(use: Use) -> tuple[float, int, int]:
    """By how full; the rest only makes the order a whole one. A cap of 0 is shut, not full."""
    return (use.used / use.limit if use.limit else 0.0, use.used, use.limit)


def _fullness(bucket: Bucket) -> float:
    return max((_rank(use)[0] for use in bucket.uses.values()), default=0.0)


def _later(one: Refusal | None, other: Refusal | None) -> Refusal | None:
    return min(filter(None, (one, other)), key=lambda refusal: refusal.seconds_ago, default=None)


def _sum(one: Recent, other: Recent) -> Recent:
    sums = {field.name: _added(getattr(one, field.name), getattr(other, field.name)) for field in fields(Recent)}
    return Recent(**sums | {"last_throttled_status": max(one.last_throttled_status, other.last_throttled_status)})


def _added(one: int, other: int) -> int:
    return min(one + other, MAX_COUNT)


def shown_usage(document: ProviderLimits, buckets: Sequence[Bucket], recent: Recent) -> dict[str, Any]:
    """`status.usage` of an object."""
    requests = _fullest(document, buckets, Cap.REQUESTS_PER_MINUTE)
    tokens = _fullest(document, buckets, Cap.TOKENS_PER_MINUTE)
    return {
        **({"requestsPerMinute": f"{_shown(requests.used)}/{_shown(requests.limit)}"} if requests else {}),
        **({"tokensPerMinute": f"{_percent(tokens)}%"} if tokens else {}),
        "inFlight": _in_flight(buckets),
        "rejected": _shown(recent.rejected),
        "wouldReject": _shown(recent.would_reject),
        "admitted": _shown(recent.admitted),
        "committedTokens": _shown(recent.committed_tokens),
        "estimatedCalls": _shown(recent.estimated),
        **({"estimateError": f"{_error(recent)}%"} if recent.committed_tokens else {}),
        **({"underestimated": f"{_underestimated(recent)}%"} if recent.committed else {}),
    }


def shown_provider(recent: Recent) -> dict[str, Any]:
    """`status.provider`: what the provider itself refused."""
    return {
        "throttled": _shown(recent.throttled),
        **({"overloaded": _shown(recent.overloaded)} if recent.overloaded else {}),
        **({"spendCapped": _shown(recent.spend_capped)} if recent.spend_capped else {}),
        "lastStatus": min(recent.last_throttled_status, 599),
    }


def hottest(document: ProviderLimits, buckets: Sequence[Bucket]) -> list[dict[str, Any]]:
    """`status.hottest`: the fullest buckets, each with its fullest cap."""
    found = [(bucket, *max(bucket.uses.items(), key=lambda item: _rank(item[1]))) for bucket in buckets if bucket.uses]
    found = [each for each in found if _percent(each[2]) >= 1]
    found.sort(key=lambda each: (-_rank(each[2])[0], each[0].key))
    public = _public(document)
    return [
        {
            **_named(public, bucket.key, cap),
            "used": _shown(use.used),
            "limit": _shown(use.limit),
            "percent": _percent(use),
        }
        for bucket, cap, use in found[:MOST_HOTTEST]
    ]


def pressure(
    document: ProviderLimits, buckets: Sequence[Bucket], before: object, *, complete: bool
) -> list[dict[str, Any]]:
    """`status.pressure`: windows that are nearly used up. `before` is what stands there now.

    One comes in at `HIGH` percent and is `Full` from 100 on; it keeps the higher level until it goes, below `RELIEVED`.
    So a window that slides about a bound is told once. Those that are in stay before newcomers. Calls in flight are
    left out: they go to their cap and back with every call. While a gate does not answer, what is not known to be
    relieved stays.
    """
    levels = _levels(before)
    percents: dict[_Id, int] = {}
    public = _public(document)
    for bucket in buckets:
        for cap, use in bucket.uses.items():
            if cap is not Cap.MAX_CONCURRENT:
                place = _id(_named(public, bucket.key, cap))
                percents[place] = max(percents.get(place, 0), _percent(use))
    stays = [each for each in levels if percents.get(each, 0 if complete else RELIEVED) >= RELIEVED]
    comes = [each for each in percents if each not in levels and percents[each] >= HIGH]
    comes.sort(key=lambda each: (-percents[each], each))
    return [
        {**_of_id(each), "level": "Full" if percents.get(each, 0) >= 100 else levels.get(each, "High")}
        for each in (*stays, *comes)[:MOST_PRESSED]
    ]


def last_refusal(document: ProviderLimits, buckets: Sequence[Bucket]) -> dict[str, Any] | None:
    """`status.lastRefusal`: of the last five minutes; None if there was none."""
    refused = [(bucket.last_refusal, bucket.key) for bucket in buckets if bucket.last_refusal]
    refusal, key = min(refused, key=lambda each: (each[0].seconds_ago, each[1]), default=(None, None))
    if refusal is None or key is None or refusal.seconds_ago > RECENT_SECONDS:
        return None
    named = _named(_public(document), key, refusal.cap)
    return {name: named[name] for name in ("scope", "subject", "cap")} | {"reason": refusal.reason}


_Id: TypeAlias = tuple[str, str, tuple[str, ...], str]
"""Scope, subject, models and cap, as they are shown."""


def _id(named: Mapping[str, Any]) -> _Id:
    return named["scope"], named["subject"], tuple(named.get("models", ())), named["cap"]


def _of_id(place: _Id) -> dict[str, Any]:
    scope, subject, models, cap = place
    return {"scope": scope, "subject": subject, **({"models": list(models)} if models else {}), "cap": cap}


def _levels(before: object) -> dict[_Id, str]:
    """What stands in a status, which anybody may have written."""
    try:
        listed = [(_id(each), each["level"]) for each in before] if isinstance(before, list) else []
        return {place: level for place, level in listed if level in ("High", "Full")}
    except (KeyError, TypeError, AttributeError):
        return {}


def _named(public: Container[tuple[Scope, str]], key: BucketKey, cap: str) -> dict[str, Any]:
    models = key.models.split(",") if key.models else []
    more = [f"and {len(models) - MOST_MODELS} more"] if len(models) > MOST_MODELS else []
    shown = [_printable(model) for model in models[:MOST_MODELS]] + more
    named = {"scope": str(key.scope), "subject": _shown_subject(public, key)}
    return {**named, **({"models": shown} if shown else {}), "cap": str(cap)}


def _public(document: ProviderLimits) -> frozenset[tuple[Scope, str]]:
    """The subjects that the object itself names."""
    constants = {
        (each.scope, each.subject.value) for each in document.limits if each.subject.kind is SubjectKind.CONSTANT
    }
    return frozenset(constants | {(entry.scope, name) for entry in document.limits for name in entry.subjects})


def _shown_subject(public: Container[tuple[Scope, str]], key: BucketKey) -> str:
    """The subject as it may be kept in a status or an event.

    What a caller's header says may be anything, and is kept as a hash, unless the object itself names it. Where the
    object reads subjects now tells nothing of where this one comes from: gates keep their buckets for a while.
    """
    told = key.subject in {"", OVERFLOW_SHOWN} or _KEY_HASH.fullmatch(key.subject) or (key.scope, key.subject) in public
    if not told:
        return f"sha256-{hashlib.sha256(key.subject.encode()).hexdigest()[:HASH_DIGITS]}"
    return _printable(key.subject)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST_SUBJECT])


def _fullest(document: ProviderLimits, buckets: Sequence[Bucket], cap: Cap) -> Use | None:
    """The fullest window of a kind; where nobody called lately, an empty one of the smallest cap."""
    if uses := [bucket.uses[cap] for bucket in buckets if cap in bucket.uses]:
        return max(uses, key=_rank)
    every = (getattr(entry.limits, cap.attribute) for entry in document.limits)
    caps = [count for count in every if count is not None]
    return Use(0, min(filter(None, caps), default=0)) if caps else None


def _in_flight(buckets: Sequence[Bucket]) -> int:
    """A call in flight is in one bucket of a scope at most, so the scope with the most knows the most of them."""
    scopes: dict[Scope, int] = {}
    for bucket in buckets:
        scopes[bucket.key.scope] = _added(scopes.get(bucket.key.scope, 0), bucket.in_flight)
    return max(scopes.values(), default=0)


def _percent(use: Use) -> int:
    return min(100 * use.used // use.limit, LARGEST_PERCENT) if use.limit else 0


def _error(recent: Recent) -> int:
    return min(100 * recent.estimate_error_tokens // recent.committed_tokens, LARGEST_PERCENT)


def _underestimated(recent: Recent) -> int:
    return min(100 * recent.underestimated // recent.committed, LARGEST_PERCENT)


def _shown(count: int) -> int:
    """What every JSON reader holds exactly."""
    return min(count, MAX_COUNT)
