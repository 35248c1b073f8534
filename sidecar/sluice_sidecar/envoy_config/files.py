"""The files that Envoy follows: a new one is beside the old one until it is whole, then takes its name at once.

Envoy reads a file when something is renamed in its folder, and keeps what it has if it cannot use what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any as Json

import betterproto2
from envoy_data_plane.envoy.config.core import v3 as core

from sluice.config.merge import Configuration
from sluice_sidecar.envoy_config import filters, routing, upstreams
from sluice_sidecar.envoy_config.following import CLUSTERS_FILE, ROUTES_FILE, filter_file
from sluice_sidecar.envoy_config.messages import packed
from sluice_sidecar.envoy_settings import EnvoySettings


def routes(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """The routes as the file that Envoy follows (RDS)."""
    return _resources([routing.route_configuration(configuration, settings)])


def clusters(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """The providers' clusters as the file that Envoy follows (CDS).

    Raises `Failed` if a provider is reached by TLS and no bundle of trusted certificates is found.
    """
    return _resources(upstreams.provider_clusters(configuration, settings))


def admission(configuration: Configuration, settings: EnvoySettings) -> dict[str, dict[str, Json]]:
    """The filters that ask the gate, each by its file's name, as the file that Envoy follows (ECDS)."""
    return {
        filter_file(name): _resources([core.TypedExtensionConfig(name=name, typed_config=packed(config))])
        for name, config in filters.admission_filters(configuration, settings).items()
    }


def write_files(folder: Path, configuration: Configuration, settings: EnvoySettings) -> tuple[str, ...]:
    """Bring the files up to date; the names of those that changed. One writer a folder.

    Raises `OSError` if the folder cannot be written, and `Failed` as `clusters` does; a file is never left half
    written. Clusters come first, so that no route names one that Envoy does not know yet.
    """
    content = {
        CLUSTERS_FILE: clusters(configuration, settings),
        **admission(configuration, settings),
        ROUTES_FILE: routes(configuration, settings),
    }
    return tuple(name for name, value in content.items() if _write(folder / name, json.dumps(value, indent=1)))


def _resources(messages: Iterable[betterproto2.Message]) -> dict[str, Json]:
    return {"resources": [packed(message).to_dict() for message in messages]}


def _write(path: Path, text: str) -> bool:
    if path.is_file() and path.read_text() == text:
        return False
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)
    return True
