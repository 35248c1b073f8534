"""What a refused caller reads: every reason in plain words, in the shape of each API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import SECOND, Cap
from sluice.core.words import Amount
from sluice.usage.profiles import Api
from sluice_sidecar import answers

ALICE = BucketKey("openai", Scope.USER, "alice")


def refusal(**changes: Any) -> Refusal:
    usual = Refusal(Reason.WOULD_EXCEED, ALICE, Cap.REQUESTS_PER_MINUTE, 60, 60, 1, 30 * SECOND)
    return usual._replace(**changes)


MESSAGES = {
    'Limit of 60 requests per minute reached for user "alice" at openai: 60 used, 1 request more asked for. '
    "Retry in 30 s.": refusal(),
    'Limit of 60 requests per minute reached for user "alice" at openai: 59 used, 2 requests more asked for. '
    "Retry in 1 s.": refusal(used=59, requested=2, retry_after=1),
    'Limit of 90 tokens per day reached for org "acme" at openai for gpt-5*,o3: 80 used, about 20 tokens more asked '
    "for. Retry in 86400 s.": refusal(
        key=BucketKey("openai", Scope.ORG, "acme", "gpt-5*,o3"),
        cap=Cap.TOKENS_PER_DAY,
        limit=90,
        used=80,
        requested=20,
        retry_after=86400 * SECOND,
    ),
    "Limit of 60 requests per hour reached for callers without a project at openai: 60 used, 1 request more asked "
    "for. Retry in 30 s.": refusal(key=BucketKey("openai", Scope.PROJECT, ""), cap=Cap.REQUESTS_PER_HOUR),
    "Limit of 60 requests per minute reached for callers new to User at openai: 60 used, 1 request more asked for. "
    "Retry in 30 s.": refusal(key=BucketKey("openai", Scope.USER, OVERFLOW)),
    'This call needs about 200 tokens, and user "alice" at openai may use 100 tokens per hour: it can never be '
    "admitted. Ask for less output, or shorten the input.": refusal(
        reason=Reason.OVERSIZED_REQUEST,
        cap=Cap.TOKENS_PER_HOUR,
        limit=100,
        used=0,
        requested=200,
        retry_after=None,
    ),
    'This call needs about 200 input tokens, and user "alice" at openai may use 100 input tokens per day: it can never '
    "be admitted. Shorten the input.": refusal(
        reason=Reason.OVERSIZED_REQUEST,
        cap=Cap.INPUT_TOKENS_PER_DAY,
        limit=100,
        used=0,
        requested=200,
        retry_after=None,
    ),
    'This call needs about 200 output tokens, and user "alice" at openai may use 1 output token per minute: it can '
    "never be admitted. Ask for less output.": refusal(
        reason=Reason.OVERSIZED_REQUEST,
        cap=Cap.OUTPUT_TOKENS_PER_MINUTE,
        limit=1,
        used=0,
        requested=200,
        retry_after=None,
    ),
    'Limit of 90 output tokens per hour reached for user "alice" at openai: 80 used, about 20 output tokens more asked '
    "for. Retry in 30 s.": refusal(cap=Cap.OUTPUT_TOKENS_PER_HOUR, limit=90, used=80, requested=20),
    'Limit of 60 requests per minute reached for user "alice" at openai: 2 used, 58 asked for by calls that wait, '
    "1 request more asked for. Retry in 30 s.": refusal(used=2, ahead=58),
    'The limit of user "alice" at openai is 0 requests per minute: no call is admitted.': refusal(
        reason=Reason.OVERSIZED_REQUEST, limit=0, used=0, retry_after=None
    ),
    'User "alice" at openai may have 3 calls at a time, and 3 are in flight. Retry when one of them has ended.': (
        refusal(reason=Reason.NO_FREE_SLOT, cap=Cap.MAX_CONCURRENT, limit=3, used=3, retry_after=None)
    ),
    'User "alice" at openai may have 3 calls at a time, and 3 are in flight. Retry in 7 s.': refusal(
        reason=Reason.NO_FREE_SLOT, cap=Cap.MAX_CONCURRENT, limit=3, used=3, retry_after=7 * SECOND
    ),
    'Too many calls wait for user "alice" at openai (3 calls at a time). Retry when one of them has ended.': refusal(
        reason=Reason.QUEUE_FULL, cap=Cap.MAX_CONCURRENT, limit=3, used=3, retry_after=None
    ),
    'The gate cannot reach the store that counts for user "alice" at openai, and by the limit of 1 token per minute no '
    "call passes meanwhile (failurePolicy: Deny). Retry in 2 s.": refusal(
        reason=Reason.STORE_UNAVAILABLE, cap=Cap.TOKENS_PER_MINUTE, limit=1, used=0, retry_after=SECOND + 1
    ),
    'The gate cannot reach the store that counts for user "alice" at openai, and by the limit of 0 requests per minute '
    "no call passes meanwhile (failurePolicy: Deny). Retry in 1 s.": refusal(
        reason=Reason.STORE_UNAVAILABLE, limit=0, used=0, retry_after=1
    ),
}


@pytest.mark.parametrize(("message", "refused"), MESSAGES.items(), ids=range(len(MESSAGES)))
def test_the_message_says_which_limit_of_whom_refused_and_when_to_retry(message: str, refused: Refusal) -> None:
    assert answers.message(refused) == message


@pytest.mark.parametrize(
    ("retry_after", "seconds", "milliseconds"),
    [(1, "1", "1"), (SECOND, "1", "1000"), (SECOND + 1, "2", "1001"), (61 * SECOND - 1, "61", "61000")],
)
def test_the_time_to_retry_is_rounded_up(retry_after: int, seconds: str, milliseconds: str) -> None:
    headers = dict(answers.headers(refusal(retry_after=retry_after)))
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)
    assert "x-should-retry" not in headers


def test_a_call_that_only_the_stores_absence_refuses_may_come_again() -> None:
    refused = refusal(reason=Reason.STORE_UNAVAILABLE, used=0, retry_after=SECOND)

    assert answers.headers(refused) == [
        ("content-type", "application/json"),
        ("x-sluice-refused-by", "sluice"),
        ("x-sluice-reason", "StoreUnavailable"),
        ("retry-after", "1"),
        ("retry-after-ms", "1000"),
    ]


def test_where_the_time_to_retry_cannot_be_known_a_second_is_said() -> None:
    assert answers.headers(refusal(reason=Reason.NO_FREE_SLOT, retry_after=None)) == [
        ("content-type", "application/json"),
        ("x-sluice-refused-by", "sluice"),
        ("x-sluice-reason", "NoFreeSlot"),
        ("retry-after", "1"),
    ]


@pytest.mark.parametrize("api", list(Api))
def test_where_no_retry_helps_no_time_is_said(api: Api) -> None:
    refused = refusal(reason=Reason.OVERSIZED_REQUEST, retry_after=None)
    assert answers.retry_after_seconds(refused) is None
    assert answers.headers(refused) == [
        ("content-type", "application/json"),
        ("x-sluice-refused-by", "sluice"),
        ("x-sluice-reason", "OversizedRequest"),
        ("x-should-retry", "false"),
    ]
    assert "retryDelay" not in answers.body(api, refused).decode()


@pytest.mark.parametrize(
    ("cap", "ran_out"),
    [
        (Cap.TOKENS_PER_DAY, "tokens"),
        (Cap.INPUT_TOKENS_PER_HOUR, "tokens"),
        (Cap.OUTPUT_TOKENS_PER_MINUTE, "tokens"),
        (Cap.REQUESTS_PER_DAY, "requests"),
        (Cap.MAX_CONCURRENT, "requests"),
    ],
)
def test_the_openai_type_says_what_ran_out(cap: Cap, ran_out: str) -> None:
    assert json.loads(answers.body(Api.OPENAI, refusal(cap=cap)))["error"]["type"] == ran_out


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("subject", ['"}],{', "\x00\x1f\\", "ünï 名", "\ud800", "a" * 256])
def test_no_name_breaks_the_json_of_a_body(api: Api, subject: str) -> None:
    told = json.loads(answers.body(api, refusal(key=ALICE._replace(subject=subject))).decode())
    error = told.get("error", told)
    assert (error if isinstance(error, str) else error["message"]).startswith(
        "Limit of 60 requests per minute reached for user "
    )


def test_every_cap_has_its_words() -> None:
    assert set(answers.CAPS) == set(Cap)


def test_a_refusal_for_the_providers_own_word_says_whose_word_it_is() -> None:
    key = BucketKey("openai", Scope.PROVIDER, "key-1", "gpt-5")
    told = {
        each.reason: answers.message(each)
        for each in (
            Refusal(Reason.PROVIDER_LIMIT, key, Amount.REQUESTS, 60, 60, 1, 7 * SECOND),
            Refusal(Reason.PROVIDER_OVERLOADED, key, Amount.REQUESTS, 0, 0, 1, 2 * SECOND),
            Refusal(Reason.PROVIDER_SPEND_CAP, key._replace(models=""), Amount.REQUESTS, 0, 0, 1, 300 * SECOND),
            Refusal(Reason.QUEUE_FULL, key, Amount.REQUESTS, 0, 0, 1, None),
        )
    }
    assert told == {
        Reason.PROVIDER_LIMIT: "openai itself said that its limit of requests for this model is reached. Retry in 7 s.",
        Reason.PROVIDER_OVERLOADED: "openai itself said that it is overloaded. Retry in 2 s.",
        Reason.PROVIDER_SPEND_CAP: "openai itself said that no more may be spent on this key, or nothing is left: "
        "somebody has to see to it there. Retry in 300 s.",
        Reason.QUEUE_FULL: "Too many calls wait until openai takes more of them. Retry when one of them has ended.",
    }
    paused = Refusal(Reason.PROVIDER_LIMIT, key, Amount.REQUESTS, 0, 0, 1, 7 * SECOND)
    assert answers.message(paused) == "openai itself said that its limit for this model is reached. Retry in 7 s."
    tokens = Refusal(Reason.PROVIDER_LIMIT, key, Amount.INPUT_TOKENS, 100, 90, 20, 7 * SECOND)
    assert "its limit of input tokens for this model is reached" in answers.message(tokens)


def test_no_sdk_retries_where_the_money_is_spent() -> None:
    key = BucketKey("openai", Scope.PROVIDER, "key-1")
    unpaid = Refusal(Reason.PROVIDER_SPEND_CAP, key, Amount.REQUESTS, 0, 0, 1, 300 * SECOND)
    assert dict(answers.headers(unpaid)) == {
        "content-type": "application/json",
        "x-sluice-refused-by": "sluice",
        "x-sluice-reason": "ProviderSpendCap",
        "x-should-retry": "false",
        "retry-after": "300",
        "retry-after-ms": "300000",
    }
    assert json.loads(answers.body(Api.OPENAI, unpaid))["error"]["code"] == "insufficient_quota"
