"""Streams whose usage nobody asked for, through a real Envoy: what the provider is sent, and what its caller sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from helpers.envoy import free_port, running_envoy, short_folder
from helpers.mesh import SUBJECTS, Mesh, limits_of, running_mesh
from helpers.recording import Observed, RecordingProvider, post, send
from sluice.config.merge import Configuration, merge
from sluice.config.types import StreamUsage
from sluice.usage.profiles import BUILT_IN, Api
from sluice.usage.readers import reader_for
from sluice_sidecar.envoy_config import facts

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKING = "/asking/v1/chat/completions"
GUESSING = "/guessing/v1/chat/completions"


def configuration(upstream: str) -> Configuration:
    """Two providers: one is asked for what its callers do not ask for, the other's answers are read."""
    limits = [limits_of(name, Api.OPENAI, upstream, User=SUBJECTS["header"]) for name in ("asking", "guessing")]
    return merge([replace(limits[0], stream_usage=StreamUsage.INJECT), limits[1]])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Mesh]:
    async with running_mesh(configuration) as mesh:
        yield mesh


@pytest.fixture
def mesh(shared: Mesh) -> Mesh:
    shared.provider.answer = RecordingProvider.ok
    return shared


def chunk(**members: object) -> bytes:
    whole = {"id": "c", "object": "chat.completion.chunk", **members}
    return b"data: " + json.dumps(whole, separators=(",", ":")).encode() + b"\n\n"


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1}}
SAID = chunk(choices=[{"delta": {"content": 'of "choices":[] and "usage":{}'}}], usage=None)
STOPPED = chunk(choices=[{"delta": {}, "finish_reason": "stop"}], usage=None)
TOLD = chunk(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
STREAM = (SAID, STOPPED, TOLD, DONE)


def streaming(
    *parts: bytes, content_type: str = "text/event-stream"
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": content_type})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return answer


async def answered(mesh: Mesh, target: str, body: bytes, parts: Iterable[bytes] = STREAM) -> tuple[bytes, Observed]:
    """What the caller of a stream is answered, and what the gate is told of it."""
    mesh.provider.answer = streaming(*parts)
    before = len(mesh.gate.streams)
    call = await mesh.call(post(target, body))
    await mesh.gate.until(lambda: len(mesh.gate.streams) > before and mesh.gate.streams[before].ended.is_set())
    return call.answer.body, mesh.gate.streams[before]


SET = b'"stream_options":{"include_usage":true}'
# What a caller sends, and what its provider gets.
EDITS: dict[bytes, bytes] = {
    b'{"stream":true}': b"{" + SET + b',"stream":true}',
    b' {"model": "m",\n "stream" : true, "x": NaN} ': b" {" + SET + b',"model": "m",\n "stream" : true, "x": NaN} ',
    b'\xef\xbb\xbf{"stream":true}': b"\xef\xbb\xbf{" + SET + b',"stream":true}',
    b'{"stream":true,"x":"\\u00e9\xc3\xa9"}': b"{" + SET + b',"stream":true,"x":"\\u00e9\xc3\xa9"}',
    b'{"str\\u0065am":true}': b"{" + SET + b',"str\\u0065am":true}',
    b'{"stream":1}': b"{" + SET + b',"stream":1}',
    b'{"stream":false,"stream":true}': b"{" + SET + b',"stream":false,"stream":true}',
    b'{"x":{"stream_options":{}},"stream":true}': b"{" + SET + b',"x":{"stream_options":{}},"stream":true}',
    b'{"x":"\\"stream_options\\":1","stream":true}': b"{" + SET + b',"x":"\\"stream_options\\":1","stream":true}',
    b'{"stream":true,"stream_options":null}': b'{"stream":true,' + SET + b"}",
    b'{"stream":true,"stream_options":{}}': b'{"stream":true,' + SET + b"}",
    b'{"stream":true,"stream_options": { } }': b'{"stream":true,"stream_options": {"include_usage":true } }',
    b'{"stream_options":{"x":[{}]},"stream":true}': b'{"stream_options":{"include_usage":true,"x":[{}]},"stream":true}',
    b'{"stream":true,"stream_options":{"include_usage":false}}': b'{"stream":true,' + SET + b"}",
    b'{"stream":true,"stream_options":{"include_usage" : null}}': (
        b'{"stream":true,"stream_options":{"include_usage" : true}}'
    ),
    b'{"stream":true,"stream_options":{"include_usage":"no","y":1}}': (
        b'{"stream":true,"stream_options":{"include_usage":true,"y":1}}'
    ),
    b'{"stream":true,"stream\\u005foptions":{"include\\u005Fusage":false}}': (
        b'{"stream":true,"stream\\u005foptions":{"include\\u005Fusage":true}}'
    ),
    # Some servers take a text or a number for no.
    b'{"stream":true,"stream_options":{"include_usage":1}}': b'{"stream":true,' + SET + b"}",
    b'{"stream":true,"stream_options":{"include_usage":"true"}}': b'{"stream":true,' + SET + b"}",
    # And some take more than `true` for a wish to have a stream.
    b'{"stream":"Yes"}': b"{" + SET + b',"stream":"Yes"}',
    b'{"stream":1.0}': b"{" + SET + b',"stream":1.0}',
    # Which of two a provider heeds is its own affair: each is set.
    b'{"stream":true,"stream_options":{"include_usage":true},"stream_options":{}}': (
        b'{"stream":true,"stream_options":{"include_usage":true},"stream_options":{"include_usage":true}}'
    ),
    b'{"stream_options":null,"stream_options":{"include_usage":true,"include_usage":false},"stream":true}': (
        b"{" + SET + b',"stream_options":{"include_usage":true,"include_usage":true},"stream":true}'
    ),
    b'{"stream":true}{"stream_options":null}': b"{" + SET + b',"stream":true}{"stream_options":null}',
    b'{"stream":true,"x":[': b"{" + SET + b',"stream":true,"x":[',
}
# Asked for by the caller, no stream, or nothing that could be edited.
UNTOUCHED = (
    b'{"stream":true,"stream_options":{"include_usage":true}}',
    b'{"stream":true,"stream_options":null,"stream_options":{"include_usage":true}}',
    b'{"stream":false}',
    b'{"stream":null}',
    b'{"stream":true,"stream":false}',
    b'{"stream":{"x":true}}',
    b'{"x":{"stream":true}}',
    b'[{"stream":true}]',
    b'{"model":"m"}',
    b'"stream":true',
    b"",
)


async def test_a_stream_is_made_to_tell_its_usage_and_nothing_else_of_its_body_changes(mesh: Mesh) -> None:
    for body, sent in EDITS.items():
        call = await mesh.call(post(ASKING, body))
        assert call.received[0].body == sent, body
        assert call.received[0].header("content-length") == [str(len(sent))], body
        assert call.facts["bytes"] == str(len(body)), body


async def test_a_call_that_asks_itself_or_is_no_stream_goes_on_as_it_is(mesh: Mesh) -> None:
    for body in UNTOUCHED:
        call = await mesh.call(post(ASKING, body))
        assert (call.received[0].body, call.answer.status) == (body, 200), body


def any_body(random: Random) -> dict[str, Any]:
    """A call for a stream, with whatever beside it."""
    keys = ["stream_options", "include_usage", "stream", "model", "x", "\u00e9", 'quo"te', "back\\\\slash", "{", ""]
    leaves = (None, True, False, 0, 1, 2.5, -1e30, "", "text", 'a "quoted" {brace}', "\u00e9\U0001f600\n", "\\\\")

    def value(depth: int) -> Any:
        kind = random.random()
        if depth == 0 or kind < 0.5:
            return random.choice(leaves)
        if kind < 0.7:
            return [value(depth - 1) for _ in range(random.randrange(3))]
        return {random.choice(keys): value(depth - 1) for _ in range(random.randrange(4))}

    members = [(random.choice(keys), value(3)) for _ in range(random.randrange(6))] + [("stream", True)]
    random.shuffle(members)
    return dict(members) | {"stream": True}


def asked(body: dict[str, Any]) -> dict[str, Any]:
    """What a provider should understand of it."""
    options = body.get("stream_options")
    if options is None:
        return body | {"stream_options": {"include_usage": True}}
    if not isinstance(options, dict) or isinstance(options.get("include_usage"), dict | list):
        return body  # the provider will refuse it
    return body | {"stream_options": options | {"include_usage": True}}


async def test_whatever_a_body_holds_its_provider_understands_one_thing_more(mesh: Mesh) -> None:
    random = Random(5)
    for _ in range(300):
        body = any_body(random)
        spaces = random.choice(((",", ":"), (", ", ": "), (" ,\n", " :\t")))
        text = json.dumps(body, separators=spaces, ensure_ascii=random.random() < 0.5).encode()
        call = await mesh.call(post(ASKING, text))
        options = body["stream_options"] if isinstance(body.get("stream_options"), dict) else {}
        told = {"model": body.get("model"), "stream_usage": options.get("include_usage")}
        for name, value in told.items():
            if isinstance(value, bool) or (isinstance(value, str) and value):
                assert call.facts[name] == (value if isinstance(value, str) else str(value).lower()), text
        if options.get("include_usage") is True:
            assert call.received[0].body == text
        else:
            assert json.loads(call.received[0].body) == asked(body), text


async def test_a_body_with_too_many_places_to_edit_is_refused(mesh: Mesh) -> None:
    """Sent on as it is, it would not be asked, and nothing of its answer be read."""
    body = b'{"stream":true,' + b'"stream_options":null,' * 200 + b'"x":1}'
    call = await mesh.call(post(ASKING, body))
    assert (call.answer.status, call.asked, call.received) == (400, [], [])


async def test_a_body_in_chunks_is_edited_too(mesh: Mesh) -> None:
    head = f"POST {ASKING} HTTP/1.1\r\nhost: envoy\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    call = await mesh.call(head + b'8\r\n{"stream\r\n7\r\n":true}\r\n0\r\n\r\n')
    (received,) = call.received
    assert (received.body, received.header("transfer-encoding")) == (b"{" + SET + b',"stream":true}', [])


async def test_a_large_body_is_edited_as_fast_as_it_is_read(mesh: Mesh) -> None:
    body = b'{"x":[' + b'{"stream_options":null},' * 400_000 + b'0],"stream":true}'
    call = await mesh.call(post(ASKING, body))
    assert call.received[0].body == b"{" + SET + b"," + body[1:]


async def test_a_caller_that_did_not_ask_sees_no_usage_and_the_gate_does(mesh: Mesh) -> None:
    seen, stream = await answered(mesh, ASKING, b'{"stream":true}')
    assert seen == SAID + STOPPED + DONE
    assert (stream.kinds, stream.usage) == (["request_headers", "response_headers", "response_trailers"], (3, 4))


async def test_a_caller_that_asked_sees_everything(mesh: Mesh) -> None:
    seen, stream = await answered(mesh, ASKING, b'{"stream":true,"stream_options":{"include_usage":true}}')
    assert (seen, stream.usage) == (b"".join(STREAM), (3, 4))


async def test_only_the_usage_that_was_asked_for_is_hidden(mesh: Mesh) -> None:
    azure = chunk(choices=[], prompt_filter_results=[{"prompt_index": 0}])
    beside = chunk(choices=[{"delta": {}, "finish_reason": "stop"}], usage=USAGE)
    failed = chunk(error={"message": "overloaded"})
    failed_late = chunk(choices=[], usage=USAGE, error={"message": "overloaded"})
    for shown in (
        azure,
        beside,
        failed,
        failed_late,
        b": keep-alive\n\n",
        b"event: x\n\n",
        chunk(choices=[], usage=None),
    ):
        seen, _ = await answered(mesh, ASKING, b'{"stream":true}', (shown, SAID, TOLD, DONE))
        assert seen == shown + SAID + DONE


async def test_an_answer_that_is_no_stream_is_left_alone(mesh: Mesh) -> None:
    mesh.provider.answer = streaming(TOLD, content_type="text/plain")
    assert (await mesh.call(post(ASKING, b'{"stream":true}'))).answer.body == TOLD


async def test_a_stream_of_known_length_is_cut_all_the_same(mesh: Mesh) -> None:
    async def whole(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"".join(STREAM), content_type="text/event-stream")

    mesh.provider.answer = whole
    assert (await mesh.call(post(ASKING, b'{"stream":true}'))).answer.body == SAID + STOPPED + DONE


async def test_an_event_goes_on_before_the_next_one_comes(mesh: Mesh) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(SAID + STOPPED[:100])
        await seen.wait()
        await response.write(STOPPED[100:] + TOLD + DONE)
        return response

    seen = asyncio.Event()
    mesh.provider.answer = answer
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(post(ASKING, b'{"stream":true}'))
    async with asyncio.timeout(5):
        await reader.readuntil(SAID + STOPPED[:100])  # which cannot be the usage
        seen.set()
        await reader.readuntil(DONE + b"\r\n0\r\n")
    writer.close()


async def test_where_usage_is_guessed_the_gate_is_told_what_was_said_and_shown_nothing(mesh: Mesh) -> None:
    escaped = chunk(choices=[{"delta": {"content": 'Gr\u00fc\u00dfe "\\\U0001f30a"\n'}, "text": None}])
    plain = 'data: {"choices":[{"delta":{"content":"Gr\u00fc\u00dfe \U0001f30a","refusal":null}}]}\n\n'.encode()
    for parts in ((SAID, STOPPED, DONE), (escaped, plain, DONE), (SAID + escaped[:70], escaped[70:] + DONE)):
        seen, stream = await answered(mesh, GUESSING, b'{"stream":true}', parts)
        assert (seen, stream.kinds) == (b"".join(parts), ["request_headers", "response_headers"])
        assert mesh.gate.said[stream.lease] == spoken(b"".join(parts))
    for body in (b'{"stream":true,"stream_options":{"include_usage":true}}', b"{}"):
        seen, stream = await answered(mesh, GUESSING, body)
        assert (seen, stream.usage) == (b"".join(STREAM), (3, 4))
        assert stream.lease not in mesh.gate.said


def spoken(stream: bytes) -> int:
    """The bytes of text in a stream that our own reader counts."""
    reader = reader_for(BUILT_IN.profile("openai").shape("completions").response, "text/event-stream")
    assert reader is not None
    reader.feed(stream)
    reader.finish()
    return reader.seen_output


@pytest.mark.parametrize("text", ["x" * 50_000, '"\\\n' * 9000, "\u4e16\u754c" * 6000, "\U0001f30a\\" * 3000])
async def test_an_event_that_comes_in_many_pieces_is_counted_whole(mesh: Mesh, text: str) -> None:
    event = chunk(choices=[{"delta": {"content": text}}])
    for pieces in (7000, 16_384):
        parts = [event[at : at + pieces] for at in range(0, len(event), pieces)]
        seen, stream = await answered(mesh, GUESSING, b'{"stream":true}', (SAID, *parts, SAID, DONE))
        assert seen == SAID + event + SAID + DONE
        assert mesh.gate.said[stream.lease] == len(text.encode()) + spoken(SAID + SAID)


async def test_what_was_said_is_told_of_a_stream_that_is_cut_too(mesh: Mesh) -> None:
    async def broken_off(request: web.BaseRequest) -> web.StreamResponse:
        response = await streaming(SAID, SAID)(request)
        assert request.transport is not None
        request.transport.close()
        return response

    mesh.provider.answer = broken_off
    with pytest.raises(asyncio.IncompleteReadError):
        await mesh.call(post(GUESSING, b'{"stream":true}'))
    lease = mesh.gate.leases[-1]
    await mesh.gate.until(lambda: lease in mesh.gate.cut)
    assert mesh.gate.said[lease] == spoken(SAID + SAID)


async def test_guessing_changes_nothing_of_a_call(mesh: Mesh) -> None:
    for body in (*EDITS, *UNTOUCHED):
        call = await mesh.call(post(GUESSING, body))
        assert (call.received[0].body, call.received[0].target) == (body, "/v1/chat/completions"), body


async def test_a_changed_stream_usage_is_in_force_at_once() -> None:
    async with running_mesh(configuration, live=True) as mesh:
        (asking, guessing) = configuration(f"http://127.0.0.1:{mesh.provider_port}").documents
        body = b'{"stream":true}'
        assert (await mesh.call(post(ASKING, body))).received[0].body != body
        mesh.write(
            replace(asking, stream_usage=StreamUsage.ESTIMATE), replace(guessing, stream_usage=StreamUsage.INJECT)
        )
        mesh.provider.answer = streaming(*STREAM)
        async with asyncio.timeout(5):
            while (await mesh.call(post(ASKING, body))).received[0].body != body:
                pass
            while (await mesh.call(post(GUESSING, body))).answer.body != SAID + STOPPED + DONE:
                pass


# Every way in which a stream may be cut on its way, tried by Envoy itself: it runs the script as it stands.

CUTTER = """
function envoy_on_request(handle)
  local body = handle:body()
  local s = body:getBytes(0, body:length())
  local size, seen, outcomes = #s, {}, {}
  local function run(cuts)
    local shown, said, whole, from = hider(), counter("content text reasoning_content refusal arguments"), "", 1
    for _, to in ipairs(cuts) do
      whole = whole .. shown(s:sub(from, to))
      said(s:sub(from, to))
      from = to + 1
    end
    whole = whole .. shown(s:sub(from)) .. shown("") .. said(s:sub(from) .. "\\n")
    if not seen[whole] then outcomes[#outcomes + 1], seen[whole] = whole, true end
  end
  local each = {}
  for i = 0, size do
    run({i})
    for j = i, size, 7 do run({i, j}) end
    each[#each + 1] = i
  end
  run(each)
  handle:respond({[":status"] = "200"}, table.concat(outcomes, "\\n--\\n"))
end
"""
STREAMS = {
    b"".join(STREAM): SAID + STOPPED + DONE,
    b"".join(STREAM).replace(b"\n", b"\r\n"): (SAID + STOPPED + DONE).replace(b"\n", b"\r\n"),
    b"".join(STREAM).replace(b":[", b" : [ ").replace(b"data: ", b"data:"): (SAID + STOPPED + DONE)
    .replace(b":[", b" : [ ")
    .replace(b"data: ", b"data:"),
    SAID + TOLD.rstrip(): SAID,
    SAID + TOLD + TOLD: SAID,
    SAID + DONE.rstrip(): SAID + DONE.rstrip(),
    SAID + chunk(error={"code": "{"}).rstrip(): SAID + chunk(error={"code": "{"}).rstrip(),
    b"\n\n: x\n\n" + SAID: b"\n\n: x\n\n" + SAID,
    # Line ends that no provider uses: the stream goes on as it is.
    (SAID + TOLD + DONE).replace(b"\n", b"\r"): (SAID + TOLD + DONE).replace(b"\n", b"\r"),
}


async def test_a_stream_is_the_same_to_its_caller_however_it_was_cut() -> None:
    script = facts.unasked_streams().default_source_code
    assert script is not None
    port = free_port()
    with short_folder() as folder:
        running = running_envoy(interpreter(f"{script.inline_string}\n{CUTTER}", port, folder), folder)
        await asyncio.to_thread(running.__enter__)
        try:
            for stream, shown in STREAMS.items():
                outcome = shown + str(spoken(stream)).encode()
                assert (await send(port, post("/", stream))).body == outcome
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


def interpreter(script: str, port: int, folder: Path) -> dict[str, Any]:
    """An Envoy that does nothing but run a script on each call."""
    types = "type.googleapis.com/envoy.extensions.filters"
    lua = {"@type": f"{types}.http.lua.v3.Lua", "default_source_code": {"inline_string": script}}
    router = {"@type": f"{types}.http.router.v3.Router"}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "lua",
        "route_config": {"virtual_hosts": []},
        "http_filters": [{"name": "lua", "typed_config": lua}, {"name": "router", "typed_config": router}],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "admin": {"address": {"pipe": {"path": str(folder / "admin.sock")}}},
        "static_resources": {"listeners": [{"address": address, "filter_chains": [chain]}]},
    }
