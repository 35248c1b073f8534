"""What the stand-in provider answers, in the dialects of OpenAI, Anthropic and Gemini. No I/O.

The same call always gets the same answer.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from standin_script import Call, Json

CREATED: Final = 1_700_000_000


def _sse(data: Json, event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {_compact(data)}\n\n".encode()


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _bytes(value: object) -> bytes:
    return _compact(value).encode()


# Chat completions of OpenAI, and its older completions


def _openai_usage(call: Call) -> Json:
    return {
        "prompt_tokens": call.count(call.input_tokens),
        "completion_tokens": call.count(call.all_output),
        "total_tokens": call.count(call.input_tokens + call.all_output),
        "prompt_tokens_details": {"cached_tokens": call.count(call.script.cached_tokens), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": call.count(call.all_reasoning),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _completion(call: Call, kind: str, choices: list[Json]) -> Json:
    name = "cmpl" if kind == "text_completion" else "chatcmpl"
    head = {"id": f"{name}-standin-{call.number}", "object": kind, "created": CREATED, "model": call.model}
    return {**head, "choices": choices, "system_fingerprint": "fp_standin"}


def _choice(index: int, finish: str | None, content: Json) -> Json:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish}


def _finish(call: Call) -> str:
    return "length" if call.is_capped else "stop"


def chat_answer(call: Call) -> Json:
    message: Json = {"role": "assistant", "content": call.text, "refusal": None, "annotations": []}
    choices = [_choice(i, _finish(call), {"message": message}) for i in range(call.choices)]
    return {**_completion(call, "chat.completion", choices), **call.usage(_openai_usage(call))}


def chat_events(call: Call) -> Iterator[bytes]:
    choices = [_choice(i, None, {"delta": {"role": "assistant", "content": ""}}) for i in range(call.choices)]
    for piece in call.pieces:
        choices += [_choice(i, None, {"delta": {"content": piece}}) for i in range(call.choices)]
    choices += [_choice(i, _finish(call), {"delta": {}}) for i in range(call.choices)]
    yield from _completion_events(call, "chat.completion.chunk", choices)


def text_answer(call: Call) -> Json:
    choices = [_choice(i, _finish(call), {"text": call.text}) for i in range(call.choices)]
    return {**_completion(call, "text_completion", choices), **call.usage(_openai_usage(call))}


def text_events(call: Call) -> Iterator[bytes]:
    choices = [_choice(i, None, {"text": piece}) for piece in call.pieces for i in range(call.choices)]
    choices += [_choice(i, _finish(call), {"text": ""}) for i in range(call.choices)]
    yield from _completion_events(call, "text_completion", choices)


def _completion_events(call: Call, kind: str, choices: list[Json]) -> Iterator[bytes]:
    """One chunk for each choice given; the usage, if it was asked for, in a last chunk that has no choices."""
    told = bool((call.body.get("stream_options") or {}).get("include_usage")) and not call.script.omit_usage
    no_usage = {"usage": None} if told else {}
    for choice in choices:
        yield _sse({**_completion(call, kind, [choice]), **no_usage})
    if told:
        yield _sse({**_completion(call, kind, []), "usage": _openai_usage(call)})
    yield b"data: [DONE]\n\n"


# The responses of OpenAI


def _response(call: Call, status: str, output: list[Json]) -> Json:
    usage = {
        "input_tokens": call.count(call.input_tokens),
        "input_tokens_details": {"cached_tokens": call.count(call.script.cached_tokens)},
        "output_tokens": call.count(call.output_tokens),
        "output_tokens_details": {"reasoning_tokens": call.count(call.script.reasoning_tokens)},
        "total_tokens": call.count(call.input_tokens + call.output_tokens),
    }
    is_over = status != "in_progress"
    return {
        "id": f"resp_standin_{call.number}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "max_output_tokens": call.body.get("max_output_tokens"),
        "metadata": {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        **(call.usage(usage) if is_over else {"usage": None}),
    }


def _response_item(call: Call, status: str, content: list[Json]) -> Json:
    return {
        "id": f"msg_standin_{call.number}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_status(call: Call) -> str:
    return "incomplete" if call.is_capped else "completed"


def responses_answer(call: Call) -> Json:
    status = _response_status(call)
    return _response(call, status, [_response_item(call, status, [_output_text(call.text)])])


def responses_events(call: Call) -> Iterator[bytes]:
    for number, (kind, data) in enumerate(_response_events(call)):
        yield _sse({"type": kind, "sequence_number": number, **data}, kind)


def _response_events(call: Call) -> Iterator[tuple[str, Json]]:
    begun = {"response": _response(call, "in_progress", [])}
    item = {"output_index": 0}
    part = {"item_id": f"msg_standin_{call.number}", **item, "content_index": 0}
    yield "response.created", begun
    yield "response.in_progress", begun
    yield "response.output_item.added", {**item, "item": _response_item(call, "in_progress", [])}
    yield "response.content_part.added", {**part, "part": _output_text("")}
    for piece in call.pieces:
        yield "response.output_text.delta", {**part, "delta": piece, "logprobs": []}
    yield "response.output_text.done", {**part, "text": call.text, "logprobs": []}
    yield "response.content_part.done", {**part, "part": _output_text(call.text)}
    answer = responses_answer(call)
    yield "response.output_item.done", {**item, "item": answer["output"][0]}
    yield f"response.{_response_status(call)}", {"response": answer}


# The embeddings of OpenAI


def embeddings_answer(call: Call) -> Json:
    inputs = call.body.get("input")
    vector = [0.5] * int(call.body.get("dimensions") or 8)
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    embedding = packed if call.body.get("encoding_format") == "base64" else vector
    usage = {"prompt_tokens": call.count(call.input_tokens), "total_tokens": call.count(call.input_tokens)}
    many = len(inputs) if isinstance(inputs, list) and isinstance(inputs[0], str | list) else 1
    data = [{"object": "embedding", "index": i, "embedding": embedding} for i in range(many)]
    return {"object": "list", "data": data, "model": call.model, **call.usage(usage)}


# The messages of Anthropic


def _anthropic_usage(call: Call, output: int) -> Json:
    """`input_tokens` is without what the cache gave: the whole input is the sum of the three."""
    return {
        "input_tokens": call.count(call.input_tokens - call.script.cached_tokens),
        "cache_creation_input_tokens": call.count(0),
        "cache_read_input_tokens": call.count(call.script.cached_tokens),
        "output_tokens": call.count(output),
    }


def _message(call: Call, content: list[Json], stop_reason: str | None, output: int) -> Json:
    more = {"cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}}
    return {
        "id": f"msg_standin_{call.number}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        **call.usage({**_anthropic_usage(call, output), **more, "service_tier": "standard"}),
    }


def _stop_reason(call: Call) -> str:
    return "max_tokens" if call.is_capped else "end_turn"


def messages_answer(call: Call) -> Json:
    return _message(call, [{"type": "text", "text": call.text}], _stop_reason(call), call.output_tokens)


def messages_events(call: Call) -> Iterator[bytes]:
    for data in _message_events(call):
        yield _sse(data, data["type"])


def _message_events(call: Call) -> Iterator[Json]:
    yield {"type": "message_start", "message": _message(call, [], None, 1)}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for piece in call.pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    usage = _anthropic_usage(call, call.output_tokens)
    delta = {"stop_reason": _stop_reason(call), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, **call.usage(usage)}
    yield {"type": "message_stop"}


# What Gemini generates, whole and streamed


def _gemini_usage(call: Call, output: int) -> Json:
    """Reasoning stands beside the candidates' tokens, not among them; cached tokens stand among the prompt's."""
    cached = {"cachedContentTokenCount": call.count(call.script.cached_tokens)} if call.script.cached_tokens else {}
    thoughts = {"thoughtsTokenCount": call.count(call.all_reasoning)} if call.script.reasoning_tokens else {}
    return {
        "promptTokenCount": call.count(call.input_tokens),
        "candidatesTokenCount": call.count(output),
        "totalTokenCount": call.count(call.input_tokens + output + call.all_reasoning),
        **cached,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": call.count(call.input_tokens)}],
        **thoughts,
    }


def _generated(call: Call, text: str, finish: str | None, output: int) -> Json:
    content = {"content": {"parts": [{"text": text}], "role": "model"}}
    reason = {"finishReason": finish} if finish else {}
    return {
        "candidates": [{**content, **reason, "index": i} for i in range(call.choices)],
        **call.usage(_gemini_usage(call, output), "usageMetadata"),
        "modelVersion": call.model,
        "responseId": f"standin-{call.number}",
    }


def _finish_reason(call: Call) -> str:
    return "MAX_TOKENS" if call.is_capped else "STOP"


def gemini_answer(call: Call) -> Json:
    return _generated(call, call.text, _finish_reason(call), call.all_output - call.all_reasoning)


def _gemini_chunks(call: Call) -> Iterator[Json]:
    """Every chunk carries the usage so far."""
    pieces = call.pieces or [""]
    output = 0
    for number, piece in enumerate(pieces, start=1):
        output += len(piece.split()) * call.choices
        yield _generated(call, piece, _finish_reason(call) if number == len(pieces) else None, output)


def gemini_events(call: Call) -> Iterator[bytes]:
    for chunk in _gemini_chunks(call):
        yield f"data: {_compact(chunk)}\r\n\r\n".encode()


def gemini_array(call: Call) -> Iterator[bytes]:
    """Without `alt=sse` the stream is one JSON array that grows by an element at a time."""
    for number, chunk in enumerate(_gemini_chunks(call)):
        yield (b",\r\n" if number else b"[") + _bytes(chunk)
    yield b"]\n"


# What goes wrong, in each provider's own words


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is an error."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)


def openai_failure(status: int, message: str) -> Failure:
    kind, code = {
        401: ("invalid_request_error", "invalid_api_key"),
        429: ("tokens", "rate_limit_exceeded"),
    }.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    headers = {"retry-after": "1", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"}
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Failure(status, {"error": error}, headers if status == 429 else {})


def anthropic_failure(status: int, message: str) -> Failure:
    kind = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }.get(status, "api_error")
    headers = {"x-should-retry": "true" if status in (408, 409, 429) or status >= 500 else "false"}
    if status == 429:
        headers["retry-after"] = "1"
    return Failure(status, {"type": "error", "error": {"type": kind, "message": message}}, headers)


def gemini_failure(status: int, message: str) -> Failure:
    word = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        503: "UNAVAILABLE",
    }.get(status, "INTERNAL")
    error: Json = {"code": status, "message": message, "status": word}
    if status == 429:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}]
    return Failure(status, {"error": error})


# Which dialect is spoken where


@dataclass(frozen=True, slots=True)
class Dialect:
    """One endpoint: how it answers whole, in events, and when it fails."""

    answer: Callable[[Call], Json]
    events: Callable[[Call], Iterator[bytes]] | None
    """None: it never streams."""
    failure: Callable[[int, str], Failure]
    id_header: str = "x-request-id"


@dataclass(frozen=True, slots=True)
class Route:
    """What the path says of a request: all of it for Gemini, the dialect alone for the others."""

    dialect: Dialect
    model: str | None = None
    is_stream: bool | None = None


GEMINI: Final = Dialect(gemini_answer, gemini_events, gemini_failure)
GEMINI_ARRAY: Final = replace(GEMINI, events=gemini_array)
GEMINI_PATH: Final = re.compile(r"/v1(?:beta)?/models/([^/:]+):(generateContent|streamGenerateContent)")
DIALECTS: Final = {
    "/v1/chat/completions": Dialect(chat_answer, chat_events, openai_failure),
    "/v1/completions": Dialect(text_answer, text_events, openai_failure),
    "/v1/responses": Dialect(responses_answer, responses_events, openai_failure),
    "/v1/embeddings": Dialect(embeddings_answer, None, openai_failure),
    "/v1/messages": Dialect(messages_answer, messages_events, anthropic_failure, "request-id"),
}


def route_of(path: str, query: Mapping[str, str]) -> Route | None:
    """The endpoint at a path; None if no provider has it."""
    if gemini := GEMINI_PATH.fullmatch(path):
        dialect = GEMINI if query.get("alt") == "sse" else GEMINI_ARRAY
        return Route(dialect, gemini[1], gemini[2] == "streamGenerateContent")
    dialect_there = DIALECTS.get(path)
    return Route(dialect_there) if dialect_there else None
