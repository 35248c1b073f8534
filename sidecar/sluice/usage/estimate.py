"""What a call is expected to cost, from what its request says of itself and from what was learned of calls like it.

| mode | input | output |
| --- | --- | --- |
| `Declared` | the body's size over `charsPerToken` | the declared cap; the default where none is declared |
| `Learned` | the size over the bytes a token that were learned | the declared cap times the share that was learned; the output that was learned where none is declared; as above while too little is known |
| `Fixed` | the body's size over `charsPerToken` | the default, whatever is declared; the declared cap where that is lower |

Files inside a body (pictures, sound, PDFs) are no text: what `size` means above is the body without them, and in every
mode they add one token for every `BLOB_BYTES_PER_TOKEN` of theirs.

The declared cap is the largest that the request sets on its output, times the number of answers it asks for.

Whatever is not the caller's own word is lowered where the call meets a small token cap: so far that what is reserved for
input and output stays within a quarter of that cap, and for the output within a quarter of a cap on output, but never
below 1.
The output of `Declared` is the caller's word where it declares one; in the other modes it never is. An input is there
whatever its size, and is not lowered; but what was learned raises it above the body's size over `charsPerToken` only as
far as a quarter of a cap on tokens or on input. Whoever makes calls whose input stands elsewhere than in their bodies
(images by address, a conversation by its id) teaches that each byte is a token, and would shut out long bodies.
So a call can be too large for ever by its own input, or by its own word where that is asked for, never by our guess,
and a few fit side by side.

No guess is above the declared cap, so a call exceeds its reservation at most by what that cap leaves, and by its input.
"""  # noqa: E501  the rows of a table

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sluice.core.limits import MAX_COUNT
from sluice.usage.counting import PLAIN, Scale
from sluice.usage.estimation import Estimation
from sluice.usage.learning import Experience
from sluice.usage.profiles.profile import EstimationMode

UNDECLARED_SHARE: Final = 4
"""What is not the caller's word reserves at most one part in this many of the smallest token cap."""

OUTPUT_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""A request may set several, and which one its provider heeds differs: the largest is the safe one."""

BLOB_BYTES_PER_TOKEN: Final = 512
"""Bytes of a file, in base64, that are taken for one token of input.

Providers go by pixels, pages and seconds, none of which a gate sees. A picture costs 85 to some 1700 tokens at OpenAI,
at most some 1600 at Anthropic, 258 a tile at Gemini; a second of sound 25 to 32, a page of a PDF 1500 to 3000. So 1 MB
of a photograph, 2600 here, is rather less there, a minute of MP3 at 128 kbit/s, 2500 here, is 1900 there; a small
picture and a page of a PDF that holds little but text are more. What the provider tells is booked in the end.
"""

# Envoy 1.40 hands on `16` as it is, and a JSON number with a fraction or an exponent as `16.000000`.
SAFE_DIGITS: Final = 15
"""Every number of so many digits is below `MAX_COUNT`."""
_NUMBER: Final = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")


class Asked(NamedTuple):
    """What a request says of its cost, each number from 0 to `MAX_COUNT`."""

    size: int
    """Bytes of its body."""
    output_cap: int | None
    """The most output it allows, over all answers; 0 for an API that brings none; None if it bounds none."""
    blob_size: int = 0
    """Bytes of these that are files; at most all."""

    @property
    def text_size(self) -> int:
        """Bytes that are text."""
        return self.size - self.blob_size


class Estimate(NamedTuple):
    """Tokens to reserve for a call, each count from 0 to `MAX_COUNT`."""

    input_tokens: int
    output_tokens: int
    output_cap: int | None
    """What bounds the output by the request itself; None if nothing does."""

    @property
    def total(self) -> int:
        """Input and output together, at most `MAX_COUNT`."""
        return min(self.input_tokens + self.output_tokens, MAX_COUNT)


def asked(facts: Mapping[str, str], *, brings_output: bool = True) -> Asked:
    """What the facts of a request say, as the entries of the descriptor spell them.

    `facts` may hold `bytes`, `blob_bytes`, any of `OUTPUT_CAPS`, and `n`; everything else is ignored. The texts come
    from the caller: one that is no number, is negative or has more than 20 digits declares nothing, and so does an
    output cap of 0.
    """
    size = _number(facts.get("bytes"))
    blob_size = min(_number(facts.get("blob_bytes")), size)
    if not brings_output:
        return Asked(size, 0, blob_size)
    output_cap = max(_number(facts.get(name)) for name in OUTPUT_CAPS)
    if not output_cap:
        return Asked(size, None, blob_size)
    return Asked(size, min(output_cap * max(1, _number(facts.get("n"))), MAX_COUNT), blob_size)


def estimate(
    request: Asked,
    estimation: Estimation,
    experience: Experience | None = None,
    scale: Scale = PLAIN,
    *,
    smallest_cap: int | None = None,
    smallest_input_cap: int | None = None,
    smallest_output_cap: int | None = None,
) -> Estimate:
    """Judge a call. `experience` is what was learned of calls like it, and matters in the mode `Learned` alone.

    By its provider's `scale` it is seen how much is reserved for what is expected.
    `smallest_cap` is the smallest token cap the call meets, `smallest_input_cap` and `smallest_output_cap` the smallest
    on input and on output alone; None where it meets none.
    """
    size, cap = request.text_size, request.output_cap
    mode = estimation.mode or EstimationMode.DECLARED
    input_tokens, output = -(-size // estimation.bytes_per_token), None
    if experience is not None and mode is EstimationMode.LEARNED:
        input_tokens = _input(experience.input_tokens(size), input_tokens, scale, smallest_cap, smallest_input_cap)
        output = experience.output_tokens(cap)
    input_tokens = min(input_tokens - (-request.blob_size // BLOB_BYTES_PER_TOKEN), MAX_COUNT)
    if cap is not None and mode is EstimationMode.DECLARED:
        return Estimate(input_tokens, cap, cap)
    if output is None:
        output = estimation.default_output_tokens
        if cap is not None:
            output = cap if mode is EstimationMode.LEARNED else min(output, cap)
    if not output:
        return Estimate(input_tokens, 0, cap)
    if smallest_cap is not None:
        output = min(output, max(1, scale.output_within(smallest_cap // UNDECLARED_SHARE, input_tokens)))
    if smallest_output_cap is not None:
        output = min(output, max(1, smallest_output_cap // UNDECLARED_SHARE))
    return Estimate(input_tokens, output, cap)


def _input(learned: int | None, by_size: int, scale: Scale, *caps: int | None) -> int:
    """What a body is expected to cost by what was learned; more than by its size only as far as these caps let it."""
    if learned is None:
        return by_size
    least = min((scale.input_within(cap // UNDECLARED_SHARE) for cap in caps if cap is not None), default=MAX_COUNT)
    return min(learned, max(by_size, least))


def _number(text: str | None) -> int:
    """The number a text spells, rounded up, at most `MAX_COUNT`; 0 if it spells none."""
    if text is None:
        return 0
    if len(text) <= SAFE_DIGITS and text.isascii() and text.isdigit():
        return int(text)  # the usual case
    if not _NUMBER.fullmatch(text):
        return 0
    return min(math.ceil(float(text)), MAX_COUNT)
