"""What envoy-data-plane lacks: embedded messages that print fast, and messages that it does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any as Json

import betterproto2
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.message_pool import default_message_pool


class _Embedded(Any):
    """An `Any` for printing alone: `Any.pack` would make bytes, to be parsed again at every level of nesting."""

    def __init__(self, type_url: str, fields: Mapping[str, Json]) -> None:
        super().__init__(type_url=type_url)
        self._json = {"@type": type_url, **fields}

    def to_dict(self, **_options: Json) -> dict[str, Json]:
        return self._json


def packed(message: betterproto2.Message) -> Any:
    """A message in a field of type `Any`."""
    return _Embedded(default_message_pool.type_to_url[type(message)], message.to_dict())


def opaque(type_name: str, fields: Mapping[str, Json]) -> Any:
    """A message that envoy-data-plane does not know, or not with these fields."""
    return _Embedded(f"type.googleapis.com/{type_name}", fields)


def error_body(status: int, kind: str, message: str) -> str:
    """An error that the SDKs of every API read: the fields of OpenAI's, Anthropic's and Google's errors together."""
    return json.dumps({"type": "error", "error": {"type": kind, "code": status, "message": message}})
