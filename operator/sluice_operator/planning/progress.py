"""How far an object has come: `Accepted`, `Programmed` and `Ready`, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sluice.errors import Problem
from sluice_operator.planning.conditions import Condition, Kind, Reason, Truth, condition, shortened
from sluice_operator.planning.forms import Form
from sluice_operator.planning.standing import OWNER_BYTES, ROOM, Standing, Verdict
from sluice_operator.planning.state import Gate

LISTED: Final = 3
"""Mistakes, and pods, that a message names; of more it gives the number."""
LONGEST_PROBLEM: Final = 250
"""Bytes of one mistake in a message."""
LONGEST_FAILURE: Final = 80
"""Bytes of why a gate did not answer."""


def accepted(standing: Standing) -> Condition:
    """Whether the present generation is in force; the message says what is, if that is not."""
    stays = f"Generation {standing.form.generation} stays in force." if standing.form else "Nothing of it is in force."
    problems = _problems(standing.problems)
    message = {
        Verdict.ACCEPTED: "The limits are sound, and in force.",
        Verdict.INVALID: f"The limits have mistakes: {problems}. {stays}",
        Verdict.CONFLICTED: f"The limits contradict an older object: {problems}. {stays}",
        Verdict.NO_ROOM: f"All limits of a namespace together may have {ROOM} bytes, {OWNER_BYTES} of them for each "
        f"object, and the older objects leave too few for this one: shorten it, or remove another. {stays}",
    }[standing.verdict]
    holds = standing.verdict is Verdict.ACCEPTED
    return condition(Kind.ACCEPTED, holds=holds, reason=Reason(standing.verdict), message=message)


def programmed(form: Form | None, gates: int, behind: Sequence[Gate]) -> Condition:
    """Whether every gate runs the form in force; the message says which are behind, and why."""
    holds = False
    if form is None:
        reason = Reason.NOT_ACCEPTED
        message = "There is nothing for gates to run: see the condition Accepted."
    elif not gates:
        reason = Reason.NO_GATES
        message = (
            "No pod of this namespace has the label sluice.dev/gate=true, so nobody's calls are limited: start a gate."
        )
    elif not behind:
        holds, reason = True, Reason.PROGRAMMED
        message = f"{gates} of {_gates(gates)} generation {form.generation}."
    else:
        reason = Reason.PENDING
        message = f"{gates - len(behind)} of {_gates(gates)} generation {form.generation}. " + " ".join(_behind(behind))
    return condition(Kind.PROGRAMMED, holds=holds, reason=reason, message=message)


def ready(accepted: Condition, programmed: Condition) -> Condition:
    """Whether calls are decided by the present generation everywhere; if not, for the reason of what is in its way."""
    holds = False
    if accepted.truth is not Truth.TRUE:
        reason, message = accepted.reason, "The present generation is not in force: see the condition Accepted."
    elif programmed.truth is not Truth.TRUE:
        reason, message = programmed.reason, "Not every gate runs it: see the condition Programmed."
    else:
        holds, reason, message = True, Reason.READY, "Every gate decides by the present generation."
    return condition(Kind.READY, holds=holds, reason=reason, message=message)


def named(pods: Iterable[str]) -> str:
    """A few of the pods by name, and how many more."""
    names = sorted(pods)
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _problems(problems: Sequence[Problem]) -> str:
    told = [f"{each.field}: {each.message}" if each.field else each.message for each in problems[:LISTED]]
    more = len(problems) - LISTED
    return "; ".join(shortened(each, LONGEST_PROBLEM) for each in told) + (f"; and {more} more" if more > 0 else "")


def _behind(gates: Sequence[Gate]) -> Iterable[str]:
    """A sentence for each way in which gates can fail to run a form."""
    silent = [gate for gate in gates if gate.report is None]
    stuck = [gate for gate in gates if gate.report and gate.report.problems]
    waiting = [gate for gate in gates if gate.report and not gate.report.problems]
    if silent:
        failures = (f"{gate.pod} ({shortened(gate.failure, LONGEST_FAILURE)})" for gate in silent)
        yield f"No answer from {named(failures)}: is its admin port open to the operator?"
    if stuck:
        yield f"Mistakes in the limits files of {named(gate.pod for gate in stuck)}: see its log."
    if waiting:
        yield f"Not yet at {named(gate.pod for gate in waiting)}."


def _gates(number: int) -> str:
    return "1 gate runs" if number == 1 else f"{number} gates run"
