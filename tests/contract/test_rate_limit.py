"""Admission over a real channel: what a descriptor asks for, and everything that an answer says."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.service.ratelimit import v3 as rls

from helpers.channel import (
    OK,
    OVER_LIMIT,
    Served,
    Transport,
    descriptor,
    headers_of,
    lease_of,
    raw_descriptor,
    request_headers,
    serving,
)
from helpers.system import SUM, limits
from sluice.core.engine import EngineSettings
from sluice.core.keys import Scope

UPSTREAM = "http://127.0.0.1:9"
UNITS = rls.RateLimitResponseRateLimitUnit
UINT32 = 2**32 - 1


def frozen() -> int:
    """A clock that stands, for answers that are exact."""
    return 0


def document(*entries: Mapping[str, Any], provider: str = "openai", **spec: Any) -> str:
    return limits(provider, UPSTREAM, *entries, **spec)


async def refusal(served: Served, *asked: Any, hits: int = 0) -> rls.RateLimitResponse:
    answer = await served.ask(*asked, hits=hits)
    assert answer.overall_code is OVER_LIMIT, answer
    return answer


async def error(served: Served, *asked: Any, hits: int = 0) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.ask(*asked, hits=hits)
    return raised.value.code(), raised.value.details() or ""


# -- an admitted call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", list(Transport))
async def test_a_call_is_admitted_with_a_lease_and_then_refused_without_one(transport: Transport) -> None:
    async with serving(document({"requestsPerMinute": 1}), transport) as served:
        admitted = await served.ask(descriptor(user="alice"))
        refused = await served.ask(descriptor(user="alice"))
    assert (admitted.overall_code, [status.code for status in admitted.statuses]) == (OK, [OK])
    assert lease_of(admitted) != ""
    assert (admitted.raw_body, admitted.response_headers_to_add, admitted.request_headers_to_add) == (b"", [], [])
    assert (refused.overall_code, [status.code for status in refused.statuses]) == (OVER_LIMIT, [OVER_LIMIT])
    assert lease_of(refused) == ""


async def test_both_transports_serve_one_gate() -> None:
    async with (
        serving(document({"requestsPerMinute": 1}), Transport.UNIX) as served,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel,
    ):
        other = replace(served, channel=channel)
        assert (await served.ask(descriptor(user="alice"))).overall_code is OK
        assert (await other.ask(descriptor(user="alice"))).overall_code is OVER_LIMIT


@pytest.mark.parametrize(
    ("entries", "tokens"),
    [
        ({"bytes": "400"}, 256),
        ({"bytes": "401", "max_tokens": "7"}, 101),
        ({"max_tokens": "5", "max_completion_tokens": "70", "max_output_tokens": "9"}, 70),
        ({"max_output_tokens": "9", "n": "3"}, 27),
        ({"max_tokens": "9", "n": "0"}, 9),
        ({"max_tokens": "9.5"}, 10),
        ({"max_tokens": "-9", "bytes": "x", "n": "NaN"}, 256),
        ({"max_tokens": "9", "temperature": "1000000"}, 9),
        ({"n": "2", "max_tokens": "9", "bytes": "8"}, 18),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(value),
)
async def test_every_entry_of_the_descriptor_counts_in_the_estimate(entries: dict[str, str], tokens: int) -> None:
    async with serving(document({"tokensPerMinute": 1_000_000})) as served:
        await served.admit(user="alice", **entries)
        assert served.used("alice") == {"tokensPerMinute": tokens}


async def test_input_and_output_are_reserved_together_where_the_provider_adds_them_up() -> None:
    async with serving(document({"tokensPerMinute": 1_000_000}, profile=SUM)) as served:
        await served.admit(user="alice", bytes="401", max_tokens="7")
        assert served.used("alice") == {"tokensPerMinute": 101 + 7}


async def test_a_call_that_declares_nothing_reserves_a_quarter_of_a_small_cap() -> None:
    async with serving(document({"tokensPerMinute": 100})) as served:
        await served.admit(user="alice", bytes="40")
        assert served.used("alice") == {"tokensPerMinute": 25}


async def test_a_call_to_a_free_api_is_counted_and_costs_no_tokens() -> None:
    async with serving(document({"requestsPerMinute": 10, "tokensPerMinute": 100})) as served:
        await served.admit(user="alice", api="free", bytes="4000")
        assert served.used("alice") == {"requestsPerMinute": 1, "tokensPerMinute": 0}


async def test_input_and_output_are_estimated_apart() -> None:
    caps = {"tokensPerMinute": 1000, "inputTokensPerHour": 1000, "outputTokensPerDay": 1000}
    async with serving(document(caps)) as served:
        await served.admit(user="alice", bytes="400", max_tokens="50")
        used = {"tokensPerMinute": 100, "inputTokensPerHour": 100, "outputTokensPerDay": 50}
        assert served.used("alice") == used


async def test_a_call_that_declares_nothing_reserves_a_quarter_of_a_small_cap_on_output() -> None:
    async with serving(document({"inputTokensPerMinute": 100, "outputTokensPerMinute": 100})) as served:
        await served.admit(user="alice", bytes="40")
        assert served.used("alice") == {"inputTokensPerMinute": 10, "outputTokensPerMinute": 25}


async def test_every_scope_has_its_own_bucket_and_a_call_is_counted_in_all_of_them() -> None:
    entries = (
        {"requestsPerMinute": 10},
        {"scope": "Org", "subject": {"header": "x-org"}, "requestsPerMinute": 10},
        {"scope": "Project", "subject": {"header": "x-project"}, "requestsPerMinute": 10},
    )
    async with serving(document(*entries)) as served:
        await served.admit(project="web", user="alice", org="acme")
        await served.admit(user="bob", org="acme", project="web")
        buckets = {(state.key.scope, state.key.subject): state.admitted for state in served.snapshot().buckets}
    assert buckets == {
        (Scope.USER, "alice"): 1,
        (Scope.USER, "bob"): 1,
        (Scope.ORG, "acme"): 2,
        (Scope.PROJECT, "web"): 2,
    }


async def test_the_model_chooses_the_limit() -> None:
    entries = ({"requestsPerMinute": 100}, {"match": {"models": ["gpt-5*"]}, "requestsPerMinute": 1})
    async with serving(document(*entries), now=frozen) as served:
        await served.admit(user="alice", model="gpt-5-mini")
        refused = await refusal(served, descriptor(user="alice", model="gpt-5"))
        await served.admit(user="alice", model="gpt-4")
        await served.admit(user="alice")
    assert _message(refused) == (
        'Limit of 1 request per minute reached for user "alice" at openai for gpt-5*: 1 used, 1 request more asked '
        "for. Retry in 61 s."
    )


async def test_an_entry_that_stands_twice_counts_as_it_stands_first() -> None:
    asked = descriptor(user="alice")
    asked.entries += descriptor(user="bob").entries
    async with serving(document({"requestsPerMinute": 1})) as served:
        await served.ask(asked)
        assert served.bucket("alice").admitted == 1
        assert len(served.snapshot().buckets) == 1


@pytest.mark.parametrize(
    ("asked", "entries"),
    [
        (descriptor(provider="nobody", user="alice"), ({"requestsPerMinute": 0},)),
        (raw_descriptor(user="alice"), ({"requestsPerMinute": 0},)),
        (raw_descriptor(), ({"requestsPerMinute": 0},)),
        (descriptor(user="alice"), ({"match": {"subjects": ["bob"]}, "requestsPerMinute": 0},)),
    ],
    ids=["unknown provider", "no provider", "no entry", "nobody limits alice"],
)
async def test_what_nothing_limits_is_admitted_without_a_lease(asked: Any, entries: Any) -> None:
    async with serving(document(*entries)) as served:
        answer = await served.ask(asked)
        assert served.snapshot().totals.unlimited == 1
    assert answer == rls.RateLimitResponse(overall_code=OK, statuses=[rls.RateLimitResponseDescriptorStatus(code=OK)])


# -- statuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "unit", "seconds", "used"),
    [
        ("requestsPerMinute", UNITS.MINUTE, 61, 1),
        ("requestsPerHour", UNITS.HOUR, 61 * 60, 1),
        ("requestsPerDay", UNITS.DAY, 61 * 24 * 60, 1),
        ("tokensPerMinute", UNITS.MINUTE, 61, 16),
        ("tokensPerHour", UNITS.HOUR, 61 * 60, 16),
        ("tokensPerDay", UNITS.DAY, 61 * 24 * 60, 16),
        ("inputTokensPerMinute", UNITS.MINUTE, 61, 4),
        ("inputTokensPerHour", UNITS.HOUR, 61 * 60, 4),
        ("inputTokensPerDay", UNITS.DAY, 61 * 24 * 60, 4),
        ("outputTokensPerMinute", UNITS.MINUTE, 61, 16),
        ("outputTokensPerHour", UNITS.HOUR, 61 * 60, 16),
        ("outputTokensPerDay", UNITS.DAY, 61 * 24 * 60, 16),
    ],
)
async def test_a_status_tells_the_cap_what_is_left_of_it_and_when_it_is_whole_again(
    cap: str, unit: Any, seconds: int, used: int
) -> None:
    async with serving(document({cap: 25}), now=frozen) as served:
        answer = await served.ask(descriptor(user="alice", bytes="16", max_tokens="16"))
    assert answer.statuses == [
        rls.RateLimitResponseDescriptorStatus(
            code=OK,
            current_limit=rls.RateLimitResponseRateLimit(name=f"User/{cap}", requests_per_unit=25, unit=unit),
            limit_remaining=25 - used,
            duration_until_reset=timedelta(seconds=seconds),
        )
    ]


async def test_a_status_tells_the_cap_with_the_smallest_share_left_and_no_shadow() -> None:
    entries = (
        {"requestsPerMinute": 3, "requestsPerDay": 4, "tokensPerMinute": 1_000_000, "outputTokensPerDay": 1_000_000},
        {"scope": "Org", "subject": {"constant": "acme"}, "requestsPerHour": 1, "mode": "Shadow"},
    )
    async with serving(document(*entries)) as served:
        (status,) = (await served.ask(descriptor(user="alice"))).statuses
    assert status.current_limit is not None
    assert (status.current_limit.name, status.limit_remaining) == ("User/requestsPerMinute", 2)


async def test_a_cap_on_calls_at_a_time_has_no_status_until_it_refuses() -> None:
    async with serving(document({"maxConcurrent": 1}), now=frozen) as served:
        admitted = await served.ask(descriptor(user="alice"))
        refused = await refusal(served, descriptor(user="alice"))
    assert admitted.statuses == [rls.RateLimitResponseDescriptorStatus(code=OK)]
    assert refused.statuses == [
        rls.RateLimitResponseDescriptorStatus(
            code=OVER_LIMIT,
            current_limit=rls.RateLimitResponseRateLimit(
                name="User/maxConcurrent", requests_per_unit=1, unit=UNITS.UNKNOWN
            ),
            limit_remaining=0,
            duration_until_reset=timedelta(seconds=1),
        )
    ]


@pytest.mark.parametrize("cap", ["tokensPerMinute", "outputTokensPerMinute"])
async def test_a_refused_status_tells_what_is_left_and_when_the_call_would_fit(cap: str) -> None:
    async with serving(document({cap: 100}), now=frozen) as served:
        await served.admit(user="alice", max_tokens="70")
        refused = await refusal(served, descriptor(user="alice", max_tokens="40"))
    assert refused.statuses == [
        rls.RateLimitResponseDescriptorStatus(
            code=OVER_LIMIT,
            current_limit=rls.RateLimitResponseRateLimit(name=f"User/{cap}", requests_per_unit=100, unit=UNITS.MINUTE),
            limit_remaining=30,
            duration_until_reset=timedelta(seconds=61),
        )
    ]


async def test_numbers_beyond_32_bits_are_clamped_and_count_in_full() -> None:
    async with serving(document({"tokensPerDay": 2**34}), now=frozen) as served:
        (admitted,) = (await served.ask(descriptor(user="alice", max_tokens=str(2**33)))).statuses
        assert served.used("alice") == {"tokensPerDay": 2**33}
        (refused,) = (await refusal(served, descriptor(user="alice", max_tokens=str(2**33 + 1)))).statuses
        assert (await served.ask(descriptor(user="alice", max_tokens=str(2**33)))).overall_code is OK
    for status in (admitted, refused):
        assert status.current_limit is not None
        assert (status.current_limit.requests_per_unit, status.limit_remaining) == (UINT32, UINT32)


# -- a refused call ------------------------------------------------------------------------------------------------

WOULD_EXCEED = (
    'Limit of 1 request per minute reached for user "alice" at {}: 1 used, 1 request more asked for. Retry in 61 s.'
)
DIALECTS = {
    "openai": {
        "error": {
            "message": WOULD_EXCEED.format("openai"),
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    },
    "anthropic": {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": WOULD_EXCEED.format("anthropic")},
    },
    "gemini": {
        "error": {
            "code": 429,
            "message": WOULD_EXCEED.format("gemini"),
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "61s"}],
        }
    },
}


@pytest.mark.parametrize("provider", DIALECTS)
async def test_a_refusal_speaks_the_dialect_of_the_api(provider: str) -> None:
    async with serving(document({"requestsPerMinute": 1}, provider=provider), now=frozen) as served:
        await served.admit(provider=provider, user="alice")
        refused = await refusal(served, descriptor(provider=provider, user="alice"))
    assert json.loads(refused.raw_body) == DIALECTS[provider]
    assert headers_of(refused) == {
        "content-type": "application/json",
        "x-sluice-refused-by": "sluice",
        "x-sluice-reason": "WouldExceed",
        "retry-after": "61",
        "retry-after-ms": "61000",
    }


NEEDS_FEWER_TOKENS = (
    'This call needs about 101 tokens, and user "alice" at openai may use 100 tokens per minute: it can never be '
    "admitted. Ask for less output, or shorten the input."
)
NEVER_ADMITTED = 'The limit of user "alice" at openai is 0 requests per day: no call is admitted.'


@pytest.mark.parametrize(
    ("caps", "message"),
    [({"tokensPerMinute": 100, "maxWait": "10s"}, NEEDS_FEWER_TOKENS), ({"requestsPerDay": 0}, NEVER_ADMITTED)],
    ids=["tokens", "requests"],
)
async def test_a_refusal_that_no_retry_helps_says_so(caps: Mapping[str, Any], message: str) -> None:
    async with serving(document(caps)) as served:
        refused = await refusal(served, descriptor(user="alice", max_tokens="101"))
    assert _message(refused) == message
    assert headers_of(refused) == {
        "content-type": "application/json",
        "x-sluice-refused-by": "sluice",
        "x-sluice-reason": "OversizedRequest",
        "x-should-retry": "false",
    }
    assert refused.statuses[0].duration_until_reset == timedelta(0)


async def test_a_refusal_for_want_of_a_slot_cannot_know_when_to_retry() -> None:
    async with serving(document({"maxConcurrent": 2})) as served:
        await served.admit(user="alice")
        await served.admit(user="alice")
        refused = await refusal(served, descriptor(user="alice"))
    assert _message(refused) == (
        'User "alice" at openai may have 2 calls at a time, and 2 are in flight. Retry when one of them has ended.'
    )
    assert headers_of(refused) == {
        "content-type": "application/json",
        "x-sluice-refused-by": "sluice",
        "x-sluice-reason": "NoFreeSlot",
        "retry-after": "1",
    }


async def test_a_refused_call_has_consumed_nothing() -> None:
    entries = ({"requestsPerMinute": 10}, {"scope": "Org", "subject": {"header": "x-org"}, "tokensPerMinute": 10})
    async with serving(document(*entries)) as served:
        await refusal(served, descriptor(user="alice", org="acme", max_tokens="11"))
        totals = served.snapshot().totals
        assert (totals.admitted, totals.rejected, served.snapshot().in_flight) == (0, 1, 0)
        assert all(w.used == 0 for state in served.snapshot().buckets for w in state.windows.values())


# -- clients that count by themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "hits", "used"),
    [
        (descriptor(user="alice"), 3, {"requestsPerMinute": 3, "tokensPerMinute": 0}),
        (descriptor(5, user="alice"), 3, {"requestsPerMinute": 5, "tokensPerMinute": 0}),
        (descriptor(5, user="alice", unit="tokens"), 0, {"requestsPerMinute": 0, "tokensPerMinute": 5}),
        (descriptor(5, user="alice", unit="requests"), 0, {"requestsPerMinute": 5, "tokensPerMinute": 0}),
        (descriptor(user="alice", unit="tokens"), 7, {"requestsPerMinute": 0, "tokensPerMinute": 7}),
        (descriptor(user="alice", unit="requests"), 0, {"requestsPerMinute": 1, "tokensPerMinute": 0}),
        (descriptor(user="alice", unit="tokens"), 0, {"requestsPerMinute": 0, "tokensPerMinute": 1}),
        (descriptor(0, user="alice"), 9, {"requestsPerMinute": 0, "tokensPerMinute": 0}),
        (descriptor(1, user="alice", max_tokens="50", bytes="400"), 0, {"requestsPerMinute": 1, "tokensPerMinute": 0}),
    ],
)
async def test_a_client_that_counts_by_itself_is_counted_and_holds_nothing(
    asked: Any, hits: int, used: Mapping[str, int]
) -> None:
    caps = {"requestsPerMinute": 10, "tokensPerMinute": 10, "maxConcurrent": 1}
    async with serving(document(caps)) as served:
        answer = await served.ask(asked, hits=hits)
        assert (answer.overall_code, lease_of(answer)) == (OK, "")
        assert served.used("alice") == used
        state, snapshot = served.bucket("alice"), served.snapshot()
    assert (state.in_flight, state.admitted, state.committed, snapshot.in_flight) == (0, 1, 1, 0)


async def test_a_client_that_counts_by_itself_needs_no_slot_and_is_refused_like_any_other() -> None:
    async with serving(document({"requestsPerMinute": 10, "maxConcurrent": 1}), now=frozen) as served:
        await served.admit(user="alice")
        assert (await served.ask(descriptor(9, user="alice"))).overall_code is OK
        refused = await refusal(served, descriptor(2, user="alice"))
        peeked = await served.ask(descriptor(0, user="alice"))
    assert _message(refused) == (
        'Limit of 10 requests per minute reached for user "alice" at openai: 10 used, 2 requests more asked for. '
        "Retry in 61 s."
    )
    assert peeked.overall_code is OK
    assert peeked.statuses[0].limit_remaining == 0


@pytest.mark.parametrize("hits", [11, 2**36, 2**64 - 1])
async def test_more_hits_than_a_cap_holds_can_never_be_admitted(hits: int) -> None:
    async with serving(document({"requestsPerMinute": 10})) as served:
        refused = await refusal(served, descriptor(hits, user="alice"))
        assert headers_of(refused)["x-sluice-reason"] == "OversizedRequest"
        assert (await served.ask(descriptor(10, user="alice"))).overall_code is OK


async def test_a_unit_that_is_neither_requests_nor_tokens_is_an_error() -> None:
    async with serving(document({"requestsPerMinute": 10})) as served:
        code, details = await error(served, descriptor(1, user="alice", unit="calls"))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the entry `unit` of a descriptor is neither `requests` nor `tokens`",
    )


# -- several descriptors -------------------------------------------------------------------------------------------


async def test_several_descriptors_are_admitted_together_or_not_at_all() -> None:
    async with serving(document({"requestsPerMinute": 3, "tokensPerMinute": 100})) as served:
        alice, bob = descriptor(2, user="alice"), descriptor(50, user="bob", unit="tokens")
        assert (await served.ask(alice, bob)).overall_code is OK
        refused = await refusal(served, bob, alice, descriptor(user="carol"), hits=1)
        assert [status.code for status in refused.statuses] == [OK, OVER_LIMIT, OK]
        assert served.used("alice") == {"requestsPerMinute": 2, "tokensPerMinute": 0}
        assert served.used("bob") == {"requestsPerMinute": 0, "tokensPerMinute": 50}
        totals = served.snapshot().totals
    assert (totals.admitted, totals.committed, totals.rejected) == (2, 2, 1)


async def test_a_call_may_be_counted_under_other_descriptors_too() -> None:
    async with serving(document({"requestsPerMinute": 3, "maxConcurrent": 1})) as served:
        answer = await served.ask(descriptor(user="alice"), descriptor(1, user="bob"))
        assert lease_of(answer) != ""
        assert (served.bucket("alice").in_flight, served.bucket("bob").in_flight) == (1, 0)
        await refusal(served, descriptor(1, user="bob"), descriptor(user="alice"))
        assert served.used("bob") == {"requestsPerMinute": 1}


async def test_two_calls_in_one_request_are_an_error_and_consume_nothing() -> None:
    async with serving(document({"requestsPerMinute": 3, "maxConcurrent": 3})) as served:
        code, details = await error(served, descriptor(user="alice"), descriptor(user="bob"))
        assert (served.snapshot().in_flight, served.snapshot().totals.admitted) == (0, 0)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the request asks for two calls: give all its descriptors but one a hits_addend"


async def test_several_descriptors_do_not_queue_for_each_other() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "30s"})) as served:
        await served.admit(user="alice")
        refused = await refusal(served, descriptor(1, user="bob"), descriptor(user="alice"))
        assert headers_of(refused)["x-sluice-reason"] == "NoFreeSlot"
        assert served.snapshot().queued == 0


# -- the queue -----------------------------------------------------------------------------------------------------


async def test_a_call_waits_for_a_slot_and_is_admitted_when_one_is_free() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "30s"})) as served:
        lease = await served.admit(user="alice")
        stream = served.watch()
        await stream.write(request_headers(lease))
        waiting = asyncio.create_task(served.ask(descriptor(user="alice"), patience=None))
        await served.until(lambda: served.snapshot().queued == 1)
        await stream.done_writing()
        answer = await waiting
        assert answer.overall_code is OK
        assert lease_of(answer) not in ("", lease)
        assert served.bucket("alice").in_flight == 1


async def test_a_call_that_waited_in_vain_is_refused_after_max_wait() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "100ms"})) as served:
        await served.admit(user="alice")
        refused = await refusal(served, descriptor(user="alice"))
        assert headers_of(refused)["x-sluice-reason"] == "NoFreeSlot"
        assert (served.snapshot().queued, served.snapshot().totals.rejected) == (0, 1)


async def test_a_client_with_less_patience_than_max_wait_still_hears_why() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "60s"})) as served:
        await served.admit(user="alice")
        refused = await served.ask(descriptor(user="alice"), patience=0.5)
        assert (refused.overall_code, headers_of(refused)["x-sluice-reason"]) == (OVER_LIMIT, "NoFreeSlot")
        assert served.snapshot().queued == 0


async def test_a_client_that_leaves_the_queue_has_consumed_nothing() -> None:
    async with serving(document({"maxConcurrent": 1, "requestsPerMinute": 9, "maxWait": "60s"})) as served:
        await served.admit(user="alice")
        waiting = [asyncio.create_task(served.ask(descriptor(user="alice"))) for _ in range(5)]
        await served.until(lambda: served.snapshot().queued == 5)
        for task in waiting:
            task.cancel()
        await served.until(lambda: served.snapshot().queued == 0)
        assert (served.used("alice"), served.bucket("alice").in_flight) == ({"requestsPerMinute": 1}, 1)


async def test_a_full_queue_turns_newcomers_away() -> None:
    settings = EngineSettings(max_waiters=1)
    async with serving(document({"maxConcurrent": 1, "maxWait": "60s"}), settings=settings) as served:
        await served.admit(user="alice")
        waiting = asyncio.create_task(served.ask(descriptor(user="alice")))
        await served.until(lambda: served.snapshot().queued == 1)
        refused = await refusal(served, descriptor(user="alice"))
        waiting.cancel()
    assert headers_of(refused)["x-sluice-reason"] == "QueueFull"
    assert _message(refused) == (
        'Too many calls wait for user "alice" at openai (1 call at a time). Retry when one of them has ended.'
    )


async def test_who_waits_when_the_gate_stops_is_told_and_holds_nothing() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "60s"})) as served:
        await served.admit(user="alice")
        waiting = asyncio.create_task(served.ask(descriptor(user="alice")))
        await served.until(lambda: served.snapshot().queued == 1)
        await served.server.stop(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await waiting
        assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await served.until(lambda: served.snapshot().queued == 0)
        assert served.bucket("alice").admitted == 1


async def test_new_limits_reach_who_waits() -> None:
    async with serving(document({"maxConcurrent": 1, "maxWait": "60s"})) as served:
        await served.admit(user="alice")
        waiting = asyncio.create_task(served.ask(descriptor(user="alice")))
        await served.until(lambda: served.snapshot().queued == 1)
        served.put_in_force(document({"maxConcurrent": 2}))
        assert (await waiting).overall_code is OK


# -- who is calling ------------------------------------------------------------------------------------------------


KEY = "key-" + hashlib.sha256(b"sk-123").hexdigest()[:16]


@pytest.mark.parametrize(
    ("source", "told", "subject"),
    [
        ({"header": "x-user-id"}, "alice", "alice"),
        ({"header": "x-user-id"}, "", ""),
        ({"constant": "team-a"}, "alice", "team-a"),
        ({"env": "POD_NAMESPACE"}, "alice", "shop"),
        ({"env": "NOT_SET"}, "alice", ""),
        ({"apiKey": True}, "Bearer sk-123", KEY),
        ({"apiKey": True}, "sk-123", KEY),
        ({"apiKey": True}, "", ""),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value or "nothing",
)
async def test_the_subject_comes_from_where_the_document_says(
    source: Mapping[str, Any], told: str, subject: str
) -> None:
    limited = document({"subject": source, "requestsPerMinute": 9})
    async with serving(limited, environ={"POD_NAMESPACE": "shop"}) as served:
        await served.admit(user=told)
        (state,) = served.snapshot().buckets
    assert state.key.subject == subject


async def test_callers_without_a_name_share_one_bucket() -> None:
    async with serving(document({"requestsPerMinute": 2}), now=frozen) as served:
        await served.admit()
        await served.admit(user="")
        refused = await refusal(served, descriptor(org="acme"))
    assert _message(refused) == (
        "Limit of 2 requests per minute reached for callers without a user at openai: 2 used, 1 request more asked "
        "for. Retry in 61 s."
    )


@pytest.mark.parametrize("source", [{"constant": "team-a"}, {"env": "POD_NAMESPACE"}])
async def test_a_name_that_the_caller_gives_itself_changes_nothing(source: Mapping[str, str]) -> None:
    async with serving(document({"subject": source, "requestsPerMinute": 2}), environ={}) as served:
        await served.admit(user="mallory-1")
        await served.admit(user="mallory-2", org="x", project="y", subject="z")
        await refusal(served, descriptor(user="mallory-3"))


# -- errors --------------------------------------------------------------------------------------------------------


async def test_a_request_without_a_descriptor_is_an_error() -> None:
    async with serving(document({"requestsPerMinute": 2})) as served:
        code, details = await error(served)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the request has no descriptor: send at least one, with an entry `provider`"


async def test_a_failure_of_the_gate_is_an_error_and_its_log_tells_where_but_not_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([0])

    def clock() -> int:
        try:
            return next(answers)
        except StopIteration:
            raise RuntimeError("the clock fails, and quotes Bearer sk-secret") from None

    async with serving(document({"requestsPerMinute": 2}), now=clock) as served:
        code, details = await error(served, descriptor(user="alice-secret", model="gpt-secret"))
    assert (code, details) == (grpc.StatusCode.INTERNAL, "the gate failed to decide; its log says where")
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("a decision failed: RuntimeError at clock:")
    assert "secret" not in caplog.text


def _message(refused: rls.RateLimitResponse) -> str:
    message = json.loads(refused.raw_body)["error"]["message"]
    assert isinstance(message, str)
    return message
