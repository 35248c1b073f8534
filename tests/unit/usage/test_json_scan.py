"""Wanted members are found wherever they stand, in a text of any size and depth, however it is cut."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice.usage.json_scan import MAX_KEY, MAX_VALUE, JsonScanner, tree

PATHS = ("usage", "response.usage")


def scanned(text: bytes, size: int = 1 << 30) -> list[bytes]:
    found: list[bytes] = []
    scanner = JsonScanner(tree(PATHS), lambda _, value: found.append(value))
    for start in range(0, len(text), size):
        scanner.feed(text[start : start + size])
    return [value.strip() for value in found]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"usage":{"a":1}}', [b'{"a":1}']),
        (b'\n\n { "id" : "x" , "usage" : { "a" : [ 1 , 2 ] } , "z" : 1 }', [b'{ "a" : [ 1 , 2 ] }']),
        (b'{"usage":null}', [b"null"]),
        (b'{"usage":12,"usage":"x"}', [b"12", b'"x"']),
        (b'{"response":{"usage":1},"usage":2}', [b"1", b"2"]),
        (b'{"response":[{"usage":1}],"choices":[{"usage":1}],"delta":{"usage":1}}', []),
        (b'{"response":{"response":{"usage":1}},"a":{"response":{"usage":1}}}', []),
        (rb'{"text":"\"usage\":{\"a\":1}, {[\\","usage":1}', [b"1"]),
        (rb'{"text":"\\\\","usage":"\\","z":"\\\""}', [rb'"\\"']),
        (b'{"a":"usage","b":["usage"],"usage_":1,"xusage":1,"usage":1}', [b"1"]),
        (b'[{"usage":1},{"usage":{"a":2}}]', [b"1", b'{"a":2}']),
        (b'[[{"usage":1}],"usage",{"x":{"usage":1}}]', []),
        (b'{"usage":1}{"usage":2}', [b"1"]),
        (b'{"usage":1}, "usage":2}', [b"1"]),
        (b'{"usage":{"a":1}', []),
        (b'"usage":1', []),
        (b'}]{"usage":1}', [b"1"]),
        (b"", []),
    ],
)
def test_only_members_at_a_wanted_path_are_found(text: bytes, found: list[bytes]) -> None:
    assert scanned(text) == found
    assert scanned(text, 1) == found
    for size in range(2, len(text)):
        assert scanned(text, size) == found


def test_what_follows_the_top_value_is_not_read() -> None:
    scanner = JsonScanner(tree(PATHS), lambda *_: None)
    scanner.feed(b'{"usage":1')
    assert not scanner.done
    scanner.feed(b"}")
    assert scanner.done


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"usage":', b'{"response":'])
def test_depth_is_only_counted(opening: bytes) -> None:
    depth = 100_000
    closing = (b"]" if opening == b"[" else b"}") * depth

    assert scanned(b'{"deep":' + opening * depth + b"1" + closing + b',"usage":1}') == [b"1"]


@pytest.mark.parametrize("size", [64, 70_000, 1 << 30])
def test_a_member_after_megabytes_is_found(size: int) -> None:
    big = json.dumps({"image": "A" * 1_000_000, "code": '"{[\\\n' * 100_000, "floats": [0.25] * 100_000})

    assert scanned(b'{"data":[%s],"usage":1}' % big.encode(), size) == [b"1"]


@pytest.mark.parametrize("size", [1, 1000, MAX_VALUE - 1, MAX_VALUE + 1, 1 << 30])
def test_a_value_that_is_too_long_arrives_truncated_however_it_came(size: int) -> None:
    value = b'{"a":"' + b"x" * MAX_VALUE + b'"}'

    assert scanned(b'{"usage":' + value + b',"b":1}', size) == [value[:MAX_VALUE]]


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_a_key_that_is_too_long_is_no_wanted_key(size: int) -> None:
    scanner = JsonScanner(tree(["k" * (MAX_KEY - 1)]), lambda *_: pytest.fail("found"))
    text = b'{"%s":1}' % (b"k" * MAX_KEY)
    for start in range(0, len(text), size):
        scanner.feed(text[start : start + size])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["usage", '"', "\\", "{[:,"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["usage", "response", "a", '"', "\\"]) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=20,
)


def members(document: Any) -> list[Any]:
    """What the scanner should find, in the order of the text."""
    if isinstance(document, list):
        return [value for item in document if isinstance(item, dict) for value in members(item)]
    found = []
    for key, value in document.items() if isinstance(document, dict) else ():
        if key == "usage":
            found.append(value)
        elif key == "response" and isinstance(value, dict) and "usage" in value:
            found.append(value["usage"])
    return found


@settings(max_examples=200, deadline=None)
@given(JSON, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40))
def test_it_finds_what_a_parser_finds(document: Any, ascii_only: bool, indent: int | None, size: int) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()

    assert [json.loads(value) for value in scanned(text, size)] == members(document)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(re.findall(rb"\S+", rb'{ } [ ] : , " \ 1 "usage" "response" {"usage": x')), max_size=40)
)
@example([b'{"usage":', b'{"usage":', b"}", b":", b"}"])
@example([b'{"usage":', b"{", b'"usage"', b"}", b":", b"}"])
def test_of_a_text_that_is_no_json_it_finds_the_same_however_it_is_cut(tokens: list[bytes]) -> None:
    text = b"".join(tokens)

    assert scanned(text, 1) == scanned(text, 3) == scanned(text)
