"""What is printed and written of a shared store: the services on one Redis, and Redis by itself."""

from __future__ import annotations

from typing import Any, Final

from bench.decisions import MANY, SUBJECTS
from bench.replay import TOGETHER, Kind
from bench.report import Figures, Target, of_case, table
from bench.samples import middle
from bench.shared import Comparison, SharedCase

SERVICES: Final = (
    ("decisions/s", "perSecond", "{:,.0f}"),
    ("of ratelimit", "perSecondRatio", "{:.2f}"),
    ("µs of its CPU", "serverCpuMicros", "{:,.0f}"),
    ("of Redis", "redisCpuMicros", "{:,.1f}"),
    ("commands", "redisCommands", "{:,.2f}"),
    ("p50 µs", "p50Micros", "{:,.0f}"),
    ("p99 µs", "p99Micros", "{:,.0f}"),
    ("load busy", "loadBusy", "{:.0%}"),
)
ALONE: Final = (
    ("decisions/s", "perSecond", "{:,.0f}"),
    ("of ratelimit", "perSecondRatio", "{:.2f}"),
    ("µs of CPU", "redisCpuMicros", "{:,.2f}"),
    ("apart: µs", "apartCpuMicros", "{:,.2f}"),
    ("of ratelimit", "apartCpuRatio", "{:.2f}"),
    ("commands", "redisCommands", "{:,.2f}"),
    ("bytes a key", "bytesPerKey", "{:,.0f}"),
    (f"kB, {SUBJECTS:,} users", "kilobytes", "{:,.0f}"),
)


def of_shared(found: Comparison) -> dict[str, Any]:
    """The figures of each service and of each kind of decision: medians of the rounds and of the rounds' ratios."""
    peers = {case.task.name: case for case in found.cases if case.is_peer}
    heard = {kind.task: kind for kind in found.kinds if kind.is_peer}
    return {
        "shared": {case.name: _of_service(case, peers.get(case.task.name)) for case in found.cases},
        "sharedRedis": {kind.name: _of_kind(kind, heard.get(kind.task)) for kind in found.kinds},
        "sharedLeftOut": found.left_out,
    }


def _of_service(case: SharedCase, peer: SharedCase | None) -> Figures:
    rounds = list(zip(case.redis, case.many, strict=True))
    return {
        **of_case(case),
        "redisCpuMicros": middle(work.cpu / sample.count * 1e6 for work, sample in rounds),
        "redisCommands": middle(work.commands / sample.count for work, sample in rounds),
        "perSecondRatio": _ratio([s.rate for s in case.many], [s.rate for s in peer.many] if peer else []),
    }


def _of_kind(kind: Kind, peer: Kind | None) -> Figures:
    together, apart = (peer.together, peer.apart) if peer else ([], [])
    return {
        "perSecond": middle(run.rate for run in kind.together),
        "perSecondRatio": _ratio([run.rate for run in kind.together], [run.rate for run in together]),
        "redisCpuMicros": middle(run.cpu * 1e6 for run in kind.together),
        "apartCpuMicros": middle(run.cpu * 1e6 for run in kind.apart),
        "apartCpuRatio": _ratio([run.cpu for run in kind.apart], [run.cpu for run in apart]),
        "redisCommands": middle(run.work.commands / run.number for run in kind.together),
        "keys": kind.keys,
        "bytesPerKey": kind.bytes / kind.keys if kind.keys else None,
        "kilobytes": kind.bytes / 1000,
        "failures": sum(run.work.failed for run in (*kind.together, *kind.apart)),
    }


def _ratio(values: list[float], others: list[float]) -> float | None:
    return middle(value / other for value, other in zip(values, others, strict=True)) if others else None


def print_shared(figures: dict[str, Any]) -> None:
    """The tables of a shared store."""
    if figures["shared"]:
        print(f"\nOne Redis, shared: {MANY} in flight for decisions/s and CPU, 1 in flight for the latencies")
        table(figures["shared"], SERVICES)
    if figures["sharedRedis"]:
        print(
            f"\nRedis by itself, asked what the services ask: {TOGETHER} decisions in a write, and apart: one in each"
        )
        table(figures["sharedRedis"], ALONE)
    for what in figures["sharedLeftOut"]:
        print(f"  left out: {what}")


def targets(figures: dict[str, Any]) -> list[Target]:
    """What was to be reached beside the other service, and what was."""
    asked = (("1 bucket of 2 windows", 1.0), ("3 buckets of 2 windows", 1.5))
    rows = [(task, least, figures.get("shared", {}).get(f"Sluice, {task}")) for task, least in asked]
    return [
        (f"{task}: at least {least:.1f} times ratelimit's decisions/s", f"{ratio:.2f}", ratio >= least)
        for task, least, row in rows
        if row and (ratio := row["perSecondRatio"]) is not None
    ]
