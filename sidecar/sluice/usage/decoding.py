"""Undoes the content-encoding of an answer's body as it arrives, as far as it is plausible.

Theory of operation
    A few hundred bytes may claim to be gigabytes. What they hold is never kept, it goes to a reader piece by piece; so
    a bomb costs time, and the window that its coding looks back into. Both are bounded:

    - Each coding may put out `BYTES_AHEAD`, whatever came in, and `RATIO` for each byte of the body.
    - The last one may put out `MARKS_AHEAD` marks, and `MARKS_RATIO` for each byte of the body. Marks are the bytes at
      which a reader has to stop and look, brackets, quotes and line ends. A reader skips megabytes of anything else in
      milliseconds, but 8 MiB of brackets would keep it busy for four seconds.
    - A window of brotli's has at most 4 MiB (its encoders' default), one of zstd's 8 MiB (all that RFC 9659 allows).

    A body that wants more, or cannot be decoded, is not read on: `stopped` is set, and the usage told so far is
    partial, so that the estimate stands. 421 bytes of brotli that stand for 256 MiB cost 5 MiB and 30 ms.

    What is plausible was measured: of all real answers that were tried, OpenAI's stream of chat chunks, compressed as
    a whole, gained most, with 79 bytes and 20 marks for one. Twice that is let through, for any length.

    Where a body was cut into pieces changes neither what it holds nor whether it is plausible: it is taken in blocks
    of `BLOCK` bytes, counted from its beginning, and each is measured as a whole. Of a body that cannot be decoded,
    how much is read before that shows does depend on it, and if the fault is in its last bytes, whether it shows.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

BLOCK: Final = 512
"""Bytes of a body that are decoded at a time."""
PIECE: Final = 32 * 1024
"""Bytes that are put out at a time; brotli makes it twice as many."""

BYTES_AHEAD: Final = 4 * 1024 * 1024
RATIO: Final = 160
MARKS_AHEAD: Final = 16 * 1024
"""Those of 64 KiB of a stream."""
MARKS_RATIO: Final = 40
MARKS: Final = b'"{}[]:,\r\n'

MAX_CODINGS: Final = 2
"""Codings of one body. A body that passes two servers may be encoded twice."""
MEMBER: Final = 32 * 1024
"""Bytes that count as put out for each member (of gzip) or frame (of zstd): beginning one takes time as well."""

_BROTLI_WINDOW: Final = 0x0D
"""The bits that are set in the first byte of a brotli stream if its window has 8 or 16 MiB (RFC 7932, section 9.1)."""
_ZSTD_WINDOW_LOG: Final = 23


class _Implausible(Exception):
    """A coding has put out too much."""


class Coding(Protocol):
    """Undoes one coding, of one member or frame."""

    @property
    def error(self) -> type[Exception]:
        """What `decode` raises for bytes that are not of this coding."""

    @property
    def rest(self) -> bytes | None:
        """What came behind the end of the member; None if that has not come."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes, and give what they stand for, in pieces."""


class _Zlib:
    """gzip (RFC 1952), and deflate: in zlib's format (RFC 1950), or raw (RFC 1951), as some servers have it."""

    error = zlib.error

    def __init__(self, window_bits: int) -> None:
        self._decompressor = zlib.decompressobj(window_bits)

    @property
    def rest(self) -> bytes | None:
        return self._decompressor.unused_data if self._decompressor.eof else None

    def decode(self, data: bytes) -> Iterator[bytes]:
        more = True
        while more:
            piece = self._decompressor.decompress(data, PIECE)
            data = self._decompressor.unconsumed_tail
            # A piece that is full may not be the last one. At the end zlib takes what it is given for what follows.
            more = not self._decompressor.eof and (bool(data) or len(piece) == PIECE)
            yield piece


class _Deflate:
    """Finds out from the first two bytes which of the two formats it is."""

    error = zlib.error

    def __init__(self) -> None:
        self._start = b""
        self._coding: _Zlib | None = None

    @property
    def rest(self) -> bytes | None:
        return self._coding.rest if self._coding else None

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._coding is None:
            data = self._start + data
            if len(data) < 2:
                self._start = data
                return
            wrapped = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
            self._coding = _Zlib(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        yield from self._coding.decode(data)


class _Brotli:
    """brotli (RFC 7932). It has no members: nothing may follow the end."""

    rest: Final = None

    def __init__(self) -> None:
        import brotli  # noqa: PLC0415 - few providers compress so, and no start should wait for it

        self.error: type[Exception] = brotli.error
        self._decompressor = brotli.Decompressor()
        self._begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if not self._begun and data[0] & _BROTLI_WINDOW == _BROTLI_WINDOW:
            raise _Implausible
        self._begun = True
        if self._decompressor.is_finished():
            raise self.error
        piece = self._decompressor.process(data, output_buffer_limit=PIECE)
        # When it could accept more, it has taken all it was given, and may still have some to put out.
        while piece or not self._decompressor.can_accept_more_data():
            yield piece
            done = self._decompressor.is_finished()
            piece = b"" if done else self._decompressor.process(b"", output_buffer_limit=PIECE)


class _Zstd:
    """zstd (RFC 8878), with the window of a content-encoding (RFC 9659)."""

    def __init__(self) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415
        else:
            from backports import zstd  # noqa: PLC0415 - as brotli is

        self.error: type[Exception] = zstd.ZstdError
        self._decompressor = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        )

    @property
    def rest(self) -> bytes | None:
        return self._decompressor.unused_data if self._decompressor.eof else None

    def decode(self, data: bytes) -> Iterator[bytes]:
        yield self._decompressor.decompress(data, PIECE)
        while not (self._decompressor.needs_input or self._decompressor.eof):
            yield self._decompressor.decompress(b"", PIECE)


def _gzip() -> Coding:
    return _Zlib(zlib.MAX_WBITS + 16)


CODINGS: Final[Mapping[str, Callable[[], Coding]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,  # RFC 9110, section 8.4.1.3: the same
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


class _Stage:
    """One coding of a body, with all its members, and what it may still put out."""

    def __init__(self, coding: Callable[[], Coding]) -> None:
        self._open = coding
        self._coding: Coding | None = None  # of the member that has begun
        self.left = BYTES_AHEAD

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes stand for. Raises `_Implausible`, also for bytes that are not of this coding."""
        while data:
            if self._coding is None:
                self._charge(MEMBER)
                self._coding = self._open()
            try:
                for piece in self._coding.decode(data):
                    self._charge(len(piece))
                    yield piece
            except (self._coding.error, EOFError) as error:
                raise _Implausible from error
            rest = self._coding.rest
            if rest is not None:
                self._coding = None
            data = rest or b""

    def _charge(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _Implausible


class Decoder:
    """Takes the bytes of an encoded body, and gives what they hold."""

    def __init__(self, codings: tuple[str, ...]) -> None:
        """`codings` are names of `CODINGS`, in the order in which they were applied."""
        self.stopped = False
        """The body could not be read to its end, or nobody would have paid for it."""
        self._stages = [_Stage(CODINGS[name]) for name in reversed(codings)]
        self._taken = 0  # bytes of the body
        self._marks_left = MARKS_AHEAD

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded pieces of the next bytes. Never raises; exhaust it before feeding more."""
        pos = 0
        try:
            while pos < len(data) and not self.stopped:
                offset = self._taken % BLOCK
                if not offset:
                    self._grant()
                block = data[pos : pos + BLOCK - offset]
                pos += len(block)
                self._taken += len(block)
                for piece in self._decode(block, 0):
                    self._weigh(piece)
                    yield piece
        except _Implausible:
            self.stopped = True

    def _grant(self) -> None:
        """A block has begun: more may be put out."""
        for stage in self._stages:
            stage.left += RATIO * BLOCK
        self._marks_left += MARKS_RATIO * BLOCK

    def _decode(self, data: bytes, at: int) -> Iterator[bytes]:
        if at == len(self._stages):
            yield data
            return
        for piece in self._stages[at].decode(data):
            yield from self._decode(piece, at + 1)

    def _weigh(self, piece: bytes) -> None:
        self._marks_left -= len(piece) - len(piece.translate(None, MARKS))
        if self._marks_left < 0:
            raise _Implausible


def codings_in(content_encoding: str | None) -> tuple[str, ...] | None:
    """The codings that a header names, in the order in which they were applied; None if one of them is not known."""
    if not content_encoding:
        return ()
    names = [name.strip().lower() for name in content_encoding.split(",")]
    codings = tuple(name for name in names if name not in {"", "identity"})
    if len(codings) > MAX_CODINGS or not CODINGS.keys() >= set(codings):
        return None
    return codings
