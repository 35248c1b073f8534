"""What a person sees of the calls that an object limits, and what is told of it in events."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from typing import Any

import pytest

from helpers.namespace import Namespace, entry, limits_object
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import Cap
from sluice_operator.planning.plan import Plan
from sluice_operator.planning.reports import BucketReport, Recent, Refusal, Store, Use

USER, ORG = Scope.USER, Scope.ORG
ONE = Store(kind="redis", address="redis://r:6379", prefix="team", mode="Shared")
OTHERS = (
    replace(ONE, prefix="crew"),
    replace(ONE, address="redis://s:6379"),
    replace(ONE, kind="newer"),
)
AWAY = replace(ONE, healthy=False, mode="Local")


def bucket(
    subject: str = "alice",
    requests: int = 0,
    scope: Scope = USER,
    *,
    in_flight: int = 0,
    models: str = "",
    provider: str = "openai",
    refusal: Refusal | None = None,
    **uses: Use,
) -> BucketReport:
    counted = {Cap.REQUESTS_PER_MINUTE: Use(requests, 60)} | {Cap[cap.upper()]: use for cap, use in uses.items()}
    return BucketReport(BucketKey(provider, scope, subject, models), in_flight, counted, refusal)


def shown(*entries: dict[str, Any], gates: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Return the status of an object with these entries, once each gate has answered."""
    namespace = Namespace(limits_object("openai", *entries), gates=[f"gate-{number}" for number in range(len(gates))])
    namespace.round()
    for pod, answer in zip(tuple(namespace.gates), gates, strict=True):
        namespace.answer(pod, **answer)
    namespace.round()
    status: dict[str, Any] = namespace.objects["openai"]["status"]
    return status


class Pressed:
    """One gate of which one bucket fills and empties."""

    def __init__(self) -> None:
        self.namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
        self.namespace.round()
        self.to(0)

    def to(self, requests: int) -> list[tuple[str, str, str]]:
        """Set the calls counted, of 60; return the events."""
        self.namespace.answer("gate-a", buckets=(bucket("", requests),))
        return self.told(self.namespace.round())

    def told(self, made: Plan) -> list[tuple[str, str, str]]:
        return [(event.kind, event.reason, event.message) for event in made.events]

    @property
    def levels(self) -> list[str]:
        return [each["level"] for each in self.namespace.objects["openai"]["status"].get("pressure", [])]


def test_until_a_gate_has_answered_there_is_no_usage() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()

    assert "usage" not in namespace.objects["openai"]["status"]
    assert namespace.verdict("openai", "CommitsHealthy") == ("Unknown", "NoReports")


def test_windows_are_those_of_the_fullest_bucket_and_sums_are_of_all_gates() -> None:
    first = {
        "buckets": (bucket("a", 10, in_flight=1, tokens_per_minute=Use(520, 1000)), bucket("b", 41, in_flight=1)),
        "recent": {"openai": Recent(100, 2, 3, 40, 4, 1, 429, 1000, 370, 5), "other": Recent(rejected=9)},
    }
    second = {
        "buckets": (bucket("a", 30, in_flight=2), bucket("o", 5, ORG, in_flight=3)),
        "recent": {"openai": Recent(20, 10, committed=10)},
    }
    org = entry(60, "Org", tokensPerMinute=1000)

    status = shown(entry(tokensPerMinute=1000), org, gates=(first, second))

    assert status["usage"] == {
        "requestsPerMinute": "41/60",
        "tokensPerMinute": "52%",
        "inFlight": 4,
        "rejected": 12,
        "wouldReject": 3,
        "admitted": 120,
        "committedTokens": 1000,
        "estimatedCalls": 4,
        "estimateError": "37%",
        "underestimated": "10%",
    }
    assert status["provider"] == {"throttled": 1, "lastStatus": 429}


def test_what_one_store_counts_is_told_once_and_what_each_gate_does_is_added() -> None:
    buckets = [
        bucket("alice", used, in_flight=slots, max_concurrent=Use(slots, 9)) for used, slots in ((41, 5), (40, 6))
    ]
    first = {"store": ONE, "buckets": (buckets[0],), "recent": {"openai": Recent(admitted=30)}}
    second = {"store": ONE, "buckets": (buckets[1],), "recent": {"openai": Recent(admitted=20)}}

    usage = shown(entry(), gates=(first, second))["usage"]

    assert (usage["inFlight"], usage["requestsPerMinute"], usage["admitted"]) == (6, "41/60", 50)


@pytest.mark.parametrize("other", [AWAY, Store(), *OTHERS])
def test_what_a_gate_counts_alone_or_another_store_is_added_to_what_a_store_counts(other: Store) -> None:
    stores = (ONE, other, ONE, other)
    slots = bucket("alice", 1, in_flight=2, max_concurrent=Use(2, 9))
    answers = tuple({"store": each, "buckets": (slots,)} for each in stores)

    together = 4 if other in OTHERS else 6
    assert shown(entry(), gates=answers)["usage"]["inFlight"] == together


def test_calls_in_flight_that_no_limit_is_on_are_added_up_as_the_store_does_not_count_them() -> None:
    answers = tuple({"store": ONE, "buckets": (bucket("alice", 41, in_flight=slots),)} for slots in (5, 6))

    assert shown(entry(), gates=answers)["usage"]["inFlight"] == 11


def test_a_slot_of_a_shared_store_is_shown_once() -> None:
    full = bucket("alice", 1, in_flight=2, max_concurrent=Use(2, 2))
    answer = {"store": ONE, "buckets": (full,)}

    status = shown(entry(maxConcurrent=2), gates=(answer, answer))

    assert status["usage"]["inFlight"] == 2
    assert [(each["cap"], each["used"]) for each in status["hottest"]] == [("maxConcurrent", 2)]


def test_a_provider_that_nobody_calls_shows_its_caps_unused() -> None:
    assert shown(entry(60, tokensPerMinute=9), entry(3, match={"subjects": ["a"]}), gates=({},))["usage"] == {
        "requestsPerMinute": "0/3",
        "tokensPerMinute": "0%",
        "inFlight": 0,
        "rejected": 0,
        "wouldReject": 0,
        "admitted": 0,
        "committedTokens": 0,
        "estimatedCalls": 0,
    }


def test_a_bucket_belongs_to_the_object_whose_entry_holds_for_it() -> None:
    namespace = Namespace(
        limits_object("everybody", entry()),
        limits_object("bots", entry(match={"subjects": ["bot-*"]}), entry(match={"models": ["gpt-5*"]})),
        limits_object("bot-1", entry(match={"subjects": ["bot-1"]})),
        gates=["gate-a"],
    )
    namespace.round()
    namespace.answer(
        "gate-a",
        buckets=(
            bucket("alice", 1),
            bucket("bot-2", 2),
            bucket("bot-1", 3),
            bucket("x", 4, models="gpt-5*"),
            bucket("y", 5, models="gpt-6*"),
            bucket("z", 6, provider="anthropic"),
        ),
    )
    namespace.round()

    used = {
        name: sorted(each["used"] for each in value["status"]["hottest"]) for name, value in namespace.objects.items()
    }

    assert used == {"everybody": [1], "bots": [2, 4], "bot-1": [3]}


def test_the_hottest_are_five_and_none_that_is_idle_or_shut() -> None:
    buckets = [bucket("alice", number, models=f"m{number}") for number in range(9)]
    entries = [entry(match={"subjects": ["alice"], "models": [f"m{number}"]}) for number in range(9)]
    shut = bucket("alice", models="m0", requests_per_day=Use(0, 0))

    status = shown(*entries, gates=({"buckets": (*buckets, shut)},))

    assert [each["used"] for each in status["hottest"]] == [8, 7, 6, 5, 4]
    assert status["hottest"][0] == {
        "scope": "User",
        "subject": "alice",
        "models": ["m8"],
        "cap": "requestsPerMinute",
        "used": 8,
        "limit": 60,
        "percent": 13,
    }


@pytest.mark.parametrize(
    ("source", "subject", "seen"),
    [
        ({"header": "x-user-id"}, "mallory@example.com", "sha256-c9c47fe828a0"),
        ({"header": "x-user-id"}, "alice", "alice"),
        ({"header": "x-user-id"}, "team-1", "sha256-7e2a2d5f9a30"),
        ({"header": "x-user-id"}, "", ""),
        ({"header": "x-user-id"}, "(overflow)", "(overflow)"),
        ({"apiKey": True}, "key-0123456789abcdef", "key-0123456789abcdef"),
        ({"constant": "a\u202eb" + "c" * 99}, "a\u202eb" + "c" * 99, "a?b" + "c" * 61),
        # What a gate counted before the object read its subjects elsewhere.
        ({"constant": "everybody"}, "mallory@example.com", "sha256-c9c47fe828a0"),
        ({"apiKey": True}, "mallory@example.com", "sha256-c9c47fe828a0"),
        ({"env": "TEAM"}, "mallory@example.com", "sha256-c9c47fe828a0"),
    ],
)
def test_what_a_header_says_is_kept_as_a_hash_unless_the_object_names_it(
    source: dict[str, Any], subject: str, seen: str
) -> None:
    named = entry(subject=source, match={"subjects": ["alice", "team-*"]})
    refused = Refusal("requestsPerMinute", "WouldExceed", 2.0)
    status = shown(entry(subject=source), named, gates=({"buckets": (bucket(subject, 60, refusal=refused),)},))

    assert status["hottest"][0]["subject"] == seen
    assert status["pressure"] == [{"scope": "User", "subject": seen, "cap": "requestsPerMinute", "level": "Full"}]
    assert status["lastRefusal"] == {
        "scope": "User",
        "subject": seen,
        "cap": "requestsPerMinute",
        "reason": "WouldExceed",
    }


def test_the_last_refusal_is_the_latest_of_all_gates_and_not_an_old_one() -> None:
    older = bucket("a", refusal=Refusal("requestsPerMinute", "WouldExceed", 20.0))
    latest = bucket("b", refusal=Refusal("maxConcurrent", "NoFreeSlot", 2.0))
    old = bucket("b", refusal=Refusal("maxConcurrent", "NoFreeSlot", 301.0))

    assert (
        shown(entry(), gates=({"buckets": (older,)}, {"buckets": (latest,)}))["lastRefusal"]["reason"] == "NoFreeSlot"
    )
    assert "lastRefusal" not in shown(entry(), gates=({"buckets": (old,)},))


def test_a_bucket_that_crosses_80_and_100_percent_is_told_once_each() -> None:
    pressed = Pressed()

    assert pressed.to(47) == []
    assert pressed.to(48) == [
        ("Normal", "LimitNear", "User without a name has used 80 % or more of requestsPerMinute.")
    ]
    assert pressed.to(59) == []
    assert pressed.to(60) == [("Warning", "LimitReached", "User without a name has used up requestsPerMinute.")]
    assert pressed.to(61) == []


@pytest.mark.parametrize("cap", [Cap.INPUT_TOKENS_PER_MINUTE, Cap.OUTPUT_TOKENS_PER_DAY])
def test_a_cap_on_input_or_output_is_hot_and_under_pressure_like_any_other(cap: Cap) -> None:
    capped: Any = {cap: 100}
    used: Any = {cap.attribute: Use(85, 100)}
    full = bucket("", 30, refusal=Refusal(cap, "WouldExceed", 2.0), **used)
    namespace = Namespace(limits_object("openai", entry(**capped)), gates=["gate-a"])
    namespace.round()
    namespace.answer("gate-a", buckets=(full,))
    told = [(event.reason, event.message) for event in namespace.round().events if event.reason == "LimitNear"]
    status = namespace.objects["openai"]["status"]

    place = {"scope": "User", "subject": "", "cap": str(cap)}
    assert status["hottest"] == [place | {"used": 85, "limit": 100, "percent": 85}]
    assert status["pressure"] == [place | {"level": "High"}]
    assert status["lastRefusal"] == place | {"reason": "WouldExceed"}
    assert told == [("LimitNear", f"User without a name has used 80 % or more of {cap}.")]


def test_a_bucket_about_a_bound_is_told_again_only_after_it_was_below_70_percent() -> None:
    pressed = Pressed()
    pressed.to(60)

    assert [pressed.to(requests) for requests in (42, 60, 47, 48)] == [[], [], [], []]
    assert pressed.levels == ["Full"]
    assert pressed.to(41) == []
    assert pressed.levels == []
    assert [reason for _, reason, _ in pressed.to(50)] == ["LimitNear"]


def test_a_restarted_operator_tells_nothing_again() -> None:
    pressed = Pressed()
    pressed.to(60)
    pressed.namespace.restart()

    assert pressed.to(61) == []


def test_a_gate_that_falls_silent_relieves_nothing() -> None:
    pressed = Pressed()
    pressed.namespace.add_gate("gate-b")
    pressed.namespace.answer("gate-b")
    pressed.to(60)
    pressed.namespace.silence("gate-a")
    pressed.namespace.round()

    assert pressed.levels == ["Full"]
    assert [reason for _, reason, _ in pressed.to(60)] == ["Programmed"]


def test_no_more_than_ten_buckets_are_told_and_those_that_were_stay() -> None:
    namespace = Namespace(limits_object("openai", entry(subject={"env": "TEAM"})), gates=["gate-a"])
    namespace.round()
    namespace.answer("gate-a", buckets=tuple(bucket(f"s{number:02}", 50) for number in range(10)))
    namespace.round()
    namespace.answer("gate-a", buckets=tuple(bucket(f"s{number:02}", 50 + number) for number in range(30)))

    made = namespace.round()

    subjects = {each["subject"] for each in namespace.objects["openai"]["status"]["pressure"]}
    assert subjects == {hashed(f"s{number:02}") for number in range(10)}
    assert made.events == ()


def hashed(subject: str) -> str:
    """As a subject is kept that the object does not name."""
    return f"sha256-{hashlib.sha256(subject.encode()).hexdigest()[:12]}"


def test_of_more_buckets_than_can_be_compared_with_patterns_the_fullest_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sluice_operator.planning.usage.MOST_COMPARED", 4 * 2)
    buckets = [bucket(f"s{number}", number) for number in range(10, 20)] + [bucket("alice", 1)]
    matches = ({"subjects": ["s*", "t*", "alice"]}, {"subjects": ["u*", "v*"]})

    status = shown(*(entry(match=match) for match in matches), gates=({"buckets": tuple(buckets)},))

    assert [(each["subject"], each["used"]) for each in status["hottest"]] == [
        (hashed("s19"), 19),
        (hashed("s18"), 18),
        ("alice", 1),
    ]


def test_calls_in_flight_at_their_cap_are_no_pressure() -> None:
    full = bucket("alice", 1, max_concurrent=Use(2, 2))

    status = shown(entry(maxConcurrent=2), gates=({"buckets": (full,)},))

    assert "pressure" not in status
    assert status["hottest"][0]["cap"] == "maxConcurrent"


@pytest.mark.parametrize(
    ("recent", "verdict"),
    [
        (Recent(), ("Unknown", "NoCalls")),
        (Recent(admitted=50), ("Unknown", "NoCalls")),
        (Recent(committed=1, estimated=18), ("True", "Committed")),
        (Recent(committed=9, estimated=11, untold=11), ("False", "CommitsMissing")),
        (Recent(committed=9, estimated=11, expired=11), ("False", "CommitsMissing")),
        (Recent(committed=10, estimated=10, untold=10), ("True", "Committed")),
        (Recent(committed=1, estimated=99), ("True", "Committed")),
    ],
)
def test_commits_are_healthy_unless_most_of_twenty_calls_are_never_told(
    recent: Recent, verdict: tuple[str, str]
) -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()
    namespace.answer("gate-a", recent={"openai": recent})
    namespace.round()

    assert namespace.verdict("openai", "CommitsHealthy") == verdict


@pytest.mark.parametrize(
    ("recent", "verdict", "shown_as"),
    [
        (Recent(throttled=3), ("True", "Throttled"), {"throttled": 3, "lastStatus": 0}),
        (Recent(throttled=3, overloaded=2), ("True", "Throttled"), {"throttled": 3, "overloaded": 2, "lastStatus": 0}),
        (
            Recent(throttled=2, overloaded=2, last_throttled_status=529),
            ("True", "Overloaded"),
            {"throttled": 2, "overloaded": 2, "lastStatus": 529},
        ),
        (
            Recent(throttled=9, overloaded=2, spend_capped=1),
            ("True", "SpendCapReached"),
            {"throttled": 9, "overloaded": 2, "spendCapped": 1, "lastStatus": 0},
        ),
    ],
)
def test_why_a_provider_refuses_is_told_apart(
    recent: Recent, verdict: tuple[str, str], shown_as: dict[str, int]
) -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()
    namespace.answer("gate-a", recent={"openai": recent})
    namespace.round()

    assert namespace.verdict("openai", "ProviderThrottled") == verdict
    assert namespace.objects["openai"]["status"]["provider"] == shown_as


def test_trouble_and_its_end_are_told_and_good_health_is_not() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a", "gate-b"])
    namespace.round()
    told = []
    for healthy, throttled in ((True, 0), (False, 2), (True, 0)):
        namespace.answer("gate-a")
        namespace.answer("gate-b", store=Store(healthy=healthy), recent={"openai": Recent(throttled=throttled)})
        told.append([(event.kind, event.reason) for event in namespace.round().events])

    assert told == [
        [("Normal", "Programmed")],
        [("Warning", "StoreAway"), ("Warning", "Throttled")],
        [("Normal", "StoreHealthy"), ("Normal", "NotThrottled")],
    ]


SHARED_AWAY = (
    "The store that gates share cannot be used by {}: see the gate's log. Until it can, each decides alone, as the "
    "failurePolicy of each limit says."
)
UNSAVED = (
    "The counts of {} are not saved: see the gate's log. Limits hold meanwhile; a restart would forget what was "
    "counted since."
)


@pytest.mark.parametrize(
    ("stores", "verdict", "message"),
    [
        ((ONE, Store(), ONE), ("True", "StoreHealthy"), "Every gate that answers reaches the store of its counts."),
        ((AWAY, ONE, AWAY), ("False", "StoreAway"), SHARED_AWAY.format("gate-a, gate-c")),
        ((ONE, Store(healthy=False), ONE), ("False", "StoreAway"), UNSAVED.format("gate-b")),
        (
            (Store(healthy=False), ONE, AWAY),
            ("False", "StoreAway"),
            f"{SHARED_AWAY.format('gate-c')} {UNSAVED.format('gate-a')}",
        ),
    ],
)
def test_gates_without_their_store_are_named_with_what_happens_meanwhile(
    stores: tuple[Store, ...], verdict: tuple[str, str], message: str
) -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a", "gate-b", "gate-c"])
    namespace.round()
    for pod, store in zip(tuple(namespace.gates), stores, strict=True):
        namespace.answer(pod, store=store)
    namespace.round()

    assert namespace.verdict("openai", "StoreHealthy") == verdict
    assert namespace.condition("openai", "StoreHealthy")["message"] == message


def test_numbers_that_no_json_reader_holds_are_bounded() -> None:
    huge = 2**63 - 1
    full = bucket("a", huge, in_flight=huge, tokens_per_minute=Use(huge, 1))
    answer = {"buckets": (full,), "recent": {"openai": Recent(*[huge] * len(fields(Recent)))}}

    status = shown(entry(tokensPerMinute=1), gates=(answer, answer))

    assert status["usage"]["inFlight"] == status["usage"]["rejected"] == 2**53 - 1
    assert status["usage"]["tokensPerMinute"] == "9999%"
    assert status["provider"]["lastStatus"] == 599
