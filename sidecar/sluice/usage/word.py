"""The provider's own word: what the headers of an answer, and the body of a refusal, say of the provider's limits.

Every dialect is data, in the profile's `word`: which header tells what is left of which limit, in which form it tells
the time, which status and code mean what. Nothing here fails. What is negative, malformed or absurd counts as not told:

- a count that is no number from 0 to `MAX_COUNT`, a limit of 0 (Azure says -1 and 0 where it does not know), more left
  than the limit is, or a reset more than `LONGEST` away;
- a quota of which only part is told: without what is left, or without the time of its reset where the profile knows no
  period, nothing can be counted on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from sluice.core.limits import DAY, HOUR, MAX_COUNT, MILLISECOND, MINUTE, SECOND
from sluice.core.words import Feedback, Quota, RefusedAs
from sluice.usage.profiles.profile import Counter, RefusalSign, Reset, Word

LONGEST: Final = 32 * DAY
"""Nanoseconds: no quota known runs for more than a month. A time further off is an error, or somebody's joke."""
LONGEST_BODY: Final = 16 * 1024
"""Characters of a refusal's body that are looked at; those of every provider known have some hundreds."""
MOST_NODES: Final = 256
"""Objects and values of a refusal's body that are looked at."""
LONGEST_CODE: Final = 64

_COUNT: Final = re.compile(r"([0-9]{1,16})(?:\.[0-9]{1,9})?")
_SECONDS: Final = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,9})?")
_PART: Final = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,9})?)(d|h|ms|m|s|us|\u00b5s|\u03bcs|\u00c2\u00b5s|ns)")
_UNITS: Final = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND, "ms": MILLISECOND, "ns": 1}
_MICROSECOND: Final = 1000
_RFC_3339: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]{1,9})?[0-9]*"
    r"(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2}))"
)
_HTTP_DATE: Final = re.compile(
    r"(?:[A-Z][a-z]{2}, )?([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MILLISECONDS_BEGIN: Final = 10**11
"""A Unix time from here on is one of milliseconds: as seconds it would be the year 5138."""


CODE_HEADERS: Final = ("x-amzn-errortype",)
"""Headers that hold a code; Amazon's may go on after a colon."""
COMMON_HEADERS: Final = ("retry-after", "retry-after-ms", *CODE_HEADERS)
"""The headers that every dialect may use."""


USUAL: Final = (RefusalSign(429, RefusedAs.RATE_LIMITED), RefusalSign(529, RefusedAs.OVERLOADED))
"""What a refusal is known by where the profile does not say."""


class Explanation(NamedTuple):
    """What the body of a refusal says."""

    codes: frozenset[str] = frozenset()
    retry_after: int | None = None


NOT_EXPLAINED: Final = Explanation()


def headers_of(word: Word) -> tuple[str, ...]:
    """The headers that a provider's word may stand in."""
    told = (name for each in word.counters for name in (each.limit, each.remaining, each.reset) if name)
    return tuple(dict.fromkeys((*COMMON_HEADERS, *told)))


@dataclass(frozen=True, slots=True)
class Dialect:
    """A profile's `word`, ready for every answer."""

    word: Word
    headers: frozenset[str]
    """The names of those that are looked at."""

    @classmethod
    def of(cls, word: Word) -> Dialect:
        return cls(word if word.refusals else replace(word, refusals=USUAL), frozenset(headers_of(word)))

    def feedback(self, status: int, headers: Mapping[str, bytes], body: str, wall: int) -> Feedback:
        """What an answer says; see `feedback`."""
        told = {name: value.decode("latin-1") for name, value in headers.items() if name in self.headers}
        return feedback(self.word, status, told, body, wall)


def feedback(word: Word, status: int, headers: Mapping[str, str], body: str, wall: int) -> Feedback:
    """What an answer says: its status, its headers by lower-case name, and the body if it refuses.

    `wall` is the wall clock's time in nanoseconds since 1970, for providers that tell times of day.
    """
    quotas = tuple(_quotas(word.counters, headers, wall))
    if all(sign.status != status for sign in word.refusals):
        return Feedback(quotas)
    explanation = explained(body)
    codes = explanation.codes | {headers[name].partition(":")[0] for name in CODE_HEADERS if name in headers}
    refused_as = meaning(word.refusals, status, codes)
    if refused_as is None:
        return Feedback(quotas)
    told = retry_after(headers, wall)
    return Feedback(quotas, refused_as, explanation.retry_after if told is None else told)


def meaning(signs: Iterable[RefusalSign], status: int, codes: Collection[str]) -> RefusedAs | None:
    """What the first sign that fits says; None if none does."""
    for sign in signs:
        if sign.status == status and (not sign.codes or any(code in codes for code in sign.codes)):
            return sign.refused_as
    return None


def retry_after(headers: Mapping[str, str], wall: int) -> int | None:
    """Nanoseconds that the caller is told to wait; None if it is not told so."""
    found = duration(headers.get("retry-after-ms", "").strip() + "ms")
    if found is not None:
        return found
    text = headers.get("retry-after", "")
    found = seconds(text)
    return _until(http_date(text), wall) if found is None else found


def explained(body: str) -> Explanation:
    """Codes, and the delay that Google's `RetryInfo` tells, wherever they stand in the body: it may be anything."""
    if not body or len(body) > LONGEST_BODY:
        return NOT_EXPLAINED
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return NOT_EXPLAINED
    codes, delay = set(), None
    for node in _objects(document):
        for name in _CODE_MEMBERS:
            code = node.get(name)
            if isinstance(code, str) and len(code) <= LONGEST_CODE:
                codes.add(code)
        if str(node.get("@type")).endswith("google.rpc.RetryInfo"):
            delay = duration(str(node.get("retryDelay")))
    return Explanation(frozenset(codes), delay)


_CODE_MEMBERS: Final = ("code", "type", "status", "error_code", "reason", "__type")


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """The objects in a document, the outer ones first; of a large one, some."""
    waiting: list[Any] = [[document]]
    for node in waiting:  # it grows meanwhile
        if isinstance(node, dict):
            yield node
        inner: Iterable[Any] = node.values() if isinstance(node, dict) else node
        waiting += [each for each in inner if isinstance(each, dict | list)][: MOST_NODES - len(waiting)]


def _quotas(counters: Iterable[Counter], headers: Mapping[str, str], wall: int) -> Iterator[Quota]:
    for counter in counters:
        remaining = count(headers.get(counter.remaining, ""))
        if remaining is None:
            continue
        limit = None
        if counter.limit in headers:
            limit = count(headers[counter.limit])
            if not limit or limit < remaining:
                continue
        reset = _reset(counter, headers, wall)
        if reset is not None:
            yield Quota(counter.remaining, counter.of, remaining, limit, reset)


def _reset(counter: Counter, headers: Mapping[str, str], wall: int) -> int | None:
    text = headers.get(counter.reset, "")
    if not text:
        return counter.period or None
    if counter.reset_is is Reset.TIMESTAMP:
        return _until(timestamp(text), wall)
    return duration(text) if counter.reset_is is Reset.DURATION else seconds(text)


def count(text: str) -> int | None:
    """The number a header spells, rounded down; None for anything but 0 to `MAX_COUNT`."""
    found = _COUNT.fullmatch(text.strip())
    number = int(found[1]) if found else MAX_COUNT + 1
    return number if number <= MAX_COUNT else None


def seconds(text: str) -> int | None:
    """Nanoseconds in so many seconds, up to `LONGEST`."""
    text = text.strip()
    return _bounded(float(text) * SECOND) if _SECONDS.fullmatch(text) else None


def duration(text: str) -> int | None:
    """Nanoseconds in a duration as Go writes it, up to `LONGEST`; a bare number is seconds."""
    text = text.strip()
    parts = list(_PART.finditer(text))
    if not parts or sum(len(part[0]) for part in parts) != len(text):
        return seconds(text)
    return _bounded(sum(float(part[1]) * _UNITS.get(part[2], _MICROSECOND) for part in parts))


def timestamp(text: str) -> int | None:
    """Nanoseconds since 1970: of a time as RFC 3339 has it, or of a Unix time."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        number = float(text)
        return int(number * (MILLISECOND if number >= _MILLISECONDS_BEGIN else SECOND))
    found = _RFC_3339.fullmatch(text)
    if not found:
        return None
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    at = _since_1970(year, month, day, hour, minute, second)
    if at is None:
        return None
    at += int(float(found[7] or 0) * SECOND)
    if found[8]:
        ahead = int(found[9]) * HOUR + int(found[10]) * MINUTE
        at += ahead if found[8] == "-" else -ahead
    return at


def http_date(text: str) -> int | None:
    """Nanoseconds since 1970 of a date as HTTP writes it (RFC 9110, section 5.6.7, the preferred form)."""
    found = _HTTP_DATE.fullmatch(text.strip())
    if not found or found[2] not in _MONTHS:
        return None
    day, _, year, hour, minute, second = (0 if i == 1 else int(text) for i, text in enumerate(found.groups()))
    return _since_1970(year, _MONTHS.index(found[2]) + 1, day, hour, minute, second)


def _since_1970(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    """Nanoseconds. Months of 31 days and leap seconds are let pass; what no calendar has is not."""
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour <= 23 and minute <= 59 and second <= 60):
        return None
    # The year begins in March here, so that the day of a leap year is its last.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1 - 719_468
    return days * DAY + hour * HOUR + minute * MINUTE + second * SECOND


def _until(at: int | None, wall: int) -> int | None:
    """Nanoseconds from the wall clock's time to that one: 0 if it is over, None if there is none or it is absurd."""
    return None if at is None else _bounded(max(0, at - wall))


def _bounded(nanoseconds: float) -> int | None:
    return int(nanoseconds) if nanoseconds <= LONGEST else None
