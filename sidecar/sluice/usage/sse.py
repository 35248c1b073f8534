"""Splits a stream of server-sent events (WHATWG HTML, section 9.2) into the data of its events, as it arrives.

Data is handed on in the pieces it comes in, so nothing is held back but the name of the field at a line's start.
Only `data` is of interest; comments, keep-alives and other fields are dropped, and so is a byte order mark before the
first line. Two data lines of one event are handed on without the line feed between them, which means nothing in JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

_FIELD: Final = b"data:"
_MARK: Final = b"\xef\xbb\xbf"
"""The byte order mark, in UTF-8."""
_AT_A_TIME: Final = 16 * 1024
"""Bytes that are split into lines at a time, because a list of short lines takes many times their memory."""


class EventSplitter:
    """Fed the bytes of a stream, calls `data` with pieces of an event's data and `end` at the blank line after it."""

    broken: ClassVar[bool] = False
    """Every sequence of bytes is a sequence of lines."""

    def __init__(self, data: Callable[[bytes], object], end: Callable[[], object]) -> None:
        self._data = data
        self._end = end
        # The mutable state: the line that has begun.
        self._start = b""  # its first bytes, until they show which field it is
        self._wanted: bool | None = None  # whether it is data; None while that is open
        self._after_cr = False  # a line feed now belongs to the line end before it
        self._mark: bytes | None = b""  # what came of a byte order mark; None once something else has come

    def feed(self, data: bytes) -> None:
        """Read on."""
        if self._mark is not None:
            data = self._mark + data
            if len(data) < len(_MARK) and _MARK.startswith(data):
                self._mark = data
                return
            self._mark = None
            data = data.removeprefix(_MARK)
        for start in range(0, len(data), _AT_A_TIME):
            self._feed(data[start : start + _AT_A_TIME])

    def _feed(self, data: bytes) -> None:
        if self._after_cr and data[:1] == b"\n":
            self._after_cr = False
            data = data[1:]
        if not data:
            return
        self._after_cr = data[-1:] == b"\r"
        lines = data.splitlines()  # on bytes: at CR, LF and CRLF, the line ends of the format
        rest = b"" if data[-1:] in b"\r\n" else lines.pop()
        for line in lines:
            self._read(line)
            self._end_line()
        self._read(rest)

    def finish(self) -> None:
        """The stream has ended: so have its last line and event, whether or not a line end followed them."""
        self._end_line()
        self._end()

    def _read(self, piece: bytes) -> None:
        if self._wanted is None:
            piece = self._start + piece if self._start else piece
            if len(piece) < len(_FIELD):
                self._start = piece
                return
            self._wanted = piece.startswith(_FIELD)
            piece = piece[len(_FIELD) :]
        if self._wanted:
            self._data(piece)

    def _end_line(self) -> None:
        if self._wanted is None and not self._start:
            self._end()
        self._start = b""
        self._wanted = None
