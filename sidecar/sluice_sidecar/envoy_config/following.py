"""The files that Envoy follows: one for the routes, one for the clusters, one for each admission filter."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core

CLUSTERS_FILE: Final = "clusters.json"
ROUTES_FILE: Final = "routes.json"


def filter_file(name: str) -> str:
    """The file of one filter's configuration (ECDS takes one a file)."""
    return f"{name}.json"


def followed(folder: Path, file: str) -> core.ConfigSource:
    """A file that Envoy reads again whenever one is renamed in its folder."""
    return core.ConfigSource(
        path_config_source=core.PathConfigSource(
            path=str(folder / file), watched_directory=core.WatchedDirectory(path=str(folder))
        ),
        resource_api_version=core.ApiVersion.V3,
    )
