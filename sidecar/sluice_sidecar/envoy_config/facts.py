"""What the gate is told of a call, and how Envoy finds it out.

A call becomes ONE rate-limit descriptor. Envoy drops a descriptor whole if one of its entries cannot be made, and a
call without a descriptor is let through without asking the gate. So every entry here either always exists
(`provider`, `bytes`) or is skipped where its fact is absent (`skip_if_absent`).

The facts are read by `read_body.lua` into dynamic metadata, as strings (a NUMBER does not reach a descriptor), under a
namespace that only Envoy writes. Each route tells it which fields of the body are which facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as lua
from envoy_data_plane.envoy.type.metadata import v3 as metadata
from envoy_data_plane.google.protobuf import Struct

from sluice.config.merge import Provider
from sluice.config.types import StreamUsage
from sluice.usage.profiles import Shape
from sluice.usage.profiles.profile import ModelPlace, Request
from sluice_sidecar.envoy_config.callers import subject_actions

NAMESPACE: Final = "sluice.request"

FACTS: Final = ("blob_bytes", "model", "max_output_tokens", "n", "stream", "stream_usage")
"""What is told of a call, whatever its API calls it: entries of the descriptor, and keys of the metadata."""


def body_reader() -> lua.Lua:
    """Reads the body of every request, whatever content type it claims: a claim must not hide a model or a cap.

    It holds the body back until it is whole, so that its size is known when the gate is asked.
    """
    return _script("read_body.lua")


def unasked_streams() -> lua.Lua:
    """Hides the usage of the streams that `read_body.lua` has asked for it, and counts what the others bring."""
    return _script("unasked.lua")


def texts(shape: Shape) -> lua.LuaPerRoute:
    """Where the text stands in the streams of this API."""
    members = [member for place in shape.response.stream_text for member in place.members]
    return lua.LuaPerRoute(filter_context=Struct.from_dict({"text": " ".join(members)}))


def refusal_reader() -> lua.Lua:
    """Shows the gate the body of a provider's refusal."""
    return _script("read_refusal.lua")


def refusals(provider: Provider) -> lua.LuaPerRoute:
    """The statuses by which this provider refuses a call."""
    statuses = sorted({sign.status for sign in provider.profile.word.refusals})
    return lua.LuaPerRoute(filter_context=Struct.from_dict({"statuses": " ".join(map(str, statuses))}))


def reading(shape: Shape, unasked: StreamUsage | None) -> lua.LuaPerRoute:
    """What the reader looks for in a call to this API, and what it does about a stream that is not asked for its usage.

    One text each: the reader remembers what it means.
    """
    request = shape.request
    told = {"facts": " ".join(f"{field}={fact}" for field, fact in _fields(request))}
    if request.model is ModelPlace.PATH:
        told["path"] = " ".join(request.model_after)
    if unasked is not None:
        told |= {"switch": request.stream_usage, "unasked": unasked.lower()}
    return lua.LuaPerRoute(filter_context=Struct.from_dict(dict(told)))


def _fields(request: Request) -> Iterator[tuple[str, str]]:
    """Field of the body, at most two levels deep, and the fact it tells. Of several for one fact the largest counts."""
    if request.model is ModelPlace.BODY:
        yield "model", "model"
    yield from ((field, "max_output_tokens") for field in request.output_caps)
    yield from ((field, "n") for field in request.answers)
    yield "stream", "stream"
    if request.stream_usage:
        yield request.stream_usage, "stream_usage"


def descriptor(provider: Provider, shape: Shape) -> route.RateLimit:
    """The one descriptor of a call to this API of the provider."""
    actions = [
        _text("provider", provider.name),
        _text("api", shape.name),
        *subject_actions(provider),
        _text("bytes", "%BYTES_RECEIVED%"),
    ]
    return route.RateLimit(actions=actions + [_fact(name) for name in FACTS])


def _script(name: str) -> lua.Lua:
    return lua.Lua(default_source_code=core.DataSource(inline_string=(Path(__file__).parent / name).read_text()))


def _text(entry: str, value: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        generic_key=route.RateLimitActionGenericKey(descriptor_key=entry, descriptor_value=value, default_value="0")
    )


def _fact(name: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        metadata=route.RateLimitActionMetaData(
            descriptor_key=name,
            metadata_key=metadata.MetadataKey(key=NAMESPACE, path=[metadata.MetadataKeyPathSegment(key=name)]),
            source=route.RateLimitActionMetaDataSource.DYNAMIC,
            skip_if_absent=True,
        )
    )
