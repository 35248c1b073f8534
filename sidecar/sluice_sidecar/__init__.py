"""Sluice, the gate: it answers Envoy's rate limit calls and watches how the calls end."""
