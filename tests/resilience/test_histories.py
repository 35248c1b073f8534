"""Whatever becomes of the store, no interval holds more than it may; a script of two steps is found out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from typing import Any

import pytest

from helpers.faults import Bench
from helpers.gates import Watched, sharing
from helpers.redis import running_redis
from helpers.relay import relayed
from helpers.rounds import ROUNDS, Caps, play
from helpers.system import limits
from sluice_sidecar.stores.shared.client import Ask, StoreError
from sluice_sidecar.stores.shared.scripts import Script

logger = logging.getLogger(__name__)

GATES = 4
CAPS = Caps()
SEEDS = int(os.environ.get("SLUICE_RESILIENCE_SEEDS", "1"))
SHORT, LONG = 6, 12
"""Rounds of one history."""
FEWEST = 50
"""Calls that a history judges, or it has shown nothing."""

pytestmark = pytest.mark.timeout(300)  # a round takes up to ten seconds


def document(policy: str, sharing: str = "Exact", **more: object) -> str:
    return limits("openai", "http://127.0.0.1:9", *CAPS.entries(policy, **more), sharing=sharing)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(
    ("policy", "more"),
    [("Deny", {}), ("LocalShare", {}), ("Deny", {"maxWait": "150ms"}), ("Deny", {"sharing": "Leased"})],
    ids=["Deny", "LocalShare", "Deny, and calls wait", "Deny, in slices"],
)
async def test_no_interval_holds_more_than_it_may(policy: str, more: dict[str, str], seed: int) -> None:
    async with running_redis() as server, relayed(server.port) as relay:
        bench = Bench(server, relay)
        async with sharing(bench.address, document(policy, **more), gates=GATES) as gates:
            story = await play(bench, gates, "openai", f"{policy}{more}{seed}", SHORT if SEEDS == 1 else LONG)
            found = story.violations(gates, CAPS, alone=policy == "LocalShare")
            gates.tell(f"{policy} {more}")

        assert [str(each) for each in found] == []
        assert sum(call.admitted for call in gates.history) >= FEWEST


class TwoSteps(Watched):
    """Planted: whether there is room is seen in one step, and the call is booked in another."""

    def ask(self, ask: Ask) -> asyncio.Future[Any]:
        self.steps = [*getattr(self, "steps", []), asyncio.create_task(self._ask_twice(ask))]
        return ask.future

    async def _ask_twice(self, ask: Ask) -> None:
        try:
            reply = await super().ask(Ask(_seen_only(ask.script), ask.keys, ask.args))
            if reply[0] == 1:
                reply = await super().ask(Ask(_booked_anyway(ask.script), ask.keys, ask.args))
            ask.answer(reply)
        except StoreError as error:
            if not ask.future.done():
                ask.future.set_exception(error)


def _seen_only(script: Script) -> Script:
    return _changed(script, "local counted = {}", "do return {1, now, {}, 0} end\nlocal counted = {}")


def _booked_anyway(script: Script) -> Script:
    return _changed(script, "if stopped then", "if false then")


def _changed(script: Script, old: str, new: str) -> Script:
    assert script.text.count(old) == 1, f"the script reads otherwise by now: it has no {old!r}"
    text = script.text.replace(old, new)
    return Script(text, hashlib.sha1(text.encode()).hexdigest())


async def test_a_script_that_is_no_single_step_is_found_out_within_three_runs() -> None:
    found: list[str] = []
    runs = 0
    while not found and runs < 3:
        runs += 1
        async with running_redis() as server, relayed(server.port) as relay:
            bench = Bench(server, relay)
            async with sharing(bench.address, document("Deny"), gates=GATES, client=TwoSteps) as gates:
                story = await play(bench, gates, "openai", runs, 1, faults=ROUNDS[:1])
                found = [str(each) for each in story.violations(gates, CAPS, alone=False)]

    logger.info("found in run %d: %s", runs, found[:1])
    assert found
