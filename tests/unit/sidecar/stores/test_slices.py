"""The arithmetic of slices, with clocks that tests set: ours, and the server's."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batches import Server
from sluice.core.buckets import Bucket, Demand
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import DAY, MILLISECOND, SECOND, Limits
from sluice.core.windows import NEVER
from sluice_sidecar.stores.shared.decision import Forms
from sluice_sidecar.stores.shared.names import Keys
from sluice_sidecar.stores.shared.owed import Owed
from sluice_sidecar.stores.shared.slices import APART, LENGTH, MOST, Slice, Slices

AHEAD = 20_000 * DAY + 123_456_789
"""By how much the server's clock is ahead of ours, in ns: seconds do not begin together."""
START = 5 * SECOND - AHEAD % SECOND
"""When one begins there, by our clock."""
ONE = Demand(1, 1, 10)
LIMITS = Limits(requests_per_minute=1000, requests_per_day=1000, tokens_per_hour=100_000, max_concurrent=50)


def bucket(subject: str = "alice", limits: Limits = LIMITS) -> Bucket:
    return Bucket(BucketKey("openai", Scope.USER, subject), limits)


ALICE, ACME = bucket(), Bucket(BucketKey("openai", Scope.ORG, "acme"), LIMITS)


@dataclass
class Gate:
    """Slices, and what they owe."""

    owed: Owed = field(default_factory=Owed)
    slices: Slices = field(init=False)
    forms: Forms = field(default_factory=lambda: Forms(Keys("team-a", "openai", "gate-1")))

    def __post_init__(self) -> None:
        self.slices = Slices(self.owed)

    def add(
        self, more: int, asked: int, *buckets: Bucket, passed: int = 0, demand: Demand = ONE, lease: str = "lease"
    ) -> None:
        """The server has given so much, so long after it was asked."""
        forms = [self.forms.of(each) for each in buckets]
        counted = list(range(sum(2 * len(form.codes) for form in forms)))
        at = (asked + passed + AHEAD) // 1000
        self.slices.add(buckets, forms, demand, lease, more, counted, at, asked)

    def use(self, now: int, *buckets: Bucket, demand: Demand = ONE) -> tuple[Slice, ...] | None:
        return self.slices.use(buckets, demand, now, AHEAD)

    def wanted(self, now: int, *buckets: Bucket, demand: Demand = ONE) -> int:
        return self.slices.wanted(buckets, demand, now, AHEAD)

    def settled(self) -> Server:
        server = Server()
        server.settle(self.owed)
        return server


# -- when they end -------------------------------------------------------------------------------------------------


@given(
    asked=st.integers(0, 3 * SECOND),
    passed=st.integers(0, 50 * MILLISECOND) | st.integers(0, 3 * SECOND),
    drift=st.integers(-1000, 1000),
)
def test_a_slice_is_over_while_the_server_is_certainly_in_the_second_of_its_booking(
    asked: int, passed: int, drift: int
) -> None:
    """`drift` is by how many millionths the server's clock runs faster than ours, from when it has answered."""
    gate = Gate()
    gate.add(10, asked, ALICE, passed=passed)
    booked = asked + passed

    def server(now: int) -> int:
        return now + AHEAD + (now - booked) * drift // 10**6

    for now in range(booked, booked + 2 * SECOND, 50 * MILLISECOND):
        if gate.use(now, ALICE) is not None:
            assert server(now) // SECOND == server(booked) // SECOND
    last = booked + SECOND - (booked + AHEAD) % SECOND
    for now in range(last - 3 * MILLISECOND, last + 3 * MILLISECOND, MILLISECOND // 10):
        if now >= booked and gate.use(now, ALICE) is not None:
            assert server(now) // SECOND == server(booked) // SECOND


def test_a_slice_can_be_used_to_the_end_of_its_second_less_the_time_that_the_question_took() -> None:
    gate = Gate()
    gate.add(10, START, ALICE, passed=3 * MILLISECOND)
    ends = START + SECOND - 3 * MILLISECOND - APART

    assert gate.use(ends - 1, ALICE) is not None
    assert gate.use(ends, ALICE) is None
    assert gate.slices.next_end == ends


def test_two_answers_of_one_second_are_one_slice() -> None:
    gate = Gate()
    gate.add(3, START, ALICE, lease="a")
    gate.add(2, START + SECOND // 2, ALICE, lease="b")

    used = [gate.use(START + SECOND // 2 + number, ALICE) for number in range(6)]

    assert [part is not None for part in used] == [True] * 5 + [False]
    part = used[0]
    assert part is not None
    assert part[0].leases == ["a+1", "a+2", "a+3", "b+1", "b+2"]


def test_the_slice_of_a_new_second_takes_the_place_of_the_last_one_which_goes_back() -> None:
    gate = Gate()
    gate.add(3, START, ALICE)
    gate.add(2, START + SECOND, ALICE, lease="new")
    server = gate.settled()

    day = (START + AHEAD) // 1000 // (1440 * 10**6)
    assert [gate.use(START + SECOND + 1, ALICE) is not None for _ in range(3)] == [True, True, False]
    assert server.counts["alice", "m", (START + AHEAD) // SECOND, 0] == -3
    assert server.counts["alice", "d", day, 0] == -3
    assert server.ended == {"lease+1": 1, "lease+2": 1, "lease+3": 1}


def test_an_answer_of_an_earlier_second_that_comes_late_is_of_no_use_and_nothing_is_lost() -> None:
    gate = Gate()
    gate.add(2, START + SECOND, ALICE, lease="new")
    gate.add(3, START + SECOND - 1000, ALICE, lease="late")

    assert gate.use(START + SECOND + 1, ALICE) is None
    gate.slices.give_back()
    assert gate.settled().total("alice", "d", 0) == -5
    assert gate.slices.next_end == NEVER


# -- what they hold ------------------------------------------------------------------------------------------------


def test_a_call_is_taken_out_of_the_slices_of_all_its_buckets_or_of_none() -> None:
    gate = Gate()
    gate.add(2, START, ALICE, ACME)
    gate.add(1, START, ACME)
    bob = bucket("bob")

    assert gate.use(START + 1, bob, ACME) is None
    assert [gate.use(START + 1, ALICE, ACME) is not None for _ in range(3)] == [True, True, False]
    assert [gate.use(START + 1, ACME) is not None for _ in range(2)] == [True, False]


def test_a_call_with_two_buckets_tells_what_each_of_them_counted() -> None:
    gate = Gate()
    gate.add(2, START, ALICE, ACME)
    windows = len(LIMITS.periods)

    used = gate.use(START + 1, ALICE, ACME)

    assert used is not None
    assert [count for part in used for count in part.counted] == list(range(4 * windows))


@pytest.mark.parametrize(
    "demand", [Demand(1, 4, 0), Demand(1, 1, 31), Demand(1, 1, 1, 31), Demand(1, 1, 1, 0, 31), Demand(1, 0, 10**15)]
)
def test_a_call_that_asks_for_more_of_anything_than_is_left_does_not_fit(demand: Demand) -> None:
    gate = Gate()
    gate.add(3, START, ALICE, demand=Demand(1, 1, 10, 10, 10))

    assert gate.use(START + 1, ALICE, demand=demand) is None
    assert gate.use(START + 1, ALICE, demand=Demand(1, 3, 30, 30, 30)) is not None


def test_without_a_place_left_no_call_fits_but_one_that_takes_none() -> None:
    gate = Gate()
    gate.add(1, START, ALICE)
    gate.add(1, START, ALICE, demand=Demand(0, 1, 10))
    used = gate.use(START + 1, ALICE)
    assert used is not None
    used[0].leases.pop()

    assert gate.use(START + 1, ALICE) is None
    assert gate.use(START + 1, ALICE, demand=Demand(0, 1, 10)) is not None


@pytest.mark.parametrize("seed", range(10))
def test_what_is_used_and_what_goes_back_is_what_was_taken(seed: int) -> None:
    dice, gate, buckets = Random(seed), Gate(), [bucket(name) for name in "abc"]
    taken, used, now = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0), START

    for step in range(300):
        some = dice.sample(buckets, dice.randrange(1, 3))
        now += dice.choice((0, 1000, 300 * MILLISECOND, SECOND))
        if dice.random() < 0.3:
            more = dice.randrange(1, 9)
            gate.add(more, now, *some, lease=f"lease-{step}")
            for each in some:
                taken[each.key.subject] += more
        elif dice.random() < 0.1:
            gate.slices.give_back(now)
        elif (parts := gate.use(now, *some)) is not None:
            for part in parts:
                part.leases.pop()
                used[part.bucket.key.subject] += 1
    gate.slices.give_back()
    server = gate.settled()

    assert {name: taken[name] + server.total(name, "d", 0) for name in "abc"} == used
    assert sum(server.ended.values()) == sum(taken.values()) - sum(used.values())
    assert max(server.ended.values()) <= 2  # once in each of its buckets


def test_a_store_that_has_forgotten_is_owed_nothing_of_them() -> None:
    gate = Gate()
    gate.add(3, START, ALICE)
    gate.slices.forget()
    gate.slices.give_back()

    assert not gate.owed
    assert gate.use(START + 1, ALICE) is None


# -- how many are asked for ----------------------------------------------------------------------------------------


def test_nothing_is_expected_of_a_bucket_that_nobody_has_called() -> None:
    assert Gate().wanted(START, ALICE) == 0


def test_in_a_second_that_has_just_begun_as_many_are_expected_as_there_were_so_far() -> None:
    gate = Gate()
    wanted = []
    for _ in range(5):
        gate.use(START, ALICE)
        wanted.append(gate.wanted(START, ALICE))

    assert wanted == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("passed", "wanted"), [(500, 100), (800, 25), (990, 1), (999, 0)])
def test_later_as_many_as_the_rest_of_it_brings_if_it_goes_on_like_that(passed: int, wanted: int) -> None:
    gate = Gate()
    for _ in range(101):
        gate.use(START, ALICE)

    assert gate.wanted(START + passed * MILLISECOND, ALICE) == wanted


@pytest.mark.parametrize(("passed", "wanted"), [(0, 100), (250, 75), (999, 0)])
def test_or_as_many_as_there_were_in_the_last_one(passed: int, wanted: int) -> None:
    gate = Gate()
    for _ in range(100):
        gate.use(START - 1, ALICE)
    gate.use(START, ALICE)

    assert gate.wanted(START + passed * MILLISECOND, ALICE) == wanted


def test_what_was_before_the_last_second_is_over() -> None:
    gate = Gate()
    for _ in range(100):
        gate.use(START - SECOND - 1, ALICE)
    gate.use(START, ALICE)

    assert gate.wanted(START, ALICE) == 0


def test_the_bucket_of_which_least_is_expected_decides() -> None:
    gate = Gate()
    for number in range(30):
        gate.use(START, *((ALICE, ACME) if number < 10 else (ACME,)))

    assert (gate.wanted(START, ALICE, ACME), gate.wanted(START, ACME)) == (9, 29)


def test_what_is_held_already_is_not_asked_for_again() -> None:
    gate = Gate()
    for _ in range(30):
        gate.use(START, ACME)
    gate.add(12, START, ACME)

    assert gate.wanted(START, ACME) == 29 - 12
    assert gate.wanted(START, ACME, demand=Demand(1, 1, 50)) == 29 - 120 // 50
    gate.add(100, START, ACME)
    assert gate.wanted(START, ACME) == 0


def test_no_more_are_asked_for_at_once_than_so_many() -> None:
    gate = Gate()
    for _ in range(3 * MOST):
        gate.use(START, ALICE)

    assert gate.wanted(START, ALICE) == MOST


def test_the_shortest_slot_of_any_window_is_as_long_as_a_slice_may_be() -> None:
    assert min(window.length // 60 for window in bucket().windows) == LENGTH
