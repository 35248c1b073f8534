"""The whole of Envoy's configuration: the listener, and either everything else or where to follow it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any as Json
from typing import Final

from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap_v3
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.google.protobuf import Struct

from sluice.config.merge import Configuration
from sluice_sidecar.envoy_config import filters, routing, upstreams
from sluice_sidecar.envoy_config.cutlog import cut_log
from sluice_sidecar.envoy_config.messages import packed
from sluice_sidecar.envoy_config.settings import MIB, EnvoySettings

CLUSTERS_FILE: Final = "clusters.json"
ROUTES_FILE: Final = "routes.json"

RUNTIME: Final = {
    # `bytes` of the descriptor is the size of the body as it came, also where no content-length says it.
    "envoy.reloadable_features.enable_formatter_for_ratelimit_action_descriptor_value": True,
}

MARGIN: Final = timedelta(seconds=1)
"""What the gate has beyond `maxWait` to answer, and all it has where nothing queues."""


def bootstrap(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """A complete bootstrap, ready to be printed as JSON; with `xds_folder`, one that follows the files there.

    Raises `Problem` if a provider is reached by TLS and no bundle of trusted certificates is found.
    """
    folder = settings.xds_folder
    static = bootstrap_v3.BootstrapStaticResources(
        listeners=[_listener(configuration, settings)], clusters=[upstreams.gate_cluster(settings)]
    )
    dynamic = None
    if folder is None:
        static.clusters += upstreams.provider_clusters(configuration, settings)
    else:
        dynamic = bootstrap_v3.BootstrapDynamicResources(cds_config=_followed(folder, CLUSTERS_FILE))
    layer = bootstrap_v3.RuntimeLayer(name="sluice", static_layer=Struct.from_dict(dict(RUNTIME)))
    whole = bootstrap_v3.Bootstrap(
        node=core.Node(id="sluice", cluster="sluice"),
        admin=bootstrap_v3.Admin(address=core.Address(pipe=core.Pipe(path=settings.admin_socket, mode=0o600))),
        static_resources=static,
        dynamic_resources=dynamic,
        layered_runtime=bootstrap_v3.LayeredRuntime(layers=[layer]),
    )
    return whole.to_dict()


def longest_wait(configuration: Configuration) -> timedelta:
    """The longest that a call may queue, over all limits in force."""
    nanoseconds = max((rule.limits.max_wait for rule in configuration.rules.rules), default=0)
    return timedelta(microseconds=-(-nanoseconds // 1000))


def _listener(configuration: Configuration, settings: EnvoySettings) -> listener.Listener:
    manager = listener.Filter(
        name="envoy.filters.network.http_connection_manager",
        typed_config=packed(_connection_manager(configuration, settings)),
    )
    return listener.Listener(
        name="egress",
        address=upstreams.address_of(settings.listen),
        per_connection_buffer_limit_bytes=MIB,
        filter_chains=[listener.FilterChain(filters=[manager])],
    )


def _connection_manager(configuration: Configuration, settings: EnvoySettings) -> hcm.HttpConnectionManager:
    rls_timeout = settings.rls_timeout or longest_wait(configuration) + MARGIN
    slashes = hcm.HttpConnectionManagerPathWithEscapedSlashesAction
    manager = hcm.HttpConnectionManager(
        stat_prefix="egress",
        http_filters=filters.http_filters(settings, rls_timeout),
        access_log=[cut_log()],
        # A caller is never trusted: what it says in x-envoy-* headers is dropped before a filter reads it.
        use_remote_address=True,
        internal_address_config=hcm.HttpConnectionManagerInternalAddressConfig(unix_sockets=False),
        skip_xff_append=True,
        generate_request_id=False,
        preserve_external_request_id=True,
        server_header_transformation=hcm.HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=slashes.KEEP_UNCHANGED,
        strip_trailing_host_dot=True,
        max_request_headers_kb=60,
        request_headers_timeout=timedelta(seconds=30),
        request_timeout=timedelta(minutes=10),
        stream_idle_timeout=routing.IDLE_STREAM,
        drain_timeout=timedelta(seconds=5),
        common_http_protocol_options=core.HttpProtocolOptions(idle_timeout=timedelta(hours=1)),
    )
    if settings.xds_folder is None:
        manager.route_config = routing.route_configuration(configuration, settings)
    else:
        manager.rds = hcm.Rds(
            config_source=_followed(settings.xds_folder, ROUTES_FILE), route_config_name=routing.ROUTES
        )
    return manager


def _followed(folder: str, name: str) -> core.ConfigSource:
    """A file that Envoy reads again whenever one is renamed onto it."""
    return core.ConfigSource(
        path_config_source=core.PathConfigSource(
            path=f"{folder}/{name}", watched_directory=core.WatchedDirectory(path=folder)
        ),
        resource_api_version=core.ApiVersion.V3,
    )
