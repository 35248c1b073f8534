"""The table of `sluice status`: a `/status` answer for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sluice.core.limits import SECOND, Cap
from sluice.errors import Problem
from sluice.schema.durations import format_duration
from sluice.usage.profiles.profile import EstimationMode
from sluice_sidecar import upstream_status
from sluice_sidecar.health import meanwhile, sharing

Json = Any

_COLUMNS: Final = {
    Cap.REQUESTS_PER_MINUTE: "RPM",
    Cap.TOKENS_PER_MINUTE: "TPM",
    Cap.INPUT_TOKENS_PER_MINUTE: "ITPM",
    Cap.OUTPUT_TOKENS_PER_MINUTE: "OTPM",
    Cap.REQUESTS_PER_HOUR: "RPH",
    Cap.TOKENS_PER_HOUR: "TPH",
    Cap.INPUT_TOKENS_PER_HOUR: "ITPH",
    Cap.OUTPUT_TOKENS_PER_HOUR: "OTPH",
    Cap.REQUESTS_PER_DAY: "RPD",
    Cap.TOKENS_PER_DAY: "TPD",
    Cap.INPUT_TOKENS_PER_DAY: "ITPD",
    Cap.OUTPUT_TOKENS_PER_DAY: "OTPD",
}
"""The first two are always shown, the others where a bucket has one."""
MOST_LEARNED: Final = 5
_ALWAYS: Final = (Cap.REQUESTS_PER_MINUTE, Cap.TOKENS_PER_MINUTE)


def table(status: Mapping[str, Json]) -> str:
    """A `/status` answer as a table of its buckets, a line of totals, and what is wrong."""
    buckets = status["buckets"]
    caps = [cap for cap in _COLUMNS if cap in _ALWAYS or any(cap in bucket["windows"] for bucket in buckets)]
    narrowed = any("models" in bucket for bucket in buckets)
    head = ["PROVIDER", "SCOPE", "SUBJECT", *(["MODELS"] if narrowed else []), "IN-FLIGHT", "QUEUED"]
    refused = any("lastRefusal" in bucket for bucket in buckets)
    rows = [[*head, *(_COLUMNS[cap] for cap in caps), "REJECTED", *(["LAST REFUSAL"] if refused else [])]]
    rows += [_row(bucket, caps, narrowed=narrowed, refused=refused) for bucket in buckets]
    lines = aligned(rows) if buckets else ["no bucket: no such call has met a limit lately"]
    if status["bucketsOmitted"]:
        lines.append(f"and {status['bucketsOmitted']} less full: choose with --provider, --scope, --subject")
    missing = [f"{each['provider']}: {each['message']}" for each in status["commits"]["missing"]]
    paused = upstream_status.lines(status.get("upstreams", ()))
    said = [*paused, _totals(status["totals"]), *missing, *_configuration(status), *_store(status)]
    return "\n".join([*lines, *_learned(status), "", *said])


def _learned(status: Mapping[str, Json]) -> list[str]:
    """What calls are judged by, of those with most calls; nothing where no provider's are judged by it."""
    estimation = status.get("estimation", {"modes": {}, "learned": []})
    learns = {provider for provider, mode in estimation["modes"].items() if mode == EstimationMode.LEARNED}
    known = [kind for kind in estimation["learned"] if kind["provider"] in learns][:MOST_LEARNED]
    head = ["PROVIDER", "MODEL", "ENTRIES", "CAPS FROM", "CALLS", "BYTES/TOKEN", "OUTPUT"]
    return ["", *aligned([head, *map(_kind, known)])] if known else []


def _kind(kind: Mapping[str, Json]) -> list[str]:
    share, tokens = kind.get("outputShare"), kind.get("outputTokens")
    return [
        kind["provider"],
        _printable(kind["model"]) or '""',
        ", ".join(kind["entries"]),
        str(kind.get("capsFrom", "-")),
        str(kind["calls"]),
        str(kind["bytesPerToken"] or "-"),
        f"{share:.1%} of the cap" if share else str(tokens or "-"),
    ]


def _row(bucket: Mapping[str, Json], caps: Iterable[Cap], *, narrowed: bool, refused: bool) -> list[str]:
    return [
        bucket["provider"],
        bucket["scope"],
        _printable(bucket["subject"]) or '""',
        *([",".join(bucket.get("models", [])) or "-"] if narrowed else []),
        _used(bucket["inFlight"], bucket["maxConcurrent"]),
        str(bucket["queued"]),
        *(_window(bucket["windows"].get(cap)) for cap in caps),
        _rejected(bucket),
        *([_refusal(bucket.get("lastRefusal"))] if refused else []),
    ]


def _rejected(bucket: Mapping[str, Json]) -> str:
    shadow = bucket.get("wouldReject", 0)
    return f"{bucket['rejected']}" + (f" ({shadow} in shadow)" if shadow else "")


def _refusal(refusal: Mapping[str, Json] | None) -> str:
    if refusal is None:
        return "-"
    return f"{refusal['reason']}, {refusal['cap']}, {refusal['secondsAgo']:.0f} s ago"


def _totals(totals: Mapping[str, int]) -> str:
    shadow = f", {totals['wouldReject']} would have been" if totals["wouldReject"] else ""
    return (
        f"calls: {totals['admitted']} admitted, {totals['rejected']} rejected{shadow}, {totals['inFlight']} in flight, "
        f"{totals['queued']} queued, {totals['unlimited']} unlimited, "
        f"{totals['refunded']} refunded; "
        f"tokens: {totals['committedTokens']} committed, {totals['estimatedTokens']} estimated; "
        f"{totals['expiredPermits']} permits expired"
    )


def _configuration(status: Mapping[str, Json]) -> list[str]:
    configuration = status["configuration"]
    state = "ready" if status["ready"] else "not ready"
    generation, problems = configuration["generation"], configuration["problems"]
    if generation:
        lines = [f"{state}; configuration {generation} since {configuration['loadedAt']}"]
    else:
        lines = [f"{state}; no configuration is in force yet"]
    if problems:
        stays = ", and the last good configuration stays in force" if generation else ""
        lines.append(f"the limits files have mistakes{stays}:")
        lines += [f"  {Problem(**problem)}" for problem in problems]
    return lines


def _store(status: Mapping[str, Json]) -> list[str]:
    store = status.get("store", {})
    if "mode" in store:
        return _shared_store(store)
    if store.get("healthy", True):
        return []
    problem = _printable(store.get("problem", "the last save has not ended"))
    return [f"the counts have not been saved for {store.get('savedSecondsAgo', 0):.0f} s: {problem}"]


def _shared_store(store: Mapping[str, Json]) -> list[str]:
    address, since = _printable(store["address"]), _since(store["secondsInMode"])
    if store["healthy"]:
        lines = [f"the store {address} has decided for {since}: {sharing(store['gates'])}"]
    else:
        problem = _printable(store.get("problem", "no reason is told"))
        lines = [f"the store {address} cannot be used for {since} now: {problem}; {meanwhile(store['gates'])}"]
    if "unsentSeconds" in store:
        lines.append(f"the store has lacked something that was counted here for {_since(store['unsentSeconds'])}")
    return lines


def _since(seconds: float) -> str:
    return format_duration(int(seconds) * SECOND)


def _used(used: int, limit: int | None) -> str:
    return str(used) if limit is None else f"{used}/{limit}"


def _window(window: Mapping[str, int] | None) -> str:
    return "-" if window is None else f"{window['used']}/{window['limit']}"


def _printable(text: str) -> str:
    """A subject is what a caller sent: nothing in it may move the reader's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def aligned(rows: list[list[str]]) -> list[str]:
    """The rows as lines of text, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
