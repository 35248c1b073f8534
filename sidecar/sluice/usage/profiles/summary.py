"""What a profile knows, in the words of `sluice providers` and of `docs/providers.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sluice.core.words import Amount, RefusedAs
from sluice.usage.profiles.profile import (
    Combine,
    Counting,
    EstimationMode,
    FailedRequests,
    ModelPlace,
    Profile,
    Shape,
    UsageFields,
    Weights,
)

_AMOUNTS: Final = {
    Amount.REQUESTS: "requests",
    Amount.TOKENS: "tokens",
    Amount.INPUT_TOKENS: "input tokens",
    Amount.OUTPUT_TOKENS: "output tokens",
}
_REFUSED_AS: Final = {
    RefusedAs.RATE_LIMITED: "rate limit",
    RefusedAs.OVERLOADED: "overload",
    RefusedAs.SPEND_CAP: "spend cap",
}
_KINDS: Final = {"input": "input", "cache_read": "cache reads", "cache_write": "cache writes", "output": "output"}


def costly(profile: Profile) -> tuple[Shape, ...]:
    """The APIs of a provider whose calls cost tokens."""
    return tuple(shape for shape in profile.shapes if not shape.free)


def model(shape: Shape) -> str:
    """Where a call to that API names its model."""
    return "body" if shape.request.model is ModelPlace.BODY else f"path, behind {', '.join(shape.request.model_after)}"


def told(shape: Shape) -> str:
    """The counts that an answer tells."""
    fields = shape.response.fields
    return ", ".join(name for name, there in _told(fields) if there) or "none"


def _told(fields: UsageFields) -> Iterator[tuple[str, bool]]:
    yield "input", bool(fields.input_tokens)
    yield "output", bool(fields.output_tokens)
    yield "total", bool(fields.provider_total)
    yield "cache reads", bool(fields.cache_read)
    yield "cache writes", bool(fields.cache_write)
    yield "reasoning", bool(fields.reasoning)


def streams(shape: Shape) -> str:
    """When a stream of that API tells its usage; empty for one that does not stream."""
    if shape.request.stream_usage:
        return f"with {shape.request.stream_usage}"
    return "always" if shape.response.stop else ""


def read_by(shape: Shape) -> str:
    """Who reads the usage of an answer, and from where."""
    reader = "Envoy" if shape.response.envoy_reads else "the gate"
    return f"headers, else {reader}" if shape.response.headers.names else reader


def reserved(counting: Counting) -> str:
    """What is reserved of a call before it is made."""
    output = "output as learned" if counting.mode is EstimationMode.LEARNED else "output cap"
    return f"input + {output}" if counting.combine is Combine.SUM else f"the larger of input and {output}"


def counted(counting: Counting) -> tuple[str, ...]:
    """What differs from every token counting once, each in a phrase."""
    phrases = [*_weighed(counting.weights, Weights())]
    for each in counting.models:
        phrases += (f"{phrase} for {', '.join(each.match)}" for phrase in _weighed(each.weights, counting.weights))
    if counting.failed_requests is FailedRequests.COUNTED:
        phrases.append("failed calls too")
    return tuple(phrases)


def _weighed(weights: Weights, usual: Weights) -> Iterator[str]:
    for name, kind in _KINDS.items():
        if (weight := getattr(weights, name)) != getattr(usual, name):
            yield f"{kind} {weight}%"


def limits(profile: Profile) -> str:
    """The limits of its own that a provider tells what is left of."""
    of = (_AMOUNTS[counter.of] for counter in profile.word.counters if counter.remaining)
    return ", ".join(dict.fromkeys(of)) or "none"


def refusals(profile: Profile) -> tuple[str, ...]:
    """How a provider's refusals are told apart, each in a phrase."""
    return tuple(
        f"{sign.status} {_REFUSED_AS[sign.refused_as]}" + (f" ({', '.join(sign.codes)})" if sign.codes else "")
        for sign in profile.word.refusals
    )
