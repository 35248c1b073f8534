"""What `/metrics` says, and what nobody can make it say."""

from __future__ import annotations

from prometheus_client import generate_latest

from sluice_operator.metrics import Metrics


def test_only_conditions_of_the_operator_are_counted() -> None:
    metrics = Metrics(lambda: True, dict)
    forged = [{"type": "x" * 300, "status": "True"}, {"type": "Ready", "status": "sk-a-key"}, "no condition"]
    statuses = [{"conditions": [*forged, {"type": "Accepted", "status": "True"}]}, {"conditions": "none"}, "none", None]

    metrics.saw("team", [{"status": status} for status in statuses], ())

    lines = generate_latest(metrics.registry).decode().splitlines()
    assert [line for line in lines if line.startswith("sluice_operator_objects")] == [
        'sluice_operator_objects{condition="Accepted",namespace="team",status="True"} 1.0'
    ]
