"""What learning is worth on 10 000 made-up calls: see `helpers.mix` for how they were made, and why."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NamedTuple

import pytest

from helpers.mix import APPLICATIONS, CALLS, Application, Recorded, calls
from sluice.usage.estimate import Asked, Estimate, estimate
from sluice.usage.estimation import Estimation
from sluice.usage.learning import Learner, Lesson
from sluice.usage.profiles.profile import EstimationMode

LARGE: Final = 4096
"""Caps from here on say little of a call; below it they are meant."""
SETTLED: Final = 500
"""Calls after a beginning or a drift in which too little was seen of it."""


class Judged(NamedTuple):
    """A call and what was reserved for it."""

    call: Recorded
    reserved: Estimate

    @property
    def error(self) -> int:
        return abs(self.over)

    @property
    def over(self) -> int:
        """Tokens used above the reservation; negative if it was more than enough."""
        return self.call.input_tokens + self.call.output_tokens - self.reserved.total

    @property
    def output_error(self) -> int:
        return abs(self.call.output_tokens - self.reserved.output_tokens)


@cache
def judged(mode: EstimationMode, quantile: int = 90) -> Sequence[Judged]:
    """The whole mix, each call judged by what those that had ended by then have shown."""
    learner, estimation = Learner(), Estimation(mode=mode, quantile=quantile)
    in_flight: list[tuple[int, int, Recorded]] = []
    found = []
    for number, call in enumerate(calls()):
        while in_flight and in_flight[0][0] <= number:
            _, _, ended = heapq.heappop(in_flight)
            learner.learn(
                ended.kind, Lesson(ended.size, ended.cap, ended.input_tokens, ended.output_tokens), estimation.quantile
            )
        reserved = estimate(Asked(call.size, call.cap), estimation, learner.experience(call.kind))
        found.append(Judged(call, reserved))
        heapq.heappush(in_flight, (number + call.delay, number, call))
    return found


def of(application: Application, mode: EstimationMode) -> Sequence[Judged]:
    return [each for each in judged(mode) if each.call.application == application.name]


def mean(error: Callable[[Judged], int], those: Sequence[Judged]) -> float:
    return sum(map(error, those)) / len(those)


def exceeded(those: Sequence[Judged]) -> float:
    """The share of them that used more than was reserved."""
    return sum(each.over > 0 for each in those) / len(those)


def test_the_mix_is_the_same_everywhere_and_has_every_application() -> None:
    made = list(calls())

    assert len(made) == CALLS
    assert made[0] == next(calls())
    assert sum(call.input_tokens + call.output_tokens for call in made) == 86_057_874
    assert {call.application for call in made} == {application.name for application in APPLICATIONS}


@pytest.mark.parametrize("error", [lambda each: each.error, lambda each: each.output_error], ids=["all", "output"])
@pytest.mark.parametrize("half", [0, 1])
def test_what_is_learned_cuts_the_mean_error_of_declared_caps_by_two_thirds(
    error: Callable[[Judged], int], half: int
) -> None:
    part = slice(half * CALLS // 2, (half + 1) * CALLS // 2)
    declared, learned = judged(EstimationMode.DECLARED)[part], judged(EstimationMode.LEARNED)[part]

    assert mean(error, learned) <= mean(error, declared) / 3


@pytest.mark.parametrize(("quantile", "most"), [(50, 0.50), (75, 0.25), (90, 0.10), (95, 0.05), (99, 0.011)])
def test_no_more_outputs_exceed_what_was_reserved_than_the_quantile_says(quantile: int, most: float) -> None:
    everything = judged(EstimationMode.LEARNED, quantile)
    measured = [each for each in everything if each.call.cap is not None]

    share = sum(each.call.output_tokens > each.reserved.output_tokens for each in measured) / len(measured)

    assert share <= most


def test_at_90_percent_one_call_in_ten_uses_more_than_was_reserved_and_few_tokens_are_over() -> None:
    everything = judged(EstimationMode.LEARNED)
    used = sum(each.call.input_tokens + each.call.output_tokens for each in everything)

    assert exceeded(everything) <= 0.10
    assert sum(max(0, each.over) for each in everything) <= 0.03 * used


def test_a_drift_is_exceeded_for_some_hundred_calls_and_then_no_more() -> None:
    everything = judged(EstimationMode.LEARNED)
    drift = CALLS // 2

    assert exceeded(everything[drift - SETTLED : drift]) <= 0.10
    assert exceeded(everything[drift : drift + SETTLED]) <= 0.20
    assert exceeded(everything[drift + SETTLED :]) <= 0.10


@pytest.mark.parametrize("application", [each for each in APPLICATIONS if each.cap], ids=lambda each: each.name)
def test_large_caps_gain_in_every_application_and_caps_that_are_meant_lose_little(application: Application) -> None:
    declared, learned = (
        mean(lambda each: each.error, of(application, mode))
        for mode in (EstimationMode.DECLARED, EstimationMode.LEARNED)
    )

    assert learned <= declared * (1 / 3 if (application.cap or 0) >= LARGE else 1.5)


def test_calls_without_a_cap_are_seldom_taken_for_less_than_they_use() -> None:
    (chat,) = (each for each in APPLICATIONS if each.cap is None)

    assert exceeded(of(chat, EstimationMode.DECLARED)) >= 0.5
    assert exceeded(of(chat, EstimationMode.LEARNED)) <= 0.1
