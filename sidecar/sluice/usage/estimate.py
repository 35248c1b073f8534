"""What a call is expected to cost, from what its request says of itself.

Input is the body's size over `BYTES_PER_TOKEN`. Output is the largest cap the request sets on it, times the number of
answers it asks for. A request that sets no cap is expected to produce a default, lowered where the call meets a small
token cap: so far that input and output together stay within a quarter of that cap, or the output alone within a
quarter of a cap on output, but never below 1. Nothing else is lowered: a declared cap is the caller's word, and an
input is there whatever its size. So a call can be too large for ever by its own input or its own word, never by our
default, and a few that declare nothing fit side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sluice.core.limits import MAX_COUNT

BYTES_PER_TOKEN: Final = 4
"""English text takes about four bytes a token in the common vocabularies; code and JSON less, other scripts vary."""

DEFAULT_OUTPUT_TOKENS: Final = 256
"""Output that a call is expected to bring when it declares none: a short answer in a chat."""
UNDECLARED_SHARE: Final = 4
"""A call that declares nothing reserves at most one part in this many of the smallest token cap."""

OUTPUT_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""A request may set several, and which one its provider heeds differs: the largest is the safe one."""

# Envoy 1.40 hands on `16` as it is, and a JSON number with a fraction or an exponent as `16.000000`.
_NUMBER: Final = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")


class Estimate(NamedTuple):
    """Tokens to reserve for a call, each count from 0 to `MAX_COUNT`."""

    input_tokens: int
    output_tokens: int
    declared: bool
    """True if the request itself bounds its output."""

    @property
    def total(self) -> int:
        """Input and output together, at most `MAX_COUNT`."""
        return min(self.input_tokens + self.output_tokens, MAX_COUNT)


def estimate(
    facts: Mapping[str, str],
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS,
    smallest_cap: int | None = None,
    smallest_output_cap: int | None = None,
) -> Estimate:
    """Judge a call by the facts of its request, as the entries of the descriptor spell them.

    `facts` may hold `bytes`, any of `OUTPUT_CAPS`, and `n`; everything else is ignored. The texts come from the caller:
    one that is no number, is negative or has more than 20 digits declares nothing, and so does an output cap of 0.
    `smallest_cap` is the smallest token cap the call meets, `smallest_output_cap` the smallest on output alone; None
    where it meets none.
    """
    size = _number(facts.get("bytes"))
    input_tokens = -(-size // BYTES_PER_TOKEN)
    output_cap = max(_number(facts.get(name)) for name in OUTPUT_CAPS)
    if output_cap:
        answers = max(1, _number(facts.get("n")))
        return Estimate(input_tokens, min(output_cap * answers, MAX_COUNT), declared=True)
    output_tokens = default_output_tokens
    if smallest_cap is not None:
        room = smallest_cap // UNDECLARED_SHARE - input_tokens
        output_tokens = min(output_tokens, max(1, room))
    if smallest_output_cap is not None:
        output_tokens = min(output_tokens, max(1, smallest_output_cap // UNDECLARED_SHARE))
    return Estimate(input_tokens, output_tokens, declared=False)


def _number(text: str | None) -> int:
    """The number a text spells, rounded up, at most `MAX_COUNT`; 0 if it spells none."""
    if text is None or not _NUMBER.fullmatch(text):
        return 0
    return min(math.ceil(float(text)), MAX_COUNT)
