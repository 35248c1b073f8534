"""What Envoy reads, written for it: a bootstrap, and the files that it follows.

The builder's library takes a second and 40 MB to import, so it is imported at the first use, and a gate that runs
without Envoy never does. The methods block: call them in a thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sluice.config.merge import Configuration
from sluice_sidecar.envoy_settings import EnvoySettings


@dataclass(frozen=True, slots=True)
class EnvoyFiles:
    """The files of one Envoy."""

    settings: EnvoySettings

    def bootstrap(self, configuration: Configuration) -> str:
        """A complete bootstrap as JSON."""
        from sluice_sidecar.envoy_config import bootstrap  # noqa: PLC0415 - see the head of this module

        return json.dumps(bootstrap(configuration, self.settings), indent=2)

    def write(self, configuration: Configuration) -> None:
        """Bring the files that it follows up to date. Raises `OSError` if they cannot be written."""
        from sluice_sidecar.envoy_config import write_files  # noqa: PLC0415 - see the head of this module

        if (folder := self.settings.xds_folder) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_files(folder, configuration, self.settings)
