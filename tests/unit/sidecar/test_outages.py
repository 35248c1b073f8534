"""Providers that cannot be reached, in the log."""

from __future__ import annotations

import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogCommon

from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.engine import Engine
from sluice.core.limits import MINUTE, SECOND
from sluice_sidecar.gate import Gate
from sluice_sidecar.outages import Outages

UPSTREAM = "http://127.0.0.1:9"


class Seen:
    """Outages on a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0
        gate = Gate(Engine(), lambda: self.now)
        gate.apply(
            merge(parse("\n---\n".join(limits(name, UPSTREAM, api="OpenAI") for name in ("a", "b")), "test")), {}
        )
        self.outages = Outages(gate)

    def call(self, provider: str, flag: str) -> None:
        call = AccessLogCommon(route_name=provider)
        setattr(call.response_flags, flag, True)
        self.outages.see(call)


def test_it_is_said_once_a_minute_of_each_provider(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    for seen.now in (0, SECOND, MINUTE - 1, MINUTE, MINUTE + 1):
        for provider in ("a", "b"):
            seen.call(provider, "no_healthy_upstream")

    no_address = "cannot be reached: its name leads to no address now"
    assert caplog.messages == [f"{provider} {no_address}" for provider in ("a", "b", "a", "b")]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    "flag", ["upstream_connection_termination", "downstream_connection_termination", "local_reset"]
)
def test_a_call_that_was_cut_says_nothing_of_whether_its_provider_can_be_reached(
    flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    Seen().call("a", flag)

    assert caplog.messages == []
