"""What a test has measured, for whoever reads its output."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print it, whether or not the test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of all values do not exceed: the largest of 50 for 0.99."""
    return sorted(values)[math.ceil(part * len(values)) - 1]
