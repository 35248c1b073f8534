"""What a gate says of itself at `/status`, read strictly: whoever may start a pod in a namespace can forge one.

Fields that are not known are passed over, so that a newer gate is understood too; one that is missing and was added
later stands for nothing to tell. Anything else that is not as it should be makes the whole report bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from sluice.core.keys import SCOPES, BucketKey, Scope
from sluice.core.limits import Cap
from sluice.errors import SluiceError

T = TypeVar("T")

MOST_BUCKETS: Final = 100
"""As many as a gate is asked for."""
MOST_FILES: Final = 1000
MOST_PROVIDERS: Final = 1000
MOST_MODELS: Final = 64
LONGEST_TEXT: Final = 512
"""Characters of any text in a report: twice what a subject or a pattern may have."""
LARGEST: Final = 2**63 - 1
MEMORY: Final = "memory"
"""The kind of store that is a gate's own."""
SHARED: Final = "Shared"
"""The mode of a gate for which a store decides."""


class BadReport(SluiceError):
    """What answered is no gate's `/status`; the message is what is wrong with it, in a few words."""


@dataclass(frozen=True, slots=True)
class Use:
    """One cap of a bucket."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last time that a bucket had no room."""

    cap: str
    reason: str
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class BucketReport:
    """One bucket of a gate."""

    key: BucketKey
    """With the subject as `/status` shows it: `(overflow)` for the bucket that newcomers share."""
    in_flight: int
    uses: Mapping[Cap, Use]
    """The windows that are capped, and the calls in flight where those are."""
    last_refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Recent:
    """What became of a provider's calls in the last five minutes. Calls, but for the fields that say tokens."""

    admitted: int = 0
    rejected: int = 0
    would_reject: int = 0
    committed: int = 0
    estimated: int = 0
    throttled: int = 0
    """Refused by the provider itself."""
    last_throttled_status: int = 0
    """0 if there was none."""
    committed_tokens: int = 0
    estimate_error_tokens: int = 0
    """The sum of |estimate - actual| over the calls that were committed."""
    underestimated: int = 0
    """Committed calls that used more than was estimated."""
    expired: int = 0
    """Admitted, and nobody spoke for the permit."""
    untold: int = 0
    """Answered whole, and the usage that should have been told was not."""
    overloaded: int = 0
    """Of the throttled: because it had too much to do."""
    spend_capped: int = 0
    """And because no more may be spent."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where a gate has its counts."""

    healthy: bool = True
    kind: str = MEMORY
    address: str = ""
    prefix: str = ""
    mode: str = ""
    """`Shared` while the store decides for all gates that share it; empty in a gate's own memory."""

    @property
    def is_shared(self) -> bool:
        """True if others share it, whoever decides at present."""
        return self.kind != MEMORY

    @property
    def counter(self) -> tuple[str, str, str] | None:
        """The store whose counts the gate tells as its own; None if it tells what it counts itself."""
        return (self.kind, self.address, self.prefix) if self.is_shared and self.mode == SHARED else None


@dataclass(frozen=True, slots=True)
class Report:
    """What one gate said at one time."""

    files: frozenset[str]
    """SHA-256, in hexadecimal, of each limits file of the configuration that the gate runs."""
    problems: int
    """Mistakes in its files as they are now, because of which it goes on with the last good ones."""
    store: Store
    buckets: tuple[BucketReport, ...]
    recent: Mapping[str, Recent]
    """By provider."""


def read_report(body: bytes) -> Report:
    """The report in an answer's body, whose size the caller bounds; raises `BadReport` and nothing else."""
    try:
        status = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):  # ValueError also for integers of thousands of digits
        raise BadReport("is not JSON") from None
    fields = _object(status, "the answer")
    configuration = _field(fields, "configuration", _object)
    recent = _field(fields, "recent", _object, {})
    return Report(
        files=frozenset(_mapping(configuration, "files", _text, MOST_FILES).values()),
        problems=len(_field(configuration, "problems", _list, [])),
        store=_store(_field(fields, "store", _object, {})),
        buckets=tuple(_bucket(_object(each, "a bucket")) for each in _bounded_list(fields, "buckets", MOST_BUCKETS)),
        recent=MappingProxyType(_mapping(recent, "providers", _recent, MOST_PROVIDERS)),
    )


def _store(fields: dict[str, Any]) -> Store:
    return Store(
        healthy=_field(fields, "healthy", _truth, default=True),
        kind=_field(fields, "kind", _text, MEMORY),
        address=_field(fields, "address", _text, ""),
        prefix=_field(fields, "prefix", _text, ""),
        mode=_field(fields, "mode", _text, ""),
    )


def _bucket(fields: dict[str, Any]) -> BucketReport:
    models = [_text(each, "models") for each in _bounded_list(fields, "models", MOST_MODELS)]
    key = BucketKey(
        _field(fields, "provider", _text),
        _field(fields, "scope", _scope),
        _field(fields, "subject", _text),
        ",".join(models),
    )
    in_flight = _field(fields, "inFlight", _count)
    uses = {Cap(name): use for name, use in _mapping(fields, "windows", _use, len(Cap)).items() if name in _CAPS}
    if fields.get("maxConcurrent") is not None:
        uses[Cap.MAX_CONCURRENT] = Use(in_flight, _field(fields, "maxConcurrent", _count))
    return BucketReport(key, in_flight, MappingProxyType(uses), _field(fields, "lastRefusal", _refusal, None))


def _recent(value: Any, name: str) -> Recent:
    fields = _object(value, name)
    return Recent(**{attribute: _field(fields, word, _count, 0) for word, attribute in _RECENT.items()})


def _use(value: Any, name: str) -> Use:
    fields = _object(value, name)
    return Use(_field(fields, "used", _count), _field(fields, "limit", _count))


def _refusal(value: Any, name: str) -> Refusal:
    fields = _object(value, name)
    return Refusal(
        _field(fields, "cap", _word), _field(fields, "reason", _word), _field(fields, "secondsAgo", _seconds)
    )


_WORD: Final = re.compile("[A-Za-z]{1,64}")
_CAPS: Final = frozenset(map(str, Cap))
_RECENT: Final = {
    "admitted": "admitted",
    "rejected": "rejected",
    "wouldReject": "would_reject",
    "committed": "committed",
    "estimated": "estimated",
    "expired": "expired",
    "untold": "untold",
    "throttled": "throttled",
    "overloaded": "overloaded",
    "spendCapped": "spend_capped",
    "lastThrottledStatus": "last_throttled_status",
    "committedTokens": "committed_tokens",
    "estimateErrorTokens": "estimate_error_tokens",
    "underestimated": "underestimated",
}
_REQUIRED: Final[Any] = object()


def _field(fields: dict[str, Any], name: str, read: Callable[[Any, str], T], default: Any = _REQUIRED) -> T:
    if name in fields:
        return read(fields[name], name)
    if default is _REQUIRED:
        raise BadReport(f"has no {name}")
    value: T = default
    return value


def _mapping(fields: dict[str, Any], name: str, read: Callable[[Any, str], T], most: int) -> dict[str, T]:
    entries = _field(fields, name, _object, {})
    if len(entries) > most:
        raise BadReport(f"has more than {most} {name}")
    return {_text(key, name): read(value, name) for key, value in entries.items()}


def _bounded_list(fields: dict[str, Any], name: str, most: int) -> list[Any]:
    items = _field(fields, name, _list, [])
    if len(items) > most:
        raise BadReport(f"has more than {most} {name}")
    return items


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadReport(f"has a wrong {name}: it must be an object")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadReport(f"has a wrong {name}: it must be a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise BadReport(f"has a wrong {name}: it must be text of at most {LONGEST_TEXT} characters")
    return value.encode(errors="replace").decode()  # a lone surrogate is JSON, and no UTF-8


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise BadReport(f"has a wrong {name}: it must be a word")
    return value


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise BadReport(f"has a wrong {name}: it must be an integer from 0 to {LARGEST}")
    return value


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise BadReport(f"has a wrong {name}: it must be seconds, 0 or more")
    return float(value)


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadReport(f"has a wrong {name}: it must be true or false")
    return value


def _scope(value: Any, name: str) -> Scope:
    if not isinstance(value, str) or value not in SCOPES:
        raise BadReport(f"has a wrong {name}: it must be one of {', '.join(SCOPES)}")
    return Scope(value)


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)
