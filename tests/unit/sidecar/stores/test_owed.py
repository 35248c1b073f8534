"""What a gate owes the store: differences in slots, ends of calls, in batches that are carried out once."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from helpers.batches import Server
from sluice.core.buckets import NO_CHARGE, Charge
from sluice.core.keeping import KeptBucket
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MILLISECOND, MINUTE, SECOND
from sluice.core.windows import SLOTS, SlidingWindow
from sluice_sidecar.stores.shared.names import CALL_CODES, PART_CODES, Keys, StoredBucket
from sluice_sidecar.stores.shared.owed import MOST_BUCKETS, MOST_LEASES, Owed

KEYS = Keys("team-a", "openai", "gate-1")
START = 20_000 * DAY // 1000
"""In µs of the server's clock."""
US = SECOND // 1000
EVERY_CODE = (*CALL_CODES.values(), *PART_CODES.values())


def bucket(subject: str) -> StoredBucket:
    return KEYS.bucket(BucketKey("openai", Scope.USER, subject))


ALICE, BOB = bucket("alice"), bucket("bob")


# -- differences ---------------------------------------------------------------------------------------------------


def test_a_difference_is_told_for_every_window_in_the_slot_of_its_time() -> None:
    owed, server = Owed(), Server()

    owed.amend(ALICE, EVERY_CODE, START + 61 * US, 2, Charge(30, 10, 20))
    server.settle(owed)

    second, minute, day = (START + 61 * US) // US, (START + 61 * US) // (60 * US), (START + 61 * US) // (1440 * US)
    told = {key: count for key, count in server.counts.items() if count}
    assert told == {
        **{("alice", code, slot, 0): 2 for code, slot in (("m", second), ("h", minute), ("d", day))},
        **{("alice", code, slot, 1): 30 for code, slot in (("m", second), ("h", minute), ("d", day))},
        **{("alice", code, slot, 0): 10 for code, slot in (("M", second), ("H", minute), ("D", day))},
        **{("alice", code, slot, 1): 20 for code, slot in (("M", second), ("H", minute), ("D", day))},
    }


def test_differences_of_one_slot_are_added_up_and_those_of_two_buckets_are_not() -> None:
    owed, server = Owed(), Server()

    for _ in range(3):
        owed.amend(ALICE, (b"m",), START, 1, Charge(10))
    owed.amend(ALICE, (b"m",), START, -1, Charge(-25))
    owed.amend(BOB, (b"m",), START, 1, Charge(7))

    assert server.settle(owed) == 1
    assert [server.total(name, "m", amount) for name in ("alice", "bob") for amount in range(2)] == [2, 5, 1, 7]
    assert not owed


def test_a_batch_that_is_sent_again_is_the_same_one_and_what_came_meanwhile_goes_into_the_next() -> None:
    owed, server = Owed(), Server()
    owed.amend(ALICE, (b"m",), START, 1, NO_CHARGE)

    for _ in range(3):  # of which the answers are lost
        batch = owed.next_batch(server.last)
        assert batch is not None
        server.carry_out(batch)
        owed.amend(ALICE, (b"m",), START, 1, NO_CHARGE)
    assert server.total("alice", "m", 0) == 1
    assert server.settle(owed) == 1 + 1

    assert server.total("alice", "m", 0) == 4
    assert owed.next_batch(server.last) is None


def test_numbers_go_on_from_the_last_one_that_the_server_knows_and_never_back() -> None:
    owed = Owed()
    numbers = []
    for last in (41, 0, 0, 97):
        owed.amend(ALICE, (b"m",), START, 1, NO_CHARGE)
        batch = owed.next_batch(last)
        assert batch is not None
        numbers.append(batch.number)
        owed.acknowledged()

    assert numbers == [42, 43, 44, 98]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_on_the_way_nothing_counts_twice_and_nothing_is_missing(seed: int) -> None:
    dice, owed, server = Random(seed), Owed(), Server()
    expected: Counter[str] = Counter()
    ended = set()

    for step in range(300):
        name = dice.choice(("alice", "bob", *map(str, range(60))))
        by = dice.randrange(-3, 9)
        owed.amend(bucket(name), (b"m", b"D"), START + dice.randrange(10) * US, by, Charge(0, by, by))
        expected[name] += by
        if dice.random() < 0.3:
            owed.ended(bucket(name), f"{name}-{step}")
            ended.add(f"{name}-{step}")
        if dice.random() < 0.4:
            batch = owed.next_batch(server.last)
            if batch is not None and dice.random() < 0.7:
                server.carry_out(batch)
                if dice.random() < 0.7:
                    owed.acknowledged()
    server.settle(owed)

    assert {name: server.total(name, "m", 0) for name in expected} == expected
    assert {name: server.total(name, "D", 1) for name in expected} == expected
    assert server.ended == Counter(ended)


# -- bounds --------------------------------------------------------------------------------------------------------


def _words(owed: Owed) -> int:
    """In the largest batch."""
    largest = 0
    while (batch := owed.next_batch(0)) is not None:
        assert len(batch.keys) <= 3 * MOST_BUCKETS
        largest = max(largest, len(batch.args))
        owed.acknowledged()
    return largest


def test_batches_are_bounded_however_long_the_store_is_away_and_however_many_call() -> None:
    owed, at = Owed(), START
    for minute in range(2 * 24 * 60):  # two days
        at = START + minute * 60 * US
        for name in ("alice", "bob"):
            owed.amend(bucket(name), EVERY_CODE, at, 1, Charge(3, 1, 2))
            owed.alive(bucket(name), f"{name}-{minute}", is_new=False)
    for number in range(10 * MOST_BUCKETS):
        owed.amend(bucket(f"user-{number}"), EVERY_CODE, at, 1, Charge(3, 1, 2))

    of_leases = 2 * (1 + MOST_LEASES)
    of_windows = 1 + len(EVERY_CODE) * (2 + 3 * (SLOTS + 1))
    assert _words(owed) <= 2 * (of_leases + of_windows) + MOST_BUCKETS * 2 * of_windows
    assert not owed


def test_of_a_bucket_no_more_slots_are_kept_than_can_still_count() -> None:
    owed, server = Owed(), Server()
    for second in range(600):
        owed.amend(ALICE, (b"m", b"h"), START + second * US, 1, NO_CHARGE)
    server.settle(owed)

    assert server.total("alice", "m", 0) == SLOTS + 1
    assert server.total("alice", "h", 0) == 600


def test_more_ends_than_a_batch_holds_come_in_the_next_ones() -> None:
    owed, server = Owed(), Server()
    leases = [f"lease-{number}" for number in range(3 * MOST_LEASES + 1)]
    for lease in leases:
        owed.ended(ALICE, lease)
        owed.alive(BOB, lease, is_new=True)

    assert server.settle(owed) == 4
    assert server.ended == server.alive == Counter(leases)


def test_buckets_in_which_nothing_counts_any_more_are_not_told_of() -> None:
    owed, server = Owed(), Server()
    for number in range(5000):  # each of them calls once, while the store is away
        owed.amend(bucket(f"user-{number}"), (b"m",), START + number * US, 1, NO_CHARGE)

    batches = server.settle(owed)

    lately = [f"user-{number}" for number in range(5000 - SLOTS, 5000)]
    assert [server.total(name, "m", 0) for name in lately] == [1] * SLOTS
    assert batches <= 10


def test_a_bucket_that_still_counts_somewhere_is_told_of() -> None:
    owed, server = Owed(), Server()
    owed.amend(ALICE, (b"m", b"d"), START, 1, NO_CHARGE)
    owed.ended(BOB, "lease")
    for number in range(1000):
        owed.amend(bucket(f"user-{number}"), (b"m",), START + 10 * number * US, 1, NO_CHARGE)
    server.settle(owed)

    assert server.total("alice", "d", 0) == 1
    assert server.ended == Counter(["lease"])


# -- calls in flight -----------------------------------------------------------------------------------------------


def test_a_call_that_began_and_ended_without_the_store_is_not_told_of() -> None:
    owed, server = Owed(), Server()
    for number in range(10_000):
        owed.alive(ALICE, f"lease-{number}", is_new=True)
        owed.alive(ALICE, f"lease-{number}", is_new=False)  # renewed
        owed.ended(ALICE, f"lease-{number}")

    assert server.settle(owed) <= 1
    assert (server.ended, server.alive) == (Counter(), Counter())


def test_a_call_that_the_store_knows_ends_there_whether_it_was_renewed_meanwhile_or_not() -> None:
    owed, server = Owed(), Server()
    owed.alive(ALICE, "renewed", is_new=False)
    owed.alive(ALICE, "told", is_new=True)
    batch = owed.next_batch(0)
    assert batch is not None
    server.carry_out(batch)  # the answer is lost
    owed.alive(ALICE, "told", is_new=False)
    for lease in ("renewed", "told", "never renewed"):
        owed.ended(ALICE, lease)
    server.settle(owed)

    assert server.ended == Counter(["renewed", "told", "never renewed"])
    assert server.alive == Counter(["renewed", "told"])


# -- told again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, SECOND - 1, 1234567 * MILLISECOND + 1, -SECOND // 2])
@pytest.mark.parametrize("length", [MINUTE, HOUR, DAY])
def test_what_is_told_again_never_leaves_early_and_at_most_a_slot_late(length: int, ahead: int) -> None:
    window, now = SlidingWindow(length), 10 * DAY + 17 * SECOND + 3
    for number in range(100):
        at = now - length + number * length // 100
        window.slide(at)
        window.book(at, number, 2 * number)
    owed, server = Owed(), Server()

    owed.tell_again(ALICE, KeptBucket(BucketKey("openai", Scope.USER, "alice"), {length: window.slots}, {}), ahead)
    server.settle(owed)

    size, code = length // SLOTS, CALL_CODES[length].decode()
    slots = {slot for _, _, slot, _ in server.counts}
    for slot in slots:
        assert (slot + SLOTS + 1) * size - ahead <= now + length + 2 * size
    for moment in range(now, now + length + 3 * size, size // 2):  # by our clock
        window.slide(moment)
        left = (moment + ahead) // size - SLOTS
        counted = sum(count for (_, _, slot, which), count in server.counts.items() if which == 0 and slot >= left)
        assert counted >= window.first
    assert server.total("alice", code, 0) == sum(range(1, 100)) - _left_before(now, length)


def _left_before(now: int, length: int) -> int:
    """What had left the window by its last booking."""
    size = length // SLOTS
    last = now - length + 99 * length // 100
    booked = ((now - length + number * length // 100, number) for number in range(100))
    return sum(number for at, number in booked if at // size < last // size - SLOTS)


def test_a_store_that_has_forgotten_is_owed_what_it_is_told_again_and_nothing_else() -> None:
    owed, server = Owed(), Server()
    owed.amend(ALICE, (b"m",), START, 5, NO_CHARGE)
    owed.ended(ALICE, "lease")
    owed.next_batch(0)
    owed.amend(BOB, (b"m",), START, 5, NO_CHARGE)

    owed.forget()
    assert not owed
    owed.tell_again(ALICE, KeptBucket(BucketKey("openai", Scope.USER, "alice"), {}, {MINUTE: [7, 3, 4]}), 0)
    server.settle(owed)

    assert {key: count for key, count in server.counts.items() if count} == {
        ("alice", "M", 7, 0): 3,
        ("alice", "M", 7, 1): 4,
    }
    assert server.ended == Counter()
