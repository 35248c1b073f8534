"""Envoy's protobuf messages as they go over the wire (upb), in one place.

`TokenUsage` is built here: the published packages do not have it yet. Fields as in envoy/data/ai/v3/token_usage.proto
of Envoy 1.40, where it is marked work in progress; the tests compare it with what a real Envoy 1.40 sends.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

__all__ = [
    "ACCESS_LOG",
    "COMPLETE",
    "EXT_PROC",
    "LEASE_NAMESPACE",
    "RATE_LIMIT",
    "USAGE_NAMESPACE",
    "ProcessingRequest",
    "ProcessingResponse",
    "RateLimitRequest",
    "RateLimitResponse",
    "StreamAccessLogsMessage",
    "StreamAccessLogsResponse",
    "TokenUsage",
]

RATE_LIMIT: Final = "envoy.service.ratelimit.v3.RateLimitService"
EXT_PROC: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG: Final = "envoy.service.accesslog.v3.AccessLogService"
LEASE_NAMESPACE: Final = "envoy.filters.http.ratelimit"
"""Where Envoy keeps the `dynamic_metadata` of our admission answers."""
USAGE_NAMESPACE: Final = "envoy.ai.token_usage"
"""Where Envoy's `ai_protocol_manager` filter puts the usage that it has read."""

_COUNT: Final = ".google.protobuf.UInt64Value"


def _token_usage() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    message = descriptor_pb2.DescriptorProto(name="TokenUsage")
    for number, name in ((3, "input_tokens"), (4, "output_tokens"), (5, "total_tokens"), (8, "provider_total_tokens")):
        message.field.add(name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
                          type_name=_COUNT)  # fmt: skip
    message.field.add(name="extraction_status", number=9, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    file = descriptor_pb2.FileDescriptorProto(
        name="sluice/token_usage.proto",
        package="sluice",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
        message_type=[message],
    )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sluice.TokenUsage"))


TokenUsage: Final = _token_usage()
COMPLETE: Final = 1
"""`extraction_status` of a response whose usage was read whole."""


def lease_in(metadata: Any) -> str:
    """The lease that admission gave a call, from what Envoy keeps about that call; empty if it has none."""
    namespaces = metadata.filter_metadata
    # Asking a protobuf map for a key that it has not would put it there.
    return namespaces[LEASE_NAMESPACE].fields["lease"].string_value if LEASE_NAMESPACE in namespaces else ""
