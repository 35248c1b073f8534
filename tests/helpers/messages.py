"""Messages of an `application/vnd.amazon.eventstream`, as a service writes them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from struct import pack
from zlib import crc32


def message(payload: bytes, headers: bytes) -> bytes:
    """One message with its checksums. `headers` are encoded already."""
    prelude = pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + pack("!I", crc32(prelude)) + headers + payload
    return body + pack("!I", crc32(body))


def strings(headers: Mapping[str, str]) -> bytes:
    """Headers of the type string."""
    return b"".join(
        pack("!B", len(name)) + name.encode() + b"\7" + pack("!H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )


def event(kind: str, payload: object) -> bytes:
    """An event, as ConverseStream sends it."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return message(json.dumps(payload, separators=(",", ":")).encode(), strings(headers))


def chunk(payload: object, padding: str = "abcdefghij") -> bytes:
    """An event that holds a model's own event, as InvokeModelWithResponseStream sends it."""
    inner = json.dumps(payload, separators=(",", ":")).encode()
    return event("chunk", {"bytes": b64encode(inner).decode(), "p": padding})


def exception(kind: str, text: str) -> bytes:
    """An error that the service's model knows, which ends the stream."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return message(json.dumps({"message": text}).encode(), strings(headers))
