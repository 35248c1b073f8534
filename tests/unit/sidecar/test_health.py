"""How it stands with a store that gates share: what counts as a change, and what the log says of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import pytest

from sluice.core.limits import SECOND
from sluice_sidecar.health import StoreHealth, StoreMode

Lines: TypeAlias = Callable[[], list[tuple[str, str]]]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> StoreHealth:
    return StoreHealth(address="redis://r:6379", prefix="sluice", clock=clock)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return a function that says what was logged since it was called last."""
    caplog.set_level(logging.INFO)

    def news() -> list[tuple[str, str]]:
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return told

    return news


def test_before_the_store_was_reached_the_gate_decides_alone(store: StoreHealth, clock: Clock, lines: Lines) -> None:
    clock.now += 3 * SECOND

    assert (store.mode, store.is_healthy, store.problem) == (StoreMode.LOCAL, False, "not reached yet")
    assert (store.age, store.changes, store.unsent) == (3.0, 0, 0.0)
    assert lines() == []


def test_each_change_of_mode_is_counted_dated_and_logged_once(store: StoreHealth, clock: Clock, lines: Lines) -> None:
    store.shared(4)
    store.shared(5)
    assert (store.mode, store.problem, store.gates) == (StoreMode.SHARED, "", 5)
    assert lines() == [("INFO", "the store redis://r:6379 decides: 4 gates share it")]

    clock.now += SECOND
    store.local("timed out")
    store.local("connection refused")
    assert (store.mode, store.problem, store.since) == (StoreMode.LOCAL, "connection refused", 101 * SECOND)
    away = "the store redis://r:6379 cannot be used: timed out; until it can, each limit's failurePolicy decides"
    assert lines() == [("WARNING", f"{away} (gates known: 5)")]

    clock.now += 2 * SECOND
    store.shared(1)
    assert (store.since, store.changes, store.entered) == (
        103 * SECOND,
        3,
        {StoreMode.SHARED: 2, StoreMode.LOCAL: 1},
    )
    assert lines() == [("INFO", "the store redis://r:6379 decides, after 2.0 s without it: 1 gate shares it")]


def test_a_store_that_is_not_there_from_the_start_is_told_and_is_no_change(
    store: StoreHealth, clock: Clock, lines: Lines
) -> None:
    store.local("connection refused")
    store.local("connection refused")
    clock.now += 7 * SECOND
    assert (store.changes, store.age) == (0, 7.0)
    assert [level for level, _ in lines()] == ["WARNING"]

    store.shared(2)
    assert lines() == [("INFO", "the store redis://r:6379 decides, after 7.0 s without it: 2 gates share it")]


def test_what_the_store_lacks_is_told_by_its_age(store: StoreHealth, clock: Clock) -> None:
    store.unsent_since = clock.now
    clock.now += SECOND // 2

    assert store.unsent == 0.5
