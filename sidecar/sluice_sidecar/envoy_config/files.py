"""The files that Envoy follows: a new one is beside the old one until it is whole, then takes its name at once.

Envoy reads a file when something is renamed in its folder, and keeps what it has if it cannot use what it reads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any as Json

import betterproto2

from sluice.config.merge import Configuration
from sluice_sidecar.envoy_config import routing, upstreams
from sluice_sidecar.envoy_config.bootstrap import CLUSTERS_FILE, ROUTES_FILE
from sluice_sidecar.envoy_config.messages import packed
from sluice_sidecar.envoy_config.settings import EnvoySettings


def routes(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """The routes as the file that Envoy follows (RDS)."""
    return _resources([routing.route_configuration(configuration, settings)])


def clusters(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """The providers' clusters as the file that Envoy follows (CDS).

    Raises `Problem` if a provider is reached by TLS and no bundle of trusted certificates is found.
    """
    return _resources(upstreams.provider_clusters(configuration, settings))


def write_files(folder: Path, configuration: Configuration, settings: EnvoySettings) -> tuple[str, ...]:
    """Brings the files up to date and returns the names of those that changed; an unchanged file is left alone.

    Raises `OSError` if the folder cannot be written, and `Problem` as `clusters` does; a file is never left half
    written. Clusters come first, so that no route names one that Envoy does not know yet.
    """
    content = {
        CLUSTERS_FILE: clusters(configuration, settings),
        ROUTES_FILE: routes(configuration, settings),
    }
    return tuple(name for name, value in content.items() if _write(folder / name, json.dumps(value, indent=1)))


def _resources(messages: list[betterproto2.Message]) -> dict[str, Json]:
    return {"resources": [packed(message).to_dict() for message in messages]}


def _write(path: Path, text: str) -> bool:
    if path.is_file() and path.read_text() == text:
        return False
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as beside:
        try:
            beside.write(text)
            beside.flush()
            os.replace(beside.name, path)
        except BaseException:
            os.unlink(beside.name)
            raise
    return True
