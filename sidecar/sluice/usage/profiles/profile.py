"""A provider's profile as values: sound once it is built, and immutable."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sluice.core.words import Amount, RefusedAs

Summands = tuple[tuple[str, ...], ...]
"""A count is a sum; each summand is the first of its names that was told. A dot leads into an object."""


class Api(StrEnum):
    """A family of APIs: the form of its errors, where a caller's key stands. The value is the word of the document."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"
    GEMINI = "Gemini"
    BEDROCK = "Bedrock"
    COHERE = "Cohere"
    OLLAMA = "Ollama"


class ModelPlace(StrEnum):
    """Where a request names its model."""

    BODY = "Body"
    PATH = "Path"


class EstimationMode(StrEnum):
    """How the tokens of a call are estimated before it is made."""

    LEARNED = "Learned"
    """From what such calls used before."""
    DECLARED = "Declared"
    """From the caps that the request sets on its output."""
    FIXED = "Fixed"
    """From the request's size and a number, whatever the request says."""


class Combine(StrEnum):
    """How a provider puts input and output together when it admits a call."""

    SUM = "Sum"
    LARGEST = "Largest"


class FailedRequests(StrEnum):
    """Whether a provider counts the tokens of calls that it answers with an error."""

    FREE = "Free"
    COUNTED = "Counted"


class Reset(StrEnum):
    """How a header tells the time of a reset."""

    DURATION = "Duration"
    """`1s`, `6m0s`, `345ms`; a bare number is seconds."""
    SECONDS = "Seconds"
    TIMESTAMP = "Timestamp"
    """RFC 3339, or Unix time in seconds or milliseconds."""


@dataclass(frozen=True, slots=True)
class UsageFields:
    """How the fields that an API reports become counts."""

    input_tokens: Summands = ()
    """All of the input, what was read from a cache or written to one included."""
    output_tokens: Summands = ()
    provider_total: Summands = ()
    cache_read: Summands = ()
    cache_write: Summands = ()
    reasoning: Summands = ()
    names: frozenset[str] = field(init=False)
    """Every field that matters; the rest of a report is not looked at."""

    def __post_init__(self) -> None:
        counts = (self.input_tokens, self.output_tokens, self.provider_total)
        parts = (self.cache_read, self.cache_write, self.reasoning)
        names = frozenset(name for count in (*counts, *parts) for summand in count for name in summand)
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True)
class Request:
    """Where the facts of a call stand in its request. Fields of the body are dotted, at most two levels deep."""

    model: ModelPlace = ModelPlace.BODY
    model_after: tuple[str, ...] = ()
    """Segments of the path: the model is what follows one of them."""
    output_caps: tuple[str, ...] = ()
    """The largest counts."""
    answers: tuple[str, ...] = ()
    """How many answers are asked for; the largest multiplies the output cap."""
    stream_usage: str = ""
    """What a request has to set to true for a stream to tell its usage; empty where it tells it unasked, or never."""
    brings_output: bool = True
    """False for embeddings and the like."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A member of a stream's event that has one of these values, or without values any text."""

    member: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Members that hold the output's text, in events that have a member `within` (empty: in every event)."""

    within: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """Where an answer tells its usage, and its output."""

    envoy_reads: str = ""
    """The name Envoy has for this form, where its `ai_protocol_manager` reads it."""
    usage: tuple[str, ...] = ()
    """Dotted paths of the objects that report usage; empty: the counts stand in the document itself."""
    fields: UsageFields = UsageFields()
    headers: UsageFields = UsageFields()
    """Counts in response headers, in lower case."""
    stop: tuple[Sign, ...] = ()
    """What says that the model has stopped: usage told with it, or later, is final."""
    text: tuple[str, ...] = ()
    """Members that hold the output's text in a document."""
    stream_text: tuple[TextPlace, ...] = ()
    """And in the events of a stream: the first place that fits an event is looked at."""
    event_bytes: int = 128
    """Bytes of a stream that stand for one token of its output, envelope and all, and rather too few of them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One API of a provider."""

    name: str
    paths: tuple[str, ...]
    """Patterns of the path: `**` stands for any run of segments, `*` for a run of characters within one."""
    request: Request = Request()
    response: Response = Response()
    free: bool = False
    """Its calls cost no tokens."""

    def takes(self, path: str) -> bool:
        """True if a call to this path (without its query) speaks this API."""
        return any(re.fullmatch(regex(pattern), path) for pattern in self.paths)


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each kind of token counts, in percent."""

    input: int = 100
    """Input that neither came from a cache nor went into one."""
    cache_read: int = 100
    cache_write: int = 100
    output: int = 100


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Weights that hold for some models; `*` stands for any run of characters."""

    match: tuple[str, ...]
    weights: Weights


@dataclass(frozen=True, slots=True)
class Counting:
    """How a provider counts tokens against its limits."""

    mode: EstimationMode = EstimationMode.DECLARED
    combine: Combine = Combine.SUM
    weights: Weights = Weights()
    """In the end; `admission` holds while a call is under way, where that differs."""
    admission: Weights | None = None
    failed_requests: FailedRequests = FailedRequests.FREE
    models: tuple[ModelWeights, ...] = ()
    """The first that matches the model's name holds in place of `weights`."""


@dataclass(frozen=True, slots=True)
class Counter:
    """The headers in which a provider tells one of its limits; empty where it does not. In lower case."""

    of: Amount
    limit: str = ""
    remaining: str = ""
    reset: str = ""
    reset_is: Reset = Reset.DURATION
    period: int = 0
    """Nanoseconds after which all of it is back at the latest, where no header tells; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class RefusalSign:
    """A status, and words in the error's `code`, `type` or `status`, by which a refusal is known."""

    status: int
    refused_as: RefusedAs
    codes: tuple[str, ...] = ()
    """Empty: whatever the error says."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a provider says of its own limits."""

    counters: tuple[Counter, ...] = ()
    refusals: tuple[RefusalSign, ...] = ()
    """The first that fits tells why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fact of the profile comes from."""

    fact: str
    at: str
    note: str = ""
    """What is to be doubted in it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a provider before anybody configures it."""

    provider: str
    title: str
    api: Api
    upstream: str
    """Scheme and host, and a port where it is not the scheme's own; never a path. Empty where each has its own."""
    shapes: tuple[Shape, ...]
    """Its APIs: the first that takes a path reads the call."""
    counting: Counting = Counting()
    word: Word = Word()
    sources: tuple[Source, ...] = ()

    def shape(self, name: str) -> Shape:
        """The API of that name; the last one, which takes what no other takes, for a name that it does not have."""
        return next((shape for shape in self.shapes if shape.name == name), self.shapes[-1])


EVERY_PATH: Final = "**"

_PARTS: Final = re.compile(r"\*\*/|/\*\*|\*\*|\*|(?:(?!/\*\*)[^*])+")
_WORDS: Final = {"**/": "/(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*"}


def regex(pattern: str) -> str:
    """A path's pattern as a regular expression that RE2 and Python's `re` read alike; it is for the whole path.

    In any case of letters: servers that look at it answer the others with 404, and those that do not must not be called
    past a rule by `/Deployments/`.
    """
    return f"(?i:{''.join(_WORDS.get(part) or re.escape(part) for part in _PARTS.findall(pattern))})"
