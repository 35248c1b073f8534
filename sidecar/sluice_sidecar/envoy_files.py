"""What Envoy reads, written for it: a bootstrap, and the files that it follows.

The builder's library takes a second and 40 MB to import, so it is imported at the first use, and a gate that runs
without Envoy never does. The methods block: call them in a thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sluice.config.merge import Configuration
from sluice_sidecar.settings import Address, TcpAddress, UsageSource

if TYPE_CHECKING:
    from sluice_sidecar.envoy_config import EnvoySettings


@dataclass(frozen=True, slots=True)
class EnvoyFiles:
    """How one Envoy finds the gate, and where it finds its files."""

    gate: Address
    admin: Path
    """The socket of Envoy's own admin interface."""
    listen: TcpAddress
    folder: Path | None = None
    """The files that it follows; None for a bootstrap that holds everything."""
    usage_source: UsageSource = UsageSource.METADATA
    usage_headers: tuple[str, ...] = ()
    ca_bundle: Path | None = None

    def bootstrap(self, configuration: Configuration) -> str:
        """A complete bootstrap as JSON."""
        from sluice_sidecar.envoy_config import bootstrap  # noqa: PLC0415 - see the head of this module

        return json.dumps(bootstrap(configuration, self._settings()), indent=2)

    def write(self, configuration: Configuration) -> None:
        """Bring the files that it follows up to date. Raises `OSError` if they cannot be written."""
        from sluice_sidecar.envoy_config import write_files  # noqa: PLC0415 - see the head of this module

        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_files(self.folder, configuration, self._settings())

    def _settings(self) -> EnvoySettings:
        from sluice_sidecar.envoy_config import EnvoySettings  # noqa: PLC0415 - see the head of this module

        return EnvoySettings(
            gate=self.gate if isinstance(self.gate, TcpAddress) else str(self.gate),
            admin_socket=str(self.admin),
            listen=self.listen,
            xds_folder=None if self.folder is None else str(self.folder),
            usage=self.usage_source,
            observed_headers=self.usage_headers,
            ca_bundle=None if self.ca_bundle is None else str(self.ca_bundle),
        )
