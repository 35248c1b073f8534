"""A mix of 10 000 calls to judge estimates by. It is made up: nobody's traffic was recorded for it.

What is meant to be like traffic, and where the numbers come from
    Eight applications call four models under two limits entries. Their sizes, answers and caps are round numbers of
    the order that such applications have; answers and bodies are log-normal, as lengths of text tend to be. Caps are
    those that make estimating hard: the defaults of SDKs and agents (32 000, 65 536), caps that truncate (500), caps of
    a few tokens, and none. English, Chinese in UTF-8, code and base64 images differ in bytes a token; three of
    them share a model and an entry, so that no ratio is right for all.
    Half-way everything drifts: answers of chats double, reasoning grows 2.5-fold, one model gets a tokenizer that makes
    a third more tokens, and summaries become half as long.
    A call's usage is known after `delay` more calls were admitted, as when many are in flight.

`random.Random(SEED)` makes it, by uniform numbers alone, so every run and every Python make the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from random import Random
from statistics import NormalDist
from typing import Final, NamedTuple

from sluice.usage.learning import Kind, least_cap

SEED: Final = 20_261_124
CALLS: Final = 10_000
IN_FLIGHT: Final = 40
"""A call's usage is known after 1 to so many more were admitted."""


class Recorded(NamedTuple):
    """A call and what it turned out to use."""

    kind: Kind
    application: str
    size: int
    cap: int | None
    input_tokens: int
    output_tokens: int
    delay: int


@dataclass(frozen=True)
class Application:
    """Calls of one make. Bodies and answers are log-normal: a median, and the sigma of the logarithm."""

    name: str
    share: int
    """Parts in a hundred of all calls."""
    model: str
    entry: str
    size: tuple[int, float]
    bytes_per_token: tuple[float, float]
    """The median, and the sigma of the logarithm: no two texts are alike."""
    output: tuple[int, float]
    cap: int | None
    longer: float = 1.0
    """How many times as long answers are in the second half."""
    denser: float = 1.0
    """How many times as many tokens a body has in the second half."""

    @property
    def kind(self) -> Kind:
        return Kind("provider", self.model, (self.entry,), least_cap(self.cap))


APPLICATIONS: Final = (
    Application("chat", 25, "small", "User", (1_200, 0.8), (4.4, 0.08), (220, 0.7), None, longer=2.0),
    Application("chat in Chinese", 10, "small", "User", (1_500, 0.8), (2.4, 0.10), (260, 0.7), 4_096, longer=2.0),
    Application("one word", 15, "small", "User", (2_000, 0.6), (4.3, 0.06), (3, 0.5), 16),
    Application("code agent", 20, "large", "User", (60_000, 0.9), (3.5, 0.08), (350, 1.1), 32_000, denser=1.33),
    Application("summaries", 10, "large", "User batch", (24_000, 0.5), (4.5, 0.05), (400, 0.4), 8_192, longer=0.5),
    Application("truncated", 5, "large", "User batch", (3_000, 0.5), (4.2, 0.08), (450, 0.6), 500),
    Application("reasoning", 10, "thinking", "User", (4_000, 0.8), (4.0, 0.10), (4_000, 0.8), 65_536, longer=2.5),
    Application("images", 5, "vision", "User", (400_000, 0.5), (900.0, 0.40), (150, 0.6), 8_192),
)


def calls(seed: int = SEED, count: int = CALLS) -> Iterator[Recorded]:
    """The mix, in the order of admission."""
    random = Random(seed)
    lots = [application for application in APPLICATIONS for _ in range(application.share)]
    for number in range(count):
        application = lots[int(random.random() * len(lots))]
        drifted = number >= count // 2
        size = max(1, round(_log_normal(random, application.size)))
        ratio = _log_normal(random, application.bytes_per_token) / (application.denser if drifted else 1)
        output = _log_normal(random, application.output) * (application.longer if drifted else 1)
        most = application.cap or 1 << 20
        yield Recorded(
            application.kind,
            application.name,
            size,
            application.cap,
            max(1, round(size / ratio)),
            min(max(1, round(output)), most),
            1 + int(random.random() * IN_FLIGHT),
        )


def _log_normal(random: Random, of: tuple[float, float]) -> float:
    median, sigma = of
    uniform = min(max(random.random(), 1e-12), 1 - 1e-12)
    return median * exp(sigma * NormalDist().inv_cdf(uniform))
