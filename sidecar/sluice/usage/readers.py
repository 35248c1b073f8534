"""Readers of response bodies: fed bytes as they arrive, they find the usage and notice how much output went by.

A reader keeps a bounded amount of the body, whatever its size (`MAX_EVENT` and what `json_scan` keeps; `decoding` adds
the window of a coding), takes time linear in it, and never raises: a body it cannot read is a body that did not tell
its usage.

Usage told in the middle of a response may still grow (Anthropic's `message_start`, every chunk of Gemini), so it is
partial until the response says that the model has stopped. It stays so if the rest of the body cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from sluice.usage.decoding import Decoder, codings_in
from sluice.usage.event_stream import MessageSplitter
from sluice.usage.json_scan import JsonScanner, Tree, end_of_string, tree
from sluice.usage.ndjson import LineSplitter
from sluice.usage.profiles.profile import Response, Sign
from sluice.usage.sse import EventSplitter
from sluice.usage.tokens import MAX_DIGITS, Tally, Usage

MAX_EVENT: Final = 64 * 1024
"""Bytes of one stream event that are held back until it is complete; a larger one is scanned piece by piece."""


class UsageReader(Protocol):
    """Reads one response body."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Never raises."""

    def finish(self) -> Usage | None:
        """The body has ended, well or not: what it told. None if it told nothing. May be called again."""

    @property
    def usage(self) -> Usage | None:
        """What it has told so far."""

    @property
    def seen_output(self) -> int:
        """Bytes of output that went by, in UTF-8: a lower bound, for what is not text or is cut apart is not counted.

        Bytes, as of the input, and not characters: a token is four letters of English, and about one of Chinese.
        """

    @property
    def stopped(self) -> bool:
        """Something came that cannot be read: what comes now is not looked at."""


class Splitter(Protocol):
    """Splits a stream into events: calls the first function with pieces of an event, the second one at its end."""

    def __init__(self, data: Callable[[bytes], object], end: Callable[[], object]) -> None: ...

    def feed(self, data: bytes) -> None:
        """Read on. Never raises."""

    def finish(self) -> None:
        """The stream has ended."""

    @property
    def broken(self) -> bool:
        """Where the next event begins is not known any more: nothing is read."""


SPLITTERS: Final[Mapping[str, type[Splitter]]] = {
    "text/event-stream": EventSplitter,
    "application/x-ndjson": LineSplitter,
    "application/vnd.amazon.eventstream": MessageSplitter,
}
"""The streams that are read, by their media type."""


def is_stream(content_type: str | None) -> bool:
    """True for an answer that comes event by event."""
    return _media_type(content_type) in SPLITTERS


def reader_for(response: Response, content_type: str | None, content_encoding: str | None = None) -> UsageReader | None:
    """The reader for an answer with these headers; None for a type that holds no usage, and a coding nobody knows."""
    media_type = _media_type(content_type)
    reader: UsageReader
    if media_type in SPLITTERS:
        reader = StreamReader(response, SPLITTERS[media_type])
    elif media_type == "application/json" or media_type.endswith("+json"):
        reader = JsonReader(response)
    else:
        return None
    codings = codings_in(content_encoding)
    if codings is None:
        return None
    return DecodingReader(Decoder(codings), reader) if codings else reader


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class _Patterns:
    """What is looked for in the bytes of an answer, made from its profile once."""

    members: Tree
    """What the scanner reports: objects with the counts, or the counts themselves."""
    counts: bool
    """True if they are the counts themselves."""
    usage: re.Pattern[bytes]
    """No event without it is scanned: OpenAI sends `"usage":null` in every event but the last."""
    stop: re.Pattern[bytes]
    body_output: re.Pattern[bytes]
    event_output: tuple[tuple[bytes, re.Pattern[bytes]], ...]
    """The output in an event that holds these bytes; the first row applies. Events of other kinds only repeat it."""


@lru_cache(maxsize=256)
def _patterns(response: Response) -> _Patterns:
    paths = response.usage or tuple(sorted(response.fields.names))
    last = {path.rpartition(".")[2] for path in paths}
    places = [
        (f'"{place.within}"'.encode() if place.within else b"", _texts(place.members)) for place in response.stream_text
    ]
    return _Patterns(
        tree(paths),
        not response.usage,
        re.compile(rb'"(?:%s)"\s*:(?!\s*null)' % _any_of(last)),
        re.compile(b"|".join(_sign(sign) for sign in response.stop) or rb"(?!)"),
        _texts(response.text),
        tuple(places),
    )


def _texts(members: Iterable[str]) -> re.Pattern[bytes]:
    """Matches where the string begins in a member that has one of these keys and a string as its value."""
    return re.compile(rb'"(?:%s)"\s*:\s*"' % (_any_of(members) or rb"(?!)"))


def _sign(sign: Sign) -> bytes:
    if not sign.values:
        return rb'"%s"\s*:\s*"' % re.escape(sign.member).encode()
    return rb'"%s"\s*:\s*"?(?:%s)(?![\w.])' % (re.escape(sign.member).encode(), _any_of(sign.values))


def _any_of(words: Iterable[str]) -> bytes:
    return "|".join(re.escape(word) for word in words).encode()


_HEX: Final = rb"[0-9a-fA-F]{2}"
_PAIR: Final = rb"u[dD][89abAB]%s\\u[dD][c-fC-F]%s" % (_HEX, _HEX)
"""A character beyond the first 65,536: two surrogates."""
_ESCAPE: Final = re.compile(rb"\\(?:%s|u%s%s|.)" % (_PAIR, _HEX, _HEX), re.DOTALL)
_DECODER: Final = json.JSONDecoder(strict=False)
_OVERLAP: Final = 1024
"""Bytes of a piece that are looked at again with the next one: more than any `stop` of a profile is long."""
_UNREADABLE: Final = "unreadable"
"""No usage object: `Tally` takes it as a malformed report."""


class _Reports:
    """The counts that the scanner finds, as they are found."""

    def __init__(self, response: Response) -> None:
        self._counts = _patterns(response).counts
        self._tally = Tally(response.fields)

    def found(self, path: str, value: bytes) -> None:
        decoded = _decode(value)
        self._tally.add({path: decoded} if self._counts else decoded)

    def told(self, *, final: bool) -> Usage | None:
        usage = self._tally.usage()
        return usage if usage is None or final else usage._replace(partial=True)


class JsonReader:
    """Reads a body that is one JSON document, or a JSON array of documents that arrive one by one."""

    stopped: Final = False

    def __init__(self, response: Response) -> None:
        patterns = _patterns(response)
        self._output = patterns.body_output
        self._reports = _Reports(response)
        self._scanner = JsonScanner(patterns.members, self._reports.found)
        self.seen_output = 0

    @property
    def usage(self) -> Usage | None:
        """What is told so far; partial while the document is open."""
        return self._reports.told(final=self._scanner.done)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._scanner.feed(data)
        self.seen_output += _text_size(self._output, data)

    def finish(self) -> Usage | None:
        """What the body told."""
        return self.usage


class StreamReader:
    """Reads a stream of events that are JSON.

    An event of up to `MAX_EVENT` bytes is held back until it is complete, and scanned only if it holds usage. A larger
    one is scanned as it arrives, so that usage beside a large result (an image; the whole response repeated in
    `response.completed`) is found as well.
    """

    def __init__(self, response: Response, splitter: type[Splitter] = EventSplitter) -> None:
        self._patterns = _patterns(response)
        self._reports = _Reports(response)
        self._splitter = splitter(self._add, self._end_event)
        self.seen_output = 0
        # The mutable state: whether the model has stopped, and the event that has begun.
        self._stopped = False
        self._held = bytearray()  # its data so far
        self._scanner: JsonScanner | None = None  # once it is over MAX_EVENT: its data goes here instead
        self._last = b""  # the end of the data that went there
        self._stopping = False  # the data that went there says that the model has stopped

    @property
    def usage(self) -> Usage | None:
        """What is told so far; partial until the model has stopped."""
        return self._reports.told(final=self._stopped and not self.stopped)

    @property
    def stopped(self) -> bool:
        """The stream is broken."""
        return self._splitter.broken

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._splitter.feed(data)

    def finish(self) -> Usage | None:
        """What the stream told."""
        self._splitter.finish()
        return self.usage

    def _add(self, data: bytes) -> None:
        if self._scanner is None:
            self._held += data
            if len(self._held) <= MAX_EVENT:
                return
            self._scanner = JsonScanner(self._patterns.members, self._reports.found)
            data = bytes(self._held)
            self._held.clear()
        self._scanner.feed(data)
        window = self._last + data
        self._stopping = self._stopping or self._says_stop(window)
        self._last = window[-_OVERLAP:]

    def _end_event(self) -> None:
        if self._held:
            self._read_event(bytes(self._held))
            self._held.clear()
        elif self._scanner is not None:
            self._stopped = self._stopped or (self._stopping and self._scanner.done)
            self._scanner = None
            self._last = b""
            self._stopping = False

    def _read_event(self, event: bytes) -> None:
        stopping = self._says_stop(event)
        if stopping or self._patterns.usage.search(event):
            scanner = JsonScanner(self._patterns.members, self._reports.found)
            scanner.feed(event)
            self._stopped = self._stopped or (stopping and scanner.done)
        for kind, output in self._patterns.event_output:
            if kind in event:
                self.seen_output += _text_size(output, event)
                break

    def _says_stop(self, data: bytes) -> bool:
        return self._patterns.stop.search(data) is not None


class DecodingReader:
    """Reads a body whose content is encoded."""

    def __init__(self, decoder: Decoder, reader: UsageReader) -> None:
        """`reader` reads what the body holds."""
        self._decoder = decoder
        self._reader = reader

    @property
    def usage(self) -> Usage | None:
        """What is told so far; partial if the rest could not be decoded."""
        return self._judged(self._reader.usage)

    @property
    def seen_output(self) -> int:
        """Bytes of output that went by."""
        return self._reader.seen_output

    @property
    def stopped(self) -> bool:
        """The body cannot be decoded, or it holds too much to be plausible, or what it holds cannot be read."""
        return self._decoder.stopped or self._reader.stopped

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        for piece in self._decoder.feed(data):
            self._reader.feed(piece)

    def finish(self) -> Usage | None:
        """What the body told."""
        return self._judged(self._reader.finish())

    def _judged(self, usage: Usage | None) -> Usage | None:
        return usage._replace(partial=True) if usage is not None and self.stopped else usage


def _decode(value: bytes) -> object:
    """A usage object from its JSON text; something that is none where it cannot be read."""
    try:
        return json.loads(value, parse_int=_integer, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    """An object; what says something twice contradicts itself, and says nothing."""
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a member stands twice")
    return found


def _integer(digits: str) -> int | str:
    """An integer of any plausible length; the text of a longer one, which is no count (and slow to convert)."""
    return int(digits) if len(digits) <= MAX_DIGITS else digits


def _text_size(output: re.Pattern[bytes], data: bytes) -> int:
    """Bytes in the strings that `output` finds in `data`, with their escapes undone."""
    size = 0
    for match in output.finditer(data):
        text = data[match.end() : end_of_string(data, match.end())]
        size += _size_undone(text) if b"\\" in text else len(text)
    return size


def _size_undone(text: bytes) -> int:
    try:
        return len(_DECODER.decode(f'"{text.decode()}"').encode(errors="surrogatepass"))
    except ValueError:  # it is cut apart, or no text
        return len(_ESCAPE.sub(b".", text))
