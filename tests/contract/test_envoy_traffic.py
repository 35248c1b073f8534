"""What a real Envoy does with a call: to the provider, from the gate, to the usage stream, and while limits change."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from envoy.service.ratelimit.v3 import rls_pb2

from helpers.envoy import free_port
from helpers.mesh import CA_BUNDLE, SUBJECTS, TLS, Mesh, limits_of, running_mesh
from helpers.recording import Answer, Observed, RecordingProvider, admitted, post, providing, send
from sluice.config.merge import merge
from sluice.config.types import FailurePolicy, SubjectKind, SubjectSource
from sluice.core.limits import SECOND, Limits
from sluice.usage.profiles import Api
from sluice_sidecar.envoy_config import UsageSource

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
CHAT = "/openai/v1/chat/completions"
STRICT = "/strict/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest.fixture
def mesh(shared: Mesh) -> Mesh:
    shared.gate.verdict = None
    shared.provider.answer = RecordingProvider.ok
    return shared


def in_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def answering(
    body: bytes, content_type: str = "application/json", status: int = 200
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, status=status)

    return answer


async def stream_of_next(mesh: Mesh, request: bytes) -> tuple[Answer, Observed]:
    """One call, and its usage stream when that is over."""
    before = len(mesh.gate.streams)
    call = await mesh.call(request)
    await mesh.gate.until(lambda: len(mesh.gate.streams) > before and mesh.gate.streams[before].ended.is_set())
    return call.answer, mesh.gate.streams[before]


# To the provider and back


async def test_a_provider_sees_the_call_and_nothing_of_envoy(mesh: Mesh) -> None:
    steering = (
        *("x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-upstream-rq-per-try-timeout-ms: 1", "x-envoy-retry-on: 5xx"),
        *("x-envoy-max-retries: 5", "x-envoy-decorator-operation: forged", "x-envoy-internal: true"),
        *("x-envoy-hedge-on-per-try-timeout: true", "x-envoy-upstream-rq-timeout-alt-response: 204"),
    )
    removed = ("x-forwarded-for: 10.0.0.1", "accept-encoding: gzip", "x-user-id: alice")
    kept = ("authorization: Bearer sk-1", "x-request-id: mine", "user-agent: app/1")
    call = await mesh.call(post(CHAT, b"{}", *steering, *removed, *kept))
    assert [f"{name}: {value}" for name, value in call.received[0].headers] == [
        f"host: 127.0.0.1:{mesh.provider_port}",
        "content-length: 2",
        *kept,
        "content-type: application/json",
    ]
    assert set(call.answer.headers) == {"content-type", "content-length", "date", "server"}
    assert "Envoy" not in call.answer.headers["server"]


async def test_a_call_is_never_tried_again_nor_cut_short_at_the_callers_word(mesh: Mesh) -> None:
    mesh.provider.answer = answering(b"{}", status=503)
    call = await mesh.call(post(CHAT, b"{}", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 3"))
    assert (call.answer.status, len(call.received)) == (503, 1)

    async def slow(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return web.Response()

    mesh.provider.answer = slow
    call = await mesh.call(post(CHAT, b"{}", "x-envoy-upstream-rq-timeout-ms: 1"))
    assert (call.answer.status, len(call.received)) == (200, 1)


async def test_a_body_of_20_mib_passes_and_one_over_32_mib_is_refused_in_words(mesh: Mesh) -> None:
    body = b'{"model": "gpt-5", "x": "' + b"y" * 20 * MIB + b'"}'
    call = await mesh.call(post(CHAT, body))
    assert (call.answer.status, call.facts["bytes"], call.facts["model"]) == (200, str(len(body)), "gpt-5")
    assert len(call.received[0].body) == len(body)

    call = await mesh.call(post(CHAT, b"y" * (32 * MIB + 1)))
    assert (call.answer.status, call.asked, call.received) == (413, [], [])
    assert "larger than 33554432 bytes" in json.loads(call.answer.body)["error"]["message"]


async def test_a_thousand_and_more_calls_are_under_way_at_once(mesh: Mesh) -> None:
    many = 1100  # Envoy's own bound on calls, connections and streams is 1024
    arrived, go = asyncio.Semaphore(0), asyncio.Event()

    async def held(_request: web.BaseRequest) -> web.StreamResponse:
        arrived.release()
        await go.wait()
        return web.Response()

    mesh.provider.answer = held
    calls = [asyncio.create_task(send(mesh.port, post(CHAT), seconds=40)) for _ in range(many)]
    async with asyncio.timeout(30):
        for _ in range(many):
            await arrived.acquire()
    go.set()
    assert {answer.status for answer in await asyncio.gather(*calls)} == {200}


# The gate's word


async def test_a_refusal_of_the_gate_reaches_the_caller_as_it_is(mesh: Mesh) -> None:
    async def refuse(_request: Any) -> Any:
        answer = rls_pb2.RateLimitResponse(
            overall_code=rls_pb2.RateLimitResponse.OVER_LIMIT, raw_body=b'{"error": "no"}'
        )
        answer.response_headers_to_add.add(key="content-type", value="application/json")
        answer.response_headers_to_add.add(key="retry-after", value="3")
        return answer

    mesh.gate.verdict = refuse
    for target in (CHAT, STRICT):
        call = await mesh.call(post(target))
        headers = {name: call.answer.headers[name] for name in ("content-type", "retry-after")}
        assert headers == {"content-type": "application/json", "retry-after": "3"}
        assert (call.answer.status, call.answer.body, call.received) == (429, b'{"error": "no"}', [])
        assert not [name for name in call.answer.headers if name.startswith("x-envoy")]


async def fails(_request: Any) -> Any:
    raise RuntimeError("the gate is broken")


async def test_a_broken_gate_lets_pass_or_denies_as_each_provider_says(mesh: Mesh) -> None:
    mesh.gate.verdict = fails
    assert (await mesh.call(post(CHAT))).answer.status == 200
    call = await mesh.call(post(STRICT))
    assert (call.answer.status, call.received) == (503, [])
    assert call.answer.headers["content-type"] == "application/json"
    assert "failurePolicy is Deny" in json.loads(call.answer.body)["error"]["message"]


async def test_a_gate_that_does_not_answer_is_waited_for_so_long_and_no_longer() -> None:
    async def hangs(_request: Any) -> Any:
        await asyncio.sleep(60)

    loop = asyncio.get_running_loop()
    async with running_mesh(rls_timeout=timedelta(milliseconds=300)) as mesh:
        mesh.gate.verdict = hangs
        for target, status in ((CHAT, 200), (STRICT, 503)):
            started = loop.time()
            assert (await mesh.call(post(target))).answer.status == status
            # No upper bound but that of `call` itself, far below a minute: the machine may be busy.
            assert loop.time() - started > 0.25


async def test_a_gate_that_is_gone_lets_pass_or_denies_as_each_provider_says() -> None:
    async with running_mesh() as mesh:
        (mesh.folder / "gate.sock").unlink()
        for target, status in ((CHAT, 200), (STRICT, 503)):
            assert (await mesh.call(post(target))).answer.status == status


# The usage stream

OPENAI_USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
GEMINI_USAGE = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}}
WHOLE = ["request_headers", "response_headers", "response_trailers"]


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + in_json(event) + b"\n\n" for event in events)


@pytest.mark.parametrize(
    ("target", "answer", "content_type", "usage"),
    [
        (CHAT, in_json(OPENAI_USAGE), "application/json", (3, 4)),
        (CHAT, sse({"choices": [1], "usage": None}, OPENAI_USAGE) + b"data: [DONE]\n\n", "text/event-stream", (3, 4)),
        (CHAT, sse(*[{"choices": [1]}] * 20_000, OPENAI_USAGE), "text/event-stream", (3, 4)),
        (CHAT, in_json({"x": "y" * 9 * MIB, **OPENAI_USAGE}), "application/json", (3, 4)),
        (
            "/openai/v1/embeddings",
            in_json({"usage": {"prompt_tokens": 3, "total_tokens": 3}}),
            "application/json",
            (3, 0),
        ),
        (
            "/openai/v1/responses",
            in_json({"usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}),
            "application/json",
            (3, 4),
        ),
        (
            "/anthropic/v1/messages",
            in_json({"usage": {"input_tokens": 3, "output_tokens": 4}}),
            "application/json",
            (3, 4),
        ),
        ("/gemini/v1beta/models/m:generateContent", in_json(GEMINI_USAGE), "application/json", (3, 4)),
        ("/gemini/v1beta/models/m:streamGenerateContent", in_json([{}, GEMINI_USAGE]), "application/json", (3, 4)),
        ("/gemini/v1beta/models/m:streamGenerateContent?alt=sse", sse(GEMINI_USAGE), "text/event-stream", (3, 4)),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
async def test_envoy_reads_the_usage_and_tells_it_with_the_lease(
    mesh: Mesh, target: str, answer: bytes, content_type: str, usage: tuple[int, int]
) -> None:
    mesh.provider.answer = answering(answer, content_type)
    _, stream = await stream_of_next(mesh, post(target))
    assert (stream.kinds, stream.usage) == (WHOLE, usage)
    assert stream.lease == mesh.gate.leases[-1]


async def test_an_answer_without_usage_ends_its_stream_all_the_same(mesh: Mesh) -> None:
    for answer, content_type in ((b"{}", "text/plain"), (b"", "application/json")):
        mesh.provider.answer = answering(answer, content_type)
        _, stream = await stream_of_next(mesh, post(CHAT))
        assert (stream.kinds, stream.usage) == (["request_headers", "response_headers"], None)


async def test_the_gate_is_shown_the_headers_it_needs_and_no_secret(mesh: Mesh) -> None:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        shown = {"retry-after": "3", "x-ratelimit-remaining-tokens": "9", "x-usage-total-tokens": "7"}
        return web.json_response({}, headers={**shown, "set-cookie": "SECRET", "x-anything": "else"})

    mesh.provider.answer = answer
    secrets = ("authorization: Bearer SECRET", "api-key: SECRET", "cookie: SECRET", "x-user-id: SECRET")
    _, stream = await stream_of_next(mesh, post(f"{CHAT}?key=SECRET", b'{"secret": "SECRET"}', *secrets))
    assert stream.headers("request_headers") == {"content-type": "application/json"}
    assert stream.headers("response_headers") == {
        ":status": "200",
        "content-type": "application/json; charset=utf-8",
        "retry-after": "3",
        "x-ratelimit-remaining-tokens": "9",
        "x-usage-total-tokens": "7",
    }
    assert "SECRET" not in "".join(str(message) for _, message in stream.messages)
    assert "SECRET" not in mesh.envoy.log


async def test_no_usage_of_short_calls_is_lost(mesh: Mesh) -> None:
    before = len(mesh.gate.streams)
    for _ in range(10):
        await asyncio.gather(*(send(mesh.port, post(CHAT)) for _ in range(50)))
    await mesh.gate.until(lambda: all(stream.ended.is_set() for stream in mesh.gate.streams[before:]))
    assert [stream.usage for stream in mesh.gate.streams[before:]] == [(3, 4)] * 500


async def test_a_call_without_a_lease_has_none(mesh: Mesh) -> None:
    mesh.gate.verdict = fails
    _, stream = await stream_of_next(mesh, post(CHAT))
    assert stream.lease == ""


async def test_the_gate_is_told_at_once_of_a_call_that_was_cut(mesh: Mesh) -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        await over.wait()
        return answer

    async def broken_off(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        assert request.transport is not None
        request.transport.close()
        return answer

    over = asyncio.Event()
    mesh.provider.answer = endless
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(post(CHAT))
    await reader.readuntil(b"data: 1")
    client_left = mesh.gate.leases[-1]
    writer.close()
    await mesh.gate.until(lambda: client_left in mesh.gate.cut)
    assert mesh.gate.cut[client_left] == "text/event-stream"
    over.set()

    mesh.provider.answer = broken_off
    with pytest.raises(asyncio.IncompleteReadError):
        await mesh.call(post(CHAT))
    provider_left = mesh.gate.leases[-1]
    await mesh.gate.until(lambda: provider_left in mesh.gate.cut)

    mesh.provider.answer = RecordingProvider.ok
    await stream_of_next(mesh, post(CHAT))
    assert mesh.gate.leases[-1] not in mesh.gate.cut


async def test_the_other_usage_source_brings_the_body() -> None:
    async with running_mesh(usage=UsageSource.BODY) as mesh:
        body = in_json({"x": "y" * 100_000, **OPENAI_USAGE})
        mesh.provider.answer = answering(body)
        _, stream = await stream_of_next(mesh, post(CHAT))
        parts = [message.response_body for kind, message in stream.messages if kind == "response_body"]
        assert (b"".join(part.body for part in parts), parts[-1].end_of_stream) == (body, True)
        assert (stream.kinds[:2], stream.usage) == (["request_headers", "response_headers"], None)


# To the provider by TLS


def tls_server(alpn: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    context.set_alpn_protocols(alpn)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "status"),
    [("localhost", CA_BUNDLE, 200), ("127.0.0.1", CA_BUNDLE, 503), ("localhost", None, 503)],
    ids=["known", "another name", "unknown authority"],
)
async def test_a_provider_is_who_its_certificate_says_or_is_not_spoken_to(
    name: str, trusted: Path | None, status: int
) -> None:
    port = free_port()
    configuration = merge([limits_of("openai", Api.OPENAI, f"https://{name}:{port}", User=SUBJECTS["header"])])
    provider = RecordingProvider()
    async with (
        providing(provider, port, tls_server(["http/1.1"])),
        running_mesh(configuration, ca_bundle=trusted) as mesh,
    ):
        assert (await mesh.call(post(CHAT))).answer.status == status
        assert [received.header("host") for received in provider.received] == [[f"{name}:{port}"]] * (status == 200)


async def breaks_off(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_a_provider_that_cannot_be_reached_is_named_in_the_form_of_an_error(mesh: Mesh) -> None:
    mesh.provider.answer = breaks_off
    upstreams = {
        "nowhere": "http://no-such-host.invalid",
        "shut": "http://127.0.0.1:1",
        "plain": f"https://127.0.0.1:{mesh.provider_port}",
        "rude": f"http://127.0.0.1:{mesh.provider_port}",
    }
    documents = [limits_of(name, Api.OPENAI, url, User=SUBJECTS["header"]) for name, url in upstreams.items()]
    told = {}
    async with running_mesh(merge(documents)) as other:
        for name in upstreams:
            answer = await send(other.port, post(f"/{name}/v1/chat/completions", b"{}"))
            assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
            error = json.loads(answer.body)["error"]
            assert (error["type"], error["code"]) == ("api_error", 503)
            told[name] = error["message"]
    no_connection = "cannot be reached: no connection, or none that is trusted, could be made"
    assert told == {
        "nowhere": "the provider nowhere cannot be reached: its name leads to no address now",
        "shut": f"the provider shut {no_connection}",
        "plain": f"the provider plain {no_connection}",
        "rude": "the provider rude broke the connection off before it answered",
    }


async def test_http_2_is_spoken_to_a_provider_that_offers_it() -> None:
    port = free_port()
    configuration = merge([limits_of("openai", Api.OPENAI, f"https://localhost:{port}", User=SUBJECTS["header"])])
    async with (
        providing(RecordingProvider(), port, tls_server(["h2", "http/1.1"])),
        running_mesh(configuration, ca_bundle=CA_BUNDLE) as mesh,
    ):
        await mesh.call(post(CHAT))  # fails: this server offers what it cannot speak
        assert await asyncio.to_thread(mesh.envoy.stat, "cluster.provider/openai.upstream_cx_http2_total") == 1


# While limits change


async def test_changed_limits_are_in_force_at_once_and_no_call_is_cut() -> None:
    async def held(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first ")
        await go.wait()
        await answer.write(b"last")
        return answer

    go = asyncio.Event()
    header, other = SUBJECTS["header"], SubjectSource(SubjectKind.HEADER, "x-person")
    async with running_mesh(live=True) as mesh:
        upstream, elsewhere = f"http://127.0.0.1:{mesh.provider_port}", free_port()
        mesh.provider.answer = held
        under_way = asyncio.create_task(send(mesh.port, post(CHAT)))
        await mesh.gate.until(lambda: any("response_headers" in stream.kinds for stream in mesh.gate.streams))
        mesh.provider.answer = RecordingProvider.ok

        # A new provider.
        mesh.write(
            limits_of("openai", Api.OPENAI, upstream, User=header),
            limits_of("new", Api.ANTHROPIC, upstream, User=header),
        )
        await eventually(mesh, "/new/v1/messages", lambda call: call.answer.status == 200)
        # A new subject, and another failure policy.
        mesh.write(limits_of("openai", Api.OPENAI, upstream, failure_policy=FailurePolicy.DENY, User=other))
        await eventually(mesh, CHAT, lambda call: call.asked and "user" in dict(call.asked[0]), "x-person: bob")
        await eventually(mesh, "/new/v1/messages", lambda call: call.answer.status == 404)
        mesh.gate.verdict = fails
        await eventually(mesh, CHAT, lambda call: call.answer.status == 503)
        mesh.gate.verdict = None
        # Another upstream, and a longer wait.
        async with providing(RecordingProvider(), elsewhere) as other_provider:
            wait = Limits(max_concurrent=1, max_wait=SECOND)
            mesh.write(limits_of("openai", Api.OPENAI, f"http://127.0.0.1:{elsewhere}", wait, User=header))
            await eventually(mesh, CHAT, lambda _: bool(other_provider.received))
            mesh.gate.verdict = later
            await eventually(mesh, CHAT, lambda call: call.answer.status == 200)
            assert dict(mesh.gate.asked[-1])["provider"] == "openai"
        # Nothing at all.
        mesh.gate.verdict = None
        mesh.write()
        await eventually(mesh, CHAT, lambda call: call.answer.status == 404)

        go.set()
        assert (await under_way).body == b"first last"


async def later(_request: Any) -> Any:
    """After longer than a gate without waits has to answer."""
    await asyncio.sleep(1.2)
    return admitted("late")


async def eventually(mesh: Mesh, target: str, holds: Callable[[Any], Any], *headers: str) -> None:
    """Calls until it holds. It takes some 50 ms; a busy machine has more, but not for ever."""
    async with asyncio.timeout(5):
        while not holds(await mesh.call(post(target, b"{}", *headers))):
            pass


async def test_files_that_envoy_cannot_use_change_nothing() -> None:
    two_for_all = [{"name": name, "domains": ["*"]} for name in ("one", "two")]
    routes = {"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "sluice-routes"}
    unusable = {
        "update_failure": b"{",
        "update_rejected": in_json({"resources": [{**routes, "virtualHosts": two_for_all}]}),
    }
    async with running_mesh(live=True) as mesh:
        for outcome, content in unusable.items():
            for file in sorted((mesh.folder / "xds").glob("*.json")):
                (mesh.folder / "xds" / ".new").write_bytes(content)
                (mesh.folder / "xds" / ".new").replace(file)
            async with asyncio.timeout(5):
                while not await asyncio.to_thread(mesh.envoy.stat, f"http.egress.rds.sluice-routes.{outcome}"):
                    pass
        call = await mesh.call(post(CHAT, b'{"model": "gpt-5"}', "x-user-id: alice"))
        assert call.answer.status == 200
        assert call.facts == {
            "provider": "openai",
            "api": "completions",
            "user": "alice",
            "bytes": "18",
            "model": "gpt-5",
        }
