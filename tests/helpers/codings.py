"""Content-codings, as servers apply them."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS = ("gzip", "deflate", "raw deflate", "br", "zstd")
"""Every format; both kinds of deflate go by the name `deflate` in a header."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15, "raw deflate": -15}


def encoded(body: bytes, *codings: str) -> bytes:
    """The body with these codings applied, the first one first."""
    for coding in codings:
        if coding == "br":
            body = brotli.compress(body, quality=5)
        elif coding == "zstd":
            body = zstd.compress(body)
        else:
            body = b"".join(deflated([body], _WINDOW_BITS[coding]))
    return body


def deflated(pieces: Iterable[bytes], window_bits: int = 31) -> Iterable[bytes]:
    """A body that is compressed while it is made."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, window_bits)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def header(*codings: str) -> str:
    """The value of `content-encoding`."""
    return ", ".join(coding.removeprefix("raw ") for coding in codings)
