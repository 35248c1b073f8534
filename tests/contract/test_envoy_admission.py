"""What the gate is told of a call by a real Envoy, and that no call reaches a provider without the gate being asked."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from helpers.mesh import SUBJECTS, Mesh, limits_of, running_mesh
from helpers.recording import post
from sluice.config.merge import merge
from sluice.config.types import SubjectKind, SubjectSource
from sluice.usage.profiles import Api

CHAT = "/openai/v1/chat/completions"
MESSAGES = "/anthropic/v1/messages"
GENERATE = "/gemini/v1beta/models/gemini-3-pro:generateContent"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


def chunked(target: str, *parts: bytes) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nhost: envoy\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


async def test_a_call_is_described_by_one_descriptor(mesh: Mesh) -> None:
    body = b'{"model": "gpt-5", "max_tokens": 16, "max_completion_tokens": 32, "max_output_tokens": 64, "n": 2}'
    call = await mesh.call(post(CHAT, body, "x-user-id: alice", "x-org-id: acme"))
    assert call.answer.status == 200
    assert call.facts == {
        "provider": "openai",
        "api": "completions",
        "user": "alice",
        "org": "acme",
        "bytes": str(len(body)),
        "model": "gpt-5",
        "max_output_tokens": "64",
        "n": "2",
    }


async def test_each_api_has_its_own_facts(mesh: Mesh) -> None:
    body = b'{"model": "claude", "max_tokens": 16, "n": 9}'
    call = await mesh.call(post(MESSAGES, body, "x-api-key: sk-1"))
    facts = {"user": "sk-1", "bytes": "45", "model": "claude", "max_output_tokens": "16"}
    assert call.facts == {"provider": "anthropic", "api": "messages", **facts}

    for config, cap, count in (
        ("generationConfig", "maxOutputTokens", "candidateCount"),
        ("generation_config", "max_output_tokens", "candidate_count"),
    ):
        body = json.dumps({"model": "not this one", config: {cap: 16, count: 2}}).encode()
        call = await mesh.call(post(GENERATE, body, "x-goog-api-key: AIza"))
        facts = {"user": "AIza", "bytes": str(len(body)), "model": "gemini-3-pro", "max_output_tokens": "16", "n": "2"}
        assert call.facts == {"provider": "gemini", "api": "generate-content", **facts}


async def test_a_chunked_body_is_measured_too(mesh: Mesh) -> None:
    call = await mesh.call(chunked(CHAT, b'{"model"', b': "gpt-5"}'))
    assert call.facts == {"provider": "openai", "api": "completions", "bytes": "18", "model": "gpt-5"}
    assert call.received[0].body == b'{"model": "gpt-5"}'


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse", "gemini-3-pro"),
        ("/v1beta/tunedModels/mine:generateContent", "mine"),
        ("/v1beta//models//gemini:x", "gemini"),
        ("/v1beta/models/gem%69ni:x", "gemini"),
        ("/v1beta/models%2Fgemini%3Ax", "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/gemini:x", "gemini"),
        ("/v1beta/models?pageToken=/models/secret:x", None),
        ("/v1beta/models/" + "m" * 10_000, None),
        ("", None),
    ],
)
async def test_geminis_model_is_read_from_the_path_alone(mesh: Mesh, path: str, model: str | None) -> None:
    call = await mesh.call(post(f"/gemini{path}", b"{}"))
    assert call.facts.get("model") == model


PICTURE = base64.b64encode(Random(1).randbytes(1_000_000))
SMALL = PICTURE[:3000]
URLSAFE = base64.urlsafe_b64encode(Random(1).randbytes(3000))
TEXT = b"The quick brown fox, aged 5, jumps over the lazy dog. " * 100
WORD = b"SoOneCanWriteAPromptWithoutSpaces2" * 100


def user(content: bytes) -> bytes:
    return b'{"model": "gpt", "messages": [{"role": "user", "content": [%s, {"text": "what is it?"}]}]}' % content


# A body, and how many bytes of it are files.
BLOBS: dict[bytes, int] = {
    user(b'{"image_url": {"url": "data:image/png;base64,%s"}}' % PICTURE): len(PICTURE) + 22,
    user(b'{"image_url": {"url": "data:image\\/png;base64,%s"}}' % PICTURE.replace(b"/", b"\\/")): len(PICTURE)
    + 23
    + PICTURE.count(b"/"),
    user(b'{"input_audio": {"data": "%s", "format": "wav"}}' % SMALL): 3000,
    user(b'{"source": {"type": "base64", "data": "%s"}}, {"source": {"data": "%s"}}' % (SMALL, PICTURE)): len(PICTURE)
    + 3000,
    user(b'{"inlineData": {"mimeType": "image/png", "data": "%s"}}' % URLSAFE): len(URLSAFE),
    user(b'{"image": {"source": {"bytes": "%s"}}}' % SMALL.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d")): 3000
    + 5 * SMALL.count(b"+"),
    user(b'{"text": "%s"}' % WORD): len(WORD),
    b'["%s", {"x": "%s"}, NaN' % (SMALL, SMALL): 6000,
    user(b'"%s"' % TEXT): 0,
    user(b'"%s%s"' % (SMALL, TEXT)): 0,
    user(b'"%s%s"' % (PICTURE[:20_000], TEXT + SMALL)): 0,
    user(b'"%s%s"' % (TEXT, SMALL)): 0,
    user(b'"see data:image/png;base64,%s"' % SMALL): 0,
    user(b'"data:%s"' % SMALL): 0,
    user(b'"data:%s,"' % (b";base64" * 100_000)): 0,
    user(b'"%s"' % SMALL[:2000]): 0,
    user(b'"%s"' % (b"x" * 100_000)): 0,
    user(b'"%s"' % (b"0123456789abcdef" * 1000)): 0,
    user(b'"%s"' % b"\\n".join([SMALL[:60]] * 100)): 0,
    user(b'"%s"' % ("\u8bf7\u8bf4" * 1000).encode()): 0,
    user(b'"%s"' % (b"\\u8bf7" * 1000)): 0,
    user(b'"%s"' % (b"\\\\" * 3000)): 0,
    b'{"model": "gpt", "cut": "' + PICTURE: 0,
}


# A body, and what the gate learns of it beside its size.
BODIES: dict[bytes, dict[str, str]] = {
    b"": {},
    b"{": {},
    b"[]": {},
    b"null": {},
    b'"x"': {},
    b'{"model": "gpt"} and more': {"model": "gpt"},
    b'{"model": "gpt", "x": NaN}': {"model": "gpt"},
    b'{"model": "\\ud800"}': {"model": "???"},
    b'{"model": "\xff"}': {"model": "?"},
    b'{"model": "gpt", "x": "\\ud800 \xff"}': {"model": "gpt"},
    b'{"model": "gpt", "x": 18446744073709551615, "y": 1e999}': {"model": "gpt"},
    b'{"x": {"model": "a"}, "y": "\\"model\\": b", "z\\\\": ["model", "c"], "model" :\n"gpt"}': {"model": "gpt"},
    b'{"m\\u006fdel": "gpt\\u002d5 \\ud83d\\ude00\\\\"}': {"model": "gpt-5 \U0001f600\\"},
    b'{"model": "gpt", "x": %s}' % (b"[" * 5000 + b"]" * 5000): {"model": "gpt"},
    b'{"model": "' + b"x" * 9000 + b'"}': {},
    b'{"model": "' + b"x" * 5_000_000 + b'"}': {},
    b'{"model": "' + PICTURE + b'"}': {"blob_bytes": str(len(PICTURE))},
    b'{"model": ""}': {},
    b'{"model": null}': {},
    b'{"model": {"a": 1}}': {},
    b'{"model": ["gpt"]}': {},
    b'{"model": 1}': {"model": "1"},
    b'{"model": true}': {"model": "true"},
    b'{"model": "a", "model": "b"}': {"model": "b"},
    b'{"model": "a\\u0000b"}': {"model": "a?b"},
    '{"model": "é"}'.encode(): {"model": "é"},
    b'\xef\xbb\xbf{"model": "gpt"}': {"model": "gpt"},
    b'{"max_tokens": "12"}': {"max_output_tokens": "12"},
    b'{"max_tokens": -5}': {"max_output_tokens": "-5"},
    b'{"max_tokens": 1e3}': {"max_output_tokens": "1000"},
    b'{"max_tokens": 16.5}': {"max_output_tokens": "16.5"},
    b'{"max_tokens": 9007199254740993}': {"max_output_tokens": "9007199254740992"},
    b'{"max_tokens": 18446744073709551615}': {"max_output_tokens": "18446744073709551616"},
    b'{"max_tokens": 1e999}': {},
    b'{"n": false}': {"n": "false"},
    b'{"max_tokens": 8, "max_completion_tokens": 1e2, "max_output_tokens": "9"}': {"max_output_tokens": "100"},
    b'{"max_completion_tokens": 8, "max_tokens": "many"}': {"max_output_tokens": "8"},
    b'{"stream": true, "stream_options": {"include_usage": false}}': {"stream": "true", "stream_usage": "false"},
    b'{"stream": null, "stream_options": {"x": {"include_usage": true}}}': {},
    b'{"stream_options": {"include_usage": 1, "x": 2}, "stream_options": {"x": 3}}': {},
    b'{"stream_options": {"x": 3}, "stream_options": {"include_usage": true, "x": 2}}': {"stream_usage": "true"},
    b'{"stream": "ON", "stream_options": {"include_usage": 1}}': {"stream": "true"},
    b'{"stream": 0, "stream_options": {"include_usage": "true"}}': {"stream": "0"},
    b'{"stream_options": [{"include_usage": true}], "include_usage": true}': {},
    b'{"stream_options": {"x": [{"y": []}], "z": {}, "include_usage": true}, "n": 2}': {
        "stream_usage": "true",
        "n": "2",
    },
    b'{"x": {"y": [], "include_usage": true}, "stream_options": {"x": 1}, "z": [{}, {"include_usage": true}]}': {},
}


async def test_the_gate_is_asked_whatever_the_body_is(mesh: Mesh) -> None:
    for body, facts in BODIES.items():
        call = await mesh.call(post(CHAT, body, "x-user-id: alice"))
        assert call.facts == {
            "provider": "openai",
            "api": "completions",
            "user": "alice",
            "bytes": str(len(body)),
            **facts,
        }, body[:50]
        assert [received.body for received in call.received] == [body], body[:50]


async def test_a_body_that_could_hide_its_facts_is_refused(mesh: Mesh) -> None:
    text = '{"model": "gpt"}'
    bodies = [text.encode(form) for form in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")]
    bodies += [(" " + text).encode(form) for form in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")]
    bodies.append(b"{" + b'"\\u006d": 0, ' * 2000 + b'"model": "gpt"}')
    # Go's servers find a field in any case, and the last one counts: Kelvin's sign is a k, and the long s an s.
    bodies += [b'{"model": "a", "Model": "b"}', b'{"model": "a", "\\u004dodel": "b"}', b'{"MAX_TOKENS": 9}']
    bodies += ['{"max_to\u212aens": 9}'.encode(), '{"\u017ftream": true}'.encode(), b'{"\\u017ftream": true}']
    bodies += [b'{"Stream_options": {}}', b'{"stream_options": {"Include_usage": false}}']
    for body in bodies:
        call = await mesh.call(post(CHAT, body))
        assert (call.answer.status, call.asked, call.received) == (400, [], []), body[:50]


async def test_the_gate_is_asked_whatever_the_body_claims_to_be(mesh: Mesh) -> None:
    body = b'{"model": "gpt-5"}'
    for claim in ("text/plain", "", "application/json; charset=utf-8", "multipart/form-data; boundary=x"):
        call = await mesh.call(post(CHAT, body, f"content-type: {claim}"))
        assert call.facts == {"provider": "openai", "api": "completions", "bytes": "18", "model": "gpt-5"}, claim
    packed = gzip.compress(body)
    call = await mesh.call(post(CHAT, packed, "content-encoding: gzip"))
    assert call.facts == {"provider": "openai", "api": "completions", "bytes": str(len(packed))}


async def test_the_gate_is_told_how_much_of_a_body_is_files(mesh: Mesh) -> None:
    for body, blobs in BLOBS.items():
        call = await mesh.call(post(CHAT, body))
        assert call.facts.get("blob_bytes") == (str(blobs) if blobs else None), body[:150]
        assert call.facts["bytes"] == str(len(body))
        assert [received.body for received in call.received] == [body], body[:150]


async def test_a_form_with_a_file_is_a_file_and_what_claims_to_be_one_is_not(mesh: Mesh) -> None:
    parts = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n\xff\xfb"{\x00\r\n--x--\r\n'
    for body, claim, blobs in (
        (parts, "multipart/form-data; boundary=x", str(len(parts))),
        (parts, "Multipart/Form-Data; boundary=x", str(len(parts))),
        (parts, "application/json", None),
        (b'{"model": "gpt", "x": "--x"}', "multipart/form-data; boundary=x", None),
        (b"", "multipart/form-data; boundary=x", None),
    ):
        call = await mesh.call(post("/openai/v1/audio/transcriptions", body, f"content-type: {claim}"))
        assert call.facts.get("blob_bytes") == blobs, (body, claim)
        assert [received.body for received in call.received] == [body]


async def test_the_gate_is_asked_whatever_the_method_is(mesh: Mesh) -> None:
    for method in ("GET", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE"):
        call = await mesh.call(
            f"{method} /openai/v1/models HTTP/1.1\r\nhost: envoy\r\ncontent-length: 0\r\n\r\n".encode()
        )
        assert call.facts == {"provider": "openai", "api": "free", "bytes": "0"}, method


async def test_identity_is_for_the_gate_alone(mesh: Mesh) -> None:
    call = await mesh.call(post(CHAT, b"{}", "X-User-Id: alice", "x-user-id: bob", "x-org-id: acme"))
    assert (call.facts["user"], call.facts["org"]) == ("alice", "acme")
    assert not call.received[0].header("x-user-id")
    assert not call.received[0].header("x-org-id")


async def test_an_identity_that_is_not_utf_8_is_refused_before_the_gate_cannot_read_it(mesh: Mesh) -> None:
    call = await mesh.call(post(CHAT, b"{}", "x-user-id: caf\xc3\xa9"))
    assert call.facts["user"] == "café"
    for headers in (
        ["x-user-id: \xe9"],
        ["x-org-id: \xe9"],
        ["x-user-id: ok", "x-user-id: \xe9"],
        ["x-user-id: \xe9", "x-user-id: ok"],
    ):
        call = await mesh.call(post(CHAT, b"{}", *headers))
        assert (call.answer.status, call.asked, call.received) == (400, [], []), headers
        assert "is not UTF-8 text" in json.loads(call.answer.body)["error"]["message"]


@pytest.mark.parametrize(
    ("target", "headers", "key"),
    [
        ("/keyed/v1/chat/completions", ["authorization: Bearer sk-1"], "Bearer sk-1"),
        ("/keyed/v1/chat/completions", ["api-key: az-1"], "az-1"),
        ("/keyed/v1/chat/completions", [], None),
        (MESSAGES, ["x-api-key: sk-1"], "sk-1"),
        (MESSAGES, ["authorization: Bearer oat-1"], "Bearer oat-1"),
        (GENERATE, ["x-goog-api-key: AIza-_1"], "AIza-_1"),
        (GENERATE + "?alt=sse&key=AIza-_1", [], "AIza-_1"),
        (GENERATE + "?k%65y=AIza-_1", [], "AIza-_1"),
        (GENERATE + "?monkey=1", [], None),
    ],
)
async def test_the_key_that_is_counted_is_the_key_that_is_sent(
    mesh: Mesh, target: str, headers: list[str], key: str | None
) -> None:
    call = await mesh.call(post(target, b"{}", *headers))
    assert call.facts.get("user") == key
    (received,) = call.received
    assert [f"{name}: {value}" for name, value in received.headers if f"{name}: {value}" in headers] == headers
    assert received.target.endswith(target.partition("?")[2])


async def test_a_second_key_of_the_same_header_is_not_sent(mesh: Mesh) -> None:
    call = await mesh.call(post(MESSAGES, b"{}", "x-api-key: counted", "x-api-key: free"))
    assert call.facts["user"] == "counted"
    assert call.received[0].header("x-api-key") == ["counted"]


async def test_a_call_with_two_keys_or_none_that_can_be_read_is_refused(mesh: Mesh) -> None:
    for target, headers in (
        (MESSAGES, ["x-api-key: a", "authorization: Bearer b"]),
        (MESSAGES, ["authorization: Bearer a", "authorization: Bearer b"]),
        (MESSAGES, ["x-api-key: ", "x-api-key: b"]),
        (MESSAGES, ["x-api-key: \xff"]),
        ("/keyed/v1", ["authorization: Bearer a", "api-key: b"]),
        (GENERATE, ["x-goog-api-key: a", "authorization: Bearer b"]),
        (GENERATE + "?key=a", ["x-goog-api-key: b"]),
        (GENERATE + "?key=a", ["authorization: Bearer b"]),
        (GENERATE + "?key=a&key=b", []),
        (GENERATE + "?key=a&k%65y=b", []),
        (GENERATE + "?key=a;key=b", []),
        (GENERATE + "?key=%ff", []),
    ):
        call = await mesh.call(post(target, b"{}", *headers))
        assert (call.answer.status, call.asked, call.received) == (400, [], []), (target, headers)


async def test_nothing_of_a_call_can_pass_for_what_envoy_or_the_gate_says(mesh: Mesh) -> None:
    forged = (
        b'{"lease": "forged", "sluice.request": {"model": "free"}, "envoy.filters.http.ratelimit": {"lease": "forged"}}'
    )
    headers = ("x-envoy-dynamic-metadata: forged", "lease: forged")
    call = await mesh.call(post(CHAT, forged, *headers))
    assert call.facts == {"provider": "openai", "api": "completions", "bytes": str(len(forged))}
    lease = mesh.gate.leases[-1]
    await mesh.gate.until(lambda: any(stream.lease == lease for stream in mesh.gate.streams))


@pytest.mark.parametrize(
    ("target", "provider", "sent"),
    [
        ("/openai", "openai", "/"),
        ("/openai?x=1", "openai", "/?x=1"),
        ("/openai/v1/x?q=/a/../b", "openai", "/v1/x?q=/a/../b"),
        ("//openai//v1", "openai", "/v1"),
        ("/%6fpenai/v1", "openai", "/v1"),
        ("/openai/v1/models/a%2Fb", "openai", "/v1/models/a%2Fb"),
        ("/openai/../strict/v1", "strict", "/v1"),
        ("/openai/%2e%2e/strict/v1", "strict", "/v1"),
        ("/openai\\..\\strict/v1", "strict", "/v1"),
        ("/x/../openai/v1", "openai", "/v1"),
        ("http://envoy/openai/v1", "openai", "/v1"),
        ("/", None, None),
        ("/openai/..", None, None),
        ("/openai%2Fv1", None, None),
        ("/openaix/v1", None, None),
        ("/OPENAI/v1", None, None),
        ("/openai;x/v1", None, None),
    ],
)
async def test_a_path_leads_to_the_gate_of_where_it_leads(
    mesh: Mesh, target: str, provider: str | None, sent: str | None
) -> None:
    call = await mesh.call(post(target))
    assert [dict(descriptor)["provider"] for descriptor in call.asked] == ([provider] if provider else [])
    assert [received.target for received in call.received] == ([sent] if sent else [])
    assert call.answer.status == (200 if provider else 404)


@pytest.mark.parametrize(
    "way",
    [
        "..%2F",
        "..%5C",
        "%2e%2E%2f",
        "x%2F..%2f..%2F",
        "x%2F../y/",
        "..%252F",
        "%252e%252e%252f",
        "x%2F..;/",
        "x%2f..%3B%2f",
    ],
)
async def test_no_path_leads_back_where_only_its_server_sees_it(mesh: Mesh, way: str) -> None:
    call = await mesh.call(post(f"/openai/v1/files/{way}chat/completions"))
    assert (call.answer.status, call.asked, call.received) == (400, [], [])


async def test_two_dots_in_a_name_lead_nowhere(mesh: Mesh) -> None:
    for path in ("/v1/models/a..b%2Fc..", "/v1/models/..a", "/v1/models/a%2F..."):
        call = await mesh.call(post(f"/openai{path}"))
        assert [received.target for received in call.received] == [path]


async def test_an_unknown_path_is_told_which_providers_there_are(mesh: Mesh) -> None:
    answer = (await mesh.call(post("/nowhere"))).answer
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.body)["error"]
    assert error["message"] == ("no such provider; served here: /openai/, /strict/, /keyed/, /anthropic/, /gemini/")


async def test_a_call_by_a_providers_own_name_goes_there_unprefixed() -> None:
    header = SUBJECTS["header"]
    configuration = merge(
        [
            limits_of("one", Api.OPENAI, "http://llm.test:8001", User=header),
            limits_of("two", Api.OPENAI, "http://llm.test:8002", User=header),
            limits_of("plain", Api.OPENAI, "http://plain.test", User=SubjectSource(SubjectKind.HEADER, "x-other")),
            limits_of("loopback", Api.OPENAI, "http://127.0.0.1:1", User=header),
        ]
    )
    names = {
        "llm.test:8001": "one",
        "llm.test:8002": "two",
        "llm.test": "one",
        "LLM.test": "one",
        "llm.test.": "one",
        "llm.test:9999": "one",
        "plain.test": "plain",
        "plain.test:80": "plain",
        "127.0.0.1:1": "loopback",
        "127.0.0.1": None,
        "127.0.0.1:10000": None,
        "api.llm.test": None,
        "": None,
    }
    async with running_mesh(configuration) as mesh:
        for name, provider in names.items():
            call = await mesh.call(post("/v1/chat/completions", b"{}", host=name))
            assert [dict(descriptor)["provider"] for descriptor in call.asked] == ([provider] if provider else []), name


async def test_what_is_no_plain_call_does_not_pass(mesh: Mesh) -> None:
    for request, status in (
        (b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n", 403),
        (b"CONNECT /openai/v1 HTTP/1.1\r\nhost: envoy\r\n\r\n", 400),
        (b"GET /openai/v1/realtime HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 403),
        (b"POST /openai/v1 HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}", 426),
        (b"POST /openai/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400),
        (b"POST /openai/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
        (post("/openai/v1/%00"), 400),
        (post("/openai/v1/\xff"), 400),
        (post(CHAT, b"{}", f"x-user-id: {'u' * 70_000}"), 431),
    ):
        call = await mesh.call(request)
        assert (call.answer.status, call.asked, call.received) == (status, [], []), request[:60]


async def test_an_identity_as_long_as_headers_may_be_reaches_the_gate(mesh: Mesh) -> None:
    call = await mesh.call(post(CHAT, b"{}", f"x-user-id: {'u' * 50_000}"))
    assert call.facts["user"] == "u" * 50_000
