"""What the operator does, counted as it happens, and what stands in the namespaces, for `/metrics` and the probes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client import Counter as Counts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice import __version__
from sluice.errors import SluiceError
from sluice_operator import clock
from sluice_operator.planning.conditions import Truth, by_type
from sluice_operator.planning.state import Gate
from sluice_operator.planning.status import ours

STUCK: Final = 120.0
"""Seconds without a step after which a turn is taken for stuck. Its steps are calls of at most 10 s."""
DURATIONS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Counted:
    """What stood in a namespace at the last look."""

    conditions: Mapping[tuple[str, str], int]
    """Objects by (type, status) of their conditions."""
    gates: Mapping[str, int]
    """Gates by what they answered."""


class Metrics:
    """What happened, counted as it happens."""

    def __init__(self, leads: Callable[[], bool], errors: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        disable_created_metrics()  # a second series for each, which nobody asks for
        self.registry = CollectorRegistry()
        self.counted: dict[str, Counted] = {}
        self._steps: dict[tuple[str, str], float] = {}
        self._configured: set[str] = set()
        self._turns = Counts(
            "sluice_operator_turns", "Turns of a namespace's loops.", ["loop", "result"], registry=self.registry
        )
        self._durations = Histogram(
            "sluice_operator_turn_seconds", "How long turns took.", ["loop"], buckets=DURATIONS, registry=self.registry
        )
        self._writes = Counts(
            "sluice_operator_writes", "Writes to the cluster.", ["kind", "result"], registry=self.registry
        )
        self.registry.register(_AtScrape(self, leads, errors))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    @contextlib.contextmanager
    def turn(self, loop: str, namespace: str) -> Iterator[None]:
        """A turn of a namespace's loop, from its beginning to its end."""
        began = self._steps[loop, namespace] = clock.now()
        result = "failed"
        try:
            yield
            result = "done"
            self._configured.add(namespace)
        finally:
            del self._steps[loop, namespace]
            self._turns.labels(loop, result).inc()
            self._durations.labels(loop).observe(clock.now() - began)

    @contextlib.contextmanager
    def write(self, kind: str, namespace: str) -> Iterator[None]:
        """One write: a step of the turns of its namespace."""
        result = "failed"
        try:
            yield
            result = "done"
        except SluiceError as error:
            result = type(error).__name__.lower()
            raise
        finally:
            self._writes.labels(kind, result).inc()
            for turn in self._steps.keys() & {("configure", namespace), ("tell", namespace)}:
                self._steps[turn] = clock.now()

    def saw(self, namespace: str, objects: Sequence[Mapping[str, Any]], gates: Sequence[Gate]) -> None:
        """What stands in a namespace now."""
        conditions = Counter(
            (str(kind), str(each["status"]))
            for manifest in objects
            for kind, each in by_type(ours(manifest.get("status"))).items()
            if each.get("status") in tuple(Truth)
        )
        answers = Counter("silent" if gate.report is None else "answering" for gate in gates)
        self.counted[namespace] = Counted(conditions, answers)

    def left(self, namespace: str) -> None:
        """The namespace is served no longer."""
        self.counted.pop(namespace, None)
        self._configured.discard(namespace)

    @property
    def is_alive(self) -> bool:
        return all(clock.now() - step < STUCK for step in self._steps.values())

    def has_configured(self, namespaces: Sequence[str]) -> bool:
        """True once a turn of each of them has succeeded."""
        return self._configured.issuperset(namespaces)


class _AtScrape(Collector):
    """What is so now, made up when Prometheus asks."""

    def __init__(
        self, metrics: Metrics, leads: Callable[[], bool], errors: Callable[[], Mapping[tuple[str, str], int]]
    ) -> None:
        self._metrics = metrics
        self._leads = leads
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("sluice_operator", "The operator.", value={"version": __version__})
        yield GaugeMetricFamily("sluice_operator_leads", "1 if this operator leads.", value=self._leads())
        failed = CounterMetricFamily(
            "sluice_operator_api_errors", "Calls to the API server that failed.", labels=("call", "error")
        )
        for labels, number in self._errors().items():
            failed.add_metric(labels, number)
        yield failed
        objects = GaugeMetricFamily(
            "sluice_operator_objects", "Objects, by their conditions.", labels=("namespace", "condition", "status")
        )
        gates = GaugeMetricFamily("sluice_operator_gates", "Gates, by their answers.", labels=("namespace", "state"))
        for namespace, counted in self._metrics.counted.items():
            for (kind, status), number in counted.conditions.items():
                objects.add_metric((namespace, kind, status), number)
            for state, number in counted.gates.items():
                gates.add_metric((namespace, state), number)
        yield objects
        yield gates
