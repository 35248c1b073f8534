"""What Envoy reads, written for it: a bootstrap, and the files that it follows.

The builder's library takes a second and 40 MB to import, so it is imported at the first use, and a gate that runs
without Envoy never does. The methods block: call them in a thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sluice.config.merge import Configuration, merge
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.settings import TcpAddress

GATEWAY_FOLDER: Final = "/run/sluice"
"""Where an Envoy in a pod of its own and the gate beside it meet."""
GATEWAY_LISTEN: Final = TcpAddress("0.0.0.0", 10000)  # noqa: S104  applications call from other pods


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


def gateway_bootstrap() -> str:
    """The bootstrap of an Envoy in a pod of its own beside a gate.

    What changes with the limits is not in it, but in the files that it follows.
    """
    run = Path(GATEWAY_FOLDER)
    settings = EnvoySettings(run / "gate.sock", run / "envoy.sock", GATEWAY_LISTEN, run / "xds")
    return EnvoyFiles(settings).bootstrap(merge(())) + "\n"
