"""The headers that Envoy shows the gate: every one in which a provider says something."""

from __future__ import annotations

import pytest

from sluice.usage.profiles import BUILT_IN
from sluice_sidecar.envoy_config.filters import OBSERVED_HEADERS, headers_told


@pytest.mark.parametrize("provider", BUILT_IN.names)
def test_every_header_of_a_built_in_profile_is_shown(provider: str) -> None:
    prefixes = tuple(name.removesuffix("*") for name in OBSERVED_HEADERS if name.endswith("*"))
    for name in headers_told(BUILT_IN.profile(provider)):
        assert name in OBSERVED_HEADERS or name.startswith(prefixes), name
