"""The output that went by unread in a call that was cut: of it only the size is known."""

from __future__ import annotations

from typing import Final

from sluice.usage.estimate import BYTES_PER_TOKEN, Estimate
from sluice.usage.profiles import Api

EVENT_BYTES: Final = {Api.OPENAI: 128, Api.ANTHROPIC: 32, Api.GEMINI: 16}
"""Bytes of an event stream that stand for one token of its output, envelope and all, and rather too few of them: an
event of OpenAI's has some 300 and holds one token, Anthropic's 140 and a few, Gemini's 400 and dozens."""


def unread_output(size: int, api: Api, expected: Estimate, *, is_stream: bool) -> int:
    """The characters of output in `size` bytes of an answer's body, an event stream or one document.

    At most what the call was expected to bring, with one exception: a stream of which the caller declared no bound.
    Bounded by our own guess, who declares nothing would never pay for more. A document may be an embedding or an
    image, of which few bytes are tokens.
    """
    tokens = size // (EVENT_BYTES[api] if is_stream else BYTES_PER_TOKEN)
    if expected.declared or not is_stream:
        tokens = min(tokens, expected.output_tokens)
    return tokens * BYTES_PER_TOKEN
