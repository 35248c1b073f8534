"""What the gate learns from the calls it watches, and what it reserves by that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from helpers.system import SUM, limits
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine
from sluice_sidecar.extproc import WatchedCalls
from sluice_sidecar.gate import Gate
from sluice_sidecar.protos import (
    COMPLETE,
    LEASE_NAMESPACE,
    USAGE_NAMESPACE,
    ProcessingRequest,
    RateLimitRequest,
    TokenUsage,
)
from sluice_sidecar.rls import RateLimitService

LEARNED = {"mode": "Learned"}
CALL = {"provider": "openai", "user": "alice", "model": "gpt-5", "bytes": "800", "max_tokens": "64000"}
DECLARED = 800 // 4 + 64_000
USED = (100, 500)
EXPECTED = 100 + 500


class System:
    """A gate at a moment that does not pass, the calls that ask it, and the streams that tell it how they ended."""

    def __init__(self, *entries: Mapping[str, Any], **spec: Any) -> None:
        self.gate = Gate(Engine(), lambda: 0)
        self.apply(*(entries or ({"tokensPerDay": 10**9},)), **spec)
        self.watched = WatchedCalls(self.gate)

    def apply(self, *entries: Mapping[str, Any], **spec: Any) -> None:
        document = limits("openai", "http://127.0.0.1:9", *entries, profile=SUM, **spec)
        self.gate.apply(merge(parse(document, "test")), {})

    async def admit(self, **facts: str) -> str:
        request = RateLimitRequest()
        descriptor = request.descriptors.add()
        for key, value in (CALL | facts).items():
            if value:
                descriptor.entries.add(key=key, value=value)
        response = await RateLimitService(self.gate).should_rate_limit(request)
        return str(response.dynamic_metadata.fields["lease"].string_value)

    def end(
        self, lease: str, used: tuple[int | None, int | None] = USED, status: int = 200, *, whole: bool = True
    ) -> None:
        """The call ends as its stream tells."""
        beginning, headers, trailers = ProcessingRequest(), ProcessingRequest(), ProcessingRequest()
        beginning.request_headers.SetInParent()
        beginning.metadata_context.filter_metadata[LEASE_NAMESPACE].fields["lease"].string_value = lease
        headers.response_headers.headers.headers.add(key=":status", raw_value=b"%d" % status)
        trailers.response_trailers.SetInParent()
        usage = TokenUsage(extraction_status=COMPLETE if whole else 0)
        for count, field in zip(used, (usage.input_tokens, usage.output_tokens), strict=True):
            if count is not None:
                field.value = count
        told = trailers.metadata_context.typed_filter_metadata[USAGE_NAMESPACE]
        told.value = usage.SerializeToString()
        stream = self.watched.open()
        for message in (beginning, headers, trailers):
            if stream.feed(message):
                break
        stream.close()

    async def call(self, times: int = 20, used: tuple[int | None, int | None] = USED, **facts: str) -> None:
        """Calls that end well."""
        for _ in range(times):
            self.end(await self.admit(**facts), used)

    async def reserved(self, **facts: str) -> int:
        """What one more call reserves."""
        lease = await self.admit(**facts)
        permit = self.gate.engine.claim(lease, 0)
        assert permit is not None
        permit.release(0)
        return permit.estimate


def about(expected: int) -> Any:
    """Within the width of a slot."""
    return pytest.approx(expected, rel=0.06)


async def test_calls_reserve_what_calls_like_them_have_used() -> None:
    system = System(estimation=LEARNED)
    before = await system.reserved()

    await system.call()

    assert (before, await system.reserved()) == (DECLARED, about(EXPECTED))
    assert await system.reserved(model="gpt-5-mini") == DECLARED
    assert await system.reserved(max_tokens="100") == 300
    assert await system.reserved(max_tokens="") == 456


@pytest.mark.parametrize(("mode", "expected"), [("Declared", DECLARED), ("Fixed", 456)])
async def test_the_other_modes_go_on_as_they_began_and_the_change_to_learned_finds_everything_learned(
    mode: str, expected: int
) -> None:
    system = System(estimation={"mode": mode})
    await system.call()

    assert await system.reserved() == expected
    system.apply({"tokensPerDay": 10**9}, estimation=LEARNED)
    assert await system.reserved() == about(EXPECTED)


async def test_calls_without_a_cap_reserve_what_such_calls_have_used() -> None:
    system = System(estimation=LEARNED)
    await system.call(max_tokens="", used=(100, 3000))

    assert await system.reserved(max_tokens="") == about(3100)


async def test_calls_with_files_teach_what_they_bring_and_nothing_of_the_bytes_of_a_token() -> None:
    system = System(estimation=LEARNED)
    await system.call()
    files = {"bytes": "51400", "blob_bytes": "51200"}
    await system.call(times=200, used=(3000, 500), **files)

    assert await system.reserved() == about(EXPECTED)
    assert await system.reserved(**files) == about(25 + 100 + 500)
    await system.call(times=200, used=(3000, 5000), **files)
    assert await system.reserved() == about(100 + 5000)


async def test_calls_under_other_entries_learn_apart_and_other_limits_change_nothing() -> None:
    batch = {"match": {"subjects": ["batch"]}, "tokensPerDay": 10**9}
    system = System({"tokensPerDay": 10**9}, batch, estimation=LEARNED)
    await system.call()

    assert await system.reserved(user="bob") == about(EXPECTED)
    assert await system.reserved(user="batch") == DECLARED
    system.apply(batch, {"tokensPerDay": 10**8, "requestsPerDay": 1000}, estimation=LEARNED)
    assert await system.reserved(user="bob") == about(EXPECTED)


@pytest.mark.parametrize(
    "ending",
    [{"status": 500}, {"status": 400}, {"status": 302}, {"whole": False}, {"used": (None, None)}],
    ids=lambda ending: "-".join(f"{name} {value}" for name, value in ending.items()),
)
async def test_a_call_that_failed_or_told_its_usage_in_part_teaches_nothing(ending: Mapping[str, Any]) -> None:
    system = System(estimation=LEARNED)
    for _ in range(20):
        system.end(await system.admit(), **ending)

    assert system.gate.learner.most_taught(1) == []
    assert await system.reserved() == DECLARED


async def test_a_call_that_was_cut_or_never_heard_of_teaches_nothing() -> None:
    system = System(estimation=LEARNED)
    for _ in range(20):
        system.watched.open().cut(await system.admit(), 200, 1000)
        await system.admit()

    assert system.gate.learner.most_taught(1) == []


async def test_whoever_asks_by_counting_alone_teaches_nothing() -> None:
    system = System(estimation=LEARNED)
    for _ in range(20):
        await system.admit(unit="requests")

    assert system.gate.learner.most_taught(1) == []


@pytest.mark.parametrize("cap", ["64000", ""])
async def test_what_was_learned_never_refuses_every_call(cap: str) -> None:
    system = System({"tokensPerMinute": 10**6}, estimation=LEARNED)
    await system.call(max_tokens=cap, used=(100, 30_000))
    system.apply({"tokensPerMinute": 10_000}, estimation=LEARNED)

    assert await system.reserved(max_tokens=cap, user="bob") == 2500


async def test_an_api_that_brings_no_output_reserves_none() -> None:
    system = System(estimation=LEARNED)
    before = await system.reserved(api="embeddings", max_tokens="")
    await system.call(api="embeddings", max_tokens="", used=(100, 0))

    assert (before, await system.reserved(api="embeddings", max_tokens="")) == (200, 100)


async def test_a_provider_that_is_gone_is_forgotten() -> None:
    system = System(estimation=LEARNED)
    lease = await system.admit()
    await system.call()

    system.gate.apply(merge([]), {})
    system.end(lease)

    assert system.gate.learner.most_taught(1) == []
