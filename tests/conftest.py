"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline for one example: the machine's load is not the code's fault, and every test has its time limit anyway.
settings.register_profile("sluice", deadline=None, print_blob=True)
settings.load_profile("sluice")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def envoy_binary() -> Path:
    """Return the Envoy to test with: `SLUICE_ENVOY`, or the pinned one that `make setup` installs.

    Its absence is a failure, not a skip: a green run has met a real Envoy.
    """
    binary = Path(os.environ.get("SLUICE_ENVOY") or ROOT / ".tools/envoy/envoy/_bin/envoy")
    if not os.access(binary, os.X_OK):
        pytest.fail(f"no Envoy at {binary}: run `make setup`, or set SLUICE_ENVOY to the path of one", pytrace=False)
    return binary
