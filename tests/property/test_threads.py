"""Many threads on one key."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from threading import Barrier, Thread

import pytest

from helpers.ledger import PROVIDER, admitted, assert_balanced
from helpers.oracle import Oracle
from sluice.core.buckets import Charge, Demand
from sluice.core.engine import EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import SECOND, Limits
from sluice.core.permits import Call, Permit, Waiter
from sluice.core.rules import Rule, RuleBook

THREADS = 16


@pytest.fixture(autouse=True)
def _switch_threads_all_the_time() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def oracle_for(limits: Limits) -> tuple[Oracle, Call]:
    book = RuleBook((Rule(PROVIDER, Scope.USER, limits), Rule(PROVIDER, Scope.ORG, limits)))
    oracle = Oracle(book, EngineSettings(max_queue=10_000, max_waiters=10_000))
    return oracle, Call(book.match(PROVIDER, {}), Demand(1, 1, 10))


def in_all_threads(act: Callable[[], list[Permit]]) -> list[Permit]:
    barrier = Barrier(THREADS)
    permits: list[Permit] = []
    failures: list[BaseException] = []

    def run() -> None:
        barrier.wait()
        try:
            permits.extend(act())
        except BaseException as failure:  # noqa: BLE001 - whatever it is, the test's own thread must hear of it
            failures.append(failure)

    threads = [Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return permits


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=100), Limits(tokens_per_hour=1000)])
def test_exactly_as_many_calls_as_the_cap_allows_are_admitted(limits: Limits) -> None:
    oracle, call = oracle_for(limits)

    def act() -> list[Permit]:
        outcomes = [oracle.engine.acquire(call, 0) for _ in range(50)]
        return [outcome for outcome in outcomes if isinstance(outcome, Permit)]

    permits = in_all_threads(act)
    assert len(permits) == len({permit.lease for permit in permits}) == 100
    assert_balanced(oracle.engine, permits, 0)


def test_no_more_calls_than_the_cap_are_ever_in_flight_and_every_slot_comes_back() -> None:
    oracle, call = oracle_for(Limits(max_concurrent=3, max_wait=SECOND))

    def act() -> list[Permit]:
        permits = []
        waiters = []
        for _ in range(25):
            outcome = oracle.engine.acquire(call, 0)
            if isinstance(outcome, Waiter):
                waiters.append(outcome)
            else:
                permits.append(admitted(outcome))
                permits[-1].commit_tokens(Charge(5), 0)
                permits[-1].release(0)
        while waiters:  # whoever holds a slot is on the way to release it
            told = [waiter for waiter in waiters if not waiter.pending and waiter.outcome is not None]
            waiters = [waiter for waiter in waiters if waiter not in told]
            for waiter in told:
                permits.append(admitted(waiter.outcome))
                permits[-1].release(0)
        return permits

    permits = in_all_threads(act)
    assert len(permits) == THREADS * 25
    assert oracle.engine.summary().in_flight == oracle.engine.summary().queued == 0
    assert_balanced(oracle.engine, permits, 0)
