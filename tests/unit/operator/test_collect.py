"""Reports are asked for within bounds: a tenant may forge a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from sluice_operator.cluster import GatePod
from sluice_operator.collect import LARGEST, LARGEST_SUM, PARALLEL, Collector, unasked
from sluice_operator.planning.state import Gate

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def gate(answer: Answer) -> AsyncIterator[GatePod]:
    """A pod on loopback that answers every request like this."""
    app = web.Application()
    app.router.add_get("/{anything:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield GatePod("gate", "uid", "127.0.0.1", runner.addresses[0][1], "told")
    finally:
        await runner.cleanup()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    yield collector
    await collector.close()


async def failure(collector: Collector, answer: Answer) -> str:
    async with gate(answer) as pod:
        (found,) = await collector.gates([pod])
    assert found.report is None
    return found.failure


async def test_a_gate_is_asked_for_its_fullest_buckets(collector: Collector) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.Response(status=503)

    assert await failure(collector, answer) == "answers 503"
    assert asked == ["/status?limit=100"]


async def test_a_redirect_is_not_followed(collector: Collector) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/status", "it was followed"
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    assert await failure(collector, answer) == "answers 302"


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


async def test_an_answer_without_end_is_cut(collector: Collector) -> None:
    assert await failure(collector, endless) == f"answers more than {LARGEST} bytes"


async def test_gates_by_the_hundred_may_say_less_each(collector: Collector) -> None:
    number = 4 * LARGEST_SUM // LARGEST
    async with gate(endless) as pod:
        found = await collector.gates([GatePod(str(each), str(each), "", 1, "") for each in range(number - 1)] + [pod])
    assert {each.failure for each in found} == {"has no address yet", f"answers more than {LARGEST // 4} bytes"}


async def test_silent_gates_of_one_namespace_keep_no_other_waiting() -> None:
    over = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503)

    collector = Collector(seconds=10, patience=10)
    async with gate(silent) as pod, gate(answer) as other:
        crowd = [GatePod(str(each), str(each), pod.ip, pod.port, "") for each in range(2 * PARALLEL)]
        waiting = asyncio.create_task(collector.gates(crowd))
        await asyncio.sleep(0)
        (found,) = await collector.gates([other])
        waiting.cancel()
        over.set()
    await collector.close()
    assert found.failure == "answers 503"


@pytest.mark.parametrize(("seconds", "patience"), [(0.1, 10.0), (10.0, 0.1)])
async def test_a_silent_gate_has_its_time_and_all_have_theirs(seconds: float, patience: float) -> None:
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await over.wait()
        return response

    impatient = Collector(seconds, patience)
    async with gate(answer) as pod:
        (found,) = await impatient.gates([pod])
        over.set()
    await impatient.close()
    assert found.failure == f"no answer within {seconds:g} s"


async def test_a_compressed_answer_is_not_unpacked(collector: Collector) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    assert "JSON" in await failure(collector, answer)


async def test_a_pod_without_an_address_is_not_asked(collector: Collector) -> None:
    (found,) = await collector.gates([GatePod("gate", "uid", "", 10001, "told")])
    assert found == Gate("gate", "uid", "told", None, "has no address yet")


async def test_an_address_that_cannot_be_read_troubles_no_other_gate(collector: Collector) -> None:
    addresses = ("", "010.0.0.1")
    found = await collector.gates([GatePod(ip, ip, ip, 10001, "") for ip in addresses])
    assert [each.failure for each in found] == ["has no address yet", "has an address that cannot be read"]


async def test_a_pod_that_does_not_listen_is_out_of_reach(collector: Collector) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    async with gate(answer) as pod:
        pass
    (found,) = await collector.gates([pod])
    assert found == Gate("gate", "uid", "told", None, "cannot be reached")


async def test_who_was_silent_is_asked_last_the_next_time(collector: Collector) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with gate(answer) as pod:
        silent = GatePod("a", "a", "", 1, "")
        other = GatePod("b", pod.uid, pod.ip, pod.port, pod.told)
        before = [each.pod for each in await collector.gates([silent])]
        after = [each.pod for each in await collector.gates([silent, other])]
    assert (before, after) == (["a"], ["b", "a"])


def test_a_plan_that_cannot_wait_has_the_last_answers_of_the_pods_that_are_still_there() -> None:
    known = [Gate("one", "1", "old", None, "cannot be reached"), Gate("gone", "2", "", None)]
    pods = [GatePod("one", "1", "10.0.0.1", 10001, "new"), GatePod("two", "3", "10.0.0.2", 10001, "")]
    assert unasked(pods, known) == (
        Gate("one", "1", "new", None, "cannot be reached"),
        Gate("two", "3", "", None, "not asked yet"),
    )
