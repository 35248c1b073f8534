"""Requests that no Envoy of ours would send, over a real channel: each is decided or refused, fast, and by name.

A request that fails is let through by `failurePolicy: Allow`, so what a caller can bring about must not fail.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.service.ratelimit import v3 as rls

from helpers.channel import OK, OVER_LIMIT, RATE_LIMIT, Served, descriptor, raw_descriptor, serving
from helpers.system import limits

TRIES = 9
MOST_SECONDS = 0.005

CAPS = {"requestsPerMinute": 2**40, "tokensPerMinute": 2**40}
LIMITS = limits("openai", "http://127.0.0.1:9", CAPS)

Answer = rls.RateLimitResponseCode | grpc.StatusCode
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(LIMITS) as running:
        yield running


def field(number: int, value: bytes) -> bytes:
    """A field of bytes; of up to 2**21 - 1 of them."""
    size = len(value)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + value


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, field(1, key) + field(2, value))


def request(*entries: bytes) -> bytes:
    return field(2, entry(b"provider", b"openai") + b"".join(entries))


def several(*descriptors: object) -> bytes:
    return bytes(rls.RateLimitRequest(domain="sluice", descriptors=list(descriptors)))  # type: ignore[arg-type]


async def answer(served: Served, sent: bytes, spent: list[float] | None = None) -> Answer:
    """The gate's answer; the seconds of CPU that it took, the client's own for sending it too, are added to `spent`."""
    method: Any = served.channel.unary_unary(f"/{RATE_LIMIT}/ShouldRateLimit")
    before = time.process_time()
    try:
        received = await method(sent)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        if spent is not None:
            spent.append(time.process_time() - before)
    return rls.RateLimitResponse.parse(received).overall_code


VALUE = b"v" * 65536
HOSTILE: dict[str, tuple[bytes, Answer]] = {
    "nothing": (b"", INVALID),
    "no protobuf": (b"\xff" * 64, INVALID),
    "cut short": (request(entry(b"user", b"alice"))[:-3], INVALID),
    "another message": (b"\x0a\x02\x08\x01\x12\x04\x0a\x02\xff\xff", INVALID),
    "groups in groups": (b"\x0b" * 100_000, INVALID),
    "a megabyte of unknown fields": (request() + field(15, b"x" * 2**20), OK),
    "1 000 entries": (request(*(entry(b"k%d" % n, b"v") for n in range(1000))), INVALID),
    "1 000 times the same entry": (request(*[entry(b"user", b"alice")] * 1000), OK),
    "1 000 empty entries": (request(*[field(1, b"")] * 1000), OK),
    "values of 64 KiB": (request(*(entry(key, VALUE) for key in (b"user", b"model", b"bytes", b"max_tokens"))), OK),
    "a key of 64 KiB": (request(entry(VALUE, b"v")), OK),
    "numbers of 64 KiB": (request(entry(b"max_tokens", b"9" * 65536), entry(b"n", b"1" * 65536)), OK),
    "numbers that are none": (request(entry(b"max_tokens", b"1e999"), entry(b"bytes", b"-1"), entry(b"n", b"NaN")), OK),
    "digits of another script": (request(entry(b"max_tokens", "٣".encode()), entry(b"bytes", "²".encode())), OK),
    "256 descriptors": (several(*[descriptor(1, user="alice")] * 256), INVALID),
    "64 descriptors": (several(*[descriptor(1, user="alice")] * 64), OK),
    "256 empty descriptors": (several(*[raw_descriptor()] * 256), INVALID),
    "a value that is no UTF-8": (request(entry(b"user", b"\xff\xfe")), OK),
    "a key that is no UTF-8": (request(entry(b"\xff", b"v"), entry(b"user", b"alice")), OK),
    "a surrogate": (request(entry(b"user", b"\xed\xa0\x80")), OK),
    "NUL": (request(entry(b"user", b"\x00"), entry(b"model", b"\x00overflow")), OK),
    "the most hits": (several(descriptor(2**64 - 1, user="alice")), OK),
}


@pytest.mark.parametrize(("sent", "expected"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_request_is_answered_fast_and_the_gate_lives_on(
    served: Served, sent: bytes, expected: Answer
) -> None:
    spent: list[float] = []
    for _ in range(TRIES):
        assert await answer(served, sent, spent) is expected
    assert statistics.median(spent) < MOST_SECONDS
    assert await answer(served, request(entry(b"user", b"bob"))) is OK


async def test_a_request_beyond_the_size_of_any_is_refused(served: Served) -> None:
    assert await answer(served, b"\x00" * (5 * 2**20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await answer(served, request(entry(b"user", b"bob"))) is OK


async def test_no_name_is_a_way_past_the_limit_of_a_caller_without_one(caplog: pytest.LogCaptureFixture) -> None:
    """Every odd name has a bucket of its own, as every other name has, and it is limited there."""
    names = [b"\xff", b"\xfe", b"\xed\xa0\x80", b"\x00", b"\x00overflow", b" ", VALUE, "é".encode(), b"e\xcc\x81"]
    async with serving(limits("openai", "http://127.0.0.1:9", {"requestsPerMinute": 1})) as served:
        for name in names:
            assert await answer(served, request(entry(b"user", name))) is OK
            assert await answer(served, request(entry(b"user", name))) is OVER_LIMIT
        subjects = {bucket.key.subject for bucket in served.snapshot().buckets}
    assert len(subjects) == len(names)
    assert max(map(len, subjects)) < 256
    assert caplog.records == []


async def test_a_method_that_is_not_here_is_unimplemented(served: Served) -> None:
    method: Any = served.channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/Other")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await method(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
