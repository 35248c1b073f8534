"""The output that went by unread in a call that was cut: of it only the size is known."""

from __future__ import annotations

from sluice.usage.estimate import BYTES_PER_TOKEN, Estimate


def unread_output(size: int, event_bytes: int, expected: Estimate, *, is_stream: bool) -> int:
    """The characters of output in `size` bytes of an answer's body, an event stream or one document.

    `event_bytes` of a stream stand for one token (`Response.event_bytes`).

    At most what the call was expected to bring, with one exception: a stream of which the caller declared no bound.
    Bounded by our own guess, who declares nothing would never pay for more. A document may be an embedding or an
    image, of which few bytes are tokens.
    """
    tokens = size // (event_bytes if is_stream else BYTES_PER_TOKEN)
    if expected.declared or not is_stream:
        tokens = min(tokens, expected.output_tokens)
    return tokens * BYTES_PER_TOKEN
