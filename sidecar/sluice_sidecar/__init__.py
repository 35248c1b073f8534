"""The gate: adapters that put the library behind Envoy."""
