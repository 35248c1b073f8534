"""What people see of the providers' own word."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.core import Sample

from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import SECOND
from sluice.core.upstream import QuotaState, UpstreamState
from sluice.core.words import Amount, RefusedAs
from sluice_sidecar import upstream_status

QUOTA = QuotaState("x-ratelimit-remaining-requests", Amount.REQUESTS, 3, 60, 57 * SECOND)
QUIET = UpstreamState(BucketKey("openai", Scope.PROVIDER, "key-1", "gpt-5"), 2 * SECOND, 0, None, (QUOTA,), 0, 1)
PAUSED = UpstreamState(
    BucketKey("openai", Scope.PROVIDER, "key-2", ""), SECOND, 250 * SECOND, RefusedAs.SPEND_CAP, (), 4, 9
)


def test_an_account_is_shown_with_its_quotas_and_its_pause_the_longest_pause_first() -> None:
    assert upstream_status.document([QUIET, PAUSED]) == {
        "upstreams": [
            {
                "provider": "openai",
                "account": "key-2",
                "heardSecondsAgo": 1.0,
                "pausedSeconds": 250.0,
                "lastRefusal": "SpendCap",
                "quotas": [],
                "queued": 4,
                "rejected": 9,
            },
            {
                "provider": "openai",
                "account": "key-1",
                "model": upstream_status.known_as("gpt-5"),
                "heardSecondsAgo": 2.0,
                "quotas": [{"of": "requests", "remaining": 3, "limit": 60, "resetSeconds": 57.0}],
                "queued": 0,
                "rejected": 1,
            },
        ],
        "upstreamsOmitted": 0,
    }


def test_one_provider_can_be_asked_for_and_many_accounts_are_cut_off() -> None:
    other = replace(QUIET, key=QUIET.key._replace(provider="mistral"))
    assert len(upstream_status.document([QUIET, other], "mistral")["upstreams"]) == 1
    told = upstream_status.document([QUIET] * (upstream_status.MOST + 3))
    assert (len(told["upstreams"]), told["upstreamsOmitted"]) == (upstream_status.MOST, 3)


def test_the_table_has_a_line_for_a_pause_and_nothing_that_a_caller_sent() -> None:
    model = "gpt\x1b[2J"
    accounts = upstream_status.document([QUIET, replace(PAUSED, key=PAUSED.key._replace(models=model))])["upstreams"]
    known_as = upstream_status.known_as(model)
    assert list(upstream_status.lines(accounts)) == [
        f"openai key-2 {known_as}: not asked for 250 s, for it said SpendCap"
    ]
    assert known_as.removeprefix("sha256-").isalnum()


def test_pauses_are_counted_by_provider_and_kind() -> None:
    family = upstream_status.paused([QUIET, PAUSED, PAUSED])
    assert family.samples == [Sample("sluice_provider_paused", {"provider": "openai", "kind": "SpendCap"}, 2)]
