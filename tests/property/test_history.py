"""The judge of histories against a slow one, and before stores that keep their word."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from helpers.history import Allowance, Bound, Call, Counted, judge

BUCKET = "bucket"
MOMENT = st.integers(0, 40)
LENGTH = st.integers(0, 15)


@st.composite
def a_call(draw: st.DrawFn) -> Call:
    asked, answered, ended = sorted(draw(st.tuples(MOMENT, MOMENT, MOMENT)))
    reserved, used = draw(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 9)))
    over = draw(st.booleans())
    return Call("gate", 0, asked, answered, True, (BUCKET,), reserved, ended if over else None, used if over else None)


ALLOWANCE = st.builds(lambda a, b, more: Allowance(min(a, b), max(a, b), more), MOMENT, MOMENT, st.integers(0, 3))
HISTORY = st.lists(a_call(), max_size=12)
BOUND = st.builds(
    Bound,
    st.just(BUCKET),
    st.sampled_from(Counted),
    st.integers(0, 6),
    LENGTH,
    st.lists(ALLOWANCE, max_size=2).map(tuple),
)


def weight(call: Call, bound: Bound, first: int, last: int) -> int:
    """What a call certainly counts for between two moments."""
    assert call.answered is not None
    if bound.counted is Counted.PERMITS:
        return int(call.answered <= last and (call.ended is None or last < call.ended))
    if call.asked < first or call.answered > last:
        return 0
    if bound.counted is Counted.REQUESTS:
        return 1
    told = call.ended is not None and call.ended <= last and call.used is not None
    return min(call.reserved, call.used) if told and call.used is not None else call.reserved


@given(HISTORY, BOUND)
def test_it_finds_the_worst_that_looking_at_every_moment_finds(history: list[Call], bound: Bound) -> None:
    if bound.counted is Counted.PERMITS:
        bound = replace(bound, length=0)
    worst = max(
        sum(weight(call, bound, last - bound.length, last) for call in history) - bound.over(last - bound.length, last)
        for last in range(100)
    )

    assert [found.count - found.allowed for found in judge(history, [bound])] == ([worst] if worst > 0 else [])


@given(st.data(), st.integers(0, 4), st.integers(1, 15), st.sampled_from(Counted))
def test_a_store_that_keeps_its_word_is_never_accused(
    data: st.DataObject, at_most: int, length: int, counted: Counted
) -> None:
    """Calls are admitted one after the other, each at a moment that its caller does not see."""
    bound = Bound(BUCKET, counted, at_most, 0 if counted is Counted.PERMITS else length)
    history: list[Call] = []
    admitted: list[tuple[int, Call]] = []
    moment = 0
    for number in range(data.draw(st.integers(0, 12))):
        moment += data.draw(st.integers(0, 4))
        asked = moment - data.draw(st.integers(0, 6))
        answered = moment + data.draw(st.integers(0, 6))
        ended = answered + data.draw(st.integers(0, 6))
        tokens, used = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
        call = Call("gate", number, asked, answered, True, (BUCKET,), tokens, ended, used)
        if _counts(admitted, moment, bound) + (tokens if counted is Counted.TOKENS else 1) <= at_most:
            admitted.append((moment, call))
            history.append(call)
        else:
            history.append(replace(call, admitted=False))

    assert judge(history, [bound]) == []


def _counts(admitted: list[tuple[int, Call]], moment: int, bound: Bound) -> int:
    """What a store counts at a moment that hears of every end at once."""
    if bound.counted is Counted.PERMITS:
        return sum(call.ended is not None and moment < call.ended for _, call in admitted)
    inside = [call for at, call in admitted if at >= moment - bound.length]
    if bound.counted is Counted.REQUESTS:
        return len(inside)
    return sum(
        (call.used or 0) if call.ended is not None and call.ended <= moment else call.reserved for call in inside
    )
