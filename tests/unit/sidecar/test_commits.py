"""The watch over commits, on a clock that is set by hand."""

from __future__ import annotations

import logging

import pytest

from sluice.core.limits import MINUTE, SECOND
from sluice.usage.commits import ADVICE, FEWEST, Missing
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.recent import SLOT, RecentCounts


class Watched:
    """A watch, and what it has seen."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND
        self.recent = RecentCounts(lambda: self.now)
        self.watch = CommitWatch(self.recent)

    def after(self, nanoseconds: int) -> dict[str, Missing]:
        self.now += nanoseconds
        self.watch.look()
        return dict(self.watch.missing)


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO)
    return Watched()


def test_what_is_missing_is_said_once_and_for_a_minute(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(FEWEST):
        watched.recent.untold("openai")
    assert watched.after(0) == {"openai": Missing.NO_USAGE}
    assert watched.after(MINUTE) == {"openai": Missing.NO_USAGE}
    assert watched.after(SLOT) == {}
    assert caplog.messages == [f"openai: {ADVICE[Missing.NO_USAGE]}"]


def test_each_provider_is_judged_by_itself(watched: Watched) -> None:
    for provider, calls in (("openai", FEWEST - 1), ("anthropic", FEWEST)):
        for _ in range(calls):
            watched.recent.untold(provider)
    assert watched.after(0) == {"anthropic": Missing.NO_USAGE}
