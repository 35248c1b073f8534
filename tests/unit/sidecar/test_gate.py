"""The engine on an event loop: who waits is told in time, who leaves holds nothing, and housekeeping goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from helpers.ledger import Journal
from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import SECOND
from sluice.core.permits import Call, Permit
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate


class Broken(Journal):
    """Telemetry that fails where a permit expires."""

    def __init__(self) -> None:
        super().__init__()
        self.expired_twice = asyncio.Event()

    def expired(self, permit: Permit) -> None:
        super().expired(permit)
        if len(self.named("expired")) == 2:
            self.expired_twice.set()
        raise RuntimeError(f"secret of {permit.keys}")


def put_in_force(gate: Gate, *entries: dict[str, Any], environ: dict[str, str] | None = None) -> None:
    gate.apply(merge(parse(limits("openai", "http://127.0.0.1:9", *entries), "test")), environ or {})


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """One call at a time, and patience for a minute."""
    gate = Gate(Engine(settings=EngineSettings(lease=60 * SECOND)), clock.now)
    put_in_force(gate, {"maxConcurrent": 1, "requestsPerMinute": 100, "maxWait": "60s"})
    gate.start()
    yield gate
    await gate.close()


def call(gate: Gate, user: str = "alice") -> Call:
    return Call(gate.engine.rules.match("openai", {Scope.USER: user}), Demand(1, 1, 10))


async def admitted(gate: Gate) -> Permit:
    outcome = await gate.acquire(call(gate))
    assert isinstance(outcome, Permit)
    return outcome


async def test_who_waits_is_admitted_as_soon_as_a_slot_is_free_in_order(gate: Gate) -> None:
    held = await admitted(gate)
    order: list[int] = []

    async def wait(number: int) -> None:
        permit = await admitted(gate)
        order.append(number)
        permit.release(clock.now())

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert gate.engine.summary().queued == 5
    held.release(clock.now())
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("now", [clock.now, clock.continued(0), clock.continued(10**18)])
async def test_who_waited_in_vain_is_refused_at_the_deadline_and_not_before(now: Callable[[], int]) -> None:
    gate = Gate(Engine(), now)
    put_in_force(gate, {"maxConcurrent": 1, "maxWait": "50ms"})
    await admitted(gate)
    before = clock.now()
    outcome = await gate.acquire(call(gate))
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.NO_FREE_SLOT
    assert clock.now() - before >= 50_000_000
    await gate.close()


async def test_the_earliest_of_many_deadlines_is_kept(gate: Gate) -> None:
    await admitted(gate)
    late = asyncio.create_task(gate.acquire(call(gate)))
    await asyncio.sleep(0)
    early = await gate.acquire(call(gate)._replace(patience=20_000_000))
    assert isinstance(early, Refusal)
    assert not late.done()
    late.cancel()


async def test_who_leaves_the_queue_holds_nothing(gate: Gate) -> None:
    held = await admitted(gate)
    waiting = asyncio.create_task(gate.acquire(call(gate)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gate.engine.summary().queued == 0
    held.release(clock.now())
    snapshot = gate.engine.snapshot(clock.now())
    assert (snapshot.in_flight, snapshot.totals.admitted) == (0, 1)


async def test_who_leaves_in_the_moment_of_being_admitted_holds_nothing(gate: Gate) -> None:
    held = await admitted(gate)
    waiting = asyncio.create_task(gate.acquire(call(gate)))
    await asyncio.sleep(0)
    held.release(clock.now())
    assert gate.engine.summary().in_flight == 1  # the slot is its own, and it has not heard of it yet
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    snapshot = gate.engine.snapshot(clock.now())
    assert (snapshot.in_flight, snapshot.totals.admitted) == (0, 1)


async def test_new_limits_are_felt_by_who_waits_at_once(gate: Gate) -> None:
    await admitted(gate)
    first, second = asyncio.create_task(admitted(gate)), asyncio.create_task(gate.acquire(call(gate)))
    await asyncio.sleep(0)
    put_in_force(gate, {"maxConcurrent": 2, "maxWait": "1ms"})
    assert isinstance(await first, Permit)
    assert isinstance(await second, Refusal)


def test_a_configuration_can_be_put_in_force_before_there_is_a_loop() -> None:
    gate = Gate(Engine(), clock.now)
    put_in_force(gate, {"requestsPerMinute": 1, "subject": {"env": "WHO"}}, environ={"WHO": "me"})
    assert gate.policies["openai"].fixed == {Scope.USER: "me"}
    assert gate.policies["openai"].told == ()


async def test_a_failure_in_housekeeping_is_logged_without_its_words_and_housekeeping_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    telemetry = Broken()
    gate = Gate(Engine(settings=EngineSettings(lease=1), telemetry=telemetry), clock.now)
    put_in_force(gate, {"maxConcurrent": 2})
    gate.start()
    for _ in range(2):
        await admitted(gate)
    async with asyncio.timeout(5):
        await telemetry.expired_twice.wait()
    await gate.close()
    assert gate.engine.summary().in_flight == 0
    assert caplog.messages[0].startswith("the time could not be told to the engine: RuntimeError at expired:")
    assert "secret" not in caplog.text


async def test_a_gate_that_never_started_can_be_closed() -> None:
    await Gate(Engine(), clock.now).close()
