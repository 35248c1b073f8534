"""What a refused caller reads: the provider's own error shape, with our reason and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sluice.core.decisions import Reason, Refusal
from sluice.core.keys import OVERFLOW, BucketKey
from sluice.core.limits import INPUT_TOKEN_CAPS, MILLISECOND, OUTPUT_TOKEN_CAPS, SECOND, TOKEN_CAPS, Cap
from sluice.core.words import Amount
from sluice.usage.profiles import Api

CAPS: Final[Mapping[Cap, str]] = {
    Cap.REQUESTS_PER_MINUTE: "requests per minute",
    Cap.REQUESTS_PER_HOUR: "requests per hour",
    Cap.REQUESTS_PER_DAY: "requests per day",
    Cap.TOKENS_PER_MINUTE: "tokens per minute",
    Cap.TOKENS_PER_HOUR: "tokens per hour",
    Cap.TOKENS_PER_DAY: "tokens per day",
    Cap.INPUT_TOKENS_PER_MINUTE: "input tokens per minute",
    Cap.INPUT_TOKENS_PER_HOUR: "input tokens per hour",
    Cap.INPUT_TOKENS_PER_DAY: "input tokens per day",
    Cap.OUTPUT_TOKENS_PER_MINUTE: "output tokens per minute",
    Cap.OUTPUT_TOKENS_PER_HOUR: "output tokens per hour",
    Cap.OUTPUT_TOKENS_PER_DAY: "output tokens per day",
    Cap.MAX_CONCURRENT: "calls at a time",
}
_ONE: Final = {cap: words.replace("requests", "request").replace("tokens", "token").replace("calls", "call")
               for cap, words in CAPS.items()}  # fmt: skip

_UNITS: Final = {"tokens": TOKEN_CAPS, "input tokens": INPUT_TOKEN_CAPS, "output tokens": OUTPUT_TOKEN_CAPS}
_AMOUNTS: Final = {
    Amount.TOKENS: "tokens",
    Amount.INPUT_TOKENS: "input tokens",
    Amount.OUTPUT_TOKENS: "output tokens",
}
_WAYS_OUT: Final = {
    "tokens": "Ask for less output, or shorten the input.",
    "input tokens": "Shorten the input.",
    "output tokens": "Ask for less output.",
}


def message(refusal: Refusal) -> str:
    """Which limit of which scope refused the call, what it asked for, and when to retry: one or two sentences."""
    if isinstance(refusal.cap, Amount):
        return _providers_word(refusal)
    limit = f"{refusal.limit} {CAPS[refusal.cap] if refusal.limit != 1 else _ONE[refusal.cap]}"
    whose = _whose(refusal.key)
    if refusal.reason is Reason.STORE_UNAVAILABLE:
        return (
            f"The gate cannot reach the store that counts for {whose}, and by the limit of {limit} no call passes "
            f"meanwhile (failurePolicy: Deny). {_retry(refusal)}"
        )
    if refusal.limit == 0:
        return f"The limit of {whose} is {limit}: no call is admitted."
    if refusal.reason is Reason.OVERSIZED_REQUEST:
        way_out = _WAYS_OUT.get(_unit(refusal.cap), "No retry will help.")
        return f"This call needs {_amount(refusal)}, and {whose} may use {limit}: it can never be admitted. {way_out}"
    if refusal.reason is Reason.QUEUE_FULL:
        return f"Too many calls wait for {whose} ({limit}). {_retry(refusal)}"
    if refusal.reason is Reason.NO_FREE_SLOT:
        in_flight = "1 is" if refusal.used == 1 else f"{refusal.used} are"
        return f"{whose[0].upper()}{whose[1:]} may have {limit}, and {in_flight} in flight. {_retry(refusal)}"
    waiting = f"{refusal.ahead} asked for by calls that wait, " if refusal.ahead else ""
    return (
        f"Limit of {limit} reached for {whose}: {refusal.used} used, {waiting}{_amount(refusal)} more asked for. "
        f"{_retry(refusal)}"
    )


def _providers_word(refusal: Refusal) -> str:
    """The same where it was no limit of ours."""
    provider, what = refusal.key.provider, ""
    of_model = " for this model" if refusal.key.models else ""
    if refusal.reason is Reason.PROVIDER_SPEND_CAP:
        what = "no more may be spent on this key, or nothing is left: somebody has to see to it there"
    elif refusal.reason is Reason.PROVIDER_OVERLOADED:
        what = "it is overloaded"
    elif refusal.reason is Reason.PROVIDER_LIMIT and refusal.limit:
        unit = _unit(refusal.cap) or "requests"
        what = f"its limit of {unit}{of_model} is reached"
    elif refusal.reason is Reason.PROVIDER_LIMIT:
        what = f"its limit{of_model} is reached"
    else:
        return f"Too many calls wait until {provider} takes more of them. {_retry(refusal)}"
    return f"{provider} itself said that {what}. {_retry(refusal)}"


def retry_after_seconds(refusal: Refusal) -> int | None:
    """Whole seconds for `retry-after`, rounded up, at least 1; None where no retry helps."""
    if refusal.reason is Reason.OVERSIZED_REQUEST:
        return None
    return max(1, -(-(refusal.retry_after or 0) // SECOND))


def headers(refusal: Refusal) -> list[tuple[str, str]]:
    """The headers of a refusal. The SDKs of OpenAI and Anthropic heed `retry-after-ms` and `x-should-retry`."""
    found = [
        ("content-type", "application/json"),
        ("x-sluice-refused-by", "sluice"),
        ("x-sluice-reason", refusal.reason.value),
    ]
    seconds = retry_after_seconds(refusal)
    if seconds is None or refusal.reason is Reason.PROVIDER_SPEND_CAP:
        found.append(("x-should-retry", "false"))
    if seconds is not None:
        found.append(("retry-after", str(seconds)))
        if refusal.retry_after is not None:
            found.append(("retry-after-ms", str(-(-refusal.retry_after // MILLISECOND))))
    return found


def body(api: Api, refusal: Refusal) -> bytes:
    """The error body, as JSON, in the shape of that API."""
    return json.dumps(_SHAPES[api](refusal), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _openai(refusal: Refusal) -> dict[str, Any]:
    kind, code = "tokens" if _unit(refusal.cap) else "requests", "rate_limit_exceeded"
    if refusal.reason is Reason.PROVIDER_SPEND_CAP:
        kind = code = "insufficient_quota"
    return {"error": {"message": message(refusal), "type": kind, "param": None, "code": code}}


def _anthropic(refusal: Refusal) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "rate_limit_error", "message": message(refusal)}}


def _gemini(refusal: Refusal) -> dict[str, Any]:
    error: dict[str, Any] = {"code": 429, "message": message(refusal), "status": "RESOURCE_EXHAUSTED"}
    seconds = retry_after_seconds(refusal)
    if seconds is not None:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}]
    return {"error": error}


def _message_alone(refusal: Refusal) -> dict[str, Any]:
    return {"message": message(refusal)}


def _error_alone(refusal: Refusal) -> dict[str, Any]:
    return {"error": message(refusal)}


_SHAPES: Final[Mapping[Api, Callable[[Refusal], dict[str, Any]]]] = {
    Api.OPENAI: _openai,
    Api.ANTHROPIC: _anthropic,
    Api.GEMINI: _gemini,
    Api.BEDROCK: _message_alone,
    Api.COHERE: _message_alone,
    Api.OLLAMA: _error_alone,
}


def _whose(key: BucketKey) -> str:
    if key.subject == OVERFLOW:
        subject = f"callers new to {key.scope}"
    elif key.subject:
        subject = f'{key.scope.lower()} "{key.subject}"'
    else:
        subject = f"callers without a {key.scope.lower()}"
    return f"{subject} at {key.provider}" + (f" for {key.models}" if key.models else "")


def _amount(refusal: Refusal) -> str:
    if unit := _unit(refusal.cap):
        return f"about {refusal.requested} {unit}"
    return "1 request" if refusal.requested == 1 else f"{refusal.requested} requests"


def _retry(refusal: Refusal) -> str:
    if refusal.retry_after is None:
        return "Retry when one of them has ended."
    return f"Retry in {retry_after_seconds(refusal)} s."


def _unit(cap: Cap | Amount) -> str:
    """The kind of tokens that a cap counts; empty for one on calls."""
    if isinstance(cap, Amount):
        return _AMOUNTS.get(cap, "")
    return next((unit for unit, caps in _UNITS.items() if cap in caps.values()), "")
