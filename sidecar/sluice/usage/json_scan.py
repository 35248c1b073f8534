"""Finds the values of a few members in a JSON text of any size, as the text arrives, in constant memory.

The scanner keeps the open containers that lie on the way to a wanted member and only counts the ones that do not:
their content is skipped at the speed of a regular expression, however deep or long it is. So no body is too large,
none is too deep, and what a model says inside its strings is never mistaken for a member of the answer.

It locates and does not validate: in a text that is not JSON it finds something or nothing, and never fails. An array
at the top is a stream of documents (Gemini's `streamGenerateContent`); what follows the top value is not read.
A key spelled with escapes is not recognised: no provider spells its own field names so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

MAX_VALUE: Final = 16 * 1024
"""Bytes of a wanted value that are kept. Every provider's usage stays below 2 KiB; a longer one arrives truncated."""
MAX_KEY: Final = 128
"""Bytes of a key that are kept: more than any wanted key has."""

Tree: TypeAlias = "Mapping[bytes, Tree | str]"
"""The wanted members: a mapping to descend into, or the dotted path of a value to report."""

# Repeated groups are bounded, because each repetition takes memory; and none is possessive, because Python 3.11 before
# 3.11.5 matches possessive groups wrongly (python/cpython issue 106052).
_BETWEEN: Final = re.compile(rb'[^"{}\[\]:,]*')
_SKIPPABLE: Final = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]*"){0,256}')

_BACKSLASH: Final = ord("\\")
_DOCUMENTS: Final[Tree] = {}
"""Stands for the array at the top."""


def tree(paths: Iterable[str]) -> Tree:
    """What a scanner looks for: the members at these dotted paths."""
    root: dict[bytes, Any] = {}
    for path in sorted(paths, key=len):  # of a member and one inside it the outer is reported, and holds the inner
        *way, name = path.split(".")
        node: Any = root
        for key in way:
            node = node.setdefault(key.encode(), {})
            if isinstance(node, str):
                break
        else:
            node[name.encode()] = path
    return root


class JsonScanner:
    """Fed the bytes of one JSON text, calls `found` with the path and the text of each wanted value, in order."""

    def __init__(self, root: Tree, found: Callable[[str, bytes], object]) -> None:
        """`root` is what is wanted: see `tree`."""
        self._root = root
        self._found = found
        self.done = False
        """The top value is closed: nothing more will be read."""
        # The mutable state: where in the text the next byte stands.
        self._open: list[Tree] = []  # the open containers on the way to a wanted member, outermost first
        self._skipped = 0  # open containers inside those that are on the way to nothing
        self._in_string = False
        self._escaped = False  # the last byte was a backslash in a string
        self._text = bytearray()  # the last string outside skipped containers, which may turn out to be a key
        self._key = b""
        self._value: bytearray | None = None  # the wanted value that has begun
        self._path = ""  # its path

    def feed(self, data: bytes) -> None:
        """Read on. Never raises; time is linear in the text, memory bounded by `MAX_VALUE`."""
        pos, start, size = 0, 0, len(data)  # start: where in data the wanted value goes on
        while pos < size and not self.done:
            if self._in_string:
                pos = self._read_string(data, pos)
                continue
            match = (_SKIPPABLE if self._skipped else _BETWEEN).match(data, pos)
            pos = match.end() if match else pos
            if pos == size:
                break
            mark = data[pos : pos + 1]
            pos += 1
            if mark == b'"':
                self._begin_string()
            elif self._skipped:
                self._skipped += (mark in b"{[") - (mark in b"}]")
            elif mark in b"{[":
                self._enter(mark)
            elif mark == b":":
                if self._begin_member():
                    start = pos
            else:
                self._keep(data, start, pos - 1)
                self._end_member(mark)
        if not self.done:
            self._keep(data, start, size)

    def _begin_string(self) -> None:
        self._in_string = True
        if not self._skipped:
            self._text.clear()

    def _read_string(self, data: bytes, pos: int) -> int:
        """Read a string on from `pos`; returns where it, or the data, ends."""
        start = pos + self._escaped
        end = end_of_string(data, start)
        if not self._skipped:
            _add(self._text, data, pos, end, MAX_KEY)
        self._in_string = end == len(data)
        self._escaped = self._in_string and _is_escaped(data, start, end)
        return end + 1

    def _enter(self, mark: bytes) -> None:
        inner: Tree | str | None = None
        if not self._open:
            inner = self._root if mark == b"{" else _DOCUMENTS
        elif mark == b"{":
            inner = self._root if self._open[-1] is _DOCUMENTS else self._open[-1].get(self._key)
        if inner is None or isinstance(inner, str):
            self._skipped = 1
        else:
            self._open.append(inner)
        self._key = b""

    def _begin_member(self) -> bool:
        """A colon: what was read last is a key. True if its value is wanted."""
        self._key = bytes(self._text)
        self._text.clear()
        wanted = self._open[-1].get(self._key) if self._open else None
        if not isinstance(wanted, str):
            return False
        self._value, self._path = bytearray(), wanted
        return True

    def _end_member(self, mark: bytes) -> None:
        """A comma or a closing bracket: the value before it has ended."""
        value, self._value, self._key = self._value, None, b""
        if value is not None:
            self._found(self._path, bytes(value))
        if mark != b"," and self._open:
            self._open.pop()
            self.done = not self._open

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if self._value is not None:
            _add(self._value, data, start, end, MAX_VALUE)


def end_of_string(data: bytes, start: int) -> int:
    """Where the quote stands that ends the string whose content starts at `start`; the data's length if it goes on."""
    end = data.find(b'"', start)
    while end >= 0 and _is_escaped(data, start, end):
        end = data.find(b'"', end + 1)
    return end if end >= 0 else len(data)


def _is_escaped(data: bytes, start: int, pos: int) -> bool:
    """True if an odd number of backslashes stands before `pos`, none of them before `start`."""
    first = pos
    while first > start and data[first - 1] == _BACKSLASH:
        first -= 1
    return (pos - first) % 2 == 1


def _add(kept: bytearray, data: bytes, start: int, end: int, most: int) -> None:
    """Append `data[start:end]` as far as `most` bytes in all allow."""
    kept += data[start : min(end, start + most - len(kept))]
