"""The table of `sluice providers`: what each profile supports, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sluice.usage.profiles import Profile
from sluice.usage.profiles.profile import Combine, Counting, EstimationMode
from sluice.usage.profiles.summary import costly, counted, limits
from sluice_sidecar.status_table import aligned

_HEAD: Final = ["PROVIDER", "ADDRESS", "APIS", "USAGE FROM", "RESERVES", "COUNTS", "TELLS WHAT IS LEFT OF"]


def table(profiles: Iterable[Profile]) -> str:
    """A line for each provider."""
    return "\n".join(aligned([_HEAD, *map(_row, profiles)]))


def _row(profile: Profile) -> list[str]:
    return [
        profile.provider,
        profile.upstream or "your own",
        " ".join(shape.name for shape in costly(profile)),
        " ".join(sorted(set(_usage_from(profile)))),
        _reserves(profile.counting),
        _counts(profile.counting),
        limits(profile),
    ]


def _usage_from(profile: Profile) -> Iterator[str]:
    for shape in costly(profile):
        yield "envoy" if shape.response.envoy_reads else "body"
        if shape.response.headers.names:
            yield "headers"


def _reserves(counting: Counting) -> str:
    output = "learned" if counting.mode is EstimationMode.LEARNED else "cap"
    return f"input+{output}" if counting.combine is Combine.SUM else f"max(input,{output})"


def _counts(counting: Counting) -> str:
    phrases = counted(counting)
    differs = [phrase for phrase in phrases if " for " not in phrase]
    return ", ".join([*differs, *(["by model"] if len(phrases) > len(differs) else [])]) or "each token"
