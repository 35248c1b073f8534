"""`/metrics`: what is counted, by which labels, and what a scrape looks like."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sluice.core.buckets import Charge, Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import MILLISECOND, SECOND, Limits, Mode
from sluice.core.permits import Call, Permit, Settled, Waiter
from sluice.core.rules import Rule, RuleBook
from sluice.core.words import RefusedAs
from sluice.errors import Problem
from sluice.usage.commits import FEWEST
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.health import Health, Saving, StoreHealth, StoreMode
from sluice_sidecar.metrics import EventCounts, GateCollector
from sluice_sidecar.recent import RecentCounts


class Scraped:
    """An engine with its metrics, and what Prometheus would read."""

    def __init__(self, limits: Limits) -> None:
        self.counts = counts = EventCounts()
        self.health = Health()
        self.engine = Engine(
            RuleBook((Rule("openai", Scope.USER, limits),)), EngineSettings(lease=2 * SECOND), telemetry=counts
        )
        self.recent = RecentCounts(lambda: 0)
        self.commits = CommitWatch(self.recent)
        self.registry = CollectorRegistry()
        self.registry.register(GateCollector(counts, self.engine.summary, self.health, self.commits))

    def call(self, tokens: int = 10, now: int = 0, user: str = "alice") -> object:
        return self.engine.acquire(
            Call(self.engine.rules.match("openai", {Scope.USER: user}), Demand(1, 1, tokens)), now
        )

    def permit(self, tokens: int = 10, now: int = 0) -> Permit:
        permit = self.call(tokens, now)
        assert isinstance(permit, Permit)
        return permit

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def scraped() -> Scraped:
    return Scraped(Limits(tokens_per_minute=100, max_concurrent=1, max_wait=5 * SECOND))


def test_admitted_calls_and_committed_tokens_are_counted_by_provider(scraped: Scraped) -> None:
    permit = scraped.permit()
    permit.commit_tokens(Charge(7), 0)
    permit.release(0)

    assert scraped.value("sluice_calls_admitted_total", provider="openai") == 1
    assert scraped.value("sluice_tokens_committed_total", provider="openai") == 7
    assert scraped.value("sluice_calls_committed_total") == 1
    assert scraped.value("sluice_calls_in_flight") == 0


def test_a_refusal_is_counted_by_what_refused_it_and_why(scraped: Scraped) -> None:
    scraped.call(tokens=101)

    labels = {"provider": "openai", "scope": "User", "cap": "tokensPerMinute", "reason": "OversizedRequest"}
    assert scraped.value("sluice_calls_rejected_total", **labels) == 1


def test_what_a_shadow_limit_would_have_refused_is_counted_apart() -> None:
    scraped = Scraped(Limits(requests_per_minute=0, mode=Mode.SHADOW))
    scraped.permit()

    labels = {"provider": "openai", "scope": "User", "cap": "requestsPerMinute", "reason": "OversizedRequest"}
    assert scraped.value("sluice_calls_would_reject_total", **labels) == 1
    assert scraped.value("sluice_calls_rejected_total", **labels) is None


def test_the_wait_of_a_queued_call_is_in_the_histogram(scraped: Scraped) -> None:
    first = scraped.permit()
    waiter = scraped.call(now=0)
    assert isinstance(waiter, Waiter)
    assert scraped.value("sluice_calls_queued") == 1
    first.release(3 * SECOND)

    assert scraped.value("sluice_queue_wait_seconds_sum", provider="openai") == 3
    assert scraped.value("sluice_queue_wait_seconds_bucket", provider="openai", le="0.001") == 1
    assert scraped.value("sluice_queue_wait_seconds_bucket", provider="openai", le="2.5") == 1
    assert scraped.value("sluice_queue_wait_seconds_bucket", provider="openai", le="5.0") == 2
    assert scraped.value("sluice_queue_wait_seconds_count", provider="openai") == 2


def test_the_error_of_estimates_is_the_ratio_of_what_was_used(scraped: Scraped) -> None:
    scraped.permit(tokens=10).commit_tokens(Charge(15), 0)

    assert scraped.value("sluice_estimate_ratio_sum", provider="openai") == 1.5
    assert scraped.value("sluice_estimate_ratio_bucket", provider="openai", le="1.25") == 0
    assert scraped.value("sluice_estimate_ratio_bucket", provider="openai", le="1.5") == 1


def test_the_errors_of_estimates_add_up_in_either_direction_and_those_too_low_are_counted() -> None:
    scraped = Scraped(Limits(tokens_per_minute=100))
    for actual in (15, 4, 10):
        scraped.permit(tokens=10).commit_tokens(Charge(actual), 0)

    assert scraped.value("sluice_estimate_error_tokens_total", provider="openai") == 11
    assert scraped.value("sluice_calls_underestimated_total", provider="openai") == 1
    assert scraped.value("sluice_estimate_ratio_count", provider="openai") == 3


def test_only_what_the_provider_told_measures_an_estimate(scraped: Scraped) -> None:
    refunded = scraped.permit()
    refunded.commit_tokens(Charge(0), 0, Settled.REFUNDED)
    refunded.release(0)
    scraped.permit().commit_tokens(Charge(8), 0, Settled.ESTIMATED)

    assert scraped.value("sluice_estimate_ratio_count", provider="openai") is None
    assert scraped.value("sluice_estimate_error_tokens_total", provider="openai") is None
    assert scraped.value("sluice_tokens_committed_total", provider="openai") is None
    assert scraped.value("sluice_calls_refunded_total") == 1
    assert (scraped.value("sluice_calls_estimated"), scraped.value("sluice_tokens_estimated")) == (1, 8)


def test_an_expired_permit_is_counted(scraped: Scraped) -> None:
    scraped.permit()
    scraped.engine.advance(2 * SECOND)

    assert scraped.value("sluice_permits_expired_total", provider="openai") == 1


def test_calls_that_the_provider_refused_are_counted_by_provider_and_kind(scraped: Scraped) -> None:
    scraped.counts.refused_upstream("openai", 429, RefusedAs.RATE_LIMITED)
    scraped.counts.refused_upstream("openai", 429, RefusedAs.RATE_LIMITED)
    scraped.counts.refused_upstream("openai", 429, RefusedAs.SPEND_CAP)

    assert scraped.value("sluice_provider_throttled_total", provider="openai", kind="RateLimited") == 2
    assert scraped.value("sluice_provider_throttled_total", provider="openai", kind="SpendCap") == 1


def test_calls_that_nothing_limits_are_counted(scraped: Scraped) -> None:
    scraped.engine.acquire(Call((), Demand(0, 0, 0)), 0)

    assert scraped.value("sluice_calls_unlimited_total") == 1


def test_the_state_of_the_configuration_is_told(scraped: Scraped) -> None:
    scraped.health.loaded(1769860800.0, {})
    scraped.health.turned_down([Problem("limits.yaml", "", "", "is not YAML")])

    assert scraped.value("sluice_configuration_generation") == 1
    assert scraped.value("sluice_configuration_loaded_timestamp_seconds") == 1769860800.0
    assert scraped.value("sluice_configurations_rejected_total") == 1
    assert scraped.value("sluice_configuration_problems") == 1
    assert scraped.value("sluice_ready") == 0


def test_saves_are_told_where_counts_are_saved(scraped: Scraped) -> None:
    assert scraped.value("sluice_state_age_seconds") is None
    scraped.health.saving = Saving("/var/lib/sluice", lambda: 3 * SECOND, SECOND)
    scraped.health.saving.failed("no room")

    assert scraped.value("sluice_state_age_seconds") == 2
    assert scraped.value("sluice_state_healthy") == 0
    assert scraped.value("sluice_state_saves_failed_total") == 1


def test_what_the_shared_store_does_is_told_where_there_is_one(scraped: Scraped) -> None:
    assert scraped.value("sluice_store_shared") is None
    store = scraped.health.store = StoreHealth(address="redis://r:6379", prefix="team", clock=lambda: 5 * SECOND)
    assert (scraped.value("sluice_store_shared"), scraped.value("sluice_store_gates")) == (0, 1)
    assert scraped.value("sluice_store_mode_changes_total", mode="Local") == 0

    store.shared(3)
    store.decided(StoreMode.SHARED, 2 * MILLISECOND)
    store.decided(StoreMode.SHARED)
    store.decided(StoreMode.LOCAL, 16 * MILLISECOND)
    store.unsent_since = 3 * SECOND

    assert (scraped.value("sluice_store_shared"), scraped.value("sluice_store_gates")) == (1, 3)
    assert scraped.value("sluice_store_mode_changes_total", mode="Shared") == 1
    assert scraped.value("sluice_store_mode_changes_total", mode="Local") == 0
    assert scraped.value("sluice_store_decisions_total", mode="Shared") == 2
    assert scraped.value("sluice_store_decisions_total", mode="Local") == 1
    assert scraped.value("sluice_store_decision_seconds_sum") == pytest.approx(0.018)
    assert scraped.value("sluice_store_decision_seconds_bucket", le="0.001") == 0
    assert scraped.value("sluice_store_decision_seconds_bucket", le="0.002") == 1
    assert scraped.value("sluice_store_decision_seconds_bucket", le="0.02") == 2
    assert scraped.value("sluice_store_unsent_seconds") == 2

    store.unsent_since = None
    assert scraped.value("sluice_store_unsent_seconds") == 0


def test_no_label_holds_who_called(scraped: Scraped) -> None:
    scraped.call(user="somebody")
    scraped.call(tokens=101, user="somebody")

    assert b"somebody" not in generate_latest(scraped.registry)


def test_a_provider_whose_usage_is_not_told_is_named_with_the_reason(scraped: Scraped) -> None:
    for _ in range(FEWEST):
        scraped.recent.untold("openai")
        scraped.counts.untold("openai")
    scraped.commits.look()

    assert scraped.value("sluice_calls_untold_total", provider="openai") == FEWEST
    assert scraped.value("sluice_commits_missing", provider="openai", why="NoUsage") == 1
