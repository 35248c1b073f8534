"""Counts that are saved and put back: an engine that was stopped decides as one that never was."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.ledger import PROVIDER
from sluice.core.buckets import Charge, Demand
from sluice.core.decisions import Refusal
from sluice.core.engine import Engine
from sluice.core.keeping import keep, put_back
from sluice.core.keys import Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Call, Permit
from sluice.core.rules import Rule, RuleBook
from sluice.core.windows import SLOTS
from sluice_sidecar.stores.counts_format import HEAD, Kept, Moment, Unreadable, bucket_texts, line, passed, read

BOOK = RuleBook(
    (
        Rule(PROVIDER, Scope.USER, Limits(requests_per_minute=6, tokens_per_minute=300, requests_per_day=40)),
        Rule(
            PROVIDER, Scope.ORG, Limits(tokens_per_hour=2000, input_tokens_per_minute=500, output_tokens_per_day=9000)
        ),
    )
)
SPANS = st.sampled_from((0, 1, SECOND - 1, SECOND, MINUTE // SLOTS, MINUTE, MINUTE + 1, HOUR // SLOTS, HOUR, DAY))
PAUSES = st.integers(0, 3 * SECOND) | SPANS


class Step(NamedTuple):
    """One call, after a pause, and what it used."""

    pause: int
    user: str
    tokens: int
    parts: tuple[int, int]
    used: Charge | None


AMOUNTS = st.integers(0, 120)
STEPS = st.lists(
    st.builds(
        Step,
        PAUSES,
        st.sampled_from(("ann", "bob")),
        AMOUNTS,
        st.tuples(AMOUNTS, AMOUNTS),
        st.none() | st.builds(Charge, AMOUNTS, AMOUNTS, AMOUNTS),
    ),
    max_size=40,
)


def make(engine: Engine, step: Step, now: int) -> Permit | tuple[object, ...]:
    """Admitted, or all that is said of why it is not."""
    applied = engine.rules.match(PROVIDER, {Scope.USER: step.user, Scope.ORG: "acme"})
    outcome = engine.acquire(Call(applied, Demand(0, 1, step.tokens, *step.parts)), now)
    if isinstance(outcome, Refusal):
        return tuple(outcome)
    assert isinstance(outcome, Permit)
    if step.used is not None:
        outcome.commit_tokens(step.used, now)
    outcome.release(now)
    return outcome


def used(engine: Engine, now: int) -> dict[tuple[str, Cap], int]:
    """What every window counts."""
    snapshot = engine.snapshot(now)
    return {
        (state.key.subject, cap): window.used for state in snapshot.buckets for cap, window in state.windows.items()
    }


def restarted(engine: Engine, saved_at: int, now: int) -> Engine:
    """An engine that starts `now` with what is in the file that was written at `saved_at`."""
    texts = [bucket_texts(engine.visit(engine.keys(), saved_at, keep))]
    kept = read(HEAD + b"".join(line(Moment(saved_at, saved_at, saved_at, "boot"), texts)))
    assert (kept.damage, kept.is_cut) == ("", False)
    started = Engine(BOOK)
    axis = kept.moment.axis + passed(kept.moment, Moment(0, 0, now, "another"))
    for bucket in kept.buckets:
        put_back(started, bucket, axis)
    return started


@given(start=st.integers(0, 3 * DAY), before=STEPS, away=PAUSES, after=STEPS)
def test_what_was_stopped_at_any_moment_decides_as_what_never_was(
    start: int, before: list[Step], away: int, after: list[Step]
) -> None:
    engine, now = Engine(BOOK), start
    for step in before:
        now += step.pause
        make(engine, step, now)
    started = restarted(engine, now, now + away)
    now += away
    for step in after:
        now += step.pause
        one, other = make(engine, step, now), make(started, step, now)
        assert isinstance(one, Permit) is isinstance(other, Permit)
        assert isinstance(one, Permit) or one == other
        counted = used(started, now)
        assert {key: count for key, count in used(engine, now).items() if count} == {
            key: count for key, count in counted.items() if count
        }


@given(start=st.integers(0, 3 * DAY), before=STEPS, away=PAUSES, lag=PAUSES, looks=st.lists(PAUSES, max_size=8))
def test_a_clock_that_was_put_back_never_gives_capacity_back_early_and_gives_all_of_it_back(
    start: int, before: list[Step], away: int, lag: int, looks: list[int]
) -> None:
    engine, now = Engine(BOOK), start
    for step in before:
        now += step.pause
        make(engine, step, now)
    axis = now + max(0, away - lag)  # a wall clock that was put back by more than the gate was away tells of no time
    started = restarted(engine, now, axis)
    now += away
    for look in looks:
        now, axis = now + look, axis + look
        truth, counted = used(engine, now), used(started, axis)
        assert all(counted.get(key, 0) >= count for key, count in truth.items())
    axis += DAY + DAY // SLOTS
    assert not any(used(started, axis).values())


@given(before=STEPS, away=PAUSES, ends=st.lists(PAUSES, min_size=1, max_size=5))
def test_no_number_of_starts_keeps_capacity_back(before: list[Step], away: int, ends: list[int]) -> None:
    engine, now = Engine(BOOK), DAY
    for step in before:
        now += step.pause
        make(engine, step, now)
    started = engine
    for end in ends:
        started = restarted(started, now, now + away + end)
        now += away + end
    assert used(started, now) == {key: count for key, count in used(engine, now).items() if key in used(started, now)}


# -- the reader ----------------------------------------------------------------------------------------------------


def file_of(saves: int) -> tuple[bytes, list[int]]:
    """A file with so many saves, and where each of them ends."""
    engine, data, ends = Engine(BOOK), HEAD, []
    for number in range(saves):
        make(engine, Step(0, f"user-{number}", 7, (3, 4), None), number * SECOND)
        texts = [bucket_texts(engine.visit(engine.keys(), number * SECOND, keep))]
        data += b"".join(line(Moment(number * SECOND, number, number, "boot"), texts))
        ends.append(len(data))
    return data, ends


FILE, ENDS = file_of(4)
SAVES = [read(FILE[:end]) for end in ENDS]


@given(size=st.integers(0, len(FILE)))
def test_a_file_that_is_cut_anywhere_says_what_was_saved_before_or_nothing(size: int) -> None:
    whole = [save for end, save in zip(ENDS, SAVES, strict=True) if end <= size]
    assert_read(FILE[:size], whole)


@given(at=st.integers(0, len(FILE) - 1), put=st.binary(min_size=0, max_size=5), over=st.integers(0, 5))
def test_no_damage_makes_up_counts_and_what_stands_before_it_is_read(at: int, put: bytes, over: int) -> None:
    damaged = FILE[:at] + put + FILE[at + over :]
    before = [save for end, save in zip(ENDS, SAVES, strict=True) if damaged[:end] == FILE[:end]]
    assert_read(damaged, before)


def assert_read(data: bytes, saves: list[Kept]) -> None:
    try:
        kept = read(data)
    except Unreadable:
        assert saves == []
    else:
        assert kept[:2] == saves[-1][:2]


def checked(body: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(body), body)


SAVE = {"axis": 9 * MINUTE, "monotonic": 0, "wall": 0, "boot": ""}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(("User", "minute")),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(("minute", "day", "x")), inner),
)
INSIDE = st.sampled_from(
    (
        (lambda a: a),
        (lambda a: {**SAVE, "buckets": a}),
        (lambda a: {**SAVE, "axis": a, "buckets": []}),
        (lambda a: {**SAVE, "boot": a, "buckets": []}),
        (lambda a: {**SAVE, "buckets": [a]}),
        (lambda a: {**SAVE, "buckets": [["p", a, "s", "", {}]]}),
        (lambda a: {**SAVE, "buckets": [["p", "User", a, "", {}]]}),
        (lambda a: {**SAVE, "buckets": [["p", "User", "s", "", a]]}),
        (lambda a: {**SAVE, "buckets": [["p", "User", "s", "", {"minute": a}]]}),
        (lambda a: {**SAVE, "buckets": [["p", "User", "s", "", {"minute": [1, a, 0, 2, 0, a]}]]}),
    )
)


@given(anything=ANYTHING, inside=INSIDE)
def test_whatever_a_line_says_it_is_counts_or_turned_down(anything: object, inside: Callable[[object], object]) -> None:
    try:
        kept = read(HEAD + checked(json.dumps(inside(anything)).encode()))
    except Unreadable:
        return
    started = Engine(BOOK)
    for bucket in kept.buckets:
        put_back(started, bucket, kept.moment.axis)
    assert all(count >= 0 for count in used(started, kept.moment.axis).values())


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b"NaN", b"1" * 5000, b'{"axis":1e999}', b"\xff", b"\x00" * 99])
def test_bytes_that_are_hard_on_a_json_reader_are_turned_down(body: bytes) -> None:
    with pytest.raises(Unreadable, match="line 2 is not as a gate writes it"):
        read(HEAD + checked(body))
