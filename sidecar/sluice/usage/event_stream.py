"""Splits an `application/vnd.amazon.eventstream` into the payloads of its events, as it arrives.

Theory of operation
    The format is that of the Amazon Event Stream Specification (Smithy 2.0). A stream is a row of messages:

        total length     4 bytes, big-endian, of the whole message
        headers length   4
        prelude CRC      4, over the eight bytes before it
        headers          name length 1, name, type 1, value: see `_headers`
        payload          what is left
        message CRC      4, over everything before it

    Prelude, headers and checksum are held back until they are complete, a payload never: it is handed on in the pieces
    it comes in, and its event is ended once the checksum has proved it. Headers over `MAX_HEADERS` are not held, and no
    service sends them. A payload of any length may pass, because nothing is kept of it.

    Only messages of the type `event` are of interest. What an `exception` or an `error` says is dropped: it ends a
    stream that has not told its usage.

    After a checksum that is wrong, or lengths that cannot be, nobody knows where the next message begins. `broken` is
    set, the event in hand is never ended, and nothing more is read.

    The events of Bedrock's InvokeModelWithResponseStream are of the type `chunk`, and hold the model's own event in
    base64: `{"bytes":"eyJ0eXBl...","p":"abc"}`. It is decoded on the way.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable
from struct import unpack
from typing import Final
from zlib import crc32

MAX_HEADERS: Final = 128 * 1024
"""Bytes: what the specification allows a service to send."""

_PRELUDE: Final = 12
_CHECKSUM: Final = 4
_FIXED_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type: true, false, byte, short, integer, long, timestamp, UUID."""
_BYTE_ARRAY: Final = 6
_STRING: Final = 7
"""The types whose value begins with its length, in two bytes."""

_WRAPPED: Final = re.compile(rb'"bytes"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}"')
_LONGEST: Final = 25
"""Bytes of the longest match of `_WRAPPED`."""
_WRAPPED_END: Final = re.compile(rb'[="]')
_DIGITS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_DIGITS: Final = bytes(set(range(256)) - set(_DIGITS))


class MessageSplitter:
    """Fed the bytes of a stream, calls `data` with pieces of an event's payload and `end` when all of it was sound."""

    def __init__(self, data: Callable[[bytes], object], end: Callable[[], object]) -> None:
        self._data = data
        self._end = end
        self.broken = False
        """The stream is not sound, and nothing more will be read."""
        # The mutable state: the message that has begun, and the part of it that is awaited.
        self._part: Callable[[], None] = self._end_prelude  # what to do when that part is complete
        self._left = _PRELUDE  # bytes that it lacks
        self._held = bytearray()  # what there is of it, if it is not the payload
        self._headers_length = self._payload_length = 0
        self._crc = 0  # over the complete parts and what came of the payload
        self._take: Callable[[bytes], object] | None = None  # where the payload goes: nowhere if it is no event

    def feed(self, data: bytes) -> None:
        """Read on. Never raises."""
        pos = 0
        while pos < len(data) and not self.broken:
            piece = data[pos : pos + self._left]
            pos += len(piece)
            self._left -= len(piece)
            if self._part == self._end_payload:
                self._crc = crc32(piece, self._crc)
                if self._take is not None:
                    self._take(piece)
            else:
                self._held += piece
            while not self._left and not self.broken:
                self._part()

    def finish(self) -> None:
        """The stream has ended. A message that is not complete is not proved, and so is no event."""

    def _await(self, part: Callable[[], None], size: int) -> None:
        self._part, self._left = part, size
        self._held.clear()

    def _end_prelude(self) -> None:
        total, self._headers_length, crc = unpack("!III", self._held)
        self._payload_length = total - self._headers_length - _PRELUDE - _CHECKSUM
        sound = crc == crc32(self._held[:-_CHECKSUM])
        if not sound or self._payload_length < 0 or self._headers_length > MAX_HEADERS:
            self.broken = True
            return
        self._crc = crc32(self._held)
        self._await(self._end_headers, self._headers_length)

    def _end_headers(self) -> None:
        headers = _headers(bytes(self._held))
        if headers is None:
            self.broken = True
            return
        self._crc = crc32(self._held, self._crc)
        self._take = None
        if headers.get(b":message-type") == b"event":
            self._take = _Wrapped(self._data).feed if headers.get(b":event-type") == b"chunk" else self._data
        self._await(self._end_payload, self._payload_length)

    def _end_payload(self) -> None:
        self._await(self._end_message, _CHECKSUM)

    def _end_message(self) -> None:
        if int.from_bytes(self._held) != self._crc:
            self.broken = True
            return
        if self._take is not None:
            self._end()
        self._await(self._end_prelude, _PRELUDE)


def _headers(data: bytes) -> dict[bytes, bytes] | None:
    """The headers that are strings, by name; None if this is no row of headers."""
    strings, pos = {}, 0
    while pos < len(data):
        name_end = pos + 1 + data[pos]
        kind = data[name_end] if name_end < len(data) else -1
        start = name_end + 1
        size = _FIXED_SIZES.get(kind)
        if size is None:
            if kind not in {_BYTE_ARRAY, _STRING} or start + 2 > len(data):
                return None
            size = int.from_bytes(data[start : start + 2])
            start += 2
        if start + size > len(data):
            return None
        if kind == _STRING:
            strings[data[pos + 1 : name_end]] = data[start : start + size]
        pos = start + size
    return strings


class _Wrapped:
    """Takes the payload of a `chunk`, and hands on what its member `bytes` holds.

    It is looked for by its name and not by parsing: there is nothing else in a `chunk` but padding made of letters and
    digits. What is no base64 is left out.
    """

    def __init__(self, data: Callable[[bytes], object]) -> None:
        self._data = data
        self._last: bytes | None = b""  # the end of what came before the member; None once that has begun
        self._ended = False
        self._digits = b""  # what is left of the base64 until four digits are together

    def feed(self, piece: bytes) -> None:
        if self._last is not None:
            window = self._last + piece
            begin = _WRAPPED.search(window)
            if begin is None:
                self._last = window[-_LONGEST:]
                return
            self._last, piece = None, window[begin.end() :]
        if not self._ended:
            end = _WRAPPED_END.search(piece)
            self._ended = end is not None
            self._decode(piece[: end.start()] if end else piece)

    def _decode(self, text: bytes) -> None:
        digits = self._digits + text.translate(None, _NO_DIGITS)
        whole = len(digits) // 4 * 4
        self._digits = digits[whole:]
        digits = digits[:whole]
        if self._ended and len(self._digits) > 1:
            digits += self._digits.ljust(4, b"=")
        if digits:
            self._data(a2b_base64(digits))
