"""What providers say of their own limits, in every dialect."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from sluice.core.limits import DAY, HOUR, MAX_COUNT, MILLISECOND, MINUTE, SECOND
from sluice.core.words import Amount, Feedback, Quota, RefusedAs
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import Counter, RefusalSign, Reset, Word
from sluice.usage.word import (
    LONGEST,
    LONGEST_BODY,
    Dialect,
    Explanation,
    count,
    duration,
    explained,
    feedback,
    headers_of,
    http_date,
    retry_after,
    seconds,
    timestamp,
)

NOON = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
WALL = int(NOON.timestamp()) * SECOND

OPENAI = Word(
    tuple(
        Counter(of, f"x-ratelimit-limit-{name}", f"x-ratelimit-remaining-{name}", f"x-ratelimit-reset-{name}")
        for of, name in (
            (Amount.REQUESTS, "requests"),
            (Amount.TOKENS, "tokens"),
            (Amount.TOKENS, "project-tokens"),
        )
    ),
    (
        RefusalSign(429, RefusedAs.SPEND_CAP, ("insufficient_quota",)),
        RefusalSign(429, RefusedAs.RATE_LIMITED),
        RefusalSign(503, RefusedAs.OVERLOADED),
    ),
)
ANTHROPIC = Word(
    tuple(
        Counter(
            of,
            f"anthropic-ratelimit-{name}-limit",
            f"anthropic-ratelimit-{name}-remaining",
            f"anthropic-ratelimit-{name}-reset",
            Reset.TIMESTAMP,
        )
        for of, name in (
            (Amount.REQUESTS, "requests"),
            (Amount.INPUT_TOKENS, "input-tokens"),
            (Amount.OUTPUT_TOKENS, "output-tokens"),
        )
    ),
    (
        RefusalSign(429, RefusedAs.SPEND_CAP, ("enforced_spend_limit_reached",)),
        RefusalSign(429, RefusedAs.RATE_LIMITED),
        RefusalSign(529, RefusedAs.OVERLOADED),
    ),
)
MISTRAL = Word(
    (Counter(Amount.TOKENS, "x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute", period=MINUTE),),
    (RefusalSign(429, RefusedAs.RATE_LIMITED),),
)
BEDROCK = Word(
    (),
    (
        RefusalSign(429, RefusedAs.RATE_LIMITED, ("ThrottlingException",)),
        RefusalSign(503, RefusedAs.OVERLOADED, ("ServiceUnavailableException",)),
    ),
)


def test_openai_tells_durations() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-limit-project-tokens": "60000",
        "x-ratelimit-remaining-project-tokens": "57000",
        "x-ratelimit-reset-project-tokens": "3s",
    }
    assert feedback(OPENAI, 200, headers, "", WALL) == Feedback(
        (
            Quota("x-ratelimit-remaining-requests", Amount.REQUESTS, 59, 60, SECOND),
            Quota("x-ratelimit-remaining-tokens", Amount.TOKENS, 149984, 150000, 6 * MINUTE),
            Quota("x-ratelimit-remaining-project-tokens", Amount.TOKENS, 57000, 60000, 3 * SECOND),
        )
    )


def test_anthropic_tells_times_of_day() -> None:
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "40000",
        "anthropic-ratelimit-input-tokens-remaining": "2000",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-24T12:00:57Z",
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-11-24T11:59:59Z",
    }
    assert feedback(ANTHROPIC, 200, headers, "", WALL) == Feedback(
        (
            Quota("anthropic-ratelimit-requests-remaining", Amount.REQUESTS, 49, 50, 0),
            Quota("anthropic-ratelimit-input-tokens-remaining", Amount.INPUT_TOKENS, 2000, 40000, 57 * SECOND),
        )
    )


def test_mistral_tells_no_reset_and_counts_by_the_minute() -> None:
    headers = {"x-ratelimit-limit-tokens-minute": "5000000", "x-ratelimit-remaining-tokens-minute": "4999911"}
    (quota,) = feedback(MISTRAL, 200, headers, "", WALL).quotas
    assert quota == Quota("x-ratelimit-remaining-tokens-minute", Amount.TOKENS, 4999911, 5000000, MINUTE)


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("60", "-1", "1s"),  # Azure, where it does not know
        ("0", "0", "0"),
        ("60", "", "1s"),
        ("60", "many", "1s"),
        ("60", "1e3", "1s"),
        ("60", str(MAX_COUNT + 1), "1s"),
        ("60", "9" * 5000, "1s"),
        ("60", "61", "1s"),  # more left than there is
        ("-60", "5", "1s"),
        ("", "5", "1s"),
        ("60", "5", ""),  # nobody knows when it is whole again
        ("60", "5", "-1s"),
        ("60", "5", "soon"),
        ("60", "5", "33d"),
        ("60", "5", "9999999999999999h"),
        ("60", "5", "2026-11-24T12:00:57Z"),
    ],
)
def test_what_is_negative_malformed_or_absurd_is_not_told(limit: str, remaining: str, reset: str) -> None:
    headers = {
        "x-ratelimit-limit-requests": limit,
        "x-ratelimit-remaining-requests": remaining,
        "x-ratelimit-reset-requests": reset,
    }
    assert feedback(OPENAI, 200, headers, "", WALL) == Feedback()


def test_a_limit_that_is_not_told_leaves_the_quota() -> None:
    headers = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "2m"}
    assert feedback(OPENAI, 200, headers, "", WALL).quotas == (
        Quota("x-ratelimit-remaining-requests", Amount.REQUESTS, 5, None, 2 * MINUTE),
    )


@pytest.mark.parametrize(
    ("word", "status", "headers", "body", "told"),
    [
        (OPENAI, 429, {"retry-after": "7"}, {}, Feedback((), RefusedAs.RATE_LIMITED, 7 * SECOND)),
        (
            OPENAI,
            429,
            {},
            {"error": {"message": "…", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}},
            Feedback((), RefusedAs.SPEND_CAP),
        ),
        (OPENAI, 503, {}, {"error": {"type": "service_unavailable"}}, Feedback((), RefusedAs.OVERLOADED)),
        (OPENAI, 500, {"retry-after": "7"}, {"error": {"code": "insufficient_quota"}}, Feedback()),
        (
            ANTHROPIC,
            429,
            {},
            {
                "type": "error",
                "error": {
                    "type": "rate_limit_error",
                    "message": "…",
                    "details": {"error_code": "enforced_spend_limit_reached"},
                },
            },
            Feedback((), RefusedAs.SPEND_CAP),
        ),
        (
            ANTHROPIC,
            529,
            {},
            {"type": "error", "error": {"type": "overloaded_error"}},
            Feedback((), RefusedAs.OVERLOADED),
        ),
        (
            BEDROCK,
            429,
            {"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/coral/"},
            {"message": "Too many tokens"},
            Feedback((), RefusedAs.RATE_LIMITED),
        ),
        (BEDROCK, 429, {}, {"message": "Too many tokens"}, Feedback()),
        (
            OPENAI,
            429,
            {},
            [
                {
                    "error": {
                        "code": 429,
                        "status": "RESOURCE_EXHAUSTED",
                        "details": [
                            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "x"}]},
                            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.700s"},
                        ],
                    }
                }
            ],
            Feedback((), RefusedAs.RATE_LIMITED, 3700 * MILLISECOND),
        ),
    ],
)
def test_refusals_are_told_apart(
    word: Word, status: int, headers: dict[str, str], body: object, told: Feedback
) -> None:
    assert feedback(word, status, headers, json.dumps(body), WALL) == told


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        '"text"',
        "7",
        "null",
        "[" * 10_000,
        '{"a":' * 3000 + "1" + "}" * 3000,
        '{"error": NaN}',
        '{"code": ["insufficient_quota"], "type": {"a": 1}, "status": 429}',
        '{"code": "' + "x" * 100 + '"}',
        '{"details": [{"@type": "google.rpc.RetryInfo", "retryDelay": {"seconds": 1}}]}',
        '{"code": "insufficient_quota", "more": "' + " " * LONGEST_BODY + '"}',
        json.dumps([{}] * 1000 + [{"code": "insufficient_quota"}]),
    ],
)
def test_a_body_may_be_anything(body: str) -> None:
    assert explained(body) == Explanation()


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1s", SECOND),
        ("6m0s", 6 * MINUTE),
        ("1h2m3.5s", HOUR + 2 * MINUTE + 3500 * MILLISECOND),
        ("345ms", 345 * MILLISECOND),
        ("23h18m29.144s", 23 * HOUR + 18 * MINUTE + 29144 * MILLISECOND),
        ("1d2h", DAY + 2 * HOUR),
        ("7µs", 7000),
        ("7\u00c2\u00b5s", 7000),
        ("7us", 7000),
        ("90ns", 90),
        ("12", 12 * SECOND),
        (" 2.5 ", 2500 * MILLISECOND),
        ("0s", 0),
        ("32d", LONGEST),
        ("32d1s", None),
        ("1s2", None),
        ("s", None),
        ("-1s", None),
        ("1 s", None),
        ("", None),
    ],
)
def test_durations(text: str, nanoseconds: int | None) -> None:
    assert duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2024-02-29T23:59:59Z", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
        ("2026-03-01T00:00:00.500+02:00", datetime(2026, 2, 28, 22, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-03-01t00:00:00-0130", datetime(2026, 3, 1, 1, 30, tzinfo=UTC)),
        ("1764000000", datetime.fromtimestamp(1764000000, tz=UTC)),
        ("1764000000000", datetime.fromtimestamp(1764000000, tz=UTC)),
        ("1764000000.5", datetime.fromtimestamp(1764000000.5, tz=UTC)),
        ("2026-13-01T00:00:00Z", None),
        ("2026-03-01T00:00:00", None),
        ("2026-03-01", None),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_timestamps(text: str, at: datetime | None) -> None:
    assert timestamp(text) == (None if at is None else round(at.timestamp() * 1000) * MILLISECOND)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        ("Thu, 29 Feb 2024 00:00:00 GMT", datetime(2024, 2, 29, tzinfo=UTC)),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None),
        ("", None),
    ],
)
def test_dates_as_http_has_them(text: str, at: datetime | None) -> None:
    assert http_date(text) == (None if at is None else int(at.timestamp()) * SECOND)


@pytest.mark.parametrize(
    ("headers", "nanoseconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7 * SECOND),
        ({"retry-after": "0.5"}, 500 * MILLISECOND),
        ({"retry-after": "7", "retry-after-ms": "6400"}, 6400 * MILLISECOND),
        ({"retry-after": "7", "retry-after-ms": "-1"}, 7 * SECOND),
        ({"retry-after": "Tue, 24 Nov 2026 12:01:00 GMT"}, MINUTE),
        ({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Tue, 24 Nov 2099 11:00:00 GMT"}, None),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "99999999"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], nanoseconds: int | None) -> None:
    assert retry_after(headers, WALL) == nanoseconds


def test_a_count_is_rounded_down() -> None:
    assert [count("29.9"), count(" 7 "), count("+7"), count("7,5"), count("\u0667")] == [29, 7, None, None, None]
    assert seconds("\u0667") is None


def test_the_headers_of_a_word_are_known() -> None:
    assert headers_of(MISTRAL) == (
        "retry-after",
        "retry-after-ms",
        "x-amzn-errortype",
        "x-ratelimit-limit-tokens-minute",
        "x-ratelimit-remaining-tokens-minute",
    )


@pytest.mark.parametrize(
    ("provider", "headers", "told"),
    [
        (
            "groq",
            {
                "x-ratelimit-limit-requests": "14400",  # a day's
                "x-ratelimit-limit-tokens": "18000",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-remaining-tokens": "17997",
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-reset-tokens": "7.66s",
            },
            [
                (Amount.REQUESTS, 14370, 14400, 2 * MINUTE + 59560 * MILLISECOND),
                (Amount.TOKENS, 17997, 18000, 7660 * MILLISECOND),
            ],
        ),
        (
            "azure",
            {
                "x-ratelimit-limit-requests": "10",
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-requests": "60",
                "x-ratelimit-limit-tokens": "0",
                "x-ratelimit-remaining-tokens": "-1",
                "x-ratelimit-reset-tokens": "0",
            },
            [(Amount.REQUESTS, 9, 10, MINUTE)],
        ),
        (
            "mistral",
            {"x-ratelimit-limit-req-minute": "720", "x-ratelimit-remaining-req-minute": "717"},
            [(Amount.REQUESTS, 717, 720, MINUTE)],
        ),
        (
            "fireworks",
            {"x-ratelimit-limit-tokens-generated": "72000", "x-ratelimit-remaining-tokens-generated": "69338"},
            [(Amount.OUTPUT_TOKENS, 69338, 72000, MINUTE)],
        ),
        (
            "anthropic",
            {
                "anthropic-ratelimit-output-tokens-limit": "8000",
                "anthropic-ratelimit-output-tokens-remaining": "3000",
                "anthropic-ratelimit-output-tokens-reset": "2026-11-24T12:00:38Z",
            },
            [(Amount.OUTPUT_TOKENS, 3000, 8000, 38 * SECOND)],
        ),
        ("ollama", {"x-ratelimit-remaining-requests": "1"}, []),
    ],
)
def test_a_built_in_profile_hears_its_provider(
    provider: str, headers: dict[str, str], told: list[tuple[Amount, int, int, int]]
) -> None:
    dialect = Dialect.of(BUILT_IN.profile(provider).word)
    said = dialect.feedback(200, {name: value.encode() for name, value in headers.items()}, "", WALL)
    assert [(quota.of, quota.remaining, quota.limit, quota.reset) for quota in said.quotas] == told


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind"),
    [
        ("openai", 429, {"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, RefusedAs.RATE_LIMITED),
        ("openai", 429, {"error": {"type": "insufficient_quota"}}, RefusedAs.SPEND_CAP),
        ("anthropic", 429, {"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}, RefusedAs.SPEND_CAP),
        ("anthropic", 529, {"error": {"type": "overloaded_error"}}, RefusedAs.OVERLOADED),
        ("gemini", 429, {"error": {"status": "RESOURCE_EXHAUSTED"}}, RefusedAs.RATE_LIMITED),
        ("deepseek", 402, {"error": {"message": "Insufficient Balance"}}, RefusedAs.SPEND_CAP),
        ("openrouter", 402, {"error": {"code": 402}}, None),  # one call's cap, and not the account
        ("openai", 500, {"error": {"type": "server_error"}}, None),
    ],
)
def test_a_built_in_profile_tells_refusals_apart(
    provider: str, status: int, body: object, kind: RefusedAs | None
) -> None:
    said = Dialect.of(BUILT_IN.profile(provider).word).feedback(status, {}, json.dumps(body), WALL)
    assert said.refused_as is kind


def test_a_profile_that_says_nothing_knows_the_usual_refusals() -> None:
    dialect = Dialect.of(Word())
    assert [dialect.feedback(status, {}, "", WALL).refused_as for status in (429, 529, 503)] == [
        RefusedAs.RATE_LIMITED,
        RefusedAs.OVERLOADED,
        None,
    ]
