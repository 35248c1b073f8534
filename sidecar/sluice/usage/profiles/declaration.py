"""What a profile's file may say, and what `spec.profile` of a limits document may say in its place.

Both are read by the strict parser of `sluice.schema`; the CRD and the reference in `docs/providers.md` come from here.
"""

from __future__ import annotations

from typing import Final

from sluice.core.limits import DAY
from sluice.core.words import Amount, RefusedAs
from sluice.schema.declare import Duration, Field, Integer, Object, Sequence, Text, Truth, Type, Word
from sluice.usage.profiles.profile import Api, Combine, EstimationMode, FailedRequests, ModelPlace, Reset

MOST: Final = 16
"""Items of one list in a profile: more than any provider needs, and little enough for the API server's rules."""

_LABEL: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PORT: Final = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_MEMBER: Final = "[A-Za-z0-9_-]+"

PROVIDER: Final = Text(_LABEL, "a name of lower-case letters, digits and `-`", 63)
UPSTREAM: Final = Text(
    rf"https?://{_LABEL}(\.{_LABEL})*(:{_PORT})?",
    "http:// or https://, a host in lower case and, if need be, :port, and nothing behind it",
    270,
)
_NAME: Final = Text("[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a name of lower-case letters, digits and `-`", 63)
_PATH: Final = Text(
    "[!-)+-~]*(\\*{1,2}[!-)+-~]+)*\\*{0,2}", "a path, with `**` for any segments and `*` within one", 128
)
_NAME_OF_MEMBER: Final = Text(_MEMBER, "the name of a member", 64)
_DOTTED: Final = Text(rf"{_MEMBER}(\.{_MEMBER}){{0,3}}", "names of members with dots between them", 128)
_BODY_FIELD: Final = Text(rf"{_MEMBER}(\.{_MEMBER})?", "a field of the body, or one in an object of it", 128)
_SWITCH: Final = Text(rf"({_MEMBER}(\.{_MEMBER})?)?", f"{_BODY_FIELD.says}, or nothing", 128)
_SUMMAND: Final = Text(
    rf"{_MEMBER}(\.{_MEMBER}){{0,2}}(\|{_MEMBER}(\.{_MEMBER}){{0,2}}){{0,3}}",
    "members with `|` between them, of which the first that is there counts",
    256,
)
_HEADER: Final = Text("[a-z0-9!#$%&'+.^_`|~-]+", "the name of an HTTP header in lower case", 128)
"""Less the `*` that such a name may have: Envoy is told which headers to show, and there it stands for others."""
_SEGMENT: Final = Text("[A-Za-z0-9._-]+", "a segment of a path", 64)
_TEXT: Final = Text("[^\\x00-\\x1f\\x7f-\\x9f]+", "text without control characters", 512)
_PERCENT: Final = Text("(0|[1-9][0-9]{0,3})%", "a percentage such as 0%, 100% or 500%", 5)
_PERIOD: Final = Duration(30 * DAY)
_PATTERN: Final = Text("[^,\\x00-\\x1f\\x7f-\\x9f]+", "text without commas and control characters", 256)
_PATTERNS: Final = Sequence(_PATTERN, least=1, most=MOST)
NOTHING: Final = "NOTHING"
_PROTOCOL: Final = Word(
    ("OPENAI_CHAT_COMPLETIONS", "OPENAI_RESPONSES", "ANTHROPIC_MESSAGES", "GEMINI_GENERATE_CONTENT", NOTHING)
)
_SHARED: Final = Word(
    ("openai/completions", "openai/responses", "openai/embeddings", "anthropic/messages", "gemini/generate-content")
)
"""The APIs that many providers speak beside their own."""


def _some(item: Type) -> Sequence:
    return Sequence(item, most=MOST)


_SUMMANDS: Final = _some(_SUMMAND)


def _counts(where: str) -> Object:
    return Object(
        {
            "input": Field(_SUMMANDS, f"{where} that add up to the input, caches included."),
            "output": Field(_SUMMANDS, f"{where} that add up to the output, reasoning included."),
            "total": Field(_SUMMANDS, "The provider's own sum: it counts only where a part is missing."),
            "cacheRead": Field(_SUMMANDS, "The part of the input that was read from a cache."),
            "cacheWrite": Field(_SUMMANDS, "The part of the input that was written to a cache."),
            "reasoning": Field(_SUMMANDS, "The part of the output that nobody sees."),
        }
    )


REQUEST: Final = Object(
    {
        "model": Field(Word(tuple(ModelPlace)), "Where the model is named. Default: Body."),
        "modelAfter": Field(_some(_SEGMENT), "For `Path`: the model is the segment behind one of these."),
        "outputCaps": Field(_some(_BODY_FIELD), "Fields that bound the output; the largest counts."),
        "answers": Field(_some(_BODY_FIELD), "Fields that say how many answers are wanted: they multiply the bound."),
        "streamUsage": Field(
            _SWITCH, 'The field that asks a stream for its usage; "" where it comes unasked, or never.'
        ),
        "bringsOutput": Field(Truth(), "Whether an answer has output tokens; embeddings have none. Default: true."),
    }
)

_SIGN: Final = Object(
    {
        "member": Field(_NAME_OF_MEMBER, "The member.", required=True),
        "values": Field(_some(_TEXT), "What it is. Absent: any text."),
    }
)

_TEXT_PLACE: Final = Object(
    {
        "within": Field(_NAME_OF_MEMBER, "Only in events that have this member."),
        "members": Field(_some(_NAME_OF_MEMBER), "Members that hold output.", required=True),
    }
)

RESPONSE: Final = Object(
    {
        "envoyReads": Field(
            _PROTOCOL, f"The form's name in Envoy, where Envoy reads its usage. Absent, or {NOTHING}: the gate does."
        ),
        "usage": Field(_some(_DOTTED), "Where the objects stand that report usage; absent: the document is one."),
        "fields": Field(_counts("Members"), "The counts in such an object."),
        "headers": Field(_counts("Response headers"), "The counts in headers."),
        "stop": Field(_some(_SIGN), "What says in a stream that the model has stopped."),
        "text": Field(
            _some(_NAME_OF_MEMBER), "Members that hold output in a document, to count what went by of a cut call."
        ),
        "streamText": Field(_some(_TEXT_PLACE), "The same in a stream; the first place that fits an event counts."),
        "eventBytes": Field(
            Integer(1, 65536), "Bytes of a stream that stand for one token; rather too few of them. Default: 128."
        ),
    }
)

SHAPE: Final = Object(
    {
        "name": Field(_NAME, "The API's name; one of the same name further down is replaced by it.", required=True),
        "like": Field(_SHARED, "An API of another provider: what is not said here is as there."),
        "paths": Field(_some(_PATH), "Paths that speak it; the first API that takes a path reads the call."),
        "free": Field(Truth(), "Whether its calls cost no tokens: they count as requests alone. Default: false."),
        "request": Field(REQUEST, "Where the facts of a call stand."),
        "response": Field(RESPONSE, "Where the usage of an answer stands."),
    }
)

WEIGHTS: Final = Object(
    {
        "input": Field(_PERCENT, "Input that no cache had a part in."),
        "cacheRead": Field(_PERCENT, "Input that was read from a cache."),
        "cacheWrite": Field(_PERCENT, "Input that was written to a cache."),
        "output": Field(_PERCENT, "Output."),
    }
)

COUNTING: Final = Object(
    {
        "mode": Field(
            Word(tuple(EstimationMode)), "The estimate that is nearest to the provider's own. Default: Declared."
        ),
        "combine": Field(
            Word(tuple(Combine)), "What is reserved of input and output: their sum, or the larger. Default: Sum."
        ),
        "weights": Field(WEIGHTS, "What a token counts in the end. Absent: 100% each."),
        "admission": Field(
            WEIGHTS, "What a token counts while a call is under way, where that differs; for `input` and `output`."
        ),
        "failedRequests": Field(
            Word(tuple(FailedRequests)), "Whether the tokens of failed calls count. Default: Free."
        ),
        "models": Field(
            _some(
                Object(
                    {
                        "match": Field(_PATTERNS, "Models; `*` for any run.", required=True),
                        "weights": Field(WEIGHTS, "Their weights.", required=True),
                    }
                )
            ),
            "Models that count differently; the first that matches holds.",
        ),
    }
)

_COUNTER: Final = Object(
    {
        "of": Field(Word(tuple(Amount)), "What is limited.", required=True),
        "limit": Field(_HEADER, "The header with the limit."),
        "remaining": Field(_HEADER, "The header with what is left of it."),
        "reset": Field(_HEADER, "The header with the time until all of it is back."),
        "resetIs": Field(Word(tuple(Reset)), "How that time is written. Default: Duration."),
        "period": Field(_PERIOD, "When all of it is back at the latest, where no header tells."),
    }
)

_REFUSAL: Final = Object(
    {
        "status": Field(Integer(400, 599), "The status.", required=True),
        "codes": Field(_some(_TEXT), "What the error's code, type or status is. Absent: anything."),
        "is": Field(Word(tuple(RefusedAs)), "What it means.", required=True),
    }
)

WORD: Final = Object(
    {
        "counters": Field(_some(_COUNTER), "The limits that its answers tell."),
        "refusals": Field(_some(_REFUSAL), "How it refuses; the first that fits tells why."),
    }
)

OVERRIDES: Final = Object(
    {
        "apis": Field(_some(SHAPE), "Its APIs, in the order in which paths are tried."),
        "counting": Field(COUNTING, "How it counts tokens against its limits."),
        "word": Field(WORD, "What it says of its own limits."),
    }
)
"""What a limits document may say in its provider's profile."""

PROFILE: Final = Object(
    {
        "provider": Field(PROVIDER, "The provider's name.", required=True),
        "title": Field(_TEXT, "Its name for people."),
        "like": Field(
            PROVIDER,
            "Another built-in profile: what is not said here is as there, save for address, title and sources.",
        ),
        "api": Field(Word(tuple(Api)), "The family of its APIs: the form of errors, and where a caller's key stands."),
        "upstream": Field(
            UPSTREAM,
            "Where calls go, unless a limits document says otherwise. Absent: each customer has an address of its own.",
        ),
        **OVERRIDES.fields,
        "sources": Field(
            Sequence(
                Object(
                    {
                        "fact": Field(_TEXT, "What is known.", required=True),
                        "at": Field(_TEXT, "Where it stands.", required=True),
                        "note": Field(_TEXT, "What is to be doubted."),
                    }
                ),
                most=64,
            ),
            "Where the facts come from.",
        ),
    }
)
"""A profile's file."""
