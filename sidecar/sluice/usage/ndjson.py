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
        *lines, rest = data.split(b"\n")
        for line in lines:
            if line:
                self._data(line)
            self._end()
        if rest:
            self._data(rest)

    def finish(self) -> None:
        """The stream has ended: so has its last document, whether or not a line feed followed it."""
        self._end()
