"""The output that went by unread in a call that was cut: of it only the size is known."""

from __future__ import annotations

from sluice.usage.estimate import Estimate
from sluice.usage.estimation import BYTES_PER_TOKEN


def unread_output(size: int, event_bytes: int, expected: Estimate, *, is_stream: bool) -> int:
    """The bytes of text in `size` bytes of an answer's body, an event stream or one document.

    `event_bytes` of a stream stand for one token (`Response.event_bytes`).

    Of a stream at most what its caller allowed, if it bounded its output: bounded by our own guess, who brings more
    than expected would never pay for it. Of a document at most what the call was expected to bring, for it may be an
    embedding or an image, of which few bytes are tokens.
    """
    tokens = size // (event_bytes if is_stream else BYTES_PER_TOKEN)
    most = expected.output_cap if is_stream else expected.output_tokens
    return (tokens if most is None else min(tokens, most)) * BYTES_PER_TOKEN
