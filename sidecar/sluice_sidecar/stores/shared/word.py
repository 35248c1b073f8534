"""The provider's own word, from one gate to the others: an account's quotas and pauses, as a message on a channel.

A pause is told as long as it is here, so that several gates that are refused at once do not lengthen each other's. Of
quotas, which come with every answer, there is at most a message in `QUIET` for each account.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MAX_COUNT, MILLISECOND
from sluice.core.words import Amount, Feedback, Quota, RefusedAs

QUIET: Final = 200 * MILLISECOND
LONGEST: Final = 16 * 1024
"""Bytes of a message that is read."""
MOST_QUOTAS: Final = 32
MOST_ACCOUNTS: Final = 10_000
"""Of so many it is known when they were spoken of last."""


class Speaker:
    """What this gate tells the others."""

    def __init__(self, gate: str) -> None:
        self._gate = gate
        self._told: dict[BucketKey, int] = {}

    def message(self, account: BucketKey, feedback: Feedback, pause: int, now: int) -> bytes | None:
        """What to tell them; None for nothing new."""
        refused = feedback.refused_as if pause else None
        if refused is None:
            if not feedback.quotas or now < self._told.get(account, now):
                return None
            if len(self._told) >= MOST_ACCOUNTS:
                self._told.clear()
            self._told[account] = now + QUIET
        said = {
            "gate": self._gate,
            "subject": account.subject,
            "model": account.models,
            "quotas": feedback.quotas[:MOST_QUOTAS],
            "refused": refused,
            "pause": pause,
        }
        return json.dumps(said, separators=(",", ":")).encode()

    def heard(self, provider: str, message: bytes) -> tuple[BucketKey, Feedback] | None:
        """What another gate has told; None if it is this gate's own, or no such message."""
        if len(message) > LONGEST:
            return None
        try:
            said = json.loads(message)
            if said["gate"] == self._gate:
                return None
            account = BucketKey(provider, Scope.PROVIDER, _text(said["subject"]), _text(said["model"]))
            quotas = tuple(_quota(*each) for each in said["quotas"][:MOST_QUOTAS])
            refused = None if said["refused"] is None else RefusedAs(said["refused"])
            return account, Feedback(quotas, refused, _count(said["pause"]) or None)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def _quota(name: Any, of: Any, remaining: Any, limit: Any, reset: Any) -> Quota:
    return Quota(_text(name), Amount(of), _count(remaining), None if limit is None else _count(limit), _count(reset))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError
    return value
