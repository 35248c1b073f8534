"""A gate's `/status` as the operator reads it: strictly, since anybody's pod may answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice_operator.planning.reports import BadReport, BucketReport, Recent, Refusal, Report, Store, Use, read_report

BUCKET = {
    "provider": "openai",
    "scope": "User",
    "subject": "alice",
    "models": ["gpt-4*", "gpt-5*"],
    "inFlight": 2,
    "queued": 0,
    "maxConcurrent": 3,
    "admitted": 9,
    "rejected": 1,
    "recentlyRejected": 1,
    "lastRefusal": {"reason": "WouldExceed", "cap": "requestsPerMinute", "secondsAgo": 1.5},
    "windows": {"requestsPerMinute": {"limit": 60, "used": 41, "remaining": 19, "resetSeconds": 3.25}},
}
STATUS = {
    "version": "0.1.0",
    "ready": True,
    "configuration": {
        "generation": 1,
        "loadedAt": "2026-01-01T00:00:00.000Z",
        "files": {"/etc/sluice/limits.yaml": "ab" * 32},
        "problems": [{"source": "limits.yaml", "document": "", "field": "", "message": "is not YAML"}],
    },
    "store": {"kind": "memory", "healthy": False},
    "recent": {"seconds": 300, "providers": {"openai": {"admitted": 7, "committedTokens": 100, "throttled": 1}}},
    "buckets": [BUCKET],
    "bucketsOmitted": 0,
    "totals": {},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the status with another value at a path such as `buckets.0.inFlight`."""
    status = json.loads(json.dumps(STATUS))
    place: Any = status
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    return dict(status)


def test_a_status_is_read() -> None:
    assert read_report(json.dumps(STATUS).encode()) == Report(
        files=frozenset({"ab" * 32}),
        problems=1,
        store=Store(healthy=False),
        buckets=(
            BucketReport(
                BucketKey("openai", Scope.USER, "alice", "gpt-4*,gpt-5*"),
                2,
                {Cap.REQUESTS_PER_MINUTE: Use(41, 60), Cap.MAX_CONCURRENT: Use(2, 3)},
                Refusal("requestsPerMinute", "WouldExceed", 1.5),
            ),
        ),
        recent={"openai": Recent(admitted=7, committed_tokens=100, throttled=1)},
    )


def test_every_window_is_read() -> None:
    windows = {str(cap): {"limit": 60, "used": 41} for cap in Cap if cap is not Cap.MAX_CONCURRENT}
    (bucket,) = read_report(json.dumps(changed("buckets.0.windows", windows)).encode()).buckets

    assert bucket.uses == dict.fromkeys(Cap, Use(41, 60)) | {Cap.MAX_CONCURRENT: Use(2, 3)}


def test_a_gate_of_another_version_is_understood() -> None:
    older = {"configuration": {"generation": 1, "problems": []}, "buckets": []}
    newer = changed("buckets.0.windows.requestsPerYear", {"limit": 1, "used": 1})

    assert read_report(json.dumps(older).encode()) == Report(frozenset(), 0, Store(), buckets=(), recent={})
    assert read_report(json.dumps(newer | {"mood": "good"}).encode()) == read_report(json.dumps(STATUS).encode())


def test_the_store_that_gates_share_is_read() -> None:
    store = {
        "kind": "redis",
        "address": "redis://r:6379",
        "prefix": "team",
        "mode": "Local",
        "healthy": False,
        "secondsInMode": 1.5,
        "gates": 3,
        "modeChanges": 2,
        "decisions": {"Shared": 7, "Local": 1},
        "problem": "timed out",
    }

    assert read_report(json.dumps(changed("store", store)).encode()).store == Store(
        healthy=False, kind="redis", address="redis://r:6379", prefix="team", mode="Local"
    )


@pytest.mark.parametrize(
    ("store", "counter"),
    [
        (Store(), None),
        (Store(mode="Shared"), None),
        (Store(kind="redis", address="redis://r:6379", prefix="team", mode="Local"), None),
        (Store(kind="redis", address="redis://r:6379", prefix="team", mode="SomethingNewer"), None),
        (
            Store(kind="redis", address="redis://r:6379", prefix="team", mode="Shared"),
            ("redis", "redis://r:6379", "team"),
        ),
    ],
)
def test_a_gate_tells_a_store_s_counts_only_while_the_store_decides(
    store: Store, counter: tuple[str, str, str] | None
) -> None:
    assert store.counter == counter


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe\xfd",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"configuration": {"problems": []}, "x": NaN}',
        b'{"configuration": {"problems": []}, "x": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_status_is_a_bad_report(body: bytes) -> None:
    with pytest.raises(BadReport):
        read_report(body)


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, True, "1", None, [], {}, 2**63, 10**400])
@pytest.mark.parametrize(
    "path",
    [
        "buckets.0.inFlight",
        "buckets.0.windows.requestsPerMinute.used",
        "buckets.0.windows.requestsPerMinute.limit",
        "recent.providers.openai.committed",
    ],
)
def test_a_count_is_an_integer_that_64_bits_hold(path: str, value: Any) -> None:
    with pytest.raises(BadReport, match="it must be an integer from 0 to 9223372036854775807"):
        read_report(json.dumps(changed(path, value)).encode())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("configuration", [], "has a wrong configuration: it must be an object"),
        ("configuration.files", {"x": 5}, "has a wrong files: it must be text of at most 512 characters"),
        ("configuration.files", dict.fromkeys(map(str, range(1001)), "x"), "has more than 1000 files"),
        ("configuration.problems", {}, "has a wrong problems: it must be a list"),
        ("store.healthy", 1, "has a wrong healthy: it must be true or false"),
        ("store.kind", None, "has a wrong kind: it must be text of at most 512 characters"),
        ("store.address", "x" * 513, "has a wrong address: it must be text of at most 512 characters"),
        ("store.prefix", 1, "has a wrong prefix: it must be text of at most 512 characters"),
        ("store.mode", ["Shared"], "has a wrong mode: it must be text of at most 512 characters"),
        ("recent.providers", {str(number): {} for number in range(1001)}, "has more than 1000 providers"),
        ("buckets", [BUCKET] * 101, "has more than 100 buckets"),
        ("buckets.0.scope", "Team", "has a wrong scope: it must be one of User, Org, Project"),
        ("buckets.0.subject", "x" * 513, "has a wrong subject: it must be text of at most 512 characters"),
        ("buckets.0.models", ["x"] * 65, "has more than 64 models"),
        ("buckets.0.lastRefusal.reason", "a b", "has a wrong reason: it must be a word"),
        ("buckets.0.lastRefusal.secondsAgo", -1, "has a wrong secondsAgo: it must be seconds, 0 or more"),
        ("buckets.0.maxConcurrent", "3", "has a wrong maxConcurrent: it must be an integer from 0 to"),
    ],
)
def test_whatever_is_wrong_is_said(path: str, value: Any, message: str) -> None:
    with pytest.raises(BadReport, match=f"^{message}"):
        read_report(json.dumps(changed(path, value)).encode())


@pytest.mark.parametrize("name", ["provider", "scope", "subject", "inFlight"])
def test_a_bucket_without_its_name_or_its_calls_is_a_bad_report(name: str) -> None:
    status = changed("version", "")
    del status["buckets"][0][name]

    with pytest.raises(BadReport, match=f"has no {name}"):
        read_report(json.dumps(status).encode())


def test_text_that_is_no_unicode_is_made_so() -> None:
    (bucket,) = read_report(json.dumps(changed("buckets.0.subject", "a\ud800b")).encode()).buckets

    assert bucket.key.subject == "a?b"
