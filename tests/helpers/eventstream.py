"""The framing of AWS event streams (`application/vnd.amazon.eventstream`), as their services write it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

STRING = 7
"""The type of a header's value, of ten; the services use no other."""


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message: its lengths and their checksum, its headers, its payload, and a checksum over all of it."""
    names = b"".join(
        bytes([len(name)]) + name.encode() + bytes([STRING]) + len(value).to_bytes(2, "big") + value.encode()
        for name, value in headers.items()
    )
    size = 4 + 4 + 4 + len(names) + len(payload) + 4
    prelude = size.to_bytes(4, "big") + len(names).to_bytes(4, "big")
    checked = prelude + zlib.crc32(prelude).to_bytes(4, "big") + names + payload
    return checked + zlib.crc32(checked).to_bytes(4, "big")


def event(name: str, payload: dict[str, Any]) -> bytes:
    """An event of Bedrock's. A `chunk` holds a model's own JSON as base64."""
    if name == "chunk":
        payload = {"bytes": base64.b64encode(json.dumps(payload).encode()).decode(), "p": "abcdefgh"}
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return message(headers, json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())


def exception(name: str, told: str) -> bytes:
    """The message in the place of an event with which a stream fails."""
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return message(headers, json.dumps({"message": told}).encode())


def stream(lines: Iterable[str]) -> bytes:
    """The stream that a file `*.events` spells: one JSON object a line, an event's name and its payload."""
    events = [json.loads(line) for line in lines]
    return b"".join(event(each["event"], each["payload"]) for each in events)
