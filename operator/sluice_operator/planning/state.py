"""What the operator found in a namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sluice_operator.planning.reports import Report


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate's pod that is not ending, and what its gate answered."""

    pod: str
    uid: str
    told: str
    """The value of its annotation `sluice.dev/limits`; empty if it has none."""
    report: Report | None
    failure: str = ""
    """Why there is no report, in a few words for a person: `timed out after 2 s`."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The state of a namespace but for its `ProviderLimits`, and what this operator remembers of its own writes."""

    config_maps: Mapping[str, Mapping[str, Any]]
    """Those of our names that exist, by name, as the API's JSON."""
    gates: tuple[Gate, ...] = ()
    history: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Content hash of a limits text -> what was in it: uid -> generation. `Plan.found` and `Plan.rendered` of late, as
    many as the caller cares to keep: a gate that runs a text which is not here counts as running none of it."""
    written: Mapping[str, float] = field(default_factory=dict)
    """uid of an object -> when its status was last written; on the clock of `now`."""
    bootstrap: str = ""
    """The Envoy bootstrap to hand out; empty for none."""
