"""Says in the log that a provider cannot be reached: the callers are told, and whoever runs the gate should be too."""

from __future__ import annotations

import logging
from typing import Any, Final

from sluice.core.limits import MINUTE
from sluice_sidecar.gate import Gate

logger = logging.getLogger(__name__)

REASONS: Final = {
    "no_healthy_upstream": "its name leads to no address now",
    "no_cluster_found": "its name leads to no address now",
    "upstream_connection_failure": "no connection, or none that is trusted, could be made",
}
"""By Envoy's response flags."""
LONGEST_DETAIL: Final = 200
"""Characters of what Envoy adds to it."""


class Outages:
    """At most a warning a minute for each provider. Belongs to one event loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._told: dict[str, int] = {}

    def see(self, call: Any) -> None:
        """Take the common properties of a call from Envoy's access log; its route has the provider's name."""
        provider, now = call.route_name, self._gate.clock()
        reason = next((why for flag, why in REASONS.items() if getattr(call.response_flags, flag)), "")
        if not reason or provider not in self._gate.policies or now < self._told.get(provider, now):
            return
        self._told[provider] = now + MINUTE
        logger.warning("%s cannot be reached: %s%s", provider, reason, _detail(call.upstream_transport_failure_reason))


def _detail(text: str) -> str:
    """What Envoy says of the connection, fit for a line of a log."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:LONGEST_DETAIL])
    return f" ({shown})" if shown else ""
