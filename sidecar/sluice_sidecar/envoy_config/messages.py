"""Envoy's configuration messages, and the little that envoy-data-plane lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any as Json

import betterproto2
from envoy_data_plane.google.protobuf import Any, Struct
from envoy_data_plane.message_pool import default_message_pool


@dataclass(eq=False, repr=False)
class TypedStruct(betterproto2.Message):
    """A message by name with its fields as plain JSON: how Envoy takes a type that the builder does not know."""

    type_url: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    value: Struct | None = betterproto2.field(2, betterproto2.TYPE_MESSAGE, optional=True)  # noqa: RUF009


default_message_pool.register_message("xds.type.v3", "TypedStruct", TypedStruct)


def packed(message: betterproto2.Message) -> Any:
    """The message as an `Any`, which prints with its `@type`."""
    return Any.pack(message)


def opaque(type_name: str, fields: Mapping[str, Json]) -> Any:
    """A message that envoy-data-plane does not know, or not with these fields."""
    return Any.pack(TypedStruct(type_url=f"type.googleapis.com/{type_name}", value=Struct.from_dict(dict(fields))))


def error_body(status: int, kind: str, message: str) -> str:
    """An error that the SDKs of every API read: the fields of OpenAI's, Anthropic's and Google's errors together."""
    return json.dumps({"type": "error", "error": {"type": kind, "code": status, "message": message}})
