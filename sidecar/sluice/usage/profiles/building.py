"""From a sound tree to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluice.core.words import Amount, RefusedAs
from sluice.schema.durations import parse_duration
from sluice.usage.profiles.declaration import NOTHING
from sluice.usage.profiles.profile import (
    Api,
    Combine,
    Counter,
    Counting,
    EstimationMode,
    FailedRequests,
    ModelPlace,
    ModelWeights,
    Profile,
    RefusalSign,
    Request,
    Reset,
    Response,
    Shape,
    Sign,
    Source,
    Summands,
    TextPlace,
    UsageFields,
    Weights,
    Word,
)


def built(tree: Mapping[str, Any]) -> Profile:
    """The profile that a whole and sound tree says."""
    return Profile(
        provider=tree["provider"],
        title=tree.get("title", tree["provider"]),
        api=Api(tree["api"]),
        upstream=tree.get("upstream", ""),
        shapes=tuple(_shape(api) for api in tree["apis"]),
        counting=_counting(tree.get("counting", {})),
        word=_word(tree.get("word", {})),
        sources=tuple(Source(each["fact"], each["at"], each.get("note", "")) for each in tree.get("sources", ())),
    )


def _shape(tree: Mapping[str, Any]) -> Shape:
    return Shape(
        name=tree["name"],
        paths=tuple(tree.get("paths", ())),
        request=_request(tree.get("request", {})),
        response=_response(tree.get("response", {})),
        free=tree.get("free", False),
    )


def _request(tree: Mapping[str, Any]) -> Request:
    return Request(
        model=ModelPlace(tree.get("model", ModelPlace.BODY)),
        model_after=tuple(tree.get("modelAfter", ())),
        output_caps=tuple(tree.get("outputCaps", ())),
        answers=tuple(tree.get("answers", ())),
        stream_usage=tree.get("streamUsage", ""),
        brings_output=tree.get("bringsOutput", True),
    )


def _response(tree: Mapping[str, Any]) -> Response:
    return Response(
        envoy_reads=tree.get("envoyReads", NOTHING).replace(NOTHING, ""),
        usage=tuple(tree.get("usage", ())),
        fields=_fields(tree.get("fields", {})),
        headers=_fields(tree.get("headers", {})),
        stop=tuple(Sign(sign["member"], tuple(sign.get("values", ()))) for sign in tree.get("stop", ())),
        text=tuple(tree.get("text", ())),
        stream_text=tuple(
            TextPlace(place.get("within", ""), tuple(place["members"])) for place in tree.get("streamText", ())
        ),
        event_bytes=tree.get("eventBytes", Response().event_bytes),
    )


def _fields(tree: Mapping[str, Any]) -> UsageFields:
    return UsageFields(
        input_tokens=_summands(tree, "input"),
        output_tokens=_summands(tree, "output"),
        provider_total=_summands(tree, "total"),
        cache_read=_summands(tree, "cacheRead"),
        cache_write=_summands(tree, "cacheWrite"),
        reasoning=_summands(tree, "reasoning"),
    )


def _summands(tree: Mapping[str, Any], name: str) -> Summands:
    return tuple(tuple(summand.split("|")) for summand in tree.get(name, ()))


def _counting(tree: Mapping[str, Any]) -> Counting:
    default = Counting()
    weights = _weights(tree.get("weights", {}), default.weights)
    return Counting(
        mode=EstimationMode(tree.get("mode", default.mode)),
        combine=Combine(tree.get("combine", default.combine)),
        weights=weights,
        admission=_weights(tree["admission"], weights) if "admission" in tree else None,
        failed_requests=FailedRequests(tree.get("failedRequests", default.failed_requests)),
        models=tuple(
            ModelWeights(tuple(each["match"]), _weights(each["weights"], weights)) for each in tree.get("models", ())
        ),
    )


def _weights(tree: Mapping[str, Any], default: Weights) -> Weights:
    return Weights(
        input=_percent(tree.get("input"), default.input),
        cache_read=_percent(tree.get("cacheRead"), default.cache_read),
        cache_write=_percent(tree.get("cacheWrite"), default.cache_write),
        output=_percent(tree.get("output"), default.output),
    )


def _percent(text: str | None, default: int) -> int:
    return default if text is None else int(text.removesuffix("%"))


def _word(tree: Mapping[str, Any]) -> Word:
    return Word(
        counters=tuple(
            Counter(
                Amount(each["of"]),
                each.get("limit", ""),
                each.get("remaining", ""),
                each.get("reset", ""),
                Reset(each.get("resetIs", Reset.DURATION)),
                parse_duration(each.get("period", "")) or 0,
            )
            for each in tree.get("counters", ())
        ),
        refusals=tuple(
            RefusalSign(each["status"], RefusedAs(each["is"]), tuple(each.get("codes", ())))
            for each in tree.get("refusals", ())
        ),
    )
