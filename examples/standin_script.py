"""What the stand-in provider is asked: the script of an answer, and the call that a request makes. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

Json = dict[str, Any]

PREFIX: Final = "x-standin-"
COUNT: Final = "<count>"
"""Stands for a count of the usage until the answer is written, where a script says what to write instead."""
WORDS: Final = ("every", "token", "of", "this", "answer", "was", "counted", "once")
CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
PROMPTS: Final = ("messages", "prompt", "input", "instructions", "system", "contents", "systemInstruction")


class Point(StrEnum):
    """Where in an answer something happens."""

    START = "start"
    """Before its first byte."""
    MIDDLE = "middle"
    """After half of its events, or half of its bytes where it is one JSON document."""


@dataclass(frozen=True, slots=True)
class Script:
    """How an answer behaves. Every field is also a request header: `x-standin-` and its name with dashes."""

    input_tokens: int | None = None
    """All of the input, cached tokens too; None: a quarter of the prompt's characters."""
    output_tokens: int | None = None
    """For each choice, reasoning too; None: ten more than the input, but no more than the request's cap."""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    chunks: int = 8
    """How many pieces a streamed text comes in, at most."""
    delay_ms: int = 0
    """Before the first byte of the answer."""
    chunk_delay_ms: int = 0
    """Before every event of a stream after the first one."""
    hold: Point | None = None
    """Wait there until `StandIn.let_go` is called."""
    cut: Point | None = None
    """Close the connection there."""
    status: int = 200
    """From 400 up: fail with it, in the provider's own words."""
    omit_usage: bool = False
    usage_count: str | None = None
    """Written as it is in place of every count of the usage, however malformed: `-1`, `"12"`, `1e999`."""
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer. As a request header, a JSON object: `{"x-usage-total-tokens": "42"}`."""
    recording: str = ""
    """The name of a recording that the stand-in was given: it is the answer, in `chunks` pieces, whatever is asked."""
    gzip: bool = False
    """Compress JSON answers for clients that accept it, as the real ones do."""

    def changed_by(self, headers: Mapping[str, str]) -> Script:
        """This script with the changes that a request's headers ask for.

        Raises ValueError for a header that is no field, or whose value the field cannot hold.
        """
        changes: dict[str, object] = {}
        for name, value in headers.items():
            if name.lower().startswith(PREFIX):
                known = name.lower().removeprefix(PREFIX).replace("-", "_")
                if known not in READERS:
                    all_known = ", ".join(PREFIX + each.replace("_", "-") for each in READERS)
                    raise ValueError(f"no such header: {name.lower()}; known are {all_known}")
                changes[known] = READERS[known](value)
        return replace(self, **changes)  # type: ignore[arg-type]


def _status(value: str) -> int:
    status = int(value)
    if not 200 <= status <= 599:
        raise ValueError(f"no answer has the status {status}: give one from 200 to 599")
    return status


def _flag(value: str) -> bool:
    return value.lower() in ("1", "true", "yes")


READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "input_tokens": int,
    "output_tokens": int,
    "cached_tokens": int,
    "reasoning_tokens": int,
    "chunks": int,
    "delay_ms": int,
    "chunk_delay_ms": int,
    "hold": Point,
    "cut": Point,
    "status": _status,
    "omit_usage": _flag,
    "usage_count": str,
    "answer_headers": json.loads,
    "recording": str,
    "gzip": _flag,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One request, understood: what the dialects need to answer it."""

    number: int
    """The first request is 1; ids are made of it."""
    body: Json
    model: str
    is_stream: bool
    input_tokens: int
    output_tokens: int
    """Of one choice."""
    is_capped: bool
    """The request's own cap ended the answer."""
    choices: int
    script: Script

    @property
    def pieces(self) -> list[str]:
        """The text of one choice: a word for each token, in at most `script.chunks` pieces."""
        words = [WORDS[i % len(WORDS)] + " " for i in range(self.output_tokens - self.script.reasoning_tokens)]
        size = max(1, -(-len(words) // max(1, self.script.chunks)))
        return ["".join(words[i : i + size]) for i in range(0, len(words), size)]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def all_output(self) -> int:
        return self.output_tokens * self.choices

    @property
    def all_reasoning(self) -> int:
        return self.script.reasoning_tokens * self.choices

    def count(self, tokens: int) -> int | str:
        """A count as it stands in the usage: `COUNT` where the script has something else to write there."""
        return tokens if self.script.usage_count is None else COUNT

    def usage(self, usage: Json, name: str = "usage") -> Json:
        """The usage as an entry of the answer: nothing where the script omits it."""
        return {} if self.script.omit_usage else {name: usage}


def call_of(body: object, script: Script, number: int, *, model: str | None, is_stream: bool | None) -> Call:
    """The call that a request's body makes; `model` and `is_stream` are what its path says of them, if it does.

    Raises ValueError for a body that no provider would take.
    """
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")
    model = model or body.get("model")
    if not isinstance(model, str):
        raise ValueError("you must provide a model parameter")
    settings = {**body, **body.get("generationConfig", {})}
    caps = [settings[name] for name in CAPS if settings.get(name) is not None]
    if not all(isinstance(cap, int) for cap in caps):
        raise ValueError("an output cap is not an integer")
    cap = max(caps, default=None)
    input_tokens = script.input_tokens
    if input_tokens is None:
        input_tokens = -(-_characters([body.get(name) for name in PROMPTS]) // 4)
    output_tokens = script.output_tokens
    if output_tokens is None:
        output_tokens = input_tokens + 10 if cap is None else min(cap, input_tokens + 10)
    return Call(
        number=number,
        body=body,
        model=model,
        is_stream=bool(body.get("stream")) if is_stream is None else is_stream,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        is_capped=cap is not None and output_tokens >= cap,
        choices=settings.get("n") or settings.get("candidateCount") or 1,
        script=script,
    )


def _characters(prompt: object) -> int:
    """Characters of text in a prompt, whatever its shape."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, list):
        return sum(map(_characters, prompt))
    if isinstance(prompt, dict):
        return sum(_characters(value) for name, value in prompt.items() if name not in ("role", "type"))
    return 0
