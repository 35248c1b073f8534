"""Leased: gates admit calls out of slices, ask rarely, hold little, and never pass a limit together."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from helpers.driven import driven
from helpers.house import House
from helpers.ledger import admitted, org, refused, user
from helpers.shared import Open, asked
from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import Scope
from sluice.core.limits import HOUR, MILLISECOND, SECOND, Cap, Limits, Mode, Sharing, StoreFailure
from sluice_sidecar.health import StoreMode
from sluice_sidecar.stores.shared.slices import APART

LEASED, EXACT = Sharing.LEASED, Sharing.EXACT
PER_MINUTE, PER_HOUR, PER_DAY = Cap.REQUESTS_PER_MINUTE, Cap.REQUESTS_PER_HOUR, Cap.REQUESTS_PER_DAY
MANY = Limits(requests_per_minute=100_000, sharing=LEASED)
DELAY = 5 * MILLISECOND


async def busy(house: House, calls: int, *, gate: int = 0, **what: Any) -> None:
    """So many calls at once."""
    for _ in range(calls):
        await house.admit(gate=gate, **what)


def shift_clock(house: House, by: int) -> None:
    """The server's clock goes on, or back, and the gates' does not."""
    assert house.place is not None
    house.place.set_time(house.now + by)


# -- few questions -------------------------------------------------------------------------------------------------


async def test_most_calls_of_a_busy_bucket_ask_nobody(open_house: Open) -> None:
    house = await open_house(user(limits=MANY))

    with asked(house.place) as first:
        await busy(house, 500)
    await house.pass_time(SECOND)
    with asked(house.place) as second:
        await busy(house, 500)

    assert first.scripts < 20
    assert second.scripts <= 2
    assert await house.used(PER_MINUTE) >= 1000


async def test_calls_that_come_evenly_are_expected_to_go_on_like_that(open_house: Open) -> None:
    house = await open_house(user(limits=MANY))

    held = []
    for _ in range(3):
        for _ in range(200):
            await house.admit(gate=0)
            await house.pass_time(5 * MILLISECOND)
        held.append(await house.used(PER_MINUTE))
    with asked(house.place) as third:
        await house.pass_time(0)
        for _ in range(100):
            await house.admit(gate=0)
            driven().now += 5 * MILLISECOND
            shift_clock(house, 0)

    assert held == [200, 400, 600]  # nothing is left over when a second has ended
    assert third.scripts <= 2


async def test_a_first_call_asks_and_takes_nothing_but_itself(open_house: Open) -> None:
    house = await open_house(user(limits=MANY))

    with asked(house.place) as counted:
        for number in range(20):
            await house.admit(gate=number, user=f"user-{number}")

    assert counted.scripts == 20
    assert [await house.used(PER_MINUTE, f"user-{number}") for number in range(20)] == [1] * 20


async def test_a_call_that_touches_a_limit_that_is_not_leased_asks(open_house: Open) -> None:
    house = await open_house(user(limits=MANY), org(limits=replace(MANY, sharing=EXACT)))
    await house.admit(user="warm")

    with asked(house.place) as counted:
        await busy(house, 50)

    assert counted.scripts == 50
    assert await house.used(PER_MINUTE) == 50


async def test_a_call_for_which_a_slice_is_too_small_asks(open_house: Open) -> None:
    house = await open_house(user(limits=replace(MANY, tokens_per_minute=1_000_000)))
    await busy(house, 4)  # the last of them has taken some

    with asked(house.place) as counted:
        await house.admit(100_000)
    assert counted.scripts == 1


async def test_a_call_that_fits_into_the_slice_of_one_bucket_alone_asks_and_takes_nothing_from_it(
    open_house: Open,
) -> None:
    house = await open_house(user(limits=MANY), org(limits=MANY))
    await busy(house, 4, user="ann")
    before = await house.used(PER_MINUTE, "acme", Scope.ORG)

    with asked(house.place) as counted:
        await house.admit(user="bob")

    assert counted.scripts == 1
    assert await house.used(PER_MINUTE, "acme", Scope.ORG) == before + 1


# -- what is held --------------------------------------------------------------------------------------------------

ANYTHING = Limits(
    requests_per_minute=1000, requests_per_day=1000, tokens_per_minute=10**6, tokens_per_hour=10**6,
    input_tokens_per_minute=10**6, output_tokens_per_day=10**6, max_concurrent=1000, sharing=LEASED,
)  # fmt: skip


async def test_an_idle_bucket_holds_nothing_a_second_later(open_house: Open) -> None:
    house = await open_house(user(limits=ANYTHING))
    permits = [await house.admit(10, parts=(3, 7)) for _ in range(50)]
    held = await house.used(PER_DAY)

    await house.pass_time(SECOND)

    state = await house.state()
    assert held > 50
    assert {cap: window.used for cap, window in state.windows.items()} == {
        Cap.REQUESTS_PER_MINUTE: 50,
        Cap.REQUESTS_PER_DAY: 50,
        Cap.TOKENS_PER_MINUTE: 500,
        Cap.TOKENS_PER_HOUR: 500,
        Cap.INPUT_TOKENS_PER_MINUTE: 150,
        Cap.OUTPUT_TOKENS_PER_DAY: 350,
    }
    assert state.in_flight == 50
    await house.release(*permits)
    assert await house.in_flight() == 0


async def test_where_calls_touch_one_bucket_at_most_half_of_what_was_left_is_held_unused(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_minute=1000, sharing=LEASED)), gates=3)
    for gate in range(3):
        await busy(house, 200, gate=gate)
    await house.pass_time(SECOND)
    left = 1000 - await house.used(PER_MINUTE)

    for gate in range(3):
        await house.admit(gate=gate)

    held = await house.used(PER_MINUTE) - 603
    assert left == 400
    assert 0 < held <= left // 2


async def test_of_a_bucket_that_many_share_no_more_is_held_than_was_asked_of_it_lately(open_house: Open) -> None:
    house = await open_house(user(limits=MANY), org(limits=MANY))
    users = [f"user-{number}" for number in range(10)]
    for name in users:
        await busy(house, 5, user=name)
    await house.pass_time(SECOND)

    for count, name in enumerate([*users, *users], 1):
        await house.admit(user=name)
        assert await house.used(PER_MINUTE, "acme", Scope.ORG) - 50 - count <= 50


async def test_nothing_is_taken_ahead_where_nothing_is_left(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_minute=20, sharing=LEASED)))

    outcomes = [await house.ask(gate=number // 3) for number in range(30)]
    assert sum(not isinstance(outcome, Refusal) for outcome in outcomes) <= 20
    await house.pass_time(SECOND)
    outcomes += [await house.ask(gate=0) for _ in range(20)]

    assert sum(not isinstance(outcome, Refusal) for outcome in outcomes) == 20
    assert await house.used(PER_MINUTE) == 20


async def test_a_call_of_less_than_nothing_makes_no_slice_larger(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(tokens_per_minute=1000, sharing=LEASED)), gates=1)
    await busy(house, 8)
    await house.admit(-(10**6))

    assert (await house.refuse(2000)).reason is Reason.OVERSIZED_REQUEST
    assert (await house.refuse(995)).reason is Reason.WOULD_EXCEED


# -- calls at a time -----------------------------------------------------------------------------------------------

AT_A_TIME = Limits(max_concurrent=40, sharing=LEASED)


async def test_the_places_of_a_slice_are_within_the_cap_and_those_unused_are_free_a_second_later(
    open_house: Open,
) -> None:
    house = await open_house(user(limits=AT_A_TIME))
    ours = [await house.admit(gate=0) for _ in range(12)]
    held = await house.in_flight()
    theirs = []
    while isinstance(outcome := await house.ask(gate=1), type(ours[0])):
        theirs.append(outcome)
    assert held > 12
    assert len(ours + theirs) < 40

    await house.pass_time(SECOND)

    theirs += [await house.admit(gate=1) for _ in range(40 - len(ours + theirs))]
    refusals = [await house.refuse(gate=gate) for gate in range(2)]
    assert [(each.reason, each.used) for each in refusals] == [(Reason.NO_FREE_SLOT, 40)] * 2
    await house.release(*ours, *theirs)
    assert await house.in_flight() == 0


async def test_a_place_out_of_a_slice_is_held_as_long_as_its_call_lasts(open_house: Open) -> None:
    house = await open_house(user(limits=AT_A_TIME))
    permits = [await house.admit(gate=0) for _ in range(10)]

    await house.pass_time(HOUR)

    assert await house.in_flight() == 10
    await house.release(*permits)
    assert await house.in_flight() == 0


async def test_a_call_that_takes_no_place_leaves_those_of_the_slice_alone(open_house: Open) -> None:
    house = await open_house(user(limits=replace(MANY, max_concurrent=40)))
    permits = [await house.admit(gate=0) for _ in range(4)]
    held = await house.in_flight()

    with asked(house.place) as counted:
        await house.admit(gate=0, slots=0)
    await house.pass_time(SECOND)

    assert held > 4
    assert counted.scripts == 0
    assert await house.in_flight() == len(permits)


# -- the end of a second -------------------------------------------------------------------------------------------


async def test_a_slice_ends_before_the_second_does_in_which_it_was_booked(open_house: Open) -> None:
    house = await open_house(user(limits=MANY))
    await busy(house, 50)
    await house.pass_time(SECOND)
    shift_clock(house, DELAY)  # so long is a question on its way
    await busy(house, 2)
    ends = house.now + SECOND - DELAY

    driven().now = ends - APART - 1
    with asked(house.place) as inside:
        await house.admit(gate=0)
    driven().now = ends - APART
    with asked(house.place) as at_its_end:
        await house.admit(gate=0)

    assert (inside.scripts, at_its_end.scripts) == (0, 1)


@pytest.mark.parametrize("length", [SECOND, 60 * SECOND, 1440 * SECOND])
async def test_what_is_admitted_in_the_last_moment_of_a_slot_counts_in_it_or_later(
    open_house: Open, length: int
) -> None:
    cap = {SECOND: "requests_per_minute", 60 * SECOND: "requests_per_hour", 1440 * SECOND: "requests_per_day"}[length]
    house = await open_house(user(limits=Limits(**{cap: 1000}, sharing=LEASED)))  # type: ignore[arg-type]
    await house.pass_time(length - house.now % length - SECOND)
    await busy(house, 20)
    await house.pass_time(SECOND - APART - 1000)
    last = house.now
    await busy(house, 20)

    await house.pass_time(61 * length - house.now % length - 1000)
    assert house.now - last > 60 * length - SECOND
    assert await house.used(Cap[cap.upper()]) == 40
    await house.pass_time(1000)
    assert await house.used(Cap[cap.upper()]) == 0


async def test_a_server_whose_clock_steps_back_counts_what_was_admitted_and_no_less(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_minute=1000, sharing=LEASED)))
    await busy(house, 20)

    shift_clock(house, -10 * SECOND - 1000)
    await busy(house, 20)
    await busy(house, 20, gate=1)
    driven().now += 2 * SECOND
    await house.settled()

    assert await house.used(PER_MINUTE) >= 60
    await house.pass_time(62 * SECOND)
    assert await house.used(PER_MINUTE) == 0


# -- changes of mode, cut off calls --------------------------------------------------------------------------------


async def test_what_a_gate_holds_goes_back_when_it_decides_alone(open_house: Open) -> None:
    house = await open_house(user(limits=replace(ANYTHING, failure_policy=StoreFailure.DENY)))
    permits = [await house.admit(gate=0) for _ in range(20)]
    held = await house.used(PER_DAY), await house.in_flight()

    house.stores[0].go_local("in a test")
    refusal = await house.refuse(gate=0)
    driven().now += SECOND // 10  # in which it finds the store again
    shift_clock(house, 0)
    await house.settled()

    assert house.stores[0].health.mode is StoreMode.SHARED
    assert refusal.reason is Reason.STORE_UNAVAILABLE
    assert min(held) > 20
    assert (await house.used(PER_DAY), await house.in_flight()) == (20, 20)
    await house.release(*permits)
    assert await house.in_flight() == 0


async def test_what_a_gate_holds_goes_back_at_once_when_it_ends(open_house: Open) -> None:
    house = await open_house(user(limits=ANYTHING))
    permits = [await house.admit(gate=0) for _ in range(20)]
    await house.release(*permits)
    held = await house.used(PER_DAY), await house.in_flight()

    await house.stores[0].close()
    await house.gates[0].close()

    house.gates, house.stores = house.gates[1:], house.stores[1:]
    await house.admit(gate=0)
    assert min(held[0] - 20, held[1]) > 0
    assert (await house.used(PER_DAY), await house.in_flight()) == (21, 1)


async def test_a_call_of_less_than_nothing_takes_nothing_from_what_is_owed(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_day=100, tokens_per_day=1000)))
    await house.admit(100)
    house.stores[0].go_local("in a test")

    await house.admit(-100, requests=-5)
    driven().now += SECOND // 10
    shift_clock(house, 0)
    await house.settled()

    assert (await house.used(PER_DAY), await house.used(Cap.TOKENS_PER_DAY)) == (1, 100)


async def test_a_store_that_has_forgotten_is_told_of_calls_and_not_of_slices(open_house: Open) -> None:
    house = await open_house(user(limits=ANYTHING))
    assert house.place is not None
    permits = [await house.admit(gate=gate % 2) for gate in range(40)]

    now = house.place.node.get("{ours/openai}now")
    house.place.node.flushall()
    house.place.node.set("{ours/openai}now", now)  # type: ignore[arg-type]
    await house.pass_time(SECOND)
    house.place.node.delete("{ours/openai}recovery")  # which goes by real time
    await house.pass_time(SECOND)

    assert {store.health.mode for store in house.stores} == {StoreMode.SHARED}
    assert (await house.used(PER_DAY), await house.in_flight()) == (40, 40)
    await house.release(*permits)
    assert await house.in_flight() == 0


@pytest.mark.parametrize("turns", range(12))
async def test_a_call_that_is_cancelled_leaves_nothing_behind_nor_do_its_slices(open_house: Open, turns: int) -> None:
    house = await open_house(user(limits=ANYTHING))
    await busy(house, 50)
    await house.pass_time(SECOND)
    before = await house.used(PER_DAY), await house.in_flight()

    task = asyncio.create_task(house.ask(gate=0))
    for _ in range(turns):  # to every moment between question and answer, and beyond
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        house.gate(0).engine.withdraw(admitted(task.result()), house.now)
    await house.pass_time(SECOND)

    assert (await house.used(PER_DAY), await house.in_flight()) == before


async def test_what_a_call_out_of_a_slice_did_not_use_goes_back(open_house: Open) -> None:
    house = await open_house(user(limits=ANYTHING))
    permits = [await house.admit(100) for _ in range(20)]

    for permit in permits:
        await house.commit(permit, 40)
    await house.withdraw(permits[-1])  # settled already: it stays
    late = [await house.admit(100) for _ in range(2)]
    await house.withdraw(late[1])
    await house.pass_time(SECOND)

    assert await house.used(Cap.TOKENS_PER_HOUR) == 20 * 40 + 100
    assert await house.used(PER_DAY) == 21


# -- waiting, shadow -----------------------------------------------------------------------------------------------


async def test_who_waits_gets_what_another_gate_held_and_did_not_use(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_hour=100, max_wait=2 * HOUR, sharing=LEASED)))
    await busy(house, 60, gate=0)
    await house.pass_time(SECOND)
    await house.admit(gate=0)
    rest = 100 - await house.used(PER_HOUR)
    await busy(house, rest, gate=1)
    waiting = [await house.queue(gate=1) for _ in range(3)]

    await house.pass_time(SECOND)

    assert [task.done() for task in waiting] == [True] * 3
    assert await house.used(PER_HOUR) <= 100


async def test_where_somebody_waits_nobody_takes_more_than_a_call(open_house: Open) -> None:
    house = await open_house(user(limits=MANY), org(limits=replace(MANY, max_concurrent=1, max_wait=HOUR)))
    first = await house.admit()
    waiting = await house.queue(gate=1)

    with asked(house.place) as counted:
        await busy(house, 10, slots=0)

    assert not waiting.done()
    assert counted.scripts == 10
    await house.release(first)
    admitted(await waiting)


async def test_a_limit_in_shadow_without_room_is_told_of_with_each_call(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_hour=20, mode=Mode.SHADOW, sharing=LEASED)))

    await busy(house, 30)
    await house.pass_time(SECOND)

    assert await house.used(PER_HOUR) == 30
    assert (await house.state()).would_reject == 10


async def test_a_refusal_leaves_no_trace_and_names_what_all_have_taken(open_house: Open) -> None:
    house = await open_house(user(limits=Limits(requests_per_hour=40, sharing=LEASED)))
    outcomes = [await house.ask(gate=0) for _ in range(60)]
    refusals = [refused(outcome) for outcome in outcomes if isinstance(outcome, Refusal)]
    before = house.contents()

    refusal = await house.refuse(gate=0)

    assert len(refusals) == 20
    assert (refusal.reason, refusal.used, refusal.limit) == (Reason.WOULD_EXCEED, 40, 40)
    assert house.contents() == before
