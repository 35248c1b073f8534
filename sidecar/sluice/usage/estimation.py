"""How estimates are made, as a limits document says it. `estimate.py` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sluice.usage.profiles.profile import EstimationMode

BYTES_PER_TOKEN: Final = 4
"""English text takes about four bytes a token in the common vocabularies; code and JSON less, other scripts vary."""

DEFAULT_OUTPUT_TOKENS: Final = 256
"""Output that a call is expected to bring when it declares none: a short answer in a chat."""
DEFAULT_QUANTILE: Final = 90
"""Nine calls of ten fit into what is reserved. The closest guess would be 50, with every other call above it."""


@dataclass(frozen=True, slots=True)
class Estimation:
    """How the cost of a call is guessed before it is known."""

    mode: EstimationMode | None = None
    """None: whatever mimics the provider; like `Declared` where nothing is known of that."""
    bytes_per_token: int = BYTES_PER_TOKEN
    """From 1 to 64."""
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    """From 1 to `MAX_COUNT`."""
    quantile: int = DEFAULT_QUANTILE
    """Percent of the calls that shall use no more than what is learned, from 1 to 99."""
