"""`make run-operator` keeps what it promises on the screen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.envoy import ROOT, envoy_binary


@pytest.mark.timeout(180)  # some 25 s; a control plane, the operator, a gate and Envoy start, longer on a busy machine
def test_the_tour_of_the_operator_shows_what_it_promises() -> None:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'examples'}",
        "SLUICE_ENVOY": str(envoy_binary()),
        "KEEP": "0",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/cluster.py")],
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "All of it was as promised" in done.stdout
