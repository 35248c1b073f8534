"""Usage from response headers."""

from __future__ import annotations

import pytest

from sluice.usage.headers import usage_from_headers
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import UsageFields
from sluice.usage.tokens import MAX_USED, Usage


def test_no_such_header_tells_nothing() -> None:
    assert usage_from_headers([(":status", b"200"), ("content-type", b"application/json")]) is None
    assert usage_from_headers([]) is None


@pytest.mark.parametrize(
    ("headers", "usage"),
    [
        ({"x-usage-total-tokens": b"42"}, Usage(None, None, 42)),
        ({"x-usage-input-tokens": b"30", "x-usage-output-tokens": b"12"}, Usage(30, 12)),
        ({"x-usage-total-tokens": " 42\t"}, Usage(None, None, 42)),
        ({"x-usage-total-tokens": str(MAX_USED)}, Usage(None, None, MAX_USED)),
        ({"x-usage-total-tokens": b""}, None),
    ],
)
def test_headers_become_usage(headers: dict[str, bytes | str], usage: Usage | None) -> None:
    assert usage_from_headers(headers.items()) == usage


@pytest.mark.parametrize(
    "value",
    [
        b"-1",
        b"+1",
        b"1.0",
        b"1e3",
        b"0x10",
        b"1_000",
        b"NaN",
        b"true",
        b"4 2",
        b"42, 42",
        b"\xff\xfe",
        "٤٢",
        "²",
        str(MAX_USED + 1),
        b"9" * 5000,
        b"x" * 65536,
    ],
    ids=lambda value: repr(value)[:16],
)
def test_a_malformed_value_makes_the_usage_partial(value: bytes | str) -> None:
    headers = [("x-usage-input-tokens", value), ("x-usage-output-tokens", b"12")]

    assert usage_from_headers(headers) == Usage(None, 12, None, partial=True)


def test_of_a_repeated_header_the_last_one_counts() -> None:
    assert usage_from_headers([("x-usage-total-tokens", b"1"), ("x-usage-total-tokens", b"2")]) == Usage(None, None, 2)


def test_the_headers_to_read_can_be_named() -> None:
    fields = UsageFields(input_tokens=(("x-in",),), output_tokens=(("x-out",),))

    assert usage_from_headers([("x-in", b"3"), ("x-out", b"4"), ("x-usage-total-tokens", b"9")], fields) == Usage(3, 4)


def test_the_headers_of_an_api_stand_in_its_profile() -> None:
    told = {
        "x-amzn-bedrock-input-token-count": b"1",
        "x-amzn-bedrock-output-token-count": b"5",
        "x-amzn-bedrock-cache-read-input-token-count": b"10",
        "x-amzn-bedrock-cache-write-input-token-count": b"100",
    }
    fields = BUILT_IN.profile("bedrock").shape("invoke").response.headers

    assert usage_from_headers(told.items()) is None
    assert usage_from_headers(told.items(), fields) == Usage(111, 5, cache_read=10, cache_write=100)
