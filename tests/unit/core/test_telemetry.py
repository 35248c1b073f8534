"""What the engine tells of its work."""

from __future__ import annotations

import logging

import pytest

from helpers.ledger import PROVIDER, Event, Gate, admitted, org, refused, user
from sluice.core.buckets import Charge, Demand
from sluice.core.decisions import Reason, Refusal
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MINUTE, SECOND, Limits, Mode
from sluice.core.permits import Call, Settled
from sluice.core.rules import RuleBook
from sluice.core.telemetry import DebugLog
from sluice.core.words import Amount

ALICE = BucketKey(PROVIDER, Scope.USER, "alice")
ACME = BucketKey(PROVIDER, Scope.ORG, "acme")
LIMITS = Limits(tokens_per_minute=100, max_concurrent=1, max_wait=5 * SECOND)


def test_acquire_commit_and_release_are_told_with_keys_estimate_actual_and_how_it_was_settled() -> None:
    gate = Gate(user(limits=LIMITS), org(limits=Limits(requests_per_day=9)))
    permit = gate.admit(0, tokens=60)
    permit.commit_tokens(Charge(40), 1)
    permit.release(2)
    keys = (ALICE, ACME)
    assert gate.journal.events == [
        Event("acquired", keys, estimate=60, actual=60, wait=0, reason=""),
        Event("committed", keys, estimate=60, actual=40, wait=0, reason="committed"),
        Event("released", keys, estimate=60, actual=40, wait=0, reason="committed"),
    ]


def test_what_changes_nothing_is_not_told() -> None:
    gate = Gate(user(limits=LIMITS))
    permit = gate.admit(0)
    permit.commit_tokens(Charge(40), 0)
    permit.release(0)
    told = list(gate.journal.events)
    permit.commit_tokens(Charge(50), 0)
    permit.release(0)
    assert gate.journal.events == told


def test_a_refund_and_an_estimate_are_told_as_such() -> None:
    gate = Gate(user(limits=Limits(tokens_per_minute=1000)))
    gate.admit(0).commit_tokens(Charge(0), 0, Settled.REFUNDED)
    gate.admit(0).release(0)
    assert [event.reason for event in gate.journal.events] == ["", "refunded", "", "estimated"]


def test_a_refusal_is_told_with_the_bucket_that_said_no_the_estimate_and_the_reason() -> None:
    gate = Gate(user(limits=LIMITS))
    gate.refuse(0, tokens=101)
    assert gate.journal.events == [Event("rejected", (ALICE,), 101, 0, 0, "OversizedRequest")]


def test_how_long_a_call_waited_is_told_when_it_is_admitted_and_when_it_is_refused() -> None:
    gate = Gate(user(limits=LIMITS))
    permit = gate.admit(0)
    gate.engine.claim(permit.lease, 0)
    first, second = gate.queue(SECOND), gate.queue(2 * SECOND)
    permit.release(4 * SECOND)
    assert admitted(first.outcome).waited == 3 * SECOND
    gate.engine.claim(admitted(first.outcome).lease, 4 * SECOND)
    gate.engine.advance(7 * SECOND)
    refused(second.outcome)
    assert [(event.name, event.wait) for event in gate.journal.events[2:]] == [
        ("acquired", 3 * SECOND),
        ("rejected", 5 * SECOND),
    ]


def test_an_expiry_is_told_instead_of_a_release() -> None:
    gate = Gate(user(limits=LIMITS))
    permit = gate.admit(0, tokens=60)
    gate.engine.advance(MINUTE)
    permit.release(MINUTE)
    assert gate.journal.events[1:] == [Event("expired", (ALICE,), 60, 60, 0, "estimated")]


def test_a_withdrawal_is_told_as_the_end_of_a_call_that_used_nothing() -> None:
    gate = Gate(user(limits=LIMITS))
    gate.engine.withdraw(gate.admit(0, tokens=60), 0)
    assert gate.journal.events[1:] == [Event("released", (ALICE,), 60, 0, 0, "refunded")]


def test_a_caller_who_leaves_the_queue_is_told_nothing_of() -> None:
    gate = Gate(user(limits=LIMITS))
    gate.admit(0)
    gate.engine.cancel(gate.queue(0), 1)
    assert [event.name for event in gate.journal.events] == ["acquired"]


def test_without_a_sink_each_event_is_one_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(
        user(limits=Limits(requests_per_minute=3)),
        org(limits=Limits(tokens_per_minute=15, mode=Mode.SHADOW)),
    )
    gate.engine = Engine(gate.engine.rules, EngineSettings(name="g"))
    with caplog.at_level(logging.DEBUG, logger="sluice"):
        permit = gate.admit(0)
        permit.commit_tokens(Charge(5), 1)
        permit.release(2)
        gate.admit(2, tokens=11)
        gate.admit(2)
        gate.refuse(3)
        gate.engine.advance(3 * SECOND)
    words = [record.getMessage().split(" keys=")[0].split(" key=")[0] for record in caplog.records]
    assert words == [
        "acquire g1", "commit g1", "release g1", "would reject (shadow)", "acquire g2", "would reject (shadow)",
        "acquire g3", "reject", "expire g2", "expire g3",
    ]  # fmt: skip
    assert all(record.levelno == logging.DEBUG and record.name == "sluice" for record in caplog.records)


def test_above_debug_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(RuleBook((user(limits=LIMITS),)))
    gate = Gate(*engine.rules.rules)
    gate.engine = engine
    with caplog.at_level(logging.INFO, logger="sluice"):
        gate.admit(0).release(0)
        gate.refuse(0, tokens=101)
    assert caplog.records == []


def test_the_log_does_not_say_which_model_a_refused_caller_named(caplog: pytest.LogCaptureFixture) -> None:
    key = BucketKey("openai", Scope.PROVIDER, "key-1", "my secret")
    refusal = Refusal(Reason.PROVIDER_LIMIT, key, Amount.REQUESTS, 0, 0, 1, SECOND)
    with caplog.at_level("DEBUG", "sluice"):
        DebugLog().rejected(Call((), Demand(1, 1, 0)), refusal, 0)
    assert "ProviderLimit" in caplog.text
    assert "my secret" not in caplog.text
