"""What is printed, and what is written as JSON: the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench import machine
from bench.bodies import Reading
from bench.calls import CONNECTIONS, REST, STREAMS, Shape, Way
from bench.decisions import MANY, Case
from bench.engine import DECIDED, MEMORY
from bench.samples import Part, Sample, middle
from bench.upstream import EVENTS, PAUSE

Figures = dict[str, Any]
Target = tuple[str, str, bool]
"""What was to be reached, what was, and whether that is enough."""

DECISIONS: Final = (
    ("decisions/s", "perSecond", "{:,.0f}"),
    ("µs of its CPU", "serverCpuMicros", "{:,.0f}"),
    ("1/s of a core", "perSecondOfCore", "{:,.0f}"),
    ("mean µs", "meanMicros", "{:,.0f}"),
    ("p50 µs", "p50Micros", "{:,.0f}"),
    ("p99 µs", "p99Micros", "{:,.0f}"),
    ("load busy", "loadBusy", "{:.0%}"),
)
CALLS: Final = (
    ("p50 µs", "p50Micros", "{:,.0f}"),
    ("added", "addedP50Micros", "{:+,.0f}"),
    ("p99 µs", "p99Micros", "{:,.0f}"),
    ("added", "addedP99Micros", "{:+,.0f}"),
    ("rested: p50", "restedP50Micros", "{:,.0f}"),
    ("added", "restedAddedP50Micros", "{:+,.0f}"),
)
LOADED_CALLS: Final = (
    ("calls/s", "perSecond", "{:,.0f}"),
    ("of ungated", "perSecondRatio", "{:.2f}"),
    ("p50 µs", "loadedP50Micros", "{:,.0f}"),
    ("p99 µs", "loadedP99Micros", "{:,.0f}"),
    ("CPU µs: gate", "gateCpuMicros", "{:,.0f}"),
    ("Envoy", "envoyCpuMicros", "{:,.0f}"),
)
EVENTS_TABLE: Final = (
    ("p50 µs", "eventP50Micros", "{:,.0f}"),
    ("added", "eventAddedP50Micros", "{:+,.0f}"),
    ("p99 µs", "eventP99Micros", "{:,.0f}"),
    ("added", "eventAddedP99Micros", "{:+,.0f}"),
    ("CPU µs an event: gate", "eventGateCpuMicros", "{:,.1f}"),
    ("Envoy", "eventEnvoyCpuMicros", "{:,.1f}"),
)

BODIES: Final = (("MB/s", "megabytesPerSecond", "{:,.0f}"), ("keeps kB", "keptKilobytes", "{:,.0f}"))


def of_decisions(cases: Sequence[Case]) -> dict[str, Figures]:
    """The figures of each server: medians of its rounds."""
    return {case.name: of_case(case) for case in cases}


def of_case(case: Case) -> Figures:
    """The figures of one server."""
    cpu = middle(cpu / sample.count * 1e6 for cpu, sample in zip(case.cpu, case.many, strict=True))
    return {
        "perSecond": middle(sample.rate for sample in case.many),
        "serverCpuMicros": cpu or None,
        "perSecondOfCore": 1e6 / cpu if cpu else None,
        **_latencies(case.one),
        "loadBusy": middle(sample.load_cpu / sample.seconds for sample in case.many),
        "failures": case.surprises,
    }


def of_calls(ways: Sequence[Way]) -> dict[str, Figures]:
    """The figures of each way: medians of its rounds. What is added is the median of the rounds' differences."""
    (ungated,) = [way for way in ways if way.shape is Shape.NO_GATE]
    return {way.shape.value: _of_way(way, ungated) for way in ways}


def _of_way(way: Way, ungated: Way) -> Figures:
    counts = [sample.count for sample in way.many]
    events = [sample.count for sample in way.events]
    return {
        **_latencies(way.one),
        "addedP50Micros": _added("p50", way.one, ungated.one),
        "addedP99Micros": _added("p99", way.one, ungated.one),
        "restedP50Micros": middle(sample.p50 for sample in way.rested),
        "restedAddedP50Micros": _added("p50", way.rested, ungated.rested),
        "loadedP50Micros": middle(sample.p50 for sample in way.many),
        "loadedP99Micros": middle(sample.p99 for sample in way.many),
        "perSecond": middle(sample.rate for sample in way.many),
        "perSecondRatio": middle(a.rate / b.rate for a, b in zip(way.many, ungated.many, strict=True)),
        "gateCpuMicros": _cpu(way.gate_cpu, counts),
        "envoyCpuMicros": _cpu(way.envoy_cpu, counts),
        "eventP50Micros": middle(sample.p50 for sample in way.events),
        "eventP99Micros": middle(sample.p99 for sample in way.events),
        "eventAddedP50Micros": _added("p50", way.events, ungated.events),
        "eventAddedP99Micros": _added("p99", way.events, ungated.events),
        "eventGateCpuMicros": _cpu(way.event_gate_cpu, events),
        "eventEnvoyCpuMicros": _cpu(way.event_envoy_cpu, events),
        "failures": way.failures,
    }


def _latencies(samples: Sequence[Sample]) -> Figures:
    return {
        "meanMicros": middle(sample.mean for sample in samples),
        "p50Micros": middle(sample.p50 for sample in samples),
        "p99Micros": middle(sample.p99 for sample in samples),
    }


def _added(name: str, samples: Sequence[Sample], base: Sequence[Sample]) -> float:
    return middle(getattr(a, name) - getattr(b, name) for a, b in zip(samples, base, strict=False))


def _cpu(seconds: Sequence[float], counts: Sequence[int]) -> float:
    return middle(s / count * 1e6 for s, count in zip(seconds, counts, strict=True))


def print_facts(facts: dict[str, str]) -> None:
    """The machine."""
    for name, value in facts.items():
        print(f"{name + ':':<10}{value}")


def print_decisions(figures: dict[str, Figures]) -> None:
    """The table of decisions."""
    print(f"\nDecisions: {MANY} in flight for decisions/s and CPU, 1 in flight for the latencies")
    table(figures, DECISIONS)


def print_calls(figures: dict[str, Figures]) -> None:
    """The tables of calls through Envoy."""
    print(f"\nOne call after another through Envoy; and rested: with a pause of {REST * 1000:.0f} ms after each")
    table(figures, CALLS)
    print(f"\n{CONNECTIONS} calls at a time")
    table(figures, LOADED_CALLS)
    print(f"\n{STREAMS} streams at a time, {EVENTS} events each, {1 / PAUSE:.0f} a second: how late an event comes")
    table({way: row for way, row in figures.items() if row["eventP50Micros"]}, EVENTS_TABLE)


def of_parts(parts: Sequence[Part]) -> dict[str, Figures]:
    """The cost of each part."""
    return {part.name: {"unit": part.unit, "cost": part.cost, "p99": part.p99} for part in parts}


def print_parts(figures: dict[str, Figures]) -> None:
    """The gate without a transport."""
    print("\nWithout a transport: median and p99 of a call over three buckets of six windows, and what comes once")
    for name, row in figures.items():
        tail = "" if row["p99"] is None else f"{row['p99']:>9.1f}"
        print(f"  {name:<48}{row['cost']:>9.1f}{tail} {row['unit']}")


def of_bodies(curves: Mapping[str, Sequence[Reading]]) -> dict[str, Figures]:
    """What each kind of body took in each size."""
    return {
        name: {
            "milliseconds": {str(reading.megabytes): reading.seconds * 1000 for reading in readings},
            "megabytesPerSecond": readings[-1].megabytes / readings[-1].seconds,
            "keptKilobytes": max(reading.kept for reading in readings) / 1000,
            "failures": sum(not reading.right for reading in readings),
        }
        for name, readings in curves.items()
    }


def print_bodies(figures: dict[str, Figures]) -> None:
    """The curve of each kind of body."""
    print("\nAnswers of 1 MB and more, read for their usage: CPU time in ms, and the memory it takes")
    rows = {name: {**row, **row["milliseconds"]} for name, row in figures.items()}
    sizes = next(iter(figures.values()))["milliseconds"]
    table(rows, [(f"{size} MB", size, "{:,.1f}") for size in sizes] + list(BODIES))


def print_end(seconds: float, others: float | None) -> None:
    """How long it took, and how far the figures can be trusted."""
    print(f"\nin {seconds:.0f} s", end="")
    if others is None:
        print()
    elif others > machine.QUIET:
        print(f"; others used {others:.0%} of this machine meanwhile: compare ratios, not figures")
    else:
        print(f"; others used {others:.0%} of this machine meanwhile")


def print_targets(figures: dict[str, Any], more: Sequence[Target] = ()) -> None:
    """What was to be reached, and what was."""
    if found := [*_targets(figures), *more]:
        print("\nTargets")
    for text, value, reached in found:
        print(f"  {'✓' if reached else '✗'} {text:<72}{value}")


def _targets(figures: dict[str, Any]) -> list[Target]:
    found = []
    if decisions := figures.get("decisions"):
        rate = decisions["Sluice, 3 buckets of 6 windows"]["perSecond"]
        found.append(("at least 3,500 decisions/s on one core, over gRPC", f"{rate:,.0f}", rate >= 3500))
    if calls := figures.get("calls"):
        added = calls[Shape.WHOLE]["addedP50Micros"]
        found.append(("the whole gate adds at most 1,000 µs at the median of one call", f"{added:,.0f}", added <= 1000))
    if parts := figures.get("parts"):
        decided, memory = parts[DECIDED]["cost"], parts[MEMORY]["cost"]
        found.append(("the engine decides in at most 20 µs", f"{decided:.1f}", decided <= 20))
        found.append(("100,000 users of one call each take at most 150 MB", f"{memory:.0f}", memory <= 150))
    if long := figures.get("bodies"):
        most = max(row["keptKilobytes"] for row in long.values())
        found.append(("an answer of any size adds at most 1 MB", f"{most / 1000:.2f} MB", most <= 1000))
    return found


def table(figures: dict[str, Figures], columns: Sequence[tuple[str, str, str]]) -> None:
    """One row for each name."""
    widths = [max(len(title), 9) for title, _, _ in columns]
    first = max(map(len, figures)) + 2
    titles = "  ".join(f"{title:>{width}}" for (title, _, _), width in zip(columns, widths, strict=True))
    print(f"  {'':<{first}}{titles}")
    for name, row in figures.items():
        cells = [
            f"{'-' if row[key] is None else form.format(row[key]):>{width}}"
            for (_, key, form), width in zip(columns, widths, strict=True)
        ]
        failures = f"  {row['failures']} FAILED" if row["failures"] else ""
        print(f"  {name:<{first}}{'  '.join(cells)}{failures}")
