"""The responses in `tests/data/responses` as the readers of bodies meet them."""

from __future__ import annotations

from typing import NamedTuple

from helpers.responses import recorded
from sluice.usage.profiles import BUILT_IN, Shape
from sluice.usage.profiles.profile import Response
from sluice.usage.readers import UsageReader, reader_for
from sluice.usage.tokens import Usage

WHOLE = 1 << 30
EVENT_STREAM = "application/vnd.amazon.eventstream"
NOT_TOLD = ("bedrock-invoke-llama.json", "cohere-rerank.json", "gemini-embed-content.json")
"""The bodies that tell no tokens: of the first, the headers do."""
_COUNTS = ("input_tokens", "output_tokens", "provider_total", "cache_read", "cache_write", "reasoning")


class Example(NamedTuple):
    """A response, and what its body should tell by its provider's profile."""

    name: str
    response: Response
    content_type: str
    usage: Usage | None
    output: str
    body: bytes

    @property
    def is_text(self) -> bool:
        """False for a stream of binary messages, to which line ends and white space mean nothing."""
        return self.content_type != EVENT_STREAM

    def reader(self, content_encoding: str | None = None) -> UsageReader:
        """A fresh reader for this response."""
        reader = reader_for(self.response, self.content_type, content_encoding)
        assert reader is not None
        return reader


def shape_of(provider: str, path: str) -> Shape:
    """The API of a built-in provider that calls of this path speak."""
    return next(shape for shape in BUILT_IN.profile(provider).shapes if shape.takes(path))


def response_of(provider: str, path: str) -> Response:
    """Where the answers to calls of this path tell their usage."""
    return shape_of(provider, path).response


def read(reader: UsageReader | None, body: bytes, size: int = WHOLE) -> Usage | None:
    """What the reader says of a body that comes in pieces of this size."""
    assert reader is not None
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    return reader.finish()


EXAMPLES = [
    Example(
        name=told.name,
        response=response_of(told.provider, told.path),
        content_type=told.content_type,
        usage=Usage(**{count: getattr(told, count) for count in _COUNTS}) if told.name not in NOT_TOLD else None,
        output=told.output,
        body=told.body,
    )
    for told in recorded()
]


def _shortest() -> list[Example]:
    forms: dict[object, Example] = {}
    for example in sorted(EXAMPLES, key=lambda each: len(each.body)):
        forms.setdefault((example.response.usage, example.response.stop, example.content_type), example)
    return list(forms.values())


SHORTEST = _shortest()
"""The shortest of each form: where its usage stands, what says that the model has stopped, and how it is framed."""
