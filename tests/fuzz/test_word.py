"""Whatever a provider's headers and refusals say, it becomes an allowance, a pause or nothing, and never an error."""

from __future__ import annotations

import pytest

from helpers.fuzzing import SECONDS, fuzz
from sluice.core.limits import MAX_COUNT, SECOND
from sluice.usage.profiles import BUILT_IN
from sluice.usage.word import LONGEST, Dialect

pytestmark = pytest.mark.timeout(60 + 3 * SECONDS)

WALL = 1_795_521_600 * SECOND
PROVIDERS = ("openai", "anthropic", "azure", "groq", "mistral", "gemini", "bedrock", "openrouter")
DIALECTS = [Dialect.of(BUILT_IN.profile(provider).word) for provider in PROVIDERS]
VALUES = (b"0", b"1", b"60", b"1s", b"6m0s", b"345ms", b"2026-11-24T12:00:10Z", b"Tue, 24 Nov 2026 12:00:10 GMT", b"-1")
BODIES = (
    b'{"error":{"code":"insufficient_quota","type":"insufficient_quota","message":"x"}}',
    b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}',
    b'{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.07s"}]}}',
    b'{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}',
    b'{"__type":"ThrottlingException"}',
)


def test_what_a_provider_says_of_its_limits_in_any_bytes() -> None:
    """An input: a byte for the dialect, one for the status, headers in lines, a blank line, and a body."""

    def check(data: bytes) -> None:
        dialect = DIALECTS[data[0] % len(DIALECTS) if data else 0]
        status = (200, 429, 529, 503, 400, 403)[data[1] % 6 if len(data) > 1 else 0]
        head, _, body = data[2:].partition(b"\n\n")
        lines = (line.partition(b":") for line in head.split(b"\n"))
        headers = {name.decode("latin-1"): value for name, _, value in lines}
        said = dialect.feedback(status, headers, body.decode("utf-8", "replace"), WALL)
        for quota in said.quotas:
            assert 0 <= quota.remaining <= MAX_COUNT
            assert quota.limit is None or quota.remaining <= quota.limit <= MAX_COUNT
            assert 0 <= quota.reset <= LONGEST
        assert said.retry_after is None or 0 <= said.retry_after <= LONGEST
        assert status != 200 or said.refused_as is None

    seeds = []
    for at, dialect in enumerate(DIALECTS):
        for turn, value in enumerate(VALUES):
            head = b"\n".join(b"%s:%s" % (name.encode(), value) for name in sorted(dialect.headers))
            seeds.append(bytes([at, turn]) + head + b"\n\n" + BODIES[turn % len(BODIES)])
    names = sorted({name.encode() + b":" for dialect in DIALECTS for name in dialect.headers})
    fuzz(
        "word",
        check,
        seeds,
        [*VALUES, *names, *BODIES, b"\n", b"\n\n", b'"', b"{", b"[" * 200, b"1e999s", b"\xc2\xb5s"],
    )
