"""Envoy's protobuf messages as they go over the wire (upb), in one place.

`TokenUsage` is built here: the published packages do not have it yet. Fields as in envoy/data/ai/v3/token_usage.proto
of Envoy 1.40, where it is marked work in progress; the tests compare it with what a real Envoy 1.40 sends.

A header may hold any byte, and Envoy puts headers into the strings of a rate-limit request as they are. Such a request
must be understood all the same: one that the gate fails to answer is let through by `failurePolicy: Allow`.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2
from google.protobuf.message import DecodeError

__all__ = [
    "ACCESS_LOG",
    "ATTRIBUTES",
    "COMPLETE",
    "EXT_PROC",
    "LEASE_NAMESPACE",
    "RATE_LIMIT",
    "REFUSAL_NAMESPACE",
    "SAID",
    "STREAM_NAMESPACE",
    "USAGE_NAMESPACE",
    "DecodeError",
    "ProcessingRequest",
    "RateLimitRequest",
    "RateLimitResponse",
    "StreamAccessLogsMessage",
    "TokenUsage",
    "attempts_in",
    "is_envoys_own",
    "lease_in",
    "rate_limit_request",
    "refusal_in",
    "said_in",
]

RATE_LIMIT: Final = "envoy.service.ratelimit.v3.RateLimitService"
EXT_PROC: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG: Final = "envoy.service.accesslog.v3.AccessLogService"
LEASE_NAMESPACE: Final = "envoy.filters.http.ratelimit"
"""Where Envoy keeps the `dynamic_metadata` of our admission answers."""
REFUSAL_NAMESPACE: Final = "sluice.refusal"
"""Where Envoy puts the body of a provider's refusal, for the gate to see why."""
STREAM_NAMESPACE: Final = "sluice.stream"
"""Where Envoy keeps what it knows of a stream that was not asked for its usage."""
SAID: Final = "said"
"""How many bytes went by in it, of what the model says."""
ATTRIBUTES: Final = ("upstream.request_attempt_count", "response.code_details")
"""What Envoy tells of an answer besides."""
USAGE_NAMESPACE: Final = "envoy.ai.token_usage"
"""Where Envoy's `ai_protocol_manager` filter puts the usage that it has read."""

_EXT_PROC_ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
_VIA_UPSTREAM: Final = "via_upstream"

_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_COUNT: Final = ".google.protobuf.UInt64Value"


def _token_usage() -> Any:
    file = _file("usage")
    _counts(file, "InputDetail", cached_tokens=1, cache_creation_tokens=2, tool_use_tokens=3)
    _counts(file, "OutputDetail", reasoning_tokens=1)
    usage = _counts(file, "TokenUsage", input_tokens=3, output_tokens=4, total_tokens=5, provider_total_tokens=8)
    for number, name, kind in ((6, "input_token_details", "InputDetail"), (7, "output_token_details", "OutputDetail")):
        usage.field.add(name=name, number=number, type=_FIELD.TYPE_MESSAGE, type_name=kind)
    usage.field.add(name="extraction_status", number=9, type=_FIELD.TYPE_INT32)
    return _message(file, "TokenUsage")


def _counts(file: Any, name: str, **fields: int) -> Any:
    """A message of counts, each of which may be absent; by their names and numbers."""
    message = file.message_type.add(name=name)
    for field, number in fields.items():
        message.field.add(name=field, number=number, type=_FIELD.TYPE_MESSAGE, type_name=_COUNT)
    return message


def _request_of_bytes() -> Any:
    """`RateLimitRequest` with bytes where it has strings: on the wire they are the same."""
    file, many = _file("ratelimit"), _FIELD.LABEL_REPEATED
    request = file.message_type.add(name="Request")
    request.field.add(name="descriptors", number=2, type=_FIELD.TYPE_MESSAGE, type_name="Descriptor", label=many)
    request.field.add(name="hits_addend", number=3, type=_FIELD.TYPE_UINT32)
    descriptor = file.message_type.add(name="Descriptor")
    descriptor.field.add(name="entries", number=1, type=_FIELD.TYPE_MESSAGE, type_name="Entry", label=many)
    descriptor.field.add(name="hits_addend", number=3, type=_FIELD.TYPE_MESSAGE, type_name=_COUNT)
    entry = file.message_type.add(name="Entry")
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_BYTES)
    entry.field.add(name="value", number=2, type=_FIELD.TYPE_BYTES)
    return _message(file, "Request")


def _file(name: str) -> Any:
    return descriptor_pb2.FileDescriptorProto(
        name=f"sluice/{name}.proto",
        package=f"sluice.{name}",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )


def _message(file: Any, name: str) -> Any:
    """The class of a message in a finished file."""
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))


TokenUsage: Final = _token_usage()
_RequestOfBytes: Final = _request_of_bytes()
COMPLETE: Final = 1
"""`extraction_status` of a response whose usage was read whole."""


def lease_in(metadata: Any) -> str:
    """The lease that admission gave a call, from what Envoy keeps about that call; empty if it has none."""
    return _text_in(metadata.filter_metadata, LEASE_NAMESPACE, "lease")


def refusal_in(metadata: Any) -> str:
    """The body of a provider's refusal, from the same place; empty if there is none."""
    return _text_in(metadata.filter_metadata, REFUSAL_NAMESPACE, "body")


def said_in(metadata: Any) -> int | None:
    """The bytes of text that Envoy has counted in a stream, from the same place; None if it has not."""
    namespaces = metadata.filter_metadata
    fields = namespaces[STREAM_NAMESPACE].fields if STREAM_NAMESPACE in namespaces else {}
    return int(fields[SAID].number_value) if SAID in fields else None


def _text_in(structs: Any, name: str, field: str) -> str:
    # Asking a protobuf map for a key that it has not would put it there.
    text: str = structs[name].fields[field].string_value if name in structs else ""
    return text


def attempts_in(message: ProcessingRequest) -> int:
    """How often Envoy has sent the call to its provider, as far as it says; at least 1."""
    if _EXT_PROC_ATTRIBUTES not in message.attributes:
        return 1
    return max(1, int(message.attributes[_EXT_PROC_ATTRIBUTES].fields[ATTRIBUTES[0]].number_value))


def is_envoys_own(message: ProcessingRequest) -> bool:
    """True if Envoy has made the answer up, because the provider gave none."""
    details = _text_in(message.attributes, _EXT_PROC_ATTRIBUTES, ATTRIBUTES[1])
    return details not in ("", _VIA_UPSTREAM)


def rate_limit_request(data: bytes) -> RateLimitRequest:
    r"""The request in these bytes; what is no UTF-8 in it is spelt out, as in `\\xff`. Raises `DecodeError`."""
    try:
        return RateLimitRequest.FromString(data)
    except DecodeError:
        raw = _RequestOfBytes.FromString(data)
    request = RateLimitRequest(hits_addend=raw.hits_addend)
    for descriptor in raw.descriptors:
        readable = request.descriptors.add()
        if descriptor.HasField("hits_addend"):
            readable.hits_addend.CopyFrom(descriptor.hits_addend)
        for entry in descriptor.entries:
            readable.entries.add(key=_spelt(entry.key), value=_spelt(entry.value))
    return request


def _spelt(text: bytes) -> str:
    return text.decode(errors="backslashreplace")
