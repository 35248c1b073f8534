"""The responses in `tests/data/responses`, given out by the stand-in provider, and what each costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from helpers.examples import EXAMPLES, Example
from helpers.responses import recorded
from helpers.system import System, limits, running_system
from sluice.core.buckets import Charge
from sluice.usage.counting import scale_of
from sluice.usage.estimate import Estimate
from sluice.usage.headers import usage_from_headers
from sluice.usage.profiles import BUILT_IN
from sluice.usage.settlement import settle
from sluice_sidecar.envoy_config import UsageSource
from standin import Recording

ROOM = 10_000_000
CAPS = {"tokensPerMinute": ROOM, "inputTokensPerMinute": ROOM, "outputTokensPerMinute": ROOM, "maxConcurrent": 4}
NOTHING_EXPECTED = Estimate(0, 0, None)
SAMPLES = {sample.name: sample for sample in recorded()}
BY_NAME = {example.name: example for example in EXAMPLES}
RECORDINGS = {
    sample.name: Recording({"content-type": sample.content_type, **sample.headers}, sample.body)
    for sample in recorded()
}


@asynccontextmanager
async def replaying(source: UsageSource) -> AsyncIterator[System]:
    """Every built-in provider, with room for all calls; each call names its answer in `x-standin-recording`."""

    def documents(upstream: str) -> str:
        return "\n---\n".join(limits(name, upstream, CAPS) for name in BUILT_IN.names)

    async with running_system(documents, source, recordings=RECORDINGS) as system:
        yield system


def headers(name: str) -> dict[str, str]:
    """Of a call that is answered by that example; its user has the example's name."""
    return {"x-user-id": name, "x-standin-recording": name}


def used(system: System, user: str) -> Charge:
    """What has been counted for a user."""
    windows = {cap.value: state.used for cap, state in system.bucket(user).windows.items()}
    return Charge(*(windows[name] for name in ("tokensPerMinute", "inputTokensPerMinute", "outputTokensPerMinute")))


def cost(example: Example) -> Charge | None:
    """What a whole answer costs by its provider's own count; None where it tells nothing."""
    sample = SAMPLES[example.name]
    usage = usage_from_headers(sample.headers.items(), example.response.headers) or example.usage
    model = sample.path.partition("/model/")[2].partition("/")[0] or "m"
    scale = scale_of(BUILT_IN.profile(sample.provider).counting, model)
    return None if usage is None else settle(200, usage, NOTHING_EXPECTED, complete=True, scale=scale).charge
