"""Envoy's configuration, made of the limits: see `docs/envoy.md` for the chain and the reason of every setting."""

from sluice_sidecar.envoy_config.bootstrap import bootstrap
from sluice_sidecar.envoy_config.files import clusters, routes, write_files
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.settings import TcpAddress, UsageSource

__all__ = ["EnvoySettings", "TcpAddress", "UsageSource", "bootstrap", "clusters", "routes", "write_files"]
