"""A stream falls into the same events however its lines end and wherever its bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.usage.sse import EventSplitter


def split(stream: bytes, size: int = 1 << 30) -> list[bytes]:
    """The data of each event that has some."""
    events = [b""]

    def data(piece: bytes) -> None:
        events[-1] += piece

    splitter = EventSplitter(data, lambda: events.append(b""))
    for start in range(0, len(stream), size):
        splitter.feed(stream[start : start + size])
    splitter.finish()
    return [event.strip() for event in events if event]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 30])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize(
    ("lines", "events"),
    [
        ([b"data: a", b"", b"data:b", b""], [b"a", b"b"]),
        ([b"event: x", b"data: a", b"id: 1", b"retry: 10", b""], [b"a"]),
        ([b": comment", b"", b": data: x", b"", b"", b"data: a", b": more", b"data: b", b""], [b"a b"]),
        ([b"data", b"dat", b"databc: x", b" data: x", b"d", b"", b"data: a", b""], [b"a"]),
        ([b"data:", b"data: a", b"data:", b""], [b"a"]),
        ([b"data: a", b"", b"data: no end"], [b"a", b"no end"]),
        ([b"data: a", b"", b"dat"], [b"a"]),
        ([b"data: gr\xc3\xbc\xc3\x9fe \xf0\x9f\x8c\x8a", b""], ["grüße 🌊".encode()]),
        ([b"\xef\xbb\xbfdata: a", b"", b"\xef\xbb\xbfdata: b", b"", b"data: c", b""], [b"a", b"c"]),
        ([b"\xef\xbb\xbf", b"data: a", b""], [b"a"]),
        ([b"\xef\xbbdata: a", b"", b"data: b", b""], [b"b"]),
        ([b"\xef"], []),
        ([b"", b"", b"", b"data: a", b""], [b"a"]),
        ([], []),
    ],
)
def test_events_are_the_same_for_every_line_end_and_cut(
    lines: list[bytes], events: list[bytes], end: bytes, size: int
) -> None:
    assert split(end.join(lines), size) == events
    assert split(end.join(lines) + end, size) == events
    assert split(end.join(lines) + end + end, size) == events


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"data: ", b"data:", b"\r", b"\n", b"\r\n", b":", b"a", b"d", b"\x0b", b"\x85", b" ", b"\xef\xbb\xbf"]
        )
    )
)
def test_any_bytes_are_split_alike_however_they_are_cut(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)

    assert split(stream, 1) == split(stream, 3) == split(stream)
