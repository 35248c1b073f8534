"""The command as it is used: started, asked, signalled, and started wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2

from helpers.envoy import short_folder
from helpers.generated import GATEWAY
from helpers.program import READY_SECONDS, Program, children, eventually, has_child, has_ended, running, sluice
from helpers.system import limits
from sluice import __version__
from sluice.config.document import parse
from sluice.config.render import content_hash
from standin import StandIn

BODY = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "a secret of the prompt"}]}
STREAM = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
CAPS = {"requestsPerMinute": 1000, "tokensPerMinute": 100_000, "maxConcurrent": 500}
KEY = "sk-a-secret-of-the-caller"

# Each starts the program, and most an Envoy: seconds, on a machine that is busy with others.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def provider() -> AsyncIterator[StandIn]:
    async with StandIn() as provider:
        yield provider


@pytest.fixture
def file(provider: StandIn, tmp_path: Path) -> Path:
    file = tmp_path / "limits.yaml"
    file.write_text(limits("openai", provider.url, CAPS))
    return file


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def with_envoy(file: Path, *arguments: object) -> tuple[object, ...]:
    return ("-f", file, "--envoy", "--listen", "127.0.0.1:0", *arguments)


async def call(program: Program, user: str = "alice", body: Any = BODY, **script: object) -> tuple[int, bytes]:
    headers = {"x-user-id": user, "authorization": f"Bearer {KEY}"}
    headers |= {f"x-standin-{name.replace('_', '-')}": str(value) for name, value in script.items()}
    url = f"{program.url}/openai/v1/chat/completions"
    async with program.client.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.read()


# -- run -----------------------------------------------------------------------------------------------------------


async def test_calls_pass_through_its_envoy_and_are_counted(file: Path) -> None:
    async with running(*with_envoy(file)) as program:
        status, _ = await call(program, input_tokens=30, output_tokens=12)
        answer = await program.until(lambda told: told["totals"]["committed"] == 1)

        assert status == 200
        assert answer["totals"]["committedTokens"] == 42
        assert answer["buckets"][0]["subject"] == "alice"
        assert await program.get("/readyz") == (200, "ready\n")
        assert "for openai" in await program.line("ready:")
        assert await program.end() == 0


@pytest.mark.parametrize("source", ["metadata", "body"])
async def test_answers_by_which_the_provider_throttles_are_counted_once_and_refusals_of_its_own_are_not(
    provider: StandIn, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(limits("openai", provider.url, {"requestsPerMinute": 3}))
    async with running(*with_envoy(file, "--usage-source", source)) as program:
        answers = [(await call(program, status=status))[0] for status in (503, 500, 429, 200)]
        told = await program.until(lambda told: told["totals"]["refunded"] == 3)
        _, metrics = await program.get("/metrics")

    assert answers == [503, 500, 429, 429]
    assert told["recent"] == {
        "seconds": 300,
        "providers": {
            "openai": {
                "admitted": 3,
                "rejected": 1,
                "wouldReject": 0,
                "committed": 0,
                "estimated": 0,
                "refunded": 3,
                "expired": 0,
                "untold": 0,
                "throttled": 2,
                "overloaded": 1,
                "lastThrottledStatus": 429,
                "committedTokens": 0,
                "estimateErrorTokens": 0,
                "underestimated": 0,
            }
        },
    }
    assert told["buckets"][0]["recentlyRejected"] == 1
    for kind in ("RateLimited", "Overloaded"):
        assert f'sluice_provider_throttled_total{{kind="{kind}",provider="openai"}} 1.0\n' in metrics


async def test_neither_key_nor_header_nor_body_is_in_its_log(file: Path) -> None:
    async with running(*with_envoy(file)) as program:
        await call(program, user="user-in-a-header")
        await call(program, user="user-in-a-header", status=500)
        await program.end()

    log = "\n".join(program.lines)
    assert [secret for secret in (KEY, "user-in-a-header", "a secret of the prompt") if secret in log] == []


async def test_a_json_log_is_json_line_by_line(file: Path) -> None:
    async with running(*with_envoy(file, "--log-format", "json")) as program:
        await program.end()

    lines = [json.loads(line) for line in program.lines]
    assert all(line.keys() == {"time", "level", "logger", "message"} for line in lines)
    assert {line["logger"] for line in lines} == {"sluice_sidecar.app"}


async def test_without_envoy_it_serves_where_it_is_told_to(file: Path, folder: Path) -> None:
    gate = folder / "gate.sock"
    async with running("-f", file, "--socket", gate, "--grpc", "127.0.0.1:0") as program:
        ready = await program.line("ready:")
        for target in (f"unix:{gate}", ready.rpartition(" and ")[2].partition(";")[0]):
            async with grpc.aio.insecure_channel(target) as channel:
                check = channel.unary_unary(
                    "/grpc.health.v1.Health/Check",
                    health_pb2.HealthCheckRequest.SerializeToString,
                    health_pb2.HealthCheckResponse.FromString,
                )
                answer = await check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert children(program.process.pid) == []
        assert await program.end() == 0


async def test_the_environment_names_a_subject(provider: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    entry = {"scope": "Org", "subject": {"env": "TEAM"}, "requestsPerMinute": 5}
    file.write_text(limits("openai", provider.url, entry))
    async with running(*with_envoy(file), TEAM="team-a") as program:
        await call(program)

        assert [bucket["subject"] for bucket in (await program.status())["buckets"]] == ["team-a"]


# -- the end -------------------------------------------------------------------------------------------------------


async def test_sigterm_lets_streams_end_and_their_commits_land(file: Path, provider: StandIn) -> None:
    async with running(*with_envoy(file)) as program:
        calls = [
            asyncio.create_task(call(program, body=STREAM, hold="middle", input_tokens=30, output_tokens=12))
            for _ in range(200)
        ]
        await provider.until(lambda p: p.held == 200)
        program.process.terminate()
        await program.line("stopping")
        assert (await program.get("/readyz"))[0] == 503
        provider.let_go()
        answers = await asyncio.gather(*calls)

        assert await program.ended() == 0
        assert {status for status, _ in answers} == {200}
        assert all(body.endswith(b"data: [DONE]\n\n") for _, body in answers)
        assert "200 calls admitted, 200 committed, 0 estimated, 0 refunded" in await program.line(
            "every call has ended"
        )


async def test_a_queued_call_is_served_before_the_end(provider: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(limits("openai", provider.url, {"maxConcurrent": 1, "maxWait": "20s"}))
    async with running(*with_envoy(file)) as program:
        first = asyncio.create_task(call(program, hold="start"))
        await provider.until(lambda p: p.held == 1)
        second = asyncio.create_task(call(program))
        await program.until(lambda told: told["totals"]["queued"] == 1)
        program.process.terminate()
        await program.line("stopping")
        provider.let_go()

        assert [(await task)[0] for task in (first, second)] == [200, 200]
        assert await program.ended() == 0


async def test_a_call_that_outlasts_the_grace_period_is_cut(file: Path, provider: StandIn) -> None:
    async with running(*with_envoy(file, "--grace", "1s")) as program:
        endless = asyncio.create_task(call(program, body=STREAM, hold="middle"))
        await provider.until(lambda p: p.held == 1)

        assert await program.end() == 0
        assert "1 call is cut" in await program.line("cut")
        with pytest.raises(aiohttp.ClientError):
            await endless


async def test_a_second_signal_ends_it_at_once(file: Path, provider: StandIn) -> None:
    async with running(*with_envoy(file, "--grace", "10m")) as program:
        endless = asyncio.create_task(call(program, body=STREAM, hold="middle"))
        await provider.until(lambda p: p.held == 1)
        (envoy,) = children(program.process.pid)
        program.process.send_signal(signal.SIGINT)
        await program.line("stopping")

        assert await program.end(signal.SIGINT) == 1
        assert await has_ended(envoy)
        with pytest.raises(aiohttp.ClientError):
            await endless


async def test_a_signal_during_the_start_ends_it(file: Path) -> None:
    async with running(*with_envoy(file), ready=False) as program:
        await eventually(lambda: has_child(program), seconds=READY_SECONDS)
        assert await program.end() == 0


async def test_a_gate_that_is_killed_leaves_no_envoy_behind(file: Path, folder: Path) -> None:
    async with running(*with_envoy(file), TMPDIR=str(folder)) as program:
        (envoy,) = children(program.process.pid)
        await program.end(signal.SIGKILL)
        await eventually(lambda: has_ended(envoy))


async def test_it_ends_with_its_envoy_and_says_how_that_ended(file: Path) -> None:
    async with running(*with_envoy(file)) as program:
        (envoy,) = children(program.process.pid)
        os.kill(envoy, signal.SIGKILL)

        assert await program.ended() == 1
    assert program.lines[-1] == "sluice: Envoy was killed by SIGKILL"


async def test_it_leaves_no_file_behind(file: Path, folder: Path) -> None:
    async with running(*with_envoy(file), TMPDIR=str(folder)) as program:
        modes = {path.name[:7]: path.stat().st_mode & 0o777 for path in folder.iterdir()}  # noqa: ASYNC240
        await program.end()

    assert modes == {"sluice-": 0o700}
    assert list(folder.iterdir()) == []  # noqa: ASYNC240


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_bad_limits_are_told_one_a_line_and_nothing_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(limits("openai", "http://127.0.0.1:1", {"requestsPerMinute": -1, "maxWait": "soon"}))

    ended = await sluice("run", "-f", bad, "--envoy")

    assert (ended.code, ended.out) == (2, "")
    assert [line.partition(": ")[0] for line in ended.err.splitlines()] == [str(bad)] * 2


async def test_a_port_in_use_is_said_in_a_sentence(file: Path, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        admin = await sluice("run", "-f", file, "--socket", folder / "gate.sock", "--admin", port)
        services = await sluice("run", "-f", file, "--grpc", port, "--admin", "127.0.0.1:0")
        calls = await sluice("run", "-f", file, "--envoy", "--listen", port, "--admin", "127.0.0.1:0")

    assert [ended.code for ended in (admin, services, calls)] == [1, 1, 1]
    assert admin.err == f"sluice: --admin {port}: cannot be served: Address already in use\n"
    assert services.err == f"sluice: cannot serve gRPC at {port}: is it in use?\n"
    assert calls.err == f"sluice: --listen {port}: Address already in use\n"


async def test_two_gates_do_not_share_a_port(file: Path) -> None:
    async with running(*with_envoy(file)) as program:
        address = program.url.removeprefix("http://")
        second = await sluice("run", "-f", file, "--envoy", "--listen", address, "--admin", "127.0.0.1:0")

    assert (second.code, second.err) == (1, f"sluice: --listen {address}: Address already in use\n")


async def test_a_closed_terminal_ends_it_like_a_signal_to_end(file: Path) -> None:
    async with running(*with_envoy(file)) as program:
        assert await program.end(signal.SIGHUP) == 0
    assert "every call has ended" in program.lines[-1]


async def test_an_envoy_that_is_not_there_is_said_in_a_sentence(file: Path) -> None:
    ended = await sluice("run", "-f", file, "--envoy", "--admin", "127.0.0.1:0", "--envoy-binary", "/nowhere/envoy")

    assert (ended.code, ended.err) == (
        1,
        "sluice: no Envoy at /nowhere/envoy: give --envoy-binary PATH, or set SLUICE_ENVOY\n",
    )


async def test_a_socket_is_taken_over_from_a_gate_that_was_killed_and_from_no_other(file: Path, folder: Path) -> None:
    arguments = ("-f", file, "--socket", folder / "gate.sock")
    async with running(*arguments) as first:
        second = await sluice("run", *arguments, "--admin", "127.0.0.1:0")
        await first.end(signal.SIGKILL)
    async with running(*arguments) as third:
        assert await third.end() == 0

    assert (second.code, second.err) == (1, f"sluice: {folder / 'gate.sock'}: another program serves there\n")


async def test_a_temporary_folder_that_is_too_long_for_sockets_is_said(file: Path, folder: Path) -> None:
    long = folder / ("x" * 100)
    long.mkdir()

    ended = await sluice("run", "-f", file, "--envoy", "--admin", "127.0.0.1:0", TMPDIR=str(long))

    assert ended.code == 1
    assert "at most 107: choose a shorter one, by setting TMPDIR" in ended.err


async def test_what_ends_it_is_in_a_json_log_too(tmp_path: Path) -> None:
    ended = await sluice("run", "-f", tmp_path / "absent.yaml", "--envoy", "--log-format", "json")

    assert ended.code == 2
    assert [json.loads(line)["message"] for line in ended.err.splitlines()] == [
        f"{tmp_path / 'absent.yaml'}: cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "-f", "x"], "say how Envoy reaches the gate: --envoy"),
        (["run", "--envoy"], "the following arguments are required: -f/--file"),
        (["run", "-f", "x", "--socket", "/" + "x" * 107], "a Unix socket's path has at most 107"),
        (["run", "-f", "x", "--envoy", "--lease", "2"], "'2' is not a duration: write 500ms, 2s"),
        (["run", "-f", "x", "--envoy", "--listen", "10000"], "'10000' is not an address"),
        (["run", "-f", "x", "--envoy", "--lease", "0s"], "'0s' would give up every call"),
        (["run", "-f", "x", "--envoy", "--log-format", "xml"], "--log-format: 'xml' is not one of text, json\n"),
        (
            ["run", "-f", "x", "--grpc", "127.0.0.1:0", "--listen", "127.0.0.1:0"],
            "--listen and --envoy-binary are about",
        ),
        (["run", "-f", "x", "--grpc", "127.0.0.1:0", "--ca-bundle", "x"], "--ca-bundle is written into Envoy's files"),
        (["envoy-config", "-f", "x", "--grpc", "127.0.0.1:1", "--socket", "/x"], "not allowed with argument"),
        (["check"], "name the limits documents"),
        (["status", "--wach"], "usage: sluice status "),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
async def test_arguments_that_cannot_be_meant_are_bad_input(arguments: list[str], complaint: str) -> None:
    ended = await sluice(*arguments)

    assert ended.code == 2
    assert complaint in ended.err


# -- the other commands --------------------------------------------------------------------------------------------


async def test_check_says_what_each_document_puts_in_force(file: Path, provider: StandIn) -> None:
    ended = await sluice("check", "-f", file)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"{file}: openai: provider openai, OpenAI at {provider.url}\n"
        "  failurePolicy Allow, streamUsage Estimate, sharing Exact, estimation.mode Declared\n"
        "  User (header x-user-id): requestsPerMinute 1000, tokensPerMinute 100000, maxConcurrent 500, maxWait 0s, "
        "mode Enforce, failurePolicy LocalShare\n"
    )


async def test_check_says_which_profiles_of_ones_own_hold(tmp_path: Path) -> None:
    profile, file = tmp_path / "profiles" / "acme.yaml", tmp_path / "limits.yaml"
    profile.parent.mkdir()
    profile.write_text("provider: acme\nlike: anthropic\nupstream: https://llm.acme.example\n")
    file.write_text(
        "apiVersion: sluice.dev/v1alpha1\nkind: ProviderLimits\nmetadata: {name: acme}\n"
        "spec: {provider: acme, profile: {counting: {combine: Largest}}}\n"
    )

    known = await sluice("check", "--profiles", profile.parent, file)
    unknown = await sluice("check", file)

    assert (known.code, known.err) == (0, "")
    assert known.out == (
        f"{file}: acme: provider acme, Anthropic at https://llm.acme.example\n"
        f"  failurePolicy Allow, streamUsage Estimate, sharing Exact, estimation.mode Learned, profile from {profile}, "
        "profile from spec.profile, no limits\n"
    )
    assert unknown.code == 2
    assert unknown.err.count("the provider's file in --profiles may say it instead\n") == 2


async def test_check_takes_a_file_without_its_flag_too(file: Path) -> None:
    ended = await sluice("check", file)

    assert (ended.code, ended.out.splitlines()[0].partition(": ")[0]) == (0, str(file))


DOCUMENT = """
apiVersion: sluice.dev/v1alpha1
kind: ProviderLimits
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  provider: openai
  limits: [{{scope: User, subject: {{apiKey: true}}, requestsPerMinute: 1}}]
"""


def write_documents(folder: Path, *places: tuple[str, str]) -> None:
    for name, namespace in places:
        (folder / f"{name}.yaml").write_text(DOCUMENT.format(name=name, namespace=namespace))


async def test_render_prints_for_each_namespace_limits_that_can_be_read_and_the_gateways_bootstrap(
    tmp_path: Path,
) -> None:
    write_documents(tmp_path, ("first", "team-b"), ("second", "team-a"))

    ended = await sluice("render", "-f", tmp_path)

    assert (ended.code, ended.err) == (0, "")
    config_maps = list(yaml.safe_load_all(ended.out))
    assert [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in config_maps] == [
        (namespace, name) for namespace in ("team-a", "team-b") for name in ("sluice-limits", "sluice-envoy")
    ]
    assert [each["data"] for each in config_maps[1::2]] == [{"bootstrap.json": GATEWAY.read_text()}] * 2
    texts = [each["data"]["limits.yaml"] for each in config_maps[::2]]
    assert [[document.name for document in parse(text, "")] for text in texts] == [["second"], ["first"]]
    assert [each["metadata"]["annotations"]["sluice.dev/content-hash"] for each in config_maps[::2]] == [
        content_hash(text) for text in texts
    ]


async def test_render_tells_what_contradicts_in_one_namespace(tmp_path: Path) -> None:
    write_documents(tmp_path, ("first", "team"), ("second", "team"))

    ended = await sluice("render", "-f", tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"{tmp_path}/second.yaml: ProviderLimits/second: spec.limits[0]: is for the same calls as spec.limits[0] of "
        f"ProviderLimits/first in {tmp_path}/first.yaml: keep one of them\n"
    )


async def test_check_tells_every_mistake_of_every_file(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("kind: Mistake")

    ended = await sluice("check", "-f", tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert {line.partition(": ")[0] for line in ended.err.splitlines()} == {
        str(tmp_path / "a.yaml"),
        str(tmp_path / "b.yaml"),
    }


async def test_status_is_a_table_or_json_of_the_buckets_asked_for(file: Path, folder: Path) -> None:
    admin = folder / "admin.sock"
    async with running(*with_envoy(file, "--admin", admin)) as program:
        for user in ("alice", "bob"):
            await call(program, user=user)
        table = await sluice("status", "--admin", admin)
        bob = await sluice("status", "--admin", admin, "--subject", "bob", "-o", "json")
        nonsense = await sluice("status", "--admin", admin, "--scope", "Planet")

    assert [line.split()[:3] for line in table.out.splitlines()[:1]] == [["PROVIDER", "SCOPE", "SUBJECT"]]
    assert {line.split()[2] for line in table.out.splitlines()[1:3]} == {"alice", "bob"}
    assert [bucket["subject"] for bucket in json.loads(bob.out)["buckets"]] == ["bob"]
    assert nonsense.code == 2


async def test_status_without_a_gate_fails_in_a_sentence(folder: Path) -> None:
    ended = await sluice("status", "--admin", folder / "admin.sock")

    assert ended.code == 1
    assert ended.err.startswith(f"sluice: no gate answers at unix:{folder / 'admin.sock'}: ")
    assert len(ended.err.splitlines()) == 1


async def test_envoy_config_prints_a_bootstrap_and_writes_what_it_follows(file: Path, folder: Path) -> None:
    xds = folder / "xds"

    ended = await sluice("envoy-config", "-f", file, "--grpc", "127.0.0.1:9000", "--xds", xds)

    assert ended.code == 0
    assert json.loads(ended.out)["dynamicResources"]["cdsConfig"]["pathConfigSource"]["path"] == str(
        xds / "clusters.json"
    )
    assert {"clusters.json", "routes.json"} <= {path.name for path in xds.iterdir()}


async def test_an_envoy_without_the_usage_filter_sends_the_body_to_the_gate(file: Path) -> None:
    ended = await sluice("envoy-config", "-f", file, "--usage-source", "body")

    assert ended.code == 0
    assert '"responseBodyMode": "STREAMED"' in ended.out
    assert "ai_protocol_manager" not in ended.out


async def test_the_version_is_the_library_s() -> None:
    assert (await sluice("--version")).out == f"sluice {__version__}\n"


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["render"], ["status"], ["envoy-config"]])
async def test_help_has_examples(command: list[str]) -> None:
    ended = await sluice(*command, "--help")

    assert ended.code == 0
    assert "examples:\n  sluice " in ended.out
