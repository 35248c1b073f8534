"""The status of an object: what a person sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sluice_operator.planning import conditions
from sluice_operator.planning.health import health
from sluice_operator.planning.progress import accepted, programmed, ready
from sluice_operator.planning.reports import Recent
from sluice_operator.planning.standing import Standing
from sluice_operator.planning.state import Gate
from sluice_operator.planning.usage import Usage, hottest, last_refusal, pressure, shown_provider, shown_usage

FIELDS: Final = (
    "observedGeneration", "conditions", "sidecars", "inForce",
    "usage", "hottest", "pressure", "lastRefusal", "provider",
)  # fmt: skip
"""What the operator writes of a status."""


def ours(status: object) -> dict[str, Any]:
    """What the operator wrote of a status, or could have; fields and conditions of others are left out."""
    if not isinstance(status, Mapping):
        return {}
    kept = {name: status[name] for name in FIELDS if name in status}
    if "conditions" in kept:
        kept["conditions"] = list(conditions.by_type(kept).values())
    return kept


def new_status(
    standing: Standing, gates: Sequence[Gate], behind: Sequence[Gate], usage: Usage, old: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """The status of an object. `behind` are the gates that do not run its form in force; `old` is its status now."""
    recent = usage.recent.get(standing.form.document.provider, Recent()) if standing.form else None
    first, second = accepted(standing), programmed(standing.form, len(gates), behind)
    told = (first, second, ready(first, second), *health(recent, usage))
    return {
        "observedGeneration": standing.generation,
        "conditions": conditions.written(told, standing.generation, conditions.by_type(old), now),
        "sidecars": f"{len(gates) - len(behind)}/{len(gates)}",
        **({"inForce": {"generation": standing.form.generation}} if standing.form else {}),
        **_of_calls(standing, usage, recent, old),
    }


def _of_calls(standing: Standing, usage: Usage, recent: Recent | None, old: Mapping[str, Any]) -> dict[str, Any]:
    """What the gates' reports tell; a field that says nothing is left out."""
    if standing.form is None or recent is None or not usage.answered:
        return {}
    document, buckets = standing.form.document, usage.buckets.get(standing.uid, ())
    told = {
        "usage": shown_usage(document, buckets, recent),
        "hottest": hottest(document, buckets),
        "pressure": pressure(document, buckets, old.get("pressure"), complete=usage.complete),
        "lastRefusal": last_refusal(document, buckets),
        "provider": shown_provider(recent) if recent.throttled else None,
    }
    return {name: value for name, value in told.items() if value}
