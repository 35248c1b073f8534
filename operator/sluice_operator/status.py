"""The status of an object: what a person sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sluice_operator import conditions
from sluice_operator.conditions import Condition, Kind, Reason, condition
from sluice_operator.standing import OWNER_BYTES, ROOM, Standing, Verdict
from sluice_operator.state import Gate

NAMED: Final = 3
"""Pods that a message names; of more it gives the number."""
SHOWN_PROBLEMS: Final = 3
LONGEST_PROBLEM: Final = 250
"""Bytes of one mistake in a message."""
FIELDS: Final = (
    "observedGeneration", "conditions", "sidecars", "inForce",
    "usage", "hottest", "pressure", "lastRefusal", "provider",
)  # fmt: skip
"""What the operator writes of a status."""


def ours(status: Any) -> dict[str, Any]:
    """What the operator wrote of a status; fields and conditions of others are left out."""
    if not isinstance(status, Mapping):
        return {}
    kept = {name: status[name] for name in FIELDS if name in status}
    if "conditions" in kept:
        kept["conditions"] = list(conditions.by_type(kept).values())
    return kept


def new_status(
    standing: Standing,
    gates: Sequence[Gate],
    runs: Mapping[str, Mapping[str, int]],
    old: Mapping[str, Any],
    now: float,
) -> dict[str, Any]:
    """The status of an object. `runs` is what is in each limits text, by its hash; `old` the status that stands now."""
    running = [gate for gate in gates if _runs(gate, standing, runs)]
    told = [_accepted(standing), _programmed(standing, gates, running)]
    told.append(_ready(*told))
    return {
        "observedGeneration": standing.generation,
        "conditions": conditions.written(told, standing.generation, conditions.by_type(old), now),
        "sidecars": f"{len(running)}/{len(gates)}",
        **({"inForce": {"generation": standing.form.generation}} if standing.form else {}),
    }


def _runs(gate: Gate, standing: Standing, runs: Mapping[str, Mapping[str, int]]) -> bool:
    """True if the gate runs the form of the object that is in force."""
    if gate.report is None or standing.form is None:
        return False
    return any(runs.get(file, {}).get(standing.uid) == standing.form.generation for file in gate.report.files)


def _accepted(standing: Standing) -> Condition:
    listed = "; ".join(
        conditions.shortened(
            f"{problem.field}: {problem.message}" if problem.field else problem.message, LONGEST_PROBLEM
        )
        for problem in standing.problems[:SHOWN_PROBLEMS]
    )
    more = len(standing.problems) - SHOWN_PROBLEMS
    listed += f"; and {more} more" if more > 0 else ""
    form = standing.form
    left = f"Generation {form.generation} stays in force." if form else "Nothing of it is in force."
    holds = standing.verdict is Verdict.ACCEPTED
    message = {
        Verdict.ACCEPTED: "The limits are sound, and in force.",
        Verdict.INVALID: f"Generation {standing.generation} has mistakes: {listed}. {left}",
        Verdict.CONFLICTED: f"Generation {standing.generation} contradicts an older object: {listed}. {left}",
        Verdict.NO_ROOM: f"The limits of a namespace have {ROOM} bytes, {OWNER_BYTES} of them for each object, and the "
        f"older objects leave too few: shorten this one, or remove another. {left}",
    }[standing.verdict]
    return condition(Kind.ACCEPTED, holds=holds, reason=Reason(standing.verdict), message=message)


def _programmed(standing: Standing, gates: Sequence[Gate], running: Sequence[Gate]) -> Condition:
    form = standing.form
    if form is None:
        message = "There is nothing that gates could run: see the condition Accepted."
        return condition(Kind.PROGRAMMED, holds=False, reason=Reason.NOT_ACCEPTED, message=message)
    if not gates:
        message = "No pod with the label sluice.dev/gate=true runs in this namespace: nothing is limited yet."
        return condition(Kind.PROGRAMMED, holds=False, reason=Reason.NO_GATES, message=message)
    message = f"{len(running)} of {len(gates)} gates run generation {form.generation}."
    if len(running) == len(gates):
        return condition(Kind.PROGRAMMED, holds=True, reason=Reason.PROGRAMMED, message=message)
    return condition(Kind.PROGRAMMED, holds=False, reason=Reason.PENDING, message=message)


def _ready(accepted: Condition, programmed: Condition) -> Condition:
    if accepted.truth is not conditions.Truth.TRUE:
        message = "The present generation is not in force: see the condition Accepted."
        return condition(Kind.READY, holds=False, reason=Reason.NOT_ACCEPTED, message=message)
    if programmed.truth is not conditions.Truth.TRUE:
        message = "Not every gate runs the present generation: see the condition Programmed."
        return condition(Kind.READY, holds=False, reason=Reason.NOT_PROGRAMMED, message=message)
    return condition(Kind.READY, holds=True, reason=Reason.READY, message="Every gate runs the present generation.")
