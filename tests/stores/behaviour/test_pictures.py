"""What people see of buckets, which all gates of one store see alike."""

from __future__ import annotations

from helpers.house import Build
from helpers.ledger import org, user
from sluice.core.decisions import Reason
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import HOUR, MINUTE, SECOND, Cap, Limits
from sluice.core.states import LastRefusal, WindowState


async def test_a_bucket_shows_what_every_cap_counts_and_when_that_has_left(build: Build) -> None:
    house = await build(
        user(limits=Limits(requests_per_minute=9, tokens_per_minute=90, tokens_per_hour=900, output_tokens_per_day=50))
    )
    await house.admit(30, gate=0, parts=(1, 7))
    await house.pass_time(20 * SECOND + 500_000)
    permit = await house.admit(30, gate=1, parts=(1, 7))
    await house.commit(permit, 12, (5, 6))

    state = await house.state()

    assert state.windows == {
        Cap.REQUESTS_PER_MINUTE: WindowState(9, 2, MINUTE + SECOND - 500_000),
        Cap.TOKENS_PER_MINUTE: WindowState(90, 42, MINUTE + SECOND - 500_000),
        Cap.TOKENS_PER_HOUR: WindowState(900, 42, HOUR + MINUTE - 20 * SECOND - 500_000),
        Cap.OUTPUT_TOKENS_PER_DAY: WindowState(50, 13, 87_840 * SECOND - 20 * SECOND - 500_000),
    }
    assert state.windows[Cap.TOKENS_PER_MINUTE].remaining == 48


async def test_a_bucket_shows_that_all_has_left(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9, requests_per_hour=9)))
    await house.admit(gate=0)
    await house.pass_time(MINUTE + SECOND)

    state = await house.state()

    assert state.windows[Cap.REQUESTS_PER_MINUTE] == WindowState(9, 0, 0)
    assert state.windows[Cap.REQUESTS_PER_HOUR].used == 1


async def test_a_bucket_shows_calls_in_flight_and_calls_that_wait(build: Build) -> None:
    house = await build(
        user(limits=Limits(max_concurrent=2, max_wait=HOUR)), org(limits=Limits(max_concurrent=9, max_wait=HOUR))
    )
    permits = [await house.admit(gate=number) for number in range(2)]
    tasks = [await house.queue(gate=number) for number in range(3)]
    theirs = await house.admit(gate=1, user="bob")

    ann, acme = await house.state(), await house.state("acme", Scope.ORG)

    assert (ann.in_flight, ann.queued, ann.max_concurrent) == (2, 3, 2)
    assert (acme.in_flight, acme.queued) == (3, 0)  # they wait for alice's room
    await house.release(*permits, theirs)
    for task in tasks[:2]:
        await task
    assert [task.done() for task in tasks] == [True, True, False]
    assert ((await house.state()).queued, (await house.state("acme", Scope.ORG)).in_flight) == (1, 2)


async def test_a_bucket_shows_how_its_calls_ended_and_why_it_last_refused_one(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=4)))
    committed, refunded, estimated, _ = [await house.admit(gate=0) for _ in range(4)]
    await house.commit(committed, 5)
    await house.refund(refunded)
    await house.release(committed, estimated)
    await house.refuse(gate=0)
    await house.pass_time(2 * SECOND)

    state = await house.state()

    assert (state.admitted, state.committed, state.estimated, state.refunded) == (4, 1, 1, 1)
    assert (state.rejected, state.recently_rejected, state.would_reject) == (1, 1, 0)
    assert state.last_refusal == LastRefusal(Reason.WOULD_EXCEED, Cap.REQUESTS_PER_MINUTE, 2 * SECOND)


async def test_many_buckets_are_shown_at_once(build: Build) -> None:
    house = await build(user(limits=Limits(requests_per_minute=9)))
    for number in range(120):
        await house.admit(gate=0, user=f"user-{number}")
        if number % 2:
            await house.admit(gate=1, user=f"user-{number}")

    states = await house.states()

    assert {key: state.windows[Cap.REQUESTS_PER_MINUTE].used for key, state in states.items()} == {
        BucketKey("openai", Scope.USER, f"user-{number}"): 1 + number % 2 for number in range(120)
    }
