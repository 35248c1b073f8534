"""`make bench`: how fast the gate decides, alone and with others, what it adds to a call, and what its parts cost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import bodies, calls, decisions, grpc_load, machine, parts, replay, report, report_shared, shared
from bench.decisions import OVER_LIMIT, PATH, Case
from bench.programs import loader
from bench.samples import GOOD

SECTIONS: Final = ("decisions", "shared", "calls", "parts", "bodies")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for, print it, and return 1 if any answer was wrong."""
    options = _options(arguments)
    began = time.monotonic()
    figures: dict[str, Any] = {"machine": machine.facts()}
    report.print_facts(figures["machine"])
    others = machine.Others()
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        if "decisions" in options.sections:
            plan = decisions.Plan(1, 0.5, 1.0) if options.quick else decisions.Plan(4, 0.7, 1.5)
            figures["decisions"] = report.of_decisions(decisions.measure(folder, plan, _others(options), _say))
            report.print_decisions(figures["decisions"])
        if "shared" in options.sections:
            figures |= report_shared.of_shared(_shared(folder, is_quick=options.quick))
            report_shared.print_shared(figures)
        if "calls" in options.sections:
            quick = calls.Plan(2, 0.5, 0.4, 0.8, 1)
            plan_of_calls = quick if options.quick else calls.Plan(5, 1.5, 0.7, 1.5, 2)
            figures["calls"] = report.of_calls(calls.measure(folder, plan_of_calls, _say))
            report.print_calls(figures["calls"])
        if "parts" in options.sections:
            _say("parts")
            with loader() as pool:
                figures["parts"] = report.of_parts(parts.measure(pool))
            report.print_parts(figures["parts"])
        if "bodies" in options.sections:
            _say("bodies")
            figures["bodies"] = report.of_bodies(bodies.measure(bodies.SIZES[:3] if options.quick else bodies.SIZES))
            report.print_bodies(figures["bodies"])
    report.print_targets(figures, report_shared.targets(figures))
    figures["othersShare"] = others.share()
    report.print_end(time.monotonic() - began, figures["othersShare"])
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    checked = ("decisions", "shared", "sharedRedis", "calls", "bodies")
    failures = sum(row["failures"] for name in checked for row in figures.get(name, {}).values())
    if failures:
        print(f"{failures} answers were wrong or missing: these figures mean nothing", file=sys.stderr)
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", usage='make bench ARGS="[options] [SECTION ...]"', description=__doc__
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="under a minute rather than four: less exact")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    other = parser.add_argument_group("another rate-limit service, in the table of decisions")
    other.add_argument("--rls", metavar="ADDRESS", help="HOST:PORT or unix:PATH of its gRPC server, started by you")
    other.add_argument("--domain", default="bench", help="the domain it is asked about (default: bench)")
    other.add_argument(
        "--descriptor",
        default="user=user-{}",
        metavar="KEY=VALUE,...",
        help="the entries of the descriptor; {} stands for a number below 1000 (default: user=user-{})",
    )
    other.add_argument("--pid", type=int, help="its process, so that its CPU time can be told")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    if any("=" not in pair for pair in options.descriptor.split(",")):
        parser.error("--descriptor: write KEY=VALUE, with commas between the entries")
    if options.rls is not None:
        try:
            grpc_load.connected(options.rls).close()
        except (OSError, ValueError) as error:
            parser.error(f"--rls: no connection to {options.rls}: {error}")
    options.sections = options.sections or SECTIONS
    return options


def _others(options: argparse.Namespace) -> list[Case]:
    if options.rls is None:
        return []
    entries = tuple(tuple(pair.split("=", 1)) for pair in options.descriptor.split(","))
    messages = decisions.messages(options.domain, entries)
    return [Case(options.rls, options.rls, PATH, messages, options.pid, (GOOD, OVER_LIMIT))]


def _shared(folder: Path, *, is_quick: bool) -> shared.Comparison:
    if is_quick:
        return shared.measure(folder, decisions.Plan(1, 0.3, 0.7), replay.Plan(1, 10_000), _say)
    return shared.measure(folder, decisions.Plan(4, 0.7, 1.5), replay.Plan(5, 30_000), _say)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text} ...", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError) as error:
        sys.exit(f"the bench has stopped: {error}")
