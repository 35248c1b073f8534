"""`/metrics`: what happened, counted as it happens, in as few steps as can be; everything else when it is asked for.

Labels are bounded by the configuration: providers, scopes, caps and reasons, never a subject or a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sluice import __version__
from sluice.core.decisions import Refusal
from sluice.core.limits import SECOND
from sluice.core.permits import Call, Permit, Settled
from sluice.core.states import Summary
from sluice.core.upstream import UpstreamState
from sluice.core.words import RefusedAs
from sluice_sidecar import upstream_status
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.health import Health, Saving, StoreHealth, StoreMode
from sluice_sidecar.histogram import Histogram

WAITS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds that an admitted call queued."""
RATIOS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""Tokens really used, for each token that was estimated."""

REFUSAL_LABELS: Final = ("provider", "scope", "cap", "reason")


class EventCounts:
    """The engine's telemetry: some additions an event. The engine calls it under its lock, one event at a time."""

    def __init__(self) -> None:
        self.admitted: defaultdict[str, int] = defaultdict(int)
        self.expiries: defaultdict[str, int] = defaultdict(int)
        self.committed_tokens: defaultdict[str, int] = defaultdict(int)
        self.error_tokens: defaultdict[str, int] = defaultdict(int)
        self.underestimated: defaultdict[str, int] = defaultdict(int)
        self.upstream_refusals: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.untold_calls: defaultdict[str, int] = defaultdict(int)
        self.refusals: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.shadow_refusals: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.waits: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(WAITS))
        self.ratios: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(RATIOS))

    def acquired(self, permit: Permit) -> None:
        provider = _provider(permit)
        self.admitted[provider] += 1
        self.waits[provider].observe(permit.waited / SECOND)

    def committed(self, permit: Permit) -> None:
        if permit.settled is Settled.COMMITTED:
            provider = _provider(permit)
            self.committed_tokens[provider] += permit.tokens
            self.error_tokens[provider] += abs(permit.tokens - permit.estimate)
            self.underestimated[provider] += permit.tokens > permit.estimate
            if permit.estimate:
                self.ratios[provider].observe(permit.tokens / permit.estimate)

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        self.refusals[_labels(refusal)] += 1

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        self.shadow_refusals[_labels(refusal)] += 1

    def refused_upstream(self, provider: str, status: int, refused_as: RefusedAs) -> None:
        """The provider has refused a call that was admitted here."""
        self.upstream_refusals[provider, refused_as] += 1

    def untold(self, provider: str) -> None:
        """An answer should have told its usage, and did not."""
        self.untold_calls[provider] += 1

    def released(self, permit: Permit) -> None:
        """Nothing to count: in flight is known to the engine."""

    def expired(self, permit: Permit) -> None:
        self.expiries[_provider(permit)] += 1


class GateCollector(Collector):
    """Every metric of the gate, made up when Prometheus asks."""

    def __init__(
        self,
        counts: EventCounts,
        summary: Callable[[], Summary],
        health: Health,
        commits: CommitWatch,
        upstreams: Callable[[], Iterable[UpstreamState]] = tuple,
    ) -> None:
        self._counts = counts
        self._commits = commits
        self._upstreams = upstreams
        self._summary = summary
        self._health = health

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._tokens()
        yield from self._state()

    def _calls(self) -> Iterator[Metric]:
        counts, totals = self._counts, self._summary().totals
        yield _counter("sluice_calls_admitted", "Calls let through and counted.", counts.admitted)
        yield CounterMetricFamily(
            "sluice_calls_unlimited", "Calls let through because no limit speaks of them.", value=totals.unlimited
        )
        refused = "Calls refused, by the cap that said no and why."
        yield _counter("sluice_calls_rejected", refused, counts.refusals, REFUSAL_LABELS)
        shadow = "Calls that a limit in shadow mode would have refused."
        yield _counter("sluice_calls_would_reject", shadow, counts.shadow_refusals, REFUSAL_LABELS)
        yield CounterMetricFamily(
            "sluice_calls_committed", "Calls whose usage the provider told.", value=totals.committed
        )
        yield CounterMetricFamily(
            "sluice_calls_refunded", "Calls that failed, and cost no tokens.", value=totals.refunded
        )
        # No counter: a usage that comes late takes its call out again.
        yield GaugeMetricFamily("sluice_calls_estimated", "Calls whose estimate stands.", value=totals.estimated)
        expired = "Permits that nobody spoke for before their lease ended."
        yield _counter("sluice_permits_expired", expired, counts.expiries)
        throttled = "Admitted calls that the provider itself refused, and why: RateLimited, Overloaded or SpendCap."
        yield _counter("sluice_provider_throttled", throttled, counts.upstream_refusals, ("provider", "kind"))
        yield upstream_status.paused(self._upstreams())
        untold = "Calls answered whole whose answer did not tell the usage that it should."
        yield _counter("sluice_calls_untold", untold, counts.untold_calls)
        yield _histogram("sluice_queue_wait_seconds", "How long admitted calls queued.", counts.waits)

    def _tokens(self) -> Iterator[Metric]:
        counts, totals = self._counts, self._summary().totals
        yield _counter("sluice_tokens_committed", "Tokens that providers said were used.", counts.committed_tokens)
        yield GaugeMetricFamily(
            "sluice_tokens_estimated", "Tokens that stand on an estimate.", value=totals.estimated_tokens
        )
        ratio = "Tokens really used for each token estimated, by call."
        yield _histogram("sluice_estimate_ratio", ratio, counts.ratios)
        error = "How far estimates were from what was used, in either direction, summed over the calls that told it."
        yield _counter("sluice_estimate_error_tokens", error, counts.error_tokens)
        under = "Calls that used more than was estimated."
        yield _counter("sluice_calls_underestimated", under, counts.underestimated)

    def _state(self) -> Iterator[Metric]:
        summary, health = self._summary(), self._health
        missing = GaugeMetricFamily(
            "sluice_commits_missing", "1 while the tokens that calls use are not told.", labels=("provider", "why")
        )
        for provider, why in self._commits.missing.items():
            missing.add_metric((provider, why), 1)
        yield missing
        yield GaugeMetricFamily("sluice_calls_in_flight", "Calls admitted and not ended.", value=summary.in_flight)
        yield GaugeMetricFamily("sluice_calls_queued", "Calls waiting to be admitted.", value=summary.queued)
        yield GaugeMetricFamily("sluice_ready", "1 if /readyz says so.", value=health.is_ready)
        yield GaugeMetricFamily(
            "sluice_configuration_generation", "Configurations that have been in force.", value=health.generation
        )
        yield GaugeMetricFamily(
            "sluice_configuration_loaded_timestamp_seconds", "When the last one was.", value=health.loaded_at
        )
        yield CounterMetricFamily(
            "sluice_configurations_rejected", "Changes turned down for their mistakes.", value=health.rejected
        )
        yield GaugeMetricFamily(
            "sluice_configuration_problems", "Mistakes in the files as they are now.", value=len(health.problems)
        )
        yield from _saving(health.saving)
        yield from _store(health.store)
        yield InfoMetricFamily("sluice", "The gate.", value={"version": __version__})


def _saving(saving: Saving | None) -> Iterator[Metric]:
    if saving is None:
        return
    age = "Seconds of which a gate that is killed forgets what it admitted in them."
    yield GaugeMetricFamily("sluice_state_age_seconds", age, value=saving.age)
    yield GaugeMetricFamily("sluice_state_healthy", "1 if the counts are saved as they should be.", saving.is_healthy)
    yield CounterMetricFamily("sluice_state_saves_failed", "Saves of the counts that failed.", value=saving.failures)


def _store(store: StoreHealth | None) -> Iterator[Metric]:
    if store is None:
        return
    shared = "1 while the store that gates share decides, 0 while this gate does alone."
    yield GaugeMetricFamily("sluice_store_shared", shared, value=store.is_healthy)
    yield GaugeMetricFamily("sluice_store_gates", "Gates that share the store, as last told.", value=store.gates)
    changes = "Changes of who decides, by the mode that was entered: Shared or Local."
    yield _counter("sluice_store_mode_changes", changes, store.entered, ("mode",))
    yield _counter("sluice_store_decisions", "Decisions made in each mode.", store.decisions, ("mode",))
    unsent = "Seconds for which the store has lacked something that it is owed; 0 while it lacks nothing."
    yield GaugeMetricFamily("sluice_store_unsent_seconds", unsent, value=store.unsent)
    waits = "How long decisions waited for the store, also those that it did not answer in time."
    yield HistogramMetricFamily(
        "sluice_store_decision_seconds", waits, buckets=store.waits.buckets(), sum_value=store.waits.total
    )


def _provider(permit: Permit) -> str:
    return permit.call.applied[0].key.provider


def _labels(refusal: Refusal) -> tuple[str, ...]:
    return (refusal.key.provider, refusal.key.scope, refusal.cap, refusal.reason)


def _counter(
    name: str,
    text: str,
    values: dict[str, int] | dict[tuple[str, ...], int] | dict[StoreMode, int],
    labels: Iterable[str] = ("provider",),
) -> Metric:
    family = CounterMetricFamily(name, text, labels=tuple(labels))
    for key, value in tuple(values.items()):
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family


def _histogram(name: str, text: str, histograms: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("provider",))
    for provider, histogram in tuple(histograms.items()):
        family.add_metric((provider,), histogram.buckets(), histogram.total)
    return family
