"""What became of each provider's calls lately."""

from __future__ import annotations

import gc

import pytest

from sluice.core.buckets import Charge, Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Settled
from sluice.core.rules import Rule, RuleBook
from sluice.core.telemetry import Fanout
from sluice.core.words import RefusedAs
from sluice_sidecar.metrics import EventCounts
from sluice_sidecar.recent import RecentCounts, Tally

BOOK = RuleBook(
    (
        Rule("openai", Scope.USER, Limits(tokens_per_minute=1000)),
        Rule("anthropic", Scope.USER, Limits(requests_per_minute=0, mode=Mode.SHADOW)),
    )
)


class Lately:
    """An engine and what is counted of it, on one clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0
        self.recent = RecentCounts(lambda: self.now)
        self.engine = Engine(BOOK, EngineSettings(lease=2 * SECOND), telemetry=Fanout(EventCounts(), self.recent))

    def ask(self, tokens: int = 10, provider: str = "openai") -> object:
        return self.engine.acquire(Call(BOOK.match(provider, {Scope.USER: "alice"}), Demand(1, 1, tokens)), self.now)

    def admit(self, tokens: int = 10, provider: str = "openai") -> Permit:
        permit = self.ask(tokens, provider)
        assert isinstance(permit, Permit)
        return permit

    @property
    def openai(self) -> Tally:
        return self.recent.by_provider().get("openai", Tally())


@pytest.fixture
def lately() -> Lately:
    return Lately()


def test_where_nothing_happened_nothing_is_told(lately: Lately) -> None:
    assert lately.recent.by_provider() == {}


def test_a_committed_call_tells_its_tokens_and_how_far_off_the_estimate_was(lately: Lately) -> None:
    for actual in (7, 25):
        permit = lately.admit(tokens=10)
        permit.commit_tokens(Charge(actual), 0)
        permit.release(0)

    assert lately.openai == Tally(
        admitted=2, committed=2, committed_tokens=32, estimate_error_tokens=18, underestimated=1
    )


def test_a_refund_is_counted_once_and_judges_no_estimate(lately: Lately) -> None:
    permit = lately.admit()
    permit.commit_tokens(Charge(0), 0, Settled.REFUNDED)
    permit.release(0)
    permit.release(0)

    assert lately.openai == Tally(admitted=1, refunded=1)


def test_an_estimate_stands_once_the_call_is_over_and_not_before(lately: Lately) -> None:
    permit = lately.admit()
    permit.commit_tokens(Charge(3), 0, Settled.ESTIMATED)
    assert lately.openai == Tally(admitted=1)
    permit.release(0)
    assert lately.openai == Tally(admitted=1, estimated=1)


def test_a_call_nobody_spoke_for_is_expired_and_estimated_until_its_usage_comes_late(lately: Lately) -> None:
    permit = lately.admit()
    lately.engine.advance(3 * SECOND)
    assert lately.openai == Tally(admitted=1, expired=1, estimated=1)
    claimed = lately.engine.claim(permit.lease, 4 * SECOND)
    assert claimed is permit
    permit.commit_tokens(Charge(12), 4 * SECOND)
    permit.release(4 * SECOND)

    assert lately.openai == Tally(
        admitted=1, expired=1, committed=1, committed_tokens=12, estimate_error_tokens=2, underestimated=1
    )


def test_usage_that_comes_later_than_five_minutes_leaves_no_count_below_nothing(lately: Lately) -> None:
    permit = lately.admit()
    permit.release(0)
    lately.now = 10 * MINUTE
    permit.commit_tokens(Charge(10), lately.now)

    assert lately.openai == Tally(committed=1, committed_tokens=10)


def test_refusals_are_counted_and_those_of_a_shadow_limit_apart(lately: Lately) -> None:
    lately.ask(tokens=1001)
    lately.admit(provider="anthropic")

    assert lately.recent.by_provider() == {
        "openai": Tally(rejected=1),
        "anthropic": Tally(admitted=1, would_reject=1),
    }


def test_the_last_status_that_a_provider_throttled_with_is_remembered(lately: Lately) -> None:
    for at, status, kind in ((0, 529, RefusedAs.OVERLOADED), (10 * SECOND, 429, RefusedAs.SPEND_CAP)):
        lately.now = at
        lately.recent.refused_upstream("openai", status, kind)
    lately.now = 20 * SECOND
    lately.admit()

    assert lately.openai == Tally(admitted=1, throttled=2, overloaded=1, spend_capped=1, last_throttled_status=429)


@pytest.mark.parametrize(("at", "ago"), [(0, 300), (4, 300), (0, 304), (7, 302)])
def test_what_happened_in_the_last_five_minutes_is_told(lately: Lately, at: int, ago: int) -> None:
    lately.now = at * SECOND
    lately.admit()
    lately.now = (at + ago) * SECOND

    assert lately.openai == Tally(admitted=1)


@pytest.mark.parametrize("at", [0, 4])
def test_what_happened_a_slot_before_them_is_not(lately: Lately, at: int) -> None:
    lately.now = at * SECOND
    lately.admit()
    lately.now = (at + 305) * SECOND

    assert lately.recent.by_provider() == {}


def test_an_hour_of_calls_takes_no_more_room_than_five_minutes(lately: Lately) -> None:
    def tallies() -> int:
        gc.collect()
        return sum(type(each) is Tally for each in gc.get_objects())

    before = tallies()
    for lately.now in range(0, 60 * MINUTE, SECOND):
        lately.recent.refused_upstream("openai", 429, RefusedAs.RATE_LIMITED)

    assert tallies() - before == 61
    assert lately.openai.throttled == 305
