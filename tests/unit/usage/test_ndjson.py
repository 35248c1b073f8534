"""A stream falls into the same documents however its lines end and wherever its bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.usage.ndjson import LineSplitter

WHOLE = 1 << 30


def split(stream: bytes, size: int = WHOLE) -> list[bytes]:
    """Each document that holds anything but white space."""
    documents = [b""]

    def data(piece: bytes) -> None:
        documents[-1] += piece

    splitter = LineSplitter(data, lambda: documents.append(b""))
    for start in range(0, len(stream), size):
        splitter.feed(stream[start : start + size])
    splitter.finish()
    return [document.strip() for document in documents if document.strip()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, WHOLE])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("lines", "documents"),
    [
        ([b'{"a":1}', b'{"b":2}'], [b'{"a":1}', b'{"b":2}']),
        ([b"", b"", b'{"a":1}', b"", b" ", b'{"b":2}', b"", b""], [b'{"a":1}', b'{"b":2}']),
        ([b'{"a":\r1}', b"x"], [b'{"a":\r1}', b"x"]),
        ([b'{"a":"gr\xc3\xbc\xc3\x9fe \xe2\x80\xa8 \xf0\x9f\x8c\x8a"}'], ['{"a":"grüße \u2028 🌊"}'.encode()]),
        ([], []),
    ],
)
def test_documents_are_the_same_for_every_line_end_and_cut(
    lines: list[bytes], documents: list[bytes], end: bytes, size: int
) -> None:
    assert split(end.join(lines), size) == documents
    assert split(end.join(lines) + end, size) == documents


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"{", b"}", b"\r", b"\n", b"\r\n", b"\x0b", b"\x85", b" ", b"a"])))
def test_any_bytes_are_split_alike_however_they_are_cut(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)

    assert split(stream, 1) == split(stream, 3) == split(stream)
