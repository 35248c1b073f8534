"""Limits that change while calls are made: what is live when, and what a change must not touch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.envoy import free_port, short_folder
from helpers.program import Program, children, eventually, running
from helpers.system import limits
from standin import StandIn

CHAT = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
MESSAGES = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}

# Several starts of Envoy, on a machine that may be busy with others.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def provider() -> AsyncIterator[StandIn]:
    async with StandIn() as provider:
        yield provider


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def with_envoy(files: Path) -> tuple[object, ...]:
    return ("-f", files, "--envoy", "--listen", "127.0.0.1:0")


async def call(
    program: Program, path: str = "/openai/v1/chat/completions", body: Any = CHAT, **headers: str
) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with program.client.post(program.url + path, json=body, headers=named) as answer:
        return answer.status, await answer.read()


def replace(file: Path, text: str) -> None:
    """As editors and `kubectl` do: the new file is whole before it takes the name."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.rename(file)


def project(folder: Path, name: str, **files: str) -> None:
    """Put a ConfigMap there as the kubelet does: a folder of its own, onto which one link is renamed."""
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / f"{file}.yaml").write_text(text)
        if not (folder / f"{file}.yaml").is_symlink():
            (folder / f"{file}.yaml").symlink_to(f"..data/{file}.yaml")
    (folder / "..data_tmp").symlink_to(name)
    (folder / "..data_tmp").rename(folder / "..data")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def limit_of(status: dict[str, Any], cap: str = "requestsPerMinute") -> int | None:
    (bucket,) = status["buckets"]
    window = bucket["windows"].get(cap)
    return None if window is None else int(window["limit"])


async def test_a_raised_limit_admits_the_next_call_and_remembers_the_last(provider: StandIn, folder: Path) -> None:
    file = folder / "limits.yaml"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 1}))
    async with running(*with_envoy(file)) as program:
        before = [(await call(program, x_user_id="alice"))[0] for _ in range(2)]
        replace(file, limits("openai", provider.url, {"requestsPerMinute": 2}))
        await program.until(lambda told: limit_of(told) == 2)
        after = [(await call(program, x_user_id="alice"))[0] for _ in range(2)]

        assert (before, after) == ([200, 429], [200, 429])
        assert "changed: openai User *: requestsPerMinute 1 -> 2" in await program.line(": changed: ")


async def test_a_change_is_live_within_a_second(provider: StandIn, folder: Path) -> None:
    file = folder / "limits.yaml"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 100}))
    took = []
    loop = asyncio.get_running_loop()
    async with running(*with_envoy(file)) as program:
        await call(program, x_user_id="alice")
        for number in range(101, 106):
            begun = loop.time()
            replace(file, limits("openai", provider.url, {"requestsPerMinute": number}))
            await program.until(lambda told, number=number: limit_of(told) == number)  # type: ignore[misc]
            took.append(loop.time() - begun)

    assert statistics.median(took) < 1


async def test_a_bad_change_is_told_and_what_was_in_force_stays(provider: StandIn, folder: Path) -> None:
    file = folder / "limits.yaml"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 2}))
    async with running(*with_envoy(file)) as program:
        await call(program, x_user_id="alice")
        replace(file, limits("openai", provider.url, {"requestsPerMinute": -1, "maxWait": "soon"}))
        told = (await program.until(lambda told: told["configuration"]["problems"]))["configuration"]
        statuses = [(await call(program, x_user_id="alice"))[0] for _ in range(2)]
        _, metrics = await program.get("/metrics")

        assert statuses == [200, 429]
        assert [problem["field"] for problem in told["problems"]] == [
            "spec.limits[0].requestsPerMinute",
            "spec.limits[0].maxWait",
        ]
        assert told["generation"] == 1
        assert "\nsluice_configurations_rejected_total 1.0\n" in metrics
        assert (await program.get("/readyz"))[0] == 200
        assert str(file) in await program.line("spec.limits[0].maxWait")

        file.unlink()
        absent = (await program.until(lambda told: not told["configuration"]["problems"][0]["field"]))["configuration"]
        assert absent["problems"][0]["message"] == "cannot be read: No such file or directory"
        assert (await call(program, x_user_id="bob"))[0] == 200

        file.write_text(limits("openai", provider.url, {"requestsPerMinute": 3}))
        healed = await program.until(lambda told: not told["configuration"]["problems"])
        assert healed["configuration"]["generation"] == 2


async def test_a_bad_change_that_is_taken_back_is_no_change_of_the_limits(provider: StandIn, folder: Path) -> None:
    file = folder / "limits.yaml"
    good = limits("openai", provider.url, {"requestsPerMinute": 2})
    file.write_text(good)
    async with running("-f", file, "--socket", folder / "gate.sock") as program:
        replace(file, good.replace("openai", "Open AI"))
        await program.line("the limits files have mistakes; what was in force stays")
        replace(file, good)
        await program.line("the mistakes in the limits files are gone, and nothing has changed: 1 limit for openai")
        replace(file, good + " ")
        await program.line("the limits files are written differently, and say the same: 1 limit for openai")


async def test_changes_under_load_cut_no_call_and_lose_no_count(provider: StandIn, folder: Path) -> None:
    file = folder / "limits.yaml"
    caps = {"tokensPerMinute": 1_000_000, "maxConcurrent": 4, "maxWait": "30s"}
    file.write_text(limits("openai", provider.url, caps))
    async with running(*with_envoy(file)) as program:

        async def caller() -> list[int]:
            script = {"x_standin_input_tokens": "30", "x_standin_output_tokens": "12", "x_standin_chunk_delay_ms": "5"}
            return [(await call(program, body=STREAM, x_user_id="alice", **script))[0] for _ in range(20)]

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for number in range(6):
            other = "x-other-id" if number % 2 else "x-another-id"
            entry = {"scope": "Org", "subject": {"header": other}, "requestsPerHour": 100_000 + number}
            replace(file, limits("openai", provider.url, {**caps, "maxConcurrent": 3 + number % 3}, entry))
            await program.until(lambda told, done=number + 2: told["configuration"]["generation"] == done)  # type: ignore[misc]
        statuses = [status for task in callers for status in await task]
        totals = (await program.until(lambda told: told["totals"]["inFlight"] == 0))["totals"]
        user = (await program.status(scope="User"))["buckets"][0]

    assert statuses == [200] * 160
    assert (totals["admitted"], totals["committed"], totals["estimated"]) == (160, 160, 0)
    assert totals["committedTokens"] == user["windows"]["tokensPerMinute"]["used"] == 160 * 42


async def test_envoy_follows_to_new_providers_and_subjects_of_a_swapped_config_map(
    provider: StandIn, folder: Path
) -> None:
    project(folder, "..1", openai=limits("openai", provider.url, {"requestsPerMinute": 10}))
    async with running(*with_envoy(folder)) as program:
        held = asyncio.create_task(call(program, body=STREAM, x_standin_hold="middle", x_user_id="alice"))
        await provider.until(lambda p: p.held == 1)
        assert (await call(program, "/anthropic/v1/messages", MESSAGES, x_team="blue"))[0] == 404

        team = {"subject": {"header": "x-team"}, "requestsPerMinute": 10}
        project(
            folder,
            "..2",
            openai=limits("openai", provider.url, team),
            anthropic=limits("anthropic", provider.url, team),
        )

        async def routed() -> bool:
            return (await call(program, "/anthropic/v1/messages", MESSAGES, x_team="blue"))[0] == 200

        async def told_apart() -> bool:
            await call(program, x_team="green")
            return bool((await program.status(provider="openai", subject="green"))["buckets"])

        await eventually(routed)
        await eventually(told_apart)
        assert {bucket["subject"] for bucket in (await program.status(provider="anthropic"))["buckets"]} == {"blue"}
        provider.let_go()
        status, body = await held
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)


async def test_a_mounted_file_is_followed_and_known_by_the_hash_of_what_is_in_force(folder: Path) -> None:
    first, second = (limits("openai", "http://127.0.0.1:9", {"requestsPerMinute": number}) for number in (1, 2))
    project(folder, "..1", limits=first)
    file = folder / "limits.yaml"
    async with running("-f", file, "--socket", folder / "gate.sock") as program:
        assert (await program.status())["configuration"]["files"] == {str(file): digest(first)}

        project(folder, "..2", limits=second)
        swapped = await program.until(lambda told: told["configuration"]["generation"] == 2)
        assert swapped["configuration"]["files"] == {str(file): digest(second)}

        project(folder, "..3", limits="nonsense")
        turned_down = await program.until(lambda told: told["configuration"]["problems"])
        assert turned_down["configuration"]["files"] == {str(file): digest(second)}


async def test_a_gate_that_is_to_wait_for_its_limits_starts_once_they_are_there(
    provider: StandIn, folder: Path
) -> None:
    # As a pod that is started before its ConfigMap: the volume is there, and empty.
    volume = folder / "limits"
    volume.mkdir()
    file, good = volume / "limits.yaml", limits("openai", provider.url, {"requestsPerMinute": 1})
    address = f"127.0.0.1:{free_port()}"
    waiting = ("--wait-for-limits", "--admin", address, *with_envoy(file))
    async with running(*waiting, ready=False) as program:
        program.admin = address
        await program.line("waiting for limits: no calls are served until they are there and right")
        absent = f"{file}: cannot be read: No such file or directory"
        assert await program.get("/readyz") == (503, f"not ready: limits: {absent}\n")
        assert await program.get("/healthz") == (200, "ok\n")
        assert (await program.status())["configuration"]["files"] == {}

        project(volume, "..1", limits=good.replace("openai", "Open AI"))
        await program.line("spec.provider")
        assert "limits: " in (await program.get("/readyz"))[1]
        assert children(program.process.pid) == []

        project(volume, "..2", limits=good)
        ready = await program.line("ready:")
        program.url = ready.partition("calls at ")[2].partition(",")[0]
        assert [(await call(program, x_user_id="alice"))[0] for _ in range(2)] == [200, 429]
        assert (await program.status())["configuration"]["files"] == {str(file): digest(good)}


async def test_a_gate_that_waits_for_its_limits_ends_when_it_is_told_to(folder: Path) -> None:
    waiting = ("--wait-for-limits", "-f", folder / "limits.yaml", "--socket", folder / "gate.sock")
    async with running(*waiting, ready=False) as program:
        await program.line("waiting for limits")
        assert await program.end() == 0


async def test_the_files_of_an_envoy_elsewhere_are_kept_up_to_date(provider: StandIn, folder: Path) -> None:
    file, xds = folder / "limits.yaml", folder / "xds"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 1}))
    async with running("-f", file, "--socket", folder / "gate.sock", "--xds", xds) as program:

        def header_in_routes() -> str:
            return "x-new-id" if "x-new-id" in json.dumps(json.loads((xds / "routes.json").read_text())) else ""

        assert header_in_routes() == ""
        replace(file, limits("openai", provider.url, {"subject": {"header": "x-new-id"}, "requestsPerMinute": 1}))

        async def written() -> bool:
            return header_in_routes() == "x-new-id"

        await eventually(written)
        assert (await program.status())["configuration"]["generation"] == 2
