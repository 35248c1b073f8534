"""A body of a hundred megabytes takes a hundred times what one of a megabyte takes, and no memory to speak of."""

from __future__ import annotations

import pytest

from bench.bodies import curve
from helpers.bodies import BODIES, MB, Body


@pytest.mark.timeout(180)  # seventeen seconds of a core for the slowest, which others may want as well
@pytest.mark.parametrize("body", BODIES, ids=[body.name for body in BODIES])
def test_a_long_body_is_read_in_linear_time_and_constant_memory(body: Body) -> None:
    readings = list(curve(body))

    assert [reading.megabytes for reading in readings][-1] == 100
    assert all(reading.right for reading in readings)
    assert max(reading.kept for reading in readings) <= MB
    # A megabyte costs the same in a body of any size. Twice that is the noise of a busy machine, not a square.
    each = [reading.seconds / reading.megabytes for reading in readings]
    assert max(each[-2:]) < 2 * sorted(each)[len(each) // 2]
