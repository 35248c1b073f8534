"""The responses in `tests/data/responses`, and what is to be read from each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from helpers import eventstream

FOLDER = Path(__file__).parents[1] / "data" / "responses"


class Recorded(NamedTuple):
    """A response in the shape that its provider documents, with text of our own."""

    name: str
    provider: str
    path: str
    """Where it was asked for."""
    content_type: str
    headers: dict[str, str]
    """Those of the answer that tell usage."""
    body: bytes
    input_tokens: int | None
    output_tokens: int | None
    provider_total: int | None
    cache_read: int | None
    cache_write: int | None
    reasoning: int | None
    output: str
    """All that the model says in it."""


def recorded() -> list[Recorded]:
    """Every response that is expected, in the order of `expected.json`."""
    expected: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
    optional: dict[str, Any] = {"headers": {}, "cache_read": None, "cache_write": None, "reasoning": None}
    return [Recorded(name=name, body=_body(name), **{**optional, **told}) for name, told in expected.items()]


def _body(name: str) -> bytes:
    if name.endswith(".events"):
        return eventstream.stream((FOLDER / name).read_text("utf-8").splitlines())
    return (FOLDER / name).read_bytes()
