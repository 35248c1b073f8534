"""What becomes of a call that was admitted: what it really used, its end, and that it never was."""

from __future__ import annotations

import pytest

from helpers.house import SETTINGS, Build, House
from helpers.ledger import org, user
from sluice.core.buckets import Charge
from sluice.core.engine import EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import MINUTE, SECOND, Cap, Limits
from sluice.core.permits import Settled

LIMITS = Limits(
    requests_per_minute=9,
    tokens_per_minute=100,
    input_tokens_per_minute=100,
    output_tokens_per_minute=100,
    max_concurrent=9,
)
BOTH = (user(limits=LIMITS), org(limits=Limits(tokens_per_minute=200)))


async def counted(house: House) -> tuple[int, int, int, int, int]:
    """Of alice: requests, tokens, input and output tokens, calls in flight."""
    state = await house.state()
    used = [window.used for window in state.windows.values()]
    return (used[0], used[1], used[2], used[3], state.in_flight)


async def test_a_commit_replaces_the_estimate_in_every_bucket(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1, parts=(20, 30))
    assert await counted(house) == (1, 50, 20, 30, 1)

    assert await house.commit(permit, 7, (3, 4)) is True

    assert await counted(house) == (1, 7, 3, 4, 1)
    assert await house.used(Cap.TOKENS_PER_MINUTE, "acme", Scope.ORG) == 7


async def test_a_commit_may_exceed_its_estimate_and_the_cap(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1)

    await house.commit(permit, 150)

    assert await house.used(Cap.TOKENS_PER_MINUTE) == 150
    assert (await house.refuse(1, gate=2)).used == 150


async def test_a_second_commit_changes_nothing(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1, parts=(20, 30))
    await house.commit(permit, 7, (3, 4))
    before = house.contents()

    assert await house.commit(permit, 90, (40, 50)) is False
    assert await house.refund(permit) is False

    assert house.contents() == before


async def test_what_the_provider_says_replaces_an_estimate_that_stood(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1)
    await house.release(permit)
    assert permit.settled is Settled.ESTIMATED

    assert await house.commit(permit, 7) is True

    assert await counted(house) == (1, 7, 0, 0, 0)


async def test_a_release_frees_the_place_once_and_leaves_what_was_counted(build: Build) -> None:
    house = await build(*BOTH)
    first, second = await house.admit(10, gate=1), await house.admit(10, gate=2)

    assert await house.release(first) is True
    assert await house.release(first) is False

    assert await counted(house) == (2, 20, 0, 0, 1)
    await house.release(second)
    assert await counted(house) == (2, 20, 0, 0, 0)


async def test_a_refund_gives_back_the_tokens_and_keeps_the_request(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1, parts=(20, 30))

    assert await house.refund(permit) is True

    assert await counted(house) == (1, 0, 0, 0, 1)


async def test_a_call_that_is_withdrawn_was_never_made(build: Build) -> None:
    house = await build(*BOTH)
    await house.admit(10, gate=0, parts=(1, 2))
    before = await counted(house)
    permit = await house.admit(50, gate=1, parts=(20, 30))

    await house.withdraw(permit, gate=1)
    assert await counted(house) == before
    await house.withdraw(permit, gate=1)

    assert await counted(house) == before
    assert await house.commit(permit, 99) is False
    assert await house.release(permit) is False
    assert await counted(house) == before


@pytest.mark.parametrize(
    ("passed", "used"), [(0, 7), (1000, 7), (SECOND, 7), (MINUTE, 7), (MINUTE + SECOND - 1000, 7), (MINUTE + SECOND, 0)]
)
@pytest.mark.parametrize("is_busy", [False, True], ids=["alone", "with others since"])
async def test_a_late_commit_counts_in_the_slot_of_its_admission_as_long_as_that_counts(
    build: Build, passed: int, used: int, is_busy: bool
) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1)
    if is_busy and passed:
        await house.pass_time(passed // 2 // 1000 * 1000)
        other = await house.admit(20, gate=2)
        await house.pass_time(passed - passed // 2 // 1000 * 1000)
        await house.commit(other, 5)
    else:
        await house.pass_time(passed)

    await house.commit(permit, 7)

    assert await house.used(Cap.TOKENS_PER_MINUTE) == used + 5 * (is_busy and passed > 0)


async def test_a_commit_leaves_the_window_with_the_slot_of_its_admission(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(50, gate=1)
    await house.pass_time(MINUTE)
    other = await house.admit(20, gate=2)
    await house.commit(permit, 7)
    await house.commit(other, 5)

    assert await house.used(Cap.TOKENS_PER_MINUTE) == 12
    await house.pass_time(SECOND)
    assert await house.used(Cap.TOKENS_PER_MINUTE) == 5


async def test_a_late_commit_makes_room_only_in_what_still_counts_it(build: Build) -> None:
    house = await build(user(limits=Limits(tokens_per_minute=100, tokens_per_hour=100)))
    permit = await house.admit(90, gate=1)
    await house.pass_time(2 * MINUTE)

    await house.commit(permit, 30)
    await house.admit(70, gate=2)

    assert await house.used(Cap.TOKENS_PER_MINUTE) == 70
    assert await house.used(Cap.TOKENS_PER_HOUR) == 100


async def test_a_call_that_nobody_claims_frees_its_place_and_can_still_be_settled(build: Build) -> None:
    house = await build(*BOTH, settings=EngineSettings(lease=2 * SECOND))
    permit = await house.admit(50, gate=1)
    claimed = await house.admit(10, gate=1)
    house.gate(1).engine.claim(claimed.lease, house.now)
    await house.pass_time(2 * SECOND + SECOND // 2)

    assert await counted(house) == (2, 60, 0, 0, 1)
    assert house.gate(1).engine.claim(permit.lease, house.now) is permit
    await house.commit(permit, 7)

    assert await counted(house) == (2, 17, 0, 0, 1)


async def test_attempts_that_failed_before_are_requests_besides(build: Build) -> None:
    house = await build(*BOTH)
    permit = await house.admit(10, gate=1)

    house.gate(1).engine.repeated(permit, 2, house.now)
    await house.settled()

    assert await house.used(Cap.REQUESTS_PER_MINUTE) == 3


async def test_many_calls_that_end_at_once_are_all_told(build: Build) -> None:
    limits = Limits(requests_per_minute=900, tokens_per_minute=10**6, max_concurrent=900)
    house = await build(user(limits=limits), settings=SETTINGS)
    permits = [await house.admit(10, gate=number) for number in range(450)]

    for number, permit in enumerate(permits):
        permit.commit_tokens(Charge(number), house.now)
        permit.release(house.now)
    await house.settled()

    state = await house.state()
    assert (state.windows[Cap.TOKENS_PER_MINUTE].used, state.in_flight) == (sum(range(450)), 0)
