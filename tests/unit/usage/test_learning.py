"""What is learned of calls that have ended, and for whom it holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.core.limits import MAX_COUNT
from sluice.usage.learning import (
    FEWEST,
    MOST_COUNTED,
    MOST_OUTPUT,
    QUIET,
    STEPS,
    Experience,
    Kind,
    Learner,
    Lesson,
    Quantile,
    least_cap,
)

OCTAVES = 20
SLOT = 2 ** (1 / STEPS)


def kind(model: str = "gpt-5", *entries: str, provider: str = "openai", cap: int | None = 1000) -> Kind:
    return Kind(provider, model, entries or ("User",), least_cap(cap))


def lesson(output: int = 100, cap: int | None = 1000, size: int = 400, tokens: int = 100) -> Lesson:
    return Lesson(size, cap, tokens, output)


def taught(*lessons: Lesson, times: int = 20, percent: int = 90) -> Experience:
    experience = Experience()
    for _ in range(times):
        for each in lessons:
            experience.learn(each, percent)
    return experience


def told(experience: Experience | None, cap: int | None = 1000) -> int | None:
    return None if experience is None else experience.output_tokens(cap)


@pytest.mark.parametrize(("percent", "calls"), [(1, 8), (50, 8), (88, 8), (90, 9), (95, 19), (98, 49), (99, 99)])
def test_nothing_is_told_before_enough_calls_were_seen(percent: int, calls: int) -> None:
    quantile = Quantile(OCTAVES)
    values = []
    for _ in range(calls):
        values.append(quantile.value)
        quantile.add(64, percent)

    assert values == [None] * calls
    assert quantile.value == 64
    assert calls >= FEWEST


def test_the_first_that_is_told_is_the_largest_seen() -> None:
    quantile = Quantile(OCTAVES)
    for value in (5, 900, 30, 2, 7, 7, 64, 1, 1):
        quantile.add(value, 90)

    assert quantile.value is not None
    assert 900 <= quantile.value < 900 * SLOT


@pytest.mark.parametrize("percent", [50, 75, 90, 95, 99])
def test_what_is_told_is_at_most_a_slot_above_the_quantile(percent: int) -> None:
    random = Random(percent)
    values = [round(2 ** (random.random() * OCTAVES)) for _ in range(MOST_COUNTED - 1)]
    quantile = Quantile(OCTAVES)
    for value in values:
        quantile.add(value, percent)

    exact = sorted(values)[-(-percent * (len(values) + 1) // 100) - 1]
    assert quantile.value is not None
    assert exact <= quantile.value * (1 + 1e-12)
    assert quantile.value <= exact * SLOT


@pytest.mark.parametrize("percent", [50, 75, 90, 95, 99])
def test_of_calls_that_are_alike_no_more_exceed_it_than_stated(percent: int) -> None:
    random = Random(7)
    exceeded = asked = 0
    for _ in range(400):
        quantile = Quantile(OCTAVES)
        for _ in range(120):
            value = 2 ** (random.random() * OCTAVES)
            if quantile.value is not None:
                asked += 1
                exceeded += value > quantile.value
            quantile.add(value, percent)

    # Four standard deviations, as if each forty were one: what is told changes slowly.
    slack = 4 * (percent * (100 - percent) / 10_000 / (asked / 40)) ** 0.5
    assert exceeded / asked <= (100 - percent) / 100 + slack


def test_a_quantile_told_anew_holds_from_the_next_value_on() -> None:
    quantile = Quantile(OCTAVES)
    for value in [1] * 60 + [512] * 40:
        quantile.add(value, 90)
    assert quantile.value == 512

    quantile.add(1, 50)
    assert quantile.value == 1

    quantile.add(1, 90)
    assert quantile.value == 512


@pytest.mark.parametrize(("before", "after", "most"), [(64, 1024, MOST_COUNTED // 10 + 1), (1024, 64, 450)])
def test_a_change_is_followed(before: int, after: int, most: int) -> None:
    quantile = Quantile(OCTAVES)
    for _ in range(1000):
        quantile.add(before, 90)

    needed = 0
    while quantile.value != after:
        quantile.add(after, 90)
        needed += 1

    assert needed <= most


@given(st.lists(st.tuples(st.floats(0, 2.0**90), st.integers(1, 99)), max_size=600))
@settings(max_examples=50, deadline=None)
def test_whatever_is_seen_the_value_stays_within_the_octaves(values: list[tuple[float, int]]) -> None:
    quantile = Quantile(OCTAVES)
    for value, percent in values:
        quantile.add(value, percent)
        assert quantile.value is None or 1 <= quantile.value <= 2**OCTAVES


def test_the_bytes_of_a_token_are_learned() -> None:
    experience = taught(lesson(size=3000, tokens=1000))

    assert experience.bytes_per_token is not None
    assert 3 / SLOT <= experience.bytes_per_token <= 3
    assert 1000 <= (experience.input_tokens(3000) or 0) <= 1000 * SLOT
    assert experience.input_tokens(0) == 0


@pytest.mark.parametrize(("size", "tokens", "bytes_per_token"), [(1_000_000, 3, 64), (100, 5000, 1), (1, MAX_COUNT, 1)])
def test_a_token_stands_for_1_to_64_bytes(size: int, tokens: int, bytes_per_token: float) -> None:
    assert taught(lesson(size=size, tokens=tokens)).bytes_per_token == bytes_per_token


@pytest.mark.parametrize("untold", [lesson(size=0), lesson(tokens=0), Lesson(400, 1000, None, 100)])
def test_an_input_that_is_not_known_teaches_nothing_of_the_input(untold: Lesson) -> None:
    experience = taught(untold)

    assert experience.input_tokens(400) is None
    assert experience.output_tokens(1000) is not None


def test_the_output_is_learned_as_a_share_of_the_cap() -> None:
    experience = taught(lesson(500, cap=2000), lesson(1000, cap=4000))

    assert told(experience, 2000) == 500
    assert told(experience, 4000) == 1000


def test_without_a_cap_the_output_itself_is_learned() -> None:
    assert told(taught(lesson(512, cap=None)), None) == 512


@pytest.mark.parametrize(("output", "expected"), [(1000, 1000), (5000, 1000), (MAX_COUNT, 1000), (0, 1)])
def test_what_is_expected_is_from_1_to_the_declared_cap(output: int, expected: int) -> None:
    assert told(taught(lesson(output, cap=1000)), 1000) == expected


@pytest.mark.parametrize(("output", "expected"), [(0, 1), (1, 1), (2, 2), (3, 3), (MAX_COUNT, MOST_OUTPUT)])
def test_where_no_cap_is_declared_it_is_from_1_to_a_million(output: int, expected: int) -> None:
    assert told(taught(lesson(output, cap=None)), None) == expected


def test_an_output_that_was_not_told_teaches_nothing_of_the_output() -> None:
    experience = taught(Lesson(400, 1000, 100, None))

    assert told(experience) is None
    assert experience.input_tokens(400) is not None


counts = st.integers(0, MAX_COUNT)


@given(st.lists(st.builds(Lesson, counts, st.none() | counts, st.none() | counts, st.none() | counts), max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_numbers_lead_out_of_the_bounds(lessons: list[Lesson]) -> None:
    experience = taught(*lessons, times=3)

    for cap in (1, 1000, MAX_COUNT):
        assert 1 <= (told(experience, cap) or 1) <= cap
    assert 0 <= (experience.input_tokens(MAX_COUNT) or 0) <= MAX_COUNT


@pytest.mark.parametrize(
    ("caps", "least"),
    [
        ((1, 3), 1),
        ((4, 31), 4),
        ((32, 255), 32),
        ((256, 2047), 256),
        ((2048, 16_383), 2048),
        ((16_384, 131_071), 16_384),
        ((131_072, MAX_COUNT), 131_072),
    ],
)
def test_caps_of_one_order_of_magnitude_are_alike(caps: tuple[int, int], least: int) -> None:
    assert [least_cap(cap) for cap in caps] == [least, least]


def test_kinds_learn_apart() -> None:
    learner = Learner()
    lessons = {
        kind(): lesson(100),
        kind(cap=10): lesson(10, cap=10),
        kind("gpt-5-mini"): lesson(200),
        kind("gpt-5", "User", "Org acme"): lesson(400),
        kind(provider="other"): lesson(800),
    }
    for _ in range(20):
        for each, shown in lessons.items():
            learner.learn(each, shown, 90)

    assert {each: learner.experience(each) is not None for each in lessons} == dict.fromkeys(lessons, True)
    assert len({told(learner.experience(each)) for each in lessons}) == len(lessons)
    assert learner.experience(kind("unheard of")) is None
    assert learner.experience(kind(provider="unheard of")) is None


def full(learner: Learner, places: int) -> list[Kind]:
    kinds = [kind(f"model-{number}") for number in range(places)]
    for each in kinds:
        for _ in range(20):
            learner.learn(each, lesson(500), 90)
    return kinds


def test_newcomers_without_a_place_share_one_experience_and_spoil_nobodys() -> None:
    learner = Learner(most_kinds=4)
    known = full(learner, 4)
    for number in range(1000):
        learner.learn(kind(f"made-up-{number}"), lesson(1), 90)

    assert [told(learner.experience(each)) for each in known] == [told(taught(lesson(500)))] * 4
    assert told(learner.experience(kind("another"))) == 1
    assert told(learner.experience(kind("another", provider="other"))) is None


def test_a_kind_that_is_quiet_for_long_gives_its_place_to_a_newcomer() -> None:
    learner = Learner(most_kinds=4)
    quiet, *busy = full(learner, 4)
    for number in range(QUIET + 1):
        learner.learn(busy[number % 3], lesson(500), 90)
    newcomer = kind("newcomer")

    learner.learn(newcomer, lesson(500), 90)

    names = {each.model for each, _ in learner.most_taught(10)}
    assert names == {"newcomer", *(each.model for each in busy)}
    assert quiet.model not in names


def test_a_removed_provider_is_forgotten() -> None:
    learner = Learner()
    for provider in ("openai", "other"):
        learner.learn(kind(provider=provider), lesson(), 90)

    learner.keep(frozenset({"other", "third"}))

    assert [each.provider for each, _ in learner.most_taught(10)] == ["other"]


def test_those_taught_most_are_told_first_and_the_shared_one_among_them() -> None:
    learner = Learner(most_kinds=2)
    for name, times in (("few", 1), ("many", 3), ("late", 1), ("later", 1)):
        for _ in range(times):
            learner.learn(kind(name), lesson(), 90)

    assert [(each.model, experience.samples) for each, experience in learner.most_taught(2)] == [("many", 3), ("*", 2)]


def test_a_provider_takes_0_6_mebibytes_at_most() -> None:
    learner = Learner()
    for number in range(2000):
        learner.learn(kind("m" * 250 + f"{number:06}"), lesson(), 90)

    assert sum(_sizes(learner)) < 0.6 * 2**20


def _sizes(root: object) -> Iterator[int]:
    """The sizes of everything that hangs on an object, each once."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        yield sys.getsizeof(thing)
        if isinstance(thing, dict):
            stack += [*thing.keys(), *thing.values()]
        elif isinstance(thing, tuple | list):
            stack += thing
        else:
            names = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
            stack += [getattr(thing, name) for name in names if hasattr(thing, name)]
            stack.append(getattr(thing, "__dict__", None))
