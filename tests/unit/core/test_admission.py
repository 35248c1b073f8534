"""Who is admitted, who is refused, with what reason and when to come back; what a refusal leaves behind."""

from __future__ import annotations

import pytest

from helpers.ledger import PROVIDER, Gate, assert_balanced, everything, org, project, user
from sluice.core.buckets import Charge, Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import OVERFLOW, SCOPES, BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MAX_COUNT, MINUTE, REQUEST_CAPS, SECOND, TOKEN_CAPS, Cap, Limits, Mode
from sluice.core.permits import Call, Permit
from sluice.core.rules import Rule, RuleBook
from sluice.core.windows import MAX_AMOUNT, SLOTS

ALICE = BucketKey(PROVIDER, Scope.USER, "alice")
ACME = BucketKey(PROVIDER, Scope.ORG, "acme")

PERIODS = pytest.mark.parametrize("length", [MINUTE, HOUR, DAY])


def requests_per(length: int, cap: int) -> Limits:
    """Limits of one period, by its length."""
    return {
        MINUTE: Limits(requests_per_minute=cap),
        HOUR: Limits(requests_per_hour=cap),
        DAY: Limits(requests_per_day=cap),
    }[length]


def tokens_per(length: int, cap: int) -> Limits:
    return {
        MINUTE: Limits(tokens_per_minute=cap),
        HOUR: Limits(tokens_per_hour=cap),
        DAY: Limits(tokens_per_day=cap),
    }[length]


# -- no limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [(), (user(limits=Limits()),), (user(limits=Limits(max_wait=SECOND)),)])
def test_absent_and_unset_limits_admit_at_once_with_an_inert_permit(rules: tuple[Rule, ...]) -> None:
    gate = Gate(*rules)
    permit = gate.admit(0, tokens=10**9)
    assert not permit.commit_tokens(Charge(5), 1)
    assert not permit.release(1)
    assert permit.keys == ()
    assert permit.lease == ""
    assert gate.journal.events == []
    snapshot = gate.engine.snapshot(1)
    assert snapshot.buckets == ()
    assert (snapshot.totals.unlimited, snapshot.totals.admitted, snapshot.in_flight) == (1, 0, 0)
    assert gate.engine.claim("", 1) is None


# -- windows -----------------------------------------------------------------------------------------------------


@PERIODS
def test_requests_drain_and_refill(length: int) -> None:
    gate = Gate(user(limits=requests_per(length, 3)))
    for at in (0, 1, 2):
        gate.admit(at)
    cap = REQUEST_CAPS[length]
    refusal = gate.refuse(3)
    leaves = length + length // SLOTS
    assert refusal == Refusal(Reason.WOULD_EXCEED, ALICE, cap, limit=3, used=3, requested=1, retry_after=leaves - 3)
    gate.refuse(leaves - 1)
    for at in (0, 1, 2):
        gate.admit(leaves + at)
    gate.refuse(leaves + 3)


@PERIODS
def test_tokens_drain_and_refill(length: int) -> None:
    gate = Gate(user(limits=tokens_per(length, 100)))
    gate.admit(0, tokens=60)
    gate.admit(0, tokens=40)
    cap = TOKEN_CAPS[length]
    leaves = length + length // SLOTS
    assert gate.refuse(1, tokens=1) == Refusal(Reason.WOULD_EXCEED, ALICE, cap, 100, 100, 1, leaves - 1)
    gate.admit(leaves, tokens=100)
    assert gate.used(leaves, cap) == 100


@PERIODS
@pytest.mark.parametrize("tokens", [1, 30, 31, 70, 71, 100])
def test_a_refused_call_is_admitted_exactly_when_it_was_told_and_no_nanosecond_earlier(
    length: int, tokens: int
) -> None:
    slot = length // SLOTS
    now = 5 * slot + 17
    gate = Gate(user(limits=tokens_per(length, 100)))
    for k, booked in enumerate((30, 40, 30)):
        gate.admit(k * slot + 3, tokens=booked)
    retry_after = gate.refuse(now, tokens=tokens).retry_after
    assert retry_after is not None
    assert gate.refuse(now + retry_after - 1, tokens=tokens).retry_after == 1
    gate.admit(now + retry_after, tokens=tokens)


def test_what_holds_longest_says_no_and_when() -> None:
    limits = Limits(requests_per_minute=2, tokens_per_hour=100, requests_per_day=10)
    gate = Gate(user(limits=limits), org(limits=Limits(tokens_per_minute=100)))
    gate.admit(0, tokens=50)
    gate.admit(0, tokens=50)
    refusal = gate.refuse(0, tokens=10)
    assert (refusal.key, refusal.cap) == (ALICE, Cap.TOKENS_PER_HOUR)
    assert refusal.retry_after == HOUR + MINUTE


def test_of_requests_and_tokens_of_one_window_the_one_that_holds_longer_is_told() -> None:
    limits = Limits(requests_per_minute=2, tokens_per_minute=100)
    gate = Gate(user(limits=limits))
    gate.admit(0, tokens=90)
    gate.admit(5 * SECOND, tokens=10)
    assert gate.refuse(6 * SECOND, tokens=10, requests=1).cap is Cap.TOKENS_PER_MINUTE  # both hold until 61 s
    assert gate.refuse(6 * SECOND, tokens=10, requests=2).cap is Cap.REQUESTS_PER_MINUTE
    assert gate.refuse(6 * SECOND, tokens=95, requests=1).cap is Cap.TOKENS_PER_MINUTE
    assert gate.refuse(6 * SECOND, tokens=0, requests=1).cap is Cap.REQUESTS_PER_MINUTE
    assert gate.refuse(6 * SECOND, tokens=1, requests=0).cap is Cap.TOKENS_PER_MINUTE


# -- what can never fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "cap"),
    [
        (Limits(tokens_per_minute=100, max_wait=HOUR), Cap.TOKENS_PER_MINUTE),
        (Limits(tokens_per_minute=1000, tokens_per_day=100, max_wait=HOUR), Cap.TOKENS_PER_DAY),
        (Limits(requests_per_hour=0, max_wait=HOUR), Cap.REQUESTS_PER_HOUR),
        (Limits(max_concurrent=0, max_wait=HOUR), Cap.MAX_CONCURRENT),
    ],
)
def test_what_can_never_fit_is_refused_at_once_and_no_retry_is_promised(limits: Limits, cap: Cap) -> None:
    refusal = Gate(user(limits=limits)).refuse(0, tokens=101)
    assert (refusal.reason, refusal.cap, refusal.retry_after) == (Reason.OVERSIZED_REQUEST, cap, None)


def test_an_oversized_call_is_told_so_also_where_other_limits_are_only_full() -> None:
    gate = Gate(org(limits=Limits(max_concurrent=1)), user(limits=Limits(tokens_per_minute=100, tokens_per_day=1000)))
    gate.admit(0, tokens=100)
    refusal = gate.refuse(0, tokens=101)
    assert (refusal.reason, refusal.key, refusal.requested) == (Reason.OVERSIZED_REQUEST, ALICE, 101)


def test_a_call_as_large_as_the_cap_fits() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100)))
    gate.admit(0, tokens=100)


def test_too_many_requests_at_once_are_oversized_though_tokens_are_only_full() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=2, tokens_per_minute=100)))
    gate.admit(0, tokens=100)
    refusal = gate.refuse(0, tokens=1, requests=3)
    assert (refusal.reason, refusal.cap, refusal.limit) == (Reason.OVERSIZED_REQUEST, Cap.REQUESTS_PER_MINUTE, 2)
    assert gate.refuse(0, tokens=100, requests=3).cap is Cap.REQUESTS_PER_MINUTE
    assert gate.refuse(0, tokens=101, requests=3).cap is Cap.TOKENS_PER_MINUTE


# -- calls in flight ---------------------------------------------------------------------------------------------


def test_a_cap_of_three_holds_across_ten_calls() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=3)))
    outcomes = [gate.ask(0) for _ in range(10)]
    permits = [outcome for outcome in outcomes if isinstance(outcome, Permit)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert (len(permits), len(refusals)) == (3, 7)
    assert set(refusals) == {Refusal(Reason.NO_FREE_SLOT, ALICE, Cap.MAX_CONCURRENT, 3, 3, 1, None)}
    assert gate.in_flight(0) == 3
    state = gate.engine.current_state(ALICE, 0)
    assert state is not None
    assert state.rejected == gate.engine.summary().totals.rejected == 7


def test_a_released_slot_is_free_at_once() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1)))
    permit = gate.admit(0)
    gate.refuse(0)
    assert permit.release(0)
    gate.admit(0)


def test_a_call_without_a_slot_neither_takes_one_nor_needs_one() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, requests_per_minute=3)))
    gate.admit(0)
    gate.admit(0, slots=0)
    assert gate.in_flight(0) == 1
    gate.admit(0, slots=0)
    assert gate.refuse(0, slots=0).cap is Cap.REQUESTS_PER_MINUTE


def test_a_full_slot_and_a_full_window_tell_the_slot_and_when_the_window_clears() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, requests_per_minute=1)))
    gate.admit(0)
    refusal = gate.refuse(1)
    assert (refusal.reason, refusal.cap) == (Reason.NO_FREE_SLOT, Cap.MAX_CONCURRENT)
    assert refusal.retry_after == 61 * SECOND - 1


# -- all or none -------------------------------------------------------------------------------------------------


EVERY_CAP = Limits(
    requests_per_minute=5, requests_per_hour=50, requests_per_day=500,
    tokens_per_minute=100, tokens_per_hour=1000, tokens_per_day=10_000, max_concurrent=4,
)  # fmt: skip


@pytest.mark.parametrize("tight", ["user", "org", "project"])
@pytest.mark.parametrize(
    "cap",
    [
        Limits(max_concurrent=2),
        Limits(requests_per_minute=2),
        Limits(requests_per_day=2),
        Limits(tokens_per_minute=25),
        Limits(tokens_per_hour=9),
    ],
)
def test_a_refusal_in_any_bucket_leaves_every_bucket_as_it_was(tight: str, cap: Limits) -> None:
    makers = {"user": user, "org": org, "project": project}
    gate = Gate(*(make(limits=cap if name == tight else EVERY_CAP) for name, make in makers.items()))
    for at in range(2):
        gate.ask(at * SECOND)
    before = everything(gate.engine, 2 * SECOND)
    refusal = gate.refuse(2 * SECOND)
    assert refusal.key.scope == tight.capitalize()
    assert everything(gate.engine, 2 * SECOND) == before
    state = gate.engine.current_state(refusal.key, 2 * SECOND)
    assert state is not None
    assert state.rejected >= 1


def test_an_admission_is_recorded_in_every_bucket() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP), project(limits=EVERY_CAP))
    permit = gate.admit(0, tokens=30)
    assert {key.scope for key in permit.keys} == set(SCOPES)
    for state in gate.engine.snapshot(0).buckets:
        assert state.in_flight == 1
        assert {cap: window.used for cap, window in state.windows.items()} == {
            **dict.fromkeys(REQUEST_CAPS.values(), 1),
            **dict.fromkeys(TOKEN_CAPS.values(), 30),
        }


# -- whose bucket ------------------------------------------------------------------------------------------------


HOSTILE = [
    "", " ", "alice", "Alice", "alice ", "a,b", "a|b", "a/b", "a:b", "a\x00b", "\x00", "User", "openai", "*", "al*",
    "../x", "%00", "é", "e\u0301", "alice\u200b", "\ud800", "\U0001f600", "a" * 65_536, "a" * 65_535 + "b",
    "('a', 'b')", "{}",
]  # fmt: skip


def test_no_two_subjects_share_a_bucket_whatever_characters_they_hold() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1)))
    for name in HOSTILE:
        gate.admit(0, user=name)
    for name in HOSTILE:
        assert gate.refuse(0, user=name).key.subject == name
    assert len(gate.engine.snapshot(0).buckets) == len(HOSTILE)


def test_the_same_name_in_another_scope_or_provider_is_another_bucket() -> None:
    one = Limits(requests_per_minute=1)
    book = RuleBook(tuple(Rule(provider, scope, one) for provider in ("openai", "anthropic") for scope in SCOPES))
    engine = Engine(book)
    for provider in ("openai", "anthropic"):
        for scope in SCOPES:
            others = dict.fromkeys(Scope, f"{provider}-{scope}")
            applied = book.match(provider, {**others, scope: "same"})
            assert isinstance(engine.acquire(Call(applied, Demand(1, 1, 1)), 0), Permit)
    assert len({state.key for state in engine.snapshot(0).buckets if state.key.subject == "same"}) == 6


def test_what_one_subject_uses_up_leaves_another_untouched() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_concurrent=1)))
    gate.admit(0, tokens=100)
    gate.refuse(0)
    gate.admit(0, tokens=100, user="bob")


def test_callers_without_a_name_share_one_bucket() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1)))
    applied = gate.engine.rules.match(PROVIDER, {})
    call = Call(applied, Demand(1, 1, 1))
    assert isinstance(gate.engine.acquire(call, 0), Permit)
    assert isinstance(gate.engine.acquire(call, 0), Refusal)


# -- absurd amounts ----------------------------------------------------------------------------------------------


def test_a_negative_demand_counts_as_nothing() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, requests_per_minute=10, max_concurrent=5)))
    gate.admit(0, tokens=50)
    permit = gate.admit(0, tokens=-1000, requests=-7, slots=-3)
    assert (gate.used(0, Cap.TOKENS_PER_MINUTE), gate.used(0, Cap.REQUESTS_PER_MINUTE), gate.in_flight(0)) == (50, 1, 1)
    permit.release(0)
    assert gate.in_flight(0) == 1


def test_a_demand_beyond_all_measure_counts_as_the_largest_amount() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=MAX_COUNT, requests_per_minute=MAX_COUNT)))
    gate.admit(0, tokens=10**30, requests=10**30)
    assert gate.used(0, Cap.TOKENS_PER_MINUTE) == gate.used(0, Cap.REQUESTS_PER_MINUTE) == MAX_AMOUNT


def test_more_slots_than_one_are_taken_and_freed_together() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=5)))
    permit = gate.admit(0, slots=3)
    assert gate.refuse(0, slots=3).reason is Reason.NO_FREE_SLOT
    gate.admit(0, slots=2)
    permit.release(0)
    gate.admit(0, slots=3)
    assert gate.refuse(0, slots=6).reason is Reason.OVERSIZED_REQUEST


# -- shadow ------------------------------------------------------------------------------------------------------


def test_a_shadow_limit_counts_and_says_what_it_would_have_refused_and_lets_pass() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=100, max_concurrent=1, mode=Mode.SHADOW)))
    permits = [gate.admit(0, tokens=60) for _ in range(3)]
    assert gate.used(0, Cap.TOKENS_PER_MINUTE) == 180
    assert gate.in_flight(0) == 3
    told = gate.journal.named("would_reject")
    assert [(event.keys, event.estimate) for event in told] == [((ALICE,), 60)] * 2
    totals = gate.engine.summary().totals
    assert (totals.admitted, totals.would_reject, totals.rejected) == (3, 2, 0)
    state = gate.engine.current_state(ALICE, 0)
    assert state is not None
    assert (state.rejected, state.would_reject) == (0, 2)
    assert_balanced(gate.engine, permits, 0)


@pytest.mark.parametrize(
    ("limits", "tokens", "reason"),
    [
        (Limits(tokens_per_minute=50, mode=Mode.SHADOW), 60, Reason.OVERSIZED_REQUEST),
        (Limits(tokens_per_minute=100, mode=Mode.SHADOW), 60, Reason.WOULD_EXCEED),
        (Limits(max_concurrent=1, mode=Mode.SHADOW), 60, Reason.NO_FREE_SLOT),
    ],
)
def test_a_shadow_limit_gives_the_reason_that_it_would_have_given(limits: Limits, tokens: int, reason: Reason) -> None:
    gate = Gate(user(limits=limits))
    gate.admit(0, tokens=tokens)
    gate.admit(0, tokens=tokens)
    assert gate.journal.named("would_reject")[-1].reason == reason


def test_a_shadow_limit_tells_the_worst_of_what_stands_in_the_way() -> None:
    limits = Limits(requests_per_minute=1, requests_per_hour=1, max_concurrent=1, mode=Mode.SHADOW)
    gate = Gate(user(limits=limits))
    gate.admit(SECOND)
    gate.admit(2 * SECOND)
    (told,) = gate.journal.named("would_reject")
    assert (told.reason, told.retry_after) == ("WouldExceed", HOUR + MINUTE - 2 * SECOND)


def test_a_shadow_limit_beside_an_enforced_one_says_nothing_of_a_call_that_is_refused() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1)), org(limits=Limits(max_concurrent=1, mode=Mode.SHADOW)))
    gate.admit(0)
    assert gate.refuse(0).key == ALICE
    assert gate.journal.named("would_reject") == []


# -- how many buckets --------------------------------------------------------------------------------------------


def test_newcomers_past_the_cap_on_keys_share_one_bucket_a_scope() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=2)), settings=EngineSettings(max_keys=2))
    for name in ("alice", "bob"):
        gate.admit(0, user=name)
    for name in ("carol", "dave"):
        assert gate.admit(0, user=name).keys == (ALICE._replace(subject=OVERFLOW),)
    assert gate.refuse(0, user="erin").key.subject == OVERFLOW
    gate.admit(0, user="alice")  # those who have a bucket keep it
    assert len(gate.engine.snapshot(0).buckets) == 3


def test_newcomers_share_the_limits_of_everybody_not_those_of_the_first_of_them() -> None:
    limits = (user("vip*", limits=Limits(requests_per_minute=100)), user(limits=Limits(requests_per_minute=1)))
    gate = Gate(*limits, settings=EngineSettings(max_keys=1))
    gate.admit(0)
    gate.admit(0, user="vip-1")
    assert gate.refuse(0, user="vip-2").limit == 1


def test_where_only_some_are_limited_a_newcomer_meets_its_own_limits_in_the_shared_bucket() -> None:
    gate = Gate(user("a*", limits=Limits(requests_per_minute=1)), settings=EngineSettings(max_keys=0))
    gate.admit(0)
    assert gate.refuse(0, user="anna").key.subject == OVERFLOW


def test_idle_buckets_are_forgotten_and_live_ones_never() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=5, max_concurrent=1)))
    gate.admit(0, user="in flight").release(0)
    live = gate.admit(0, user="in flight")
    gate.admit(0, user="gone").release(0)
    gate.admit(30 * SECOND, user="counted").release(30 * SECOND)

    def known(now: int) -> set[str]:
        for _ in range(3):
            gate.engine.advance(now)
        return {state.key.subject for state in gate.engine.snapshot(now).buckets}

    gate.engine.claim(live.lease, 0)
    assert known(61 * SECOND - 1) == {"in flight", "gone", "counted"}
    assert known(61 * SECOND) == {"in flight", "counted"}
    assert known(91 * SECOND) == {"in flight"}
    live.release(DAY)
    assert known(DAY) == set()


def test_a_bucket_in_which_somebody_waits_is_not_forgotten() -> None:
    gate = Gate(user(limits=Limits(max_concurrent=1, max_wait=HOUR)), org(limits=Limits(max_concurrent=9)))
    gate.engine.claim(gate.admit(0, org="a").lease, 0)
    waiter = gate.queue(0, org="b")
    for _ in range(3):
        gate.engine.advance(MINUTE)
    assert {bucket.key for bucket in waiter.buckets} <= {state.key for state in gate.engine.snapshot(MINUTE).buckets}


def test_a_sweep_of_more_buckets_than_one_look_covers_forgets_them_all() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=1)))
    for k in range(1234):
        gate.admit(0, user=f"user-{k}").release(0)
    for _ in range(8):
        gate.engine.advance(2 * MINUTE)
    assert gate.engine.snapshot(2 * MINUTE).buckets == ()


# -- the clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, SECOND, MINUTE, DAY])
def test_a_clock_that_steps_back_stops_time_and_breaks_nothing(step: int) -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=2, max_concurrent=2)))
    start = 2 * DAY
    first = gate.admit(start)
    second = gate.admit(start - step)
    assert second.admitted_at == start
    assert gate.refuse(start - step).reason is Reason.NO_FREE_SLOT
    for permit in (first, second):
        assert permit.commit_tokens(Charge(3), start - step)
        assert permit.release(start - step)
    assert gate.refuse(start + 61 * SECOND - 1 - start % SECOND).reason is Reason.WOULD_EXCEED
    gate.admit(start + 61 * SECOND)


def test_a_clock_that_jumps_far_ahead_empties_every_window() -> None:
    gate = Gate(user(limits=EVERY_CAP))
    gate.admit(0, tokens=100).release(0)
    state = gate.engine.snapshot(10**6 * DAY).buckets[0]
    assert {window.used for window in state.windows.values()} == {0}
    assert {window.reset for window in state.windows.values()} == {0}


# -- what is seen ------------------------------------------------------------------------------------------------


def test_the_state_of_a_bucket_tells_used_remaining_and_reset() -> None:
    gate = Gate(user(limits=Limits(requests_per_minute=3, tokens_per_hour=100, max_concurrent=7)))
    gate.admit(0, tokens=60)
    gate.admit(2 * SECOND, tokens=10).commit_tokens(Charge(60), 2 * SECOND)
    state = gate.engine.current_state(ALICE, 3 * SECOND)
    assert state is not None
    assert (state.in_flight, state.max_concurrent, state.queued) == (2, 7, 0)
    assert set(state.windows) == {Cap.REQUESTS_PER_MINUTE, Cap.TOKENS_PER_HOUR}
    requests, tokens = state.windows[Cap.REQUESTS_PER_MINUTE], state.windows[Cap.TOKENS_PER_HOUR]
    assert (requests.limit, requests.used, requests.remaining, requests.reset) == (3, 2, 1, 60 * SECOND)
    assert (tokens.limit, tokens.used, tokens.remaining) == (100, 120, 0)
    assert tokens.reset == HOUR + MINUTE - 3 * SECOND


def test_a_key_that_was_never_seen_has_no_state() -> None:
    assert Gate(user(limits=EVERY_CAP)).engine.current_state(ALICE, 0) is None


def test_looking_changes_nothing() -> None:
    gate = Gate(user(limits=EVERY_CAP), org(limits=EVERY_CAP))
    gate.admit(0)
    before = everything(gate.engine, SECOND)
    gate.engine.current_state(ALICE, SECOND)
    gate.engine.snapshot(SECOND)
    gate.engine.summary()
    assert everything(gate.engine, SECOND) == before
