"""Admitted calls that are not committed, behind an Envoy that is not laid out as it should be: the gate says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from helpers.system import System, limits, running_system
from sluice.core.engine import EngineSettings
from sluice.core.limits import MILLISECOND
from sluice.usage.commits import ADVICE, FEWEST, Missing
from sluice_sidecar import clock
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.envoy_config import UsageSource
from sluice_sidecar.recent import RecentCounts

Change = Callable[[dict[str, Any]], None]
CALL = {"model": "m", "messages": [{"role": "user", "content": "How many tokens?"}]}
HEADERS = {"x-user-id": "alice"}
TOLD = {"x-standin-answer-headers": '{"x-usage-total-tokens": "7"}', "x-standin-omit-usage": "true"}


def chain_of(bootstrap: dict[str, Any]) -> list[dict[str, Any]]:
    (chain,) = bootstrap["staticResources"]["listeners"][0]["filterChains"]
    filters: list[dict[str, Any]] = chain["filters"][0]["typedConfig"]["httpFilters"]
    return filters


def without(name: str) -> Change:
    """An Envoy that lacks a filter."""

    def change(bootstrap: dict[str, Any]) -> None:
        for each in chain_of(bootstrap):
            if each["name"] == name:
                each["disabled"] = True
        for host in bootstrap["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"][
            "routeConfig"
        ]["virtualHosts"]:
            for route in host["routes"]:
                route.get("typedPerFilterConfig", {}).pop(name, None)

    return change


def keeping_the_lease(bootstrap: dict[str, Any]) -> None:
    """An Envoy whose usage stream lacks the lease: the name of the metadata is misspelt."""
    (stream,) = [each for each in chain_of(bootstrap) if each["name"] == "sluice.usage_stream"]
    stream["typedConfig"]["metadataOptions"]["forwardingNamespaces"]["untyped"] = ["envoy.filters.http.rate_limit"]


def showing(header: str) -> Change:
    """An Envoy that shows the gate one header of an answer beside its status."""

    def change(bootstrap: dict[str, Any]) -> None:
        (stream,) = [each for each in chain_of(bootstrap) if each["name"] == "sluice.usage_stream"]
        shown = [{"exact": name} for name in (":status", "content-type", header)]
        stream["typedConfig"]["forwardRules"]["allowedHeaders"]["patterns"] = shown

    return change


async def called(system: System, **headers: str) -> None:
    url = f"{system.url}/openai/v1/chat/completions"
    for _ in range(FEWEST):
        async with system.client.post(url, json=CALL, headers=HEADERS | headers) as answer:
            assert answer.status == 200
            await answer.read()


@pytest.mark.parametrize(
    ("change", "headers", "why"),
    [
        (without("sluice.usage_stream"), {}, Missing.NO_STREAM),
        (keeping_the_lease, {}, Missing.NO_STREAM),
        (without("sluice.read_usage"), {}, Missing.NO_USAGE),
        (showing("x-usage-totaltokens"), TOLD, Missing.NO_USAGE),
        (showing("x-usage-total-tokens"), TOLD, None),
    ],
    ids=["no ext_proc", "no lease", "no reader", "a misspelt header", "the right header"],
)
async def test_usage_that_does_not_come_is_noticed(
    change: Change, headers: dict[str, str], why: Missing | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    recent = RecentCounts(clock.now)
    watch = CommitWatch(recent)
    system_of = running_system(
        lambda upstream: limits("openai", upstream, {"tokensPerMinute": 100_000}),
        settings=EngineSettings(lease=500 * MILLISECOND),
        telemetry=recent,
        on_untold=[recent.untold],
        changed=change,
    )
    async with system_of as system:
        await called(system, **headers)
        await system.settled()
        watch.look()
    assert watch.missing == ({} if why is None else {"openai": why})
    assert caplog.messages == ([] if why is None else [f"openai: {ADVICE[why]}"])


@pytest.mark.parametrize("source", list(UsageSource))
async def test_calls_that_tell_no_usage_by_their_nature_are_no_alarm(source: UsageSource) -> None:
    recent = RecentCounts(clock.now)
    watch = CommitWatch(recent)
    system_of = running_system(
        lambda upstream: limits("openai", upstream, {"tokensPerMinute": 100_000}),
        source,
        telemetry=recent,
        on_untold=[recent.untold],
    )
    async with system_of as system:
        for _ in range(FEWEST):
            async with system.client.get(f"{system.url}/openai/v1/models", headers=HEADERS) as answer:
                assert answer.status == 200
            streaming, url = {**CALL, "stream": True}, f"{system.url}/openai/v1/chat/completions"
            async with system.client.post(url, json=streaming, headers=HEADERS) as answer:
                await answer.read()
        await system.settled()
        watch.look()
    assert (recent.by_provider()["openai"].untold, dict(watch.missing)) == (0, {})
