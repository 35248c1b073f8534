"""`/status` as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from sluice.config.merge import Provider
from sluice.config.types import FailurePolicy
from sluice.core.buckets import Charge, Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import SECOND, Cap, Limits, Mode
from sluice.core.permits import Call, Permit
from sluice.core.rules import Rule, RuleBook
from sluice.errors import Problem
from sluice.usage.commits import ADVICE, Missing
from sluice.usage.estimation import Estimation
from sluice.usage.learning import Kind, Learner, Lesson
from sluice.usage.profiles import BUILT_IN
from sluice.usage.profiles.profile import EstimationMode
from sluice_sidecar import status, status_table
from sluice_sidecar.health import Health, Saving, StoreHealth, StoreMode
from sluice_sidecar.recent import Tally
from sluice_sidecar.status import Selection

BOOK = RuleBook(
    (
        Rule("openai", Scope.USER, Limits(requests_per_minute=4, tokens_per_minute=100, max_concurrent=2)),
        Rule("openai", Scope.ORG, Limits(tokens_per_day=1000), (), ("gpt-5*", "o4")),
        Rule("anthropic", Scope.PROJECT, Limits(max_concurrent=0)),
    )
)


@pytest.fixture
def engine() -> Engine:
    return Engine(BOOK, EngineSettings(max_keys=1000))


def admit(engine: Engine, user: str, tokens: int, *, now: int = 0, model: str = "m") -> Permit:
    call = Call(engine.rules.match("openai", {Scope.USER: user, Scope.ORG: "acme"}, model), Demand(1, 1, tokens))
    permit = engine.acquire(call, now)
    assert isinstance(permit, Permit)
    return permit


def document(
    engine: Engine,
    now: int = 0,
    health: Health | None = None,
    select: Selection | None = None,
    most: int = 1000,
    recent: Mapping[str, Tally] = MappingProxyType({}),
    estimation: Mapping[str, Any] = MappingProxyType({"modes": {}, "learned": []}),
    missing: Mapping[str, Missing] = MappingProxyType({}),
) -> dict[str, Any]:
    snapshot, fullest = engine.snapshot(now), status.Fullest(select, most)
    for bucket in snapshot.buckets:
        if fullest.wants(bucket.key):
            fullest.add(bucket)
    return status.document(health or Health(), snapshot, fullest, recent, estimation, missing)


def subjects(answer: dict[str, Any]) -> list[str]:
    return [bucket["subject"] for bucket in answer["buckets"]]


def test_a_bucket_is_told_with_every_window_by_the_name_of_its_cap(engine: Engine) -> None:
    admit(engine, "alice", 30)
    permit = admit(engine, "alice", 40, now=SECOND)
    permit.commit_tokens(Charge(25), SECOND)
    permit.release(SECOND)

    assert document(engine, now=2 * SECOND)["buckets"] == [
        {
            "provider": "openai",
            "scope": "User",
            "subject": "alice",
            "inFlight": 1,
            "queued": 0,
            "maxConcurrent": 2,
            "admitted": 2,
            "rejected": 0,
            "windows": {
                "requestsPerMinute": {"limit": 4, "used": 2, "remaining": 2, "resetSeconds": 60.0},
                "tokensPerMinute": {"limit": 100, "used": 55, "remaining": 45, "resetSeconds": 60.0},
            },
        }
    ]


def test_a_limit_for_some_models_says_which(engine: Engine) -> None:
    admit(engine, "alice", 1, model="gpt-5-mini")

    told = {bucket["scope"]: bucket.get("models") for bucket in document(engine)["buckets"]}

    assert told == {"User": None, "Org": ["gpt-5*", "o4"]}


def test_totals_hold_the_ledger(engine: Engine) -> None:
    committed, left_alone = admit(engine, "alice", 30), admit(engine, "bob", 40)
    committed.commit_tokens(Charge(25), 0)
    committed.release(0)
    left_alone.release(0)
    admit(engine, "carol", 10)

    totals = document(engine)["totals"]

    assert (
        totals["admitted"] == totals["committed"] + totals["estimated"] + totals["refunded"] + totals["inFlight"] == 3
    )
    assert (totals["committedTokens"], totals["estimatedTokens"]) == (25, 40)
    assert {"rejected", "queued", "expiredPermits", "unlimited", "wouldReject"} <= totals.keys()


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Selection(provider="openai"), ["acme", "alice", "bob"]),
        (Selection(provider="nobody"), []),
        (Selection(scope="Org"), ["acme"]),
        (Selection(subject="alice"), ["alice"]),
        (Selection("openai", "User", "bob"), ["bob"]),
    ],
)
def test_buckets_are_selected_and_totals_are_not(engine: Engine, select: Selection, expected: list[str]) -> None:
    for user in ("alice", "bob"):
        admit(engine, user, 1, model="o4")

    answer = document(engine, select=select)

    assert sorted(subjects(answer)) == expected
    assert answer["totals"]["admitted"] == 2


def test_the_fullest_buckets_come_first(engine: Engine) -> None:
    for user, tokens in (("low", 1), ("high", 90), ("middle", 60)):
        admit(engine, user, tokens).release(0)

    assert subjects(document(engine)) == ["high", "middle", "low"]


def test_of_many_buckets_the_fullest_thousand_are_told_and_the_rest_is_counted() -> None:
    engine = Engine(BOOK, EngineSettings(max_keys=2000))
    for number in range(1005):
        admit(engine, f"user-{number}", 90 if number == 1004 else 1).release(0)

    answer = document(engine)

    assert (len(answer["buckets"]), answer["bucketsOmitted"]) == (1000, 5)
    assert subjects(answer)[0] == "user-1004"


def test_fewer_buckets_are_told_where_fewer_are_asked_for(engine: Engine) -> None:
    for user, tokens in (("low", 1), ("high", 90), ("middle", 60)):
        admit(engine, user, tokens).release(0)

    answer = document(engine, most=2)

    assert (subjects(answer), answer["bucketsOmitted"]) == (["high", "middle"], 1)


def test_what_became_of_calls_lately_is_told_by_provider() -> None:
    tally = Tally(admitted=9, committed=5, refunded=3, throttled=2, last_throttled_status=529, committed_tokens=70)

    told = document(Engine(), recent={"openai": tally, "anthropic": Tally(rejected=1)})["recent"]

    nothing = dict.fromkeys(told["providers"]["anthropic"], 0)
    assert told["seconds"] == 300
    assert told["providers"] == {
        "anthropic": nothing | {"rejected": 1},
        "openai": nothing
        | {"admitted": 9, "committed": 5, "refunded": 3, "committedTokens": 70}
        | {"throttled": 2, "lastThrottledStatus": 529},
    }


def test_what_was_learned_is_told_of_the_kinds_with_most_calls() -> None:
    learner = Learner()
    for number in range(30):
        model = Kind("openai", f"model-{number}", ("User *",), None)
        for _ in range(number):
            learner.learn(model, Lesson(800, None, 100, 512), 90)
    for _ in range(50):
        learner.learn(Kind("openai", "gpt-5", ("User *", "Org *"), 16_384), Lesson(800, 65_536, 100, 1024), 90)
    provider = Provider(
        "openai", BUILT_IN.profile("openai"), "", FailurePolicy.ALLOW, Estimation(EstimationMode.LEARNED), {}
    )

    told = status.estimation([provider], learner)

    assert told["modes"] == {"openai": "Learned"}
    assert told["learned"][:2] == [
        {
            "provider": "openai",
            "model": "gpt-5",
            "entries": ["User *", "Org *"],
            "calls": 50,
            "bytesPerToken": 8.0,
            "capsFrom": 16_384,
            "outputShare": 0.015625,
        },
        {
            "provider": "openai",
            "model": "model-29",
            "entries": ["User *"],
            "calls": 29,
            "bytesPerToken": 8.0,
            "outputTokens": 512,
        },
    ]
    assert [each["model"] for each in told["learned"][2:]] == [f"model-{number}" for number in range(28, 10, -1)]
    assert document(Engine(), estimation=told)["estimation"] == told


def test_of_a_kind_of_which_too_little_is_known_nothing_but_its_calls_is_told() -> None:
    learner = Learner()
    learner.learn(Kind("openai", "", ("User *",), 1), Lesson(800, 2, 100, 1), 90)
    learner.learn(Kind("openai", "", ("User *",), None), Lesson(800, None, 100, 1), 90)

    told = [
        (each["calls"], each["bytesPerToken"], each.get("outputShare"), each.get("outputTokens"))
        for each in status.estimation([], learner)["learned"]
    ]

    assert told == [(1, None, None, None)] * 2


def test_the_table_shows_what_was_learned_where_calls_are_judged_by_it() -> None:
    kind = {"provider": "openai", "model": "gpt-5\x1b", "entries": ["User *", "Org *"], "calls": 50}
    learned = [
        {**kind, "bytesPerToken": 4.12, "capsFrom": 16_384, "outputShare": 0.015625},
        {**kind, "model": "", "bytesPerToken": 8.0, "outputTokens": 512},
        {**kind, "calls": 3, "bytesPerToken": None, "capsFrom": 4, "outputShare": None},
        {**kind, "provider": "other", "bytesPerToken": None, "outputTokens": None},
        *[{**kind, "bytesPerToken": 1.0, "outputTokens": 1}] * 10,
    ]

    def rows(mode: str) -> list[str]:
        told = {"modes": {"openai": mode, "other": "Declared"}, "learned": learned}
        return status_table.table(document(Engine(), estimation=told)).splitlines()[1:-2]

    assert rows("Declared") == [""]
    assert rows("Learned") == [
        "",
        "PROVIDER  MODEL   ENTRIES        CAPS FROM  CALLS  BYTES/TOKEN  OUTPUT",
        "openai    gpt-5?  User *, Org *  16384      50     4.12         1.6% of the cap",
        'openai    ""      User *, Org *  -          50     8.0          512',
        "openai    gpt-5?  User *, Org *  4          3      -            -",
        *["openai    gpt-5?  User *, Org *  -          50     1.0          1"] * 2,
        "",
    ]


def test_refusals_of_a_bucket_are_told_for_five_minutes_and_not_where_there_are_none(engine: Engine) -> None:
    admit(engine, "alice", 90)
    for now in (0, 0, 200 * SECOND):
        refused = Call(engine.rules.match("openai", {Scope.USER: "alice"}), Demand(1, 1, 101))
        engine.acquire(refused, now)
    admit(engine, "bob", 1, now=200 * SECOND)

    def told(now: int) -> dict[str, int | None]:
        return {bucket["subject"]: bucket.get("recentlyRejected") for bucket in document(engine, now)["buckets"]}

    assert told(299 * SECOND) == {"alice": 3, "bob": None}
    assert told(305 * SECOND) == {"alice": 1, "bob": None}
    assert told(505 * SECOND) == {"alice": None, "bob": None}


def test_the_store_is_the_gate_s_memory() -> None:
    assert document(Engine())["store"] == {"kind": "memory", "healthy": True}


def test_the_store_says_how_old_what_is_saved_is_and_what_is_wrong_with_it() -> None:
    now = 3 * SECOND
    saving = Saving("/var/lib/sluice", lambda: now, SECOND, restored=7)
    health = Health(saving=saving)
    healthy = {
        "kind": "memory",
        "healthy": True,
        "stateDir": "/var/lib/sluice",
        "savedSecondsAgo": 2.0,
        "restoredBuckets": 7,
        "failedSaves": 0,
    }
    assert document(Engine(), health=health)["store"] == healthy

    saving.failed("/var/lib/sluice/counts: No space left on device")
    answer = document(Engine(), health=health)
    assert answer["store"] == healthy | {
        "healthy": False,
        "failedSaves": 1,
        "problem": "/var/lib/sluice/counts: No space left on device",
    }
    assert status_table.table(answer).splitlines()[-1] == (
        "the counts have not been saved for 2 s: /var/lib/sluice/counts: No space left on device"
    )

    saving.saved(now)
    assert document(Engine(), health=health)["store"] == healthy | {"savedSecondsAgo": 0.0, "failedSaves": 1}


def test_a_save_that_does_not_end_is_told_after_ten_seconds() -> None:
    times = iter((10 * SECOND - 1, 10 * SECOND))
    saving = Saving("/var/lib/sluice", lambda: next(times), 0)

    told = [saving.is_healthy for _ in range(2)]

    assert told == [True, False]


def test_the_store_that_gates_share_says_who_decides_since_when_and_why() -> None:
    now = 0
    store = StoreHealth(address="redis://r:6379/1", prefix="team", clock=lambda: now)
    health = Health(store=store)

    def told() -> tuple[dict[str, Any], list[str]]:
        answer = document(Engine(), health=health)
        lines = status_table.table(answer).splitlines()
        return answer["store"], [line for line in lines if line.startswith("the store")]

    expected = {
        "kind": "redis",
        "address": "redis://r:6379/1",
        "prefix": "team",
        "mode": "Local",
        "healthy": False,
        "secondsInMode": 2.0,
        "gates": 1,
        "modeChanges": 0,
        "decisions": {"Shared": 0, "Local": 0},
        "problem": "not reached yet",
    }
    now += 2 * SECOND
    meanwhile = "until it can, each limit's failurePolicy decides"
    line = f"the store redis://r:6379/1 cannot be used for 2s now: not reached yet; {meanwhile} (gates known: 1)"
    assert told() == (expected, [line])

    store.shared(4)
    store.decided(StoreMode.SHARED, 1)
    now += 90 * SECOND
    del expected["problem"]
    expected |= {
        "mode": "Shared",
        "healthy": True,
        "secondsInMode": 90.0,
        "gates": 4,
        "modeChanges": 1,
        "decisions": {"Shared": 1, "Local": 0},
    }
    assert told() == (expected, ["the store redis://r:6379/1 has decided for 1m30s: 4 gates share it"])

    store.unsent_since = now
    store.local("timed out\x1b[2J")
    now += SECOND
    expected |= {"mode": "Local", "healthy": False, "secondsInMode": 1.0, "modeChanges": 2}
    expected |= {"problem": "timed out\x1b[2J", "unsentSeconds": 1.0}
    line = f"the store redis://r:6379/1 cannot be used for 1s now: timed out?[2J; {meanwhile} (gates known: 4)"
    assert told() == (expected, [line, "the store has lacked something that was counted here for 1s"])


def test_callers_without_a_name_and_the_overflow_are_told_apart() -> None:
    engine = Engine(BOOK, EngineSettings(max_keys=1))
    admit(engine, "", 1)
    admit(engine, "one too many", 1)

    answer = document(engine)

    assert sorted(subjects(answer)) == ["", "(overflow)"]
    assert subjects(document(engine, select=Selection(subject=""))) == [""]
    assert subjects(document(engine, select=Selection(subject="(overflow)"))) == ["(overflow)"]


def test_the_configuration_is_told_with_what_is_wrong() -> None:
    health = Health(waiting_for="")
    health.loaded(1769860800.0, {"limits.yaml": "c0ffee"})
    health.turned_down([Problem("limits.yaml", "document 1", "spec", "is missing")])

    answer = document(Engine(), health=health)

    assert answer["ready"] is True
    assert answer["configuration"] == {
        "generation": 1,
        "loadedAt": "2026-01-31T12:00:00.000Z",
        "files": {"limits.yaml": "c0ffee"},
        "problems": [{"source": "limits.yaml", "document": "document 1", "field": "spec", "message": "is missing"}],
    }


def test_a_good_configuration_ends_the_problems() -> None:
    health = Health()
    health.turned_down([Problem("limits.yaml", "", "", "is not YAML")])
    health.loaded(1.0, {})

    assert (health.generation, health.rejected, health.problems) == (1, 1, ())


def test_the_table_has_a_row_for_each_bucket_and_the_tokens_in_its_totals(engine: Engine) -> None:
    health = Health(waiting_for="")
    health.loaded(1769860800.0, {})
    permit = admit(engine, "alice", 30)
    permit.commit_tokens(Charge(25), 0)
    admit(engine, "bob", 90)

    totals = (
        "calls: 2 admitted, 0 rejected, 2 in flight, 0 queued, 0 unlimited, 0 refunded; "
        "tokens: 25 committed, 0 estimated; 0 permits expired"
    )
    assert status_table.table(document(engine, health=health)).splitlines() == [
        "PROVIDER  SCOPE  SUBJECT  IN-FLIGHT  QUEUED  RPM  TPM     REJECTED",
        "openai    User   bob      1/2        0       1/4  90/100  0",
        "openai    User   alice    1/2        0       1/4  25/100  0",
        "",
        totals,
        "ready; configuration 1 since 2026-01-31T12:00:00.000Z",
    ]


def test_the_table_shows_models_and_longer_windows_only_where_there_are_any(engine: Engine) -> None:
    admit(engine, "alice", 1, model="o4")

    header, *rows = status_table.table(document(engine)).splitlines()[:3]

    assert header.split() == [
        "PROVIDER",
        "SCOPE",
        "SUBJECT",
        "MODELS",
        "IN-FLIGHT",
        "QUEUED",
        "RPM",
        "TPM",
        "TPD",
        "REJECTED",
    ]
    assert sorted(row.split() for row in rows) == [
        ["openai", "Org", "acme", "gpt-5*,o4", "1", "0", "-", "-", "1/1000", "0"],
        ["openai", "User", "alice", "-", "1/2", "0", "1/4", "1/100", "-", "0"],
    ]


def test_the_table_has_a_column_for_every_window() -> None:
    every: Any = {cap.attribute: 9 for cap in Cap}
    engine = Engine(RuleBook((Rule("openai", Scope.USER, Limits(**every)),)))
    engine.acquire(Call(engine.rules.match("openai", {Scope.USER: "alice"}), Demand(1, 1, 7, 5, 2)), 0)

    header, row = status_table.table(document(engine)).splitlines()[:2]

    assert dict(zip(header.split(), row.split(), strict=True)) == {
        "PROVIDER": "openai",
        "SCOPE": "User",
        "SUBJECT": "alice",
        "IN-FLIGHT": "1/9",
        "QUEUED": "0",
        **dict.fromkeys(("RPM", "RPH", "RPD"), "1/9"),
        **dict.fromkeys(("TPM", "TPH", "TPD"), "7/9"),
        **dict.fromkeys(("ITPM", "ITPH", "ITPD"), "5/9"),
        **dict.fromkeys(("OTPM", "OTPH", "OTPD"), "2/9"),
        "REJECTED": "0",
    }


def test_who_was_refused_and_why_is_seen_for_ten_minutes_and_then_forgotten() -> None:
    engine = Engine(RuleBook((Rule("openai", Scope.USER, Limits(tokens_per_minute=10)),)))
    applied = engine.rules.match("openai", {Scope.USER: "carol"})
    engine.acquire(Call(applied, Demand(1, 1, 11)), 0)
    engine.advance(5 * SECOND)

    answer = document(engine, now=5 * SECOND)

    assert answer["buckets"][0]["lastRefusal"] == {
        "reason": "OversizedRequest",
        "cap": "tokensPerMinute",
        "secondsAgo": 5.0,
    }
    assert status_table.table(answer).splitlines()[1].endswith("1         OversizedRequest, tokensPerMinute, 5 s ago")
    for _ in range(2):  # one look finds the bucket, the next one at it
        engine.advance(601 * SECOND)
    assert engine.keys() == ()


def test_the_table_says_what_a_shadow_limit_would_have_refused() -> None:
    limits = Limits(requests_per_minute=0, mode=Mode.SHADOW)
    engine = Engine(RuleBook((Rule("openai", Scope.USER, limits),)))
    admit(engine, "alice", 1)

    table = status_table.table(document(engine))
    assert "1 admitted, 0 rejected, 1 would have been," in table
    assert "0 (1 in shadow)" in table


def test_a_subject_cannot_move_the_reader_s_terminal(engine: Engine) -> None:
    admit(engine, "\x1b[2Jx\u202e", 1)

    assert "?[2Jx?" in status_table.table(document(engine))


def test_the_table_says_so_when_there_is_nothing_to_show_or_something_wrong() -> None:
    health = Health()
    health.loaded(1769860800.0, {})
    health.turned_down([Problem("limits.yaml", "", "", "is not YAML")])

    text = status_table.table(document(Engine(), health=health))

    assert text.startswith("no bucket: no such call has met a limit lately\n")
    assert text.splitlines()[-3:] == [
        "not ready; configuration 1 since 2026-01-31T12:00:00.000Z",
        "the limits files have mistakes, and the last good configuration stays in force:",
        "  limits.yaml: is not YAML",
    ]


def test_before_there_were_any_limits_no_configuration_is_told() -> None:
    health = Health()
    health.turned_down([Problem("limits.yaml", "", "", "cannot be read: No such file or directory")])

    answer = document(Engine(), health=health)

    assert (answer["configuration"]["generation"], answer["configuration"]["loadedAt"]) == (0, None)
    assert status_table.table(answer).splitlines()[-3:] == [
        "not ready; no configuration is in force yet",
        "the limits files have mistakes:",
        "  limits.yaml: cannot be read: No such file or directory",
    ]


def test_a_provider_whose_usage_is_not_told_is_named_with_what_to_do(engine: Engine) -> None:
    answer = document(engine, missing={"openai": Missing.NO_STREAM})
    missing = {"provider": "openai", "why": "NoUsageStream", "message": ADVICE[Missing.NO_STREAM]}
    assert answer["commits"] == {"healthy": False, "missing": [missing]}
    assert f"openai: {ADVICE[Missing.NO_STREAM]}" in status_table.table(answer).splitlines()
    assert document(engine)["commits"] == {"healthy": True, "missing": []}
