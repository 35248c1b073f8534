"""Durations as Kubernetes' Gateway API writes them (GEP-2257): `10s`, `1m30s`, `500ms`, `1h`."""

from __future__ import annotations

import re
from typing import Final

from sluice.core.limits import HOUR, MILLISECOND, MINUTE, SECOND

PATTERN: Final = "([0-9]{1,5}(h|m|s|ms)){1,4}"
"""The pattern of GEP-2257, without its anchors."""

_UNITS: Final = {"h": HOUR, "m": MINUTE, "s": SECOND, "ms": MILLISECOND}


def parse_duration(text: str) -> int | None:
    """Nanoseconds; None if the text is not a duration. A bare `0` is none: it has no unit."""
    if re.fullmatch(PATTERN, text) is None:
        return None
    return sum(int(count) * _UNITS[unit] for count, unit in re.findall("([0-9]+)(ms|h|m|s)", text))


def format_duration(nanoseconds: int) -> str:
    """The shortest text that `parse_duration` reads back; what is below a millisecond is dropped."""
    parts = []
    for unit, length in _UNITS.items():
        count, nanoseconds = divmod(nanoseconds, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
