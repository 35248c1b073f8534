"""How Hypothesis behaves here; fixtures stand beside the tests that use them, helpers in `helpers/`."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline for one example: a busy machine is not the code's fault, and every test has its time limit anyway.
# CI tests a commit, not its luck: there the examples are the same each time.
settings.register_profile("sluice", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("sluice")
