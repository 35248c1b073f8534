"""What is kept on the server: every key names its provider, ends by itself, and survives what scripts do not."""

from __future__ import annotations

from helpers.house import TAG, House, Place, shared_house
from helpers.ledger import org, user
from sluice.core.keys import Scope
from sluice.core.limits import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Cap, Limits

LIMITS = Limits(
    requests_per_minute=50, tokens_per_day=10_000, input_tokens_per_hour=5000, max_concurrent=3, max_wait=HOUR
)
RULES = [user(limits=LIMITS), org(limits=Limits(requests_per_minute=90, max_wait=HOUR))]
KINDS = {"b:", "p:", "q:", "gates", "tickets", "epoch", "batch:"}
LONGEST = 2 * DAY // MILLISECOND


async def lively(house: House) -> None:
    """Everything that leaves a key."""
    permits = [await house.admit(gate=number, parts=(5, 5)) for number in range(3)]
    task = await house.queue(gate=0, parts=(5, 5))
    await house.commit(permits[0], 3, (1, 1))
    await house.release(permits[1])
    await task
    waiting = await house.queue(gate=1)
    assert not waiting.done()
    await house.ask(5000, gate=1, user="bob")
    await house.renew()


async def test_every_key_is_of_the_prefix_and_ends_by_itself(place: Place) -> None:
    async with shared_house(place, RULES, 3) as house:
        await lively(house)
        keys = place.keys()
        lives = {key: place.node.pttl(key) for key in keys}

        assert {kind for key in keys for kind in KINDS if key.startswith(f"{TAG}{kind}".encode())} == KINDS
        assert [key for key in keys if not key.startswith(TAG.encode())] == []
        assert {key: life for key, life in lives.items() if not 0 < life <= LONGEST} == {}


async def test_a_bucket_lives_a_little_longer_than_its_longest_window(place: Place) -> None:
    async with shared_house(place, RULES, 1) as house:
        await house.admit()

        of_user = place.node.pttl(f"{TAG}b:User::alice")
        of_org = place.node.pttl(f"{TAG}b:Org::acme")

        assert 61 * DAY // 60 < of_user * MILLISECOND <= 61 * DAY // 60 + MINUTE
        assert 61 * SECOND < of_org * MILLISECOND <= 61 * SECOND + MINUTE


async def test_places_end_with_the_calls_that_hold_them(place: Place) -> None:
    async with shared_house(place, RULES, 1) as house:
        permit = await house.admit()
        assert place.node.exists(f"{TAG}p:User::alice") == 1

        await house.release(permit)

        assert place.node.exists(f"{TAG}p:User::alice") == 0


async def test_queues_end_with_those_who_wait(place: Place) -> None:
    async with shared_house(place, RULES, 1) as house:
        permits = [await house.admit() for _ in range(3)]
        task = await house.queue()
        assert place.node.exists(f"{TAG}q:User::alice", f"{TAG}q:Org::acme") == 2

        await house.release(permits[0])
        await task

        assert place.node.exists(f"{TAG}q:User::alice", f"{TAG}q:Org::acme") == 0


async def test_what_is_kept_of_a_bucket_does_not_grow_with_its_calls(place: Place) -> None:
    async with shared_house(place, [user(limits=Limits(requests_per_minute=10**9, tokens_per_day=10**12))], 1) as house:
        sizes: list[int] = []
        for _ in range(2):
            for _ in range(130):
                for _ in range(5):
                    await house.admit(1000)
                await house.pass_time(SECOND)
            sizes.append(len(place.contents()[f"{TAG}b:User::alice".encode()]))

        assert sizes[1] <= sizes[0]
        assert sizes[1] < 4096


async def test_a_server_that_forgets_its_scripts_is_told_them_again(place: Place) -> None:
    async with shared_house(place, RULES, 3) as house:
        counted = 0
        for number in range(6):
            place.node.script_flush()
            permit = await house.admit(10, gate=number, parts=(5, 5))
            place.node.script_flush()
            await house.commit(permit, 20 + number)
            place.node.script_flush()
            await house.release(permit)
            place.node.script_flush()
            counted += 20 + number
            assert await house.used(Cap.TOKENS_PER_DAY) == counted
            await house.pass_time(SECOND)

        assert await house.used(Cap.REQUESTS_PER_MINUTE, "acme", Scope.ORG) == 6
        assert await house.in_flight() == 0
        assert [store.health.changes for store in house.stores] == [1, 1, 1]
