"""What the gate is told of a call, and how Envoy finds it out.

A call becomes ONE rate-limit descriptor. Envoy drops a descriptor whole if one of its entries cannot be made, and a
call without a descriptor is let through without asking the gate. So every entry here either always exists
(`provider`, `bytes`) or is skipped where its fact is absent (`skip_if_absent`).

The body's facts are read by `read_body.lua` into dynamic metadata, as strings (a NUMBER does not reach a descriptor),
under a namespace that only Envoy writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.header_to_metadata import v3 as header_to_metadata
from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as lua
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.envoy.type.metadata import v3 as metadata

from sluice.config.merge import Provider
from sluice.usage.profiles import Api, Shape
from sluice_sidecar.envoy_config.callers import subject_actions

NAMESPACE: Final = "sluice.request"

PATH_MODEL: Final = "path_model"
_SLASH: Final = "(?:/|%2[Ff])"
MODEL_IN_PATH: Final = rf"^(?:[^?]*{_SLASH}(?:models|tunedModels){_SLASH}([^/:?%]+))?.*$"
"""Matches every path, so that nothing but a model's name is ever handed on: a path may hold `?key=`. An escaped slash
or colon must not hide the name; escapes of letters and digits are undone before (`normalize_path`)."""

ENTRIES: Final[Mapping[Api, Mapping[str, str]]] = {
    Api.OPENAI: {
        "model": "model",
        "max_tokens": "max_tokens",
        "max_completion_tokens": "max_completion_tokens",
        "max_output_tokens": "max_output_tokens",
        "n": "n",
    },
    Api.ANTHROPIC: {"model": "model", "max_tokens": "max_tokens"},
    Api.GEMINI: {"model": PATH_MODEL, "max_output_tokens": "gemini_max_output_tokens", "n": "gemini_n"},
}
"""Descriptor entry: metadata key, for each API."""


def body_reader() -> lua.Lua:
    """Reads the body of every request, whatever content type it claims: a claim must not hide a model or a cap.

    It holds the body back until it is whole, so that its size is known when the gate is asked.
    """
    source = (Path(__file__).parent / "read_body.lua").read_text()
    return lua.Lua(default_source_code=core.DataSource(inline_string=source))


def path_reader() -> header_to_metadata.Config:
    """Reads the model out of the path, for APIs that have it there."""
    return header_to_metadata.Config(
        request_rules=[
            header_to_metadata.ConfigRule(
                header=":path",
                on_header_present=header_to_metadata.ConfigKeyValuePair(
                    metadata_namespace=NAMESPACE,
                    key=PATH_MODEL,
                    regex_value_rewrite=matcher.RegexMatchAndSubstitute(
                        pattern=matcher.RegexMatcher(regex=MODEL_IN_PATH), substitution=r"\1"
                    ),
                ),
            )
        ]
    )


def descriptor(provider: Provider, shape: Shape) -> route.RateLimit:
    """The one descriptor of a call to this API of the provider."""
    actions = [
        _text("provider", provider.name),
        _text("api", shape.name),
        *subject_actions(provider),
        _text("bytes", "%BYTES_RECEIVED%"),
    ]
    entries = ENTRIES.get(provider.profile.api, ENTRIES[Api.OPENAI])
    return route.RateLimit(actions=actions + [_metadata(*each) for each in entries.items()])


def _text(entry: str, value: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        generic_key=route.RateLimitActionGenericKey(descriptor_key=entry, descriptor_value=value, default_value="0")
    )


def _metadata(entry: str, key: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        metadata=route.RateLimitActionMetaData(
            descriptor_key=entry,
            metadata_key=metadata.MetadataKey(key=NAMESPACE, path=[metadata.MetadataKeyPathSegment(key=key)]),
            source=route.RateLimitActionMetaDataSource.DYNAMIC,
            skip_if_absent=True,
        )
    )
