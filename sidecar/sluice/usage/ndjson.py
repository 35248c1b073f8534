"""Splits a stream of JSON documents, one a line (Ollama's `application/x-ndjson`), into its documents, as it arrives.

Lines end with a line feed. A carriage return before it belongs to the line: to JSON it is white space. A blank line is
a document without data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class LineSplitter:
    """Fed the bytes of a stream, calls `data` with pieces of a document and `end` at the end of its line."""

    broken: ClassVar[bool] = False
    """Every sequence of bytes is a sequence of lines."""

    def __init__(self, data: Callable[[bytes], object], end: Callable[[], object]) -> None:
        self._data = data
        self._end = end

    def feed(self, data: bytes) -> None:
        """Read on."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end > start:
                self._data(data[start:end])
            self._end()
            start = end + 1
        if start < len(data):
            self._data(data[start:])

    def finish(self) -> None:
        """The stream has ended: so has its last document, whether or not a line feed followed it."""
        self._end()
