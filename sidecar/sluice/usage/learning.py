"""What earlier calls say of later ones: how many tokens a body of so many bytes has, and how long answers are.

Theory of operation
    Every call that ended well and whose usage the provider told teaches two things of its kind: how many input tokens
    its bytes were, and how many output tokens it brought: as a share of the output cap that it declared, or as they
    are where it declared none. Nothing else teaches: a call that failed, was cut, or told its usage in part would
    teach that calls are cheap.

    Kinds. Calls are alike that go to one model of one provider, fall under the same entries of the limits, and declare
    output caps of one order of magnitude. That tells applications apart, as far as a gate can see: who asks for one
    word and who leaves the 64 000 of an SDK's default have neither a share nor a language in common.

    Quantiles. Both are learned as quantiles, not as means: what is wanted is a reservation that few calls exceed. A
    `Quantile` counts what it saw in slots that are a twelfth of an octave wide, and tells the upper end of the slot
    in which the quantile lies. With it is always counted one call that has not happened and exceeds everything. That
    is the rule for a cold start, and the bound. Of calls that are alike, in whatever order they come, the next exceeds
    what is told with a probability of at most 1 - quantile, however few were seen: it is as likely to have any rank
    among them as any other. It follows when anything is told: at 90 % from the ninth call on, at 99 % from the 99th;
    and never before the eighth (`FEWEST`), for the first calls tend to come from one hand. Until then whoever asks
    goes by what it knew without. Nothing is blended: before that moment the data say nothing at this quantile, and
    after it the other word has nothing to add.

    Input and output are two quantiles, so of the calls at most twice 1 - quantile exceed the sum, and far fewer where
    one of the two is most of it.

    Decay. Once 256 calls count, each of them counts half from then on, and so again with every 128 that follow: what
    is told stands on 128 to 256 calls. Where answers grow, a tenth of these must be long before what is told begins to
    follow; so a change costs some dozens of calls that exceed it. Where they shrink, it follows within 450. There
    is no clock in it: a kind that was quiet for a week is best judged by how it was.

    Floors and ceilings. A token stands for 1 to 64 bytes, the range of `charsPerToken` (images in base64 have more,
    cached input may), so an input whose tokens are bytes is under-estimated 64-fold at the worst. Output is at least
    1 and at most the declared cap; where none is declared at most 2**20 tokens. What lies beyond counts as at the end.

    Memory. A provider has `MOST_KINDS` places. Model names come from callers, so once all are taken a newcomer gets
    none, unless the kind that was quiet longest has been so for the last `QUIET` lessons of its provider; all without
    a place share one experience. So whoever makes names up, which takes calls that end well, spoils no estimate but
    those of newcomers. A place takes some 2.3 KiB with the longest names, a provider at most 0.6 MiB.

State
    `Learner._providers`; in each the kinds, with the one that taught longest ago first. It changes in `learn` alone,
    which runs when a call is over; before a call there are two look-ups and two multiplications. No locks: one event
    loop owns it.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from math import ceil, log2
from typing import Final, NamedTuple

STEPS: Final = 12
"""Slots to an octave: neighbours are 5.9 % apart, so what is told is at most that much above the quantile itself."""
MOST_COUNTED: Final = 256
"""When so many calls count, each begins to count half; 128 are enough for a quantile of 99 %."""
FEWEST: Final = 8
"""Calls before anything is told, however low the quantile."""
MOST_KINDS: Final = 256
"""Places of a provider; the combinations of models, entries and caps in use are far fewer."""
QUIET: Final = 10_000
"""A kind that taught nothing while its provider took so many lessons may lose its place."""

MOST_BYTES: Final = 64
"""Bytes that a token of input stands for at the most."""
MOST_OUTPUT: Final = 1 << 20
"""Output expected at the most of a call that declares no cap: more than any model brings."""

_BYTES_OCTAVES: Final = MOST_BYTES.bit_length() - 1
_OUTPUT_OCTAVES: Final = MOST_OUTPUT.bit_length() - 1
_LEAST_CAPS: Final = (1, 1, 1, 4, 4, 4, 32, 32, 32, 256, 256, 256, 2048, 2048, 2048, 16_384, 16_384, 16_384, 131_072)


class Kind(NamedTuple):
    """Which calls are alike."""

    provider: str
    model: str
    """As the call names it; empty where it names none."""
    entries: tuple[str, ...]
    """The names of the limits entries that apply to the call."""
    least_cap: int | None
    """Of the output caps of this order of magnitude the smallest, from `least_cap`; None if no cap is declared."""


class Lesson(NamedTuple):
    """What a call that ended well has shown. Numbers are from 0 to `MAX_COUNT`."""

    size: int
    """Bytes of its request's body; 0 if that is not known, or if files are among them: what they cost says nothing of
    how many bytes of text make a token."""
    output_cap: int | None
    """The most output that it allowed, over all answers that it asked for; 0 if its API brings none, None if it
    declared nothing."""
    input_tokens: int | None
    """What was counted as its input; None if that was not told."""
    output_tokens: int | None


def least_cap(cap: int | None) -> int | None:
    """The smallest cap of the same order of magnitude: 1, 4, 32, 256, 2048, 16 384 or 131 072; None for none."""
    return None if cap is None else _LEAST_CAPS[min(cap.bit_length(), len(_LEAST_CAPS) - 1)]


class Quantile:
    """Learns a quantile of positive values that lie within so many octaves above 1."""

    __slots__ = ("_above", "_at", "_counts", "_total", "samples", "value")

    def __init__(self, octaves: int) -> None:
        self._counts = array("f", bytes(4 * (octaves * STEPS + 1)))
        self._total = 0.0
        self._at = 0  # the slot where the quantile lies, and how many count in the slots above it
        self._above = 0.0
        self.samples = 0
        """Values seen, ever."""
        self.value: float | None = None
        """What it tells; None until it has seen enough."""

    def add(self, value: float, percent: int) -> None:
        """See a value; from now on tell the quantile of so many percent (1 to 99)."""
        counts = self._counts
        slot = min(ceil(STEPS * log2(value)), len(counts) - 1) if value > 1 else 0
        counts[slot] += 1
        self._total += 1
        self.samples += 1
        if slot > self._at:
            self._above += 1
        if self._total >= MOST_COUNTED:
            self._halve()
        self._move(percent)

    def _halve(self) -> None:
        self._counts = array("f", [count / 2 for count in self._counts])
        self._total = sum(self._counts)
        self._above = sum(self._counts[self._at + 1 :])

    def _move(self, percent: int) -> None:
        """Go to the lowest slot above which there are few enough."""
        counts, at, above = self._counts, self._at, self._above
        # One call more than were seen, and that one above every slot.
        allowed = (100 - percent) * (self._total + 1) / 100 - 1
        while above > allowed and at < len(counts) - 1:
            at += 1
            above -= counts[at]
        while at > 0 and above + counts[at] <= allowed:
            above += counts[at]
            at -= 1
        self._at, self._above = at, above
        self.value = 2 ** (at / STEPS) if allowed >= 0 and self.samples >= FEWEST else None


class Experience:
    """What is known of one kind of calls."""

    __slots__ = ("_input", "_output", "last", "samples")

    def __init__(self) -> None:
        self._input = Quantile(_BYTES_OCTAVES)  # of the tokens in `MOST_BYTES` bytes
        self._output = Quantile(_OUTPUT_OCTAVES)  # of tokens; where caps are declared, in `MOST_OUTPUT` tokens of cap
        self.samples = 0
        """Lessons taken, ever."""
        self.last = 0
        """The number of the latest among its provider's."""

    def input_tokens(self, size: int) -> int | None:
        """What a body of so many bytes is expected to cost; None if too little is known."""
        value = self._input.value
        return None if value is None else int(size * value / MOST_BYTES)  # counts are whole: none lies between

    def output_tokens(self, cap: int | None) -> int | None:
        """The output expected of a call with that cap, from 1 to the cap or 0 for 0; None if too little is known."""
        value = self._output.value
        if value is None:
            return None
        return int(value) if cap is None else min(max(1, int(cap * value / MOST_OUTPUT)), cap)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes that a token of input is taken for; None if too little is known."""
        value = self._input.value
        return None if value is None else MOST_BYTES / value

    @property
    def output(self) -> float | None:
        """The output that is expected, in tokens; for `MOST_OUTPUT` tokens of cap, where caps are declared."""
        return self._output.value

    def learn(self, lesson: Lesson, percent: int) -> None:
        """Take a lesson; from now on tell quantiles of so many percent."""
        self.samples += 1
        size, cap, input_tokens, output_tokens = lesson
        if size and input_tokens:
            self._input.add(MOST_BYTES * input_tokens / size, percent)
        if output_tokens is not None:
            self._output.add(output_tokens if cap is None else MOST_OUTPUT * output_tokens / max(cap, 1), percent)


class _Provider:
    """What is known of one provider's calls."""

    __slots__ = ("kinds", "lessons", "shared")

    def __init__(self) -> None:
        self.kinds: dict[Kind, Experience] = {}
        self.shared = Experience()
        self.lessons = 0


class Learner:
    """Everything that was learned. Belongs to one event loop."""

    def __init__(self, most_kinds: int = MOST_KINDS) -> None:
        self._most_kinds = most_kinds
        self._providers: dict[str, _Provider] = {}

    def experience(self, kind: Kind) -> Experience | None:
        """What is known of calls of that kind; None if nothing is."""
        provider = self._providers.get(kind.provider)
        if provider is None:
            return None
        experience = provider.kinds.get(kind)
        if experience is None and len(provider.kinds) >= self._most_kinds:
            return provider.shared
        return experience

    def learn(self, kind: Kind, lesson: Lesson, percent: int) -> None:
        """Take the lesson of a call that ended well; from now on tell its kind's quantiles of so many percent."""
        provider = self._providers.get(kind.provider)
        if provider is None:
            provider = self._providers[kind.provider] = _Provider()
        provider.lessons += 1
        experience = self._place(provider, kind)
        experience.last = provider.lessons
        experience.learn(lesson, percent)

    def keep(self, providers: frozenset[str]) -> None:
        """Forget every other provider."""
        for name in self._providers.keys() - providers:
            del self._providers[name]

    def most_taught(self, most: int) -> list[tuple[Kind, Experience]]:
        """The kinds that took most lessons, up to so many; what those without a place share stands there as `*`."""
        return heapq.nlargest(most, self._all(), key=lambda known: known[1].samples)

    def _place(self, provider: _Provider, kind: Kind) -> Experience:
        """The experience of a kind, from now on the one that taught last; the shared one if it has no place."""
        kinds = provider.kinds
        experience = kinds.pop(kind, None)
        if experience is None:
            if len(kinds) >= self._most_kinds:
                quietest = next(iter(kinds))
                if provider.lessons - kinds[quietest].last <= QUIET:
                    return provider.shared
                del kinds[quietest]
            experience = Experience()
        kinds[kind] = experience
        return experience

    def _all(self) -> Iterator[tuple[Kind, Experience]]:
        for name, provider in self._providers.items():
            yield from provider.kinds.items()
            if provider.shared.samples:
                yield Kind(name, "*", ("*",), None), provider.shared
