"""The tour as a smoke test: the command, its Envoy and the official SDKs, end to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "examples/tour.py"


@pytest.mark.timeout(150)  # some 10 s; two programs and two SDKs start, which takes longer on a busy machine
def test_the_tour_shows_what_it_promises() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KEEP"}
    shown = subprocess.run(
        [sys.executable, str(TOUR)], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert (shown.returncode, shown.stderr) == (0, ""), shown.stdout
    assert "✗" not in shown.stdout
    assert shown.stdout.rstrip().endswith("everything that was started has ended.")
