"""The whole of Envoy's configuration: the listener, and either everything else or where to follow it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any as Json
from typing import Final

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap_v3
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.config.overload import v3 as overload
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections import v3 as downstream_connections
from envoy_data_plane.google.protobuf import Struct

from sluice.config.merge import Configuration
from sluice_sidecar.envoy_config import filters, routing, upstreams
from sluice_sidecar.envoy_config.cutlog import cut_log
from sluice_sidecar.envoy_config.following import CLUSTERS_FILE, ROUTES_FILE, followed
from sluice_sidecar.envoy_config.messages import error_body, packed
from sluice_sidecar.envoy_settings import MIB, EnvoySettings

RUNTIME: Final = {
    # `bytes` of the descriptor is the size of the body as it came, also where no content-length says it.
    "envoy.reloadable_features.enable_formatter_for_ratelimit_action_descriptor_value": True,
    # Envoy takes no expression of more than 100 steps, and with it none of the routes: a path of some 90 characters in
    # one profile would hold back the limits of everybody. Its expressions take linear time, however long they are.
    "re2.max_program_size.error_level": 10_000,
}

CONNECTIONS: Final = 50_000
"""From applications, at once; more are refused, so that a leak of theirs does not take Envoy's memory."""

GATE_AWAY: Final = "the rate limit gate could not be asked, and this provider's failurePolicy is Deny: try again"
UNREACHED: Final = {
    ("UH", "NC"): "cannot be reached: its name leads to no address now",
    ("UF",): "cannot be reached: no connection, or none that is trusted, could be made",
    ("UC", "UR"): "broke the connection off before it answered",
}
"""Why a provider gave no answer, by Envoy's response flags: no address, no connection, no answer on it."""


def bootstrap(configuration: Configuration, settings: EnvoySettings) -> dict[str, Json]:
    """A complete bootstrap, ready to be printed as JSON; with `xds_folder`, one that follows the files there.

    Raises `Failed` if a provider is reached by TLS and no bundle of trusted certificates is found.
    """
    static = bootstrap_v3.BootstrapStaticResources(
        listeners=[_listener(configuration, settings)], clusters=[upstreams.gate_cluster(settings)]
    )
    dynamic = None
    if settings.xds_folder is None:
        static.clusters += upstreams.provider_clusters(configuration, settings)
    else:
        dynamic = bootstrap_v3.BootstrapDynamicResources(cds_config=followed(settings.xds_folder, CLUSTERS_FILE))
    layer = bootstrap_v3.RuntimeLayer(name="sluice", static_layer=Struct.from_dict(dict(RUNTIME)))
    whole = bootstrap_v3.Bootstrap(
        node=core.Node(id="sluice", cluster="sluice"),
        admin=bootstrap_v3.Admin(address=core.Address(pipe=core.Pipe(path=str(settings.admin_socket), mode=0o600))),
        static_resources=static,
        dynamic_resources=dynamic,
        layered_runtime=bootstrap_v3.LayeredRuntime(layers=[layer]),
        overload_manager=_overload(),
    )
    return whole.to_dict()


def _overload() -> overload.OverloadManager:
    limit = downstream_connections.DownstreamConnectionsConfig(max_active_downstream_connections=CONNECTIONS)
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return overload.OverloadManager(resource_monitors=[overload.ResourceMonitor(name=name, typed_config=packed(limit))])


def _listener(configuration: Configuration, settings: EnvoySettings) -> listener.Listener:
    manager = listener.Filter(
        name="envoy.filters.network.http_connection_manager",
        typed_config=packed(_connection_manager(configuration, settings)),
    )
    return listener.Listener(
        name="egress",
        address=upstreams.address_of(settings.listen),
        # For answers under way to a slow caller; what a request may hold is each route's `request_body_buffer_limit`.
        per_connection_buffer_limit_bytes=MIB,
        # Two gates on one port would share its calls unseen, and every limit would count twice: the second one fails.
        enable_reuse_port=False,
        connection_balance_config=listener.ListenerConnectionBalanceConfig(
            exact_balance=listener.ListenerConnectionBalanceConfigExactBalance()
        ),
        filter_chains=[listener.FilterChain(filters=[manager])],
    )


def _connection_manager(configuration: Configuration, settings: EnvoySettings) -> hcm.HttpConnectionManager:
    slashes = hcm.HttpConnectionManagerPathWithEscapedSlashesAction
    manager = hcm.HttpConnectionManager(
        stat_prefix="egress",
        http_filters=list(filters.http_filters(configuration, settings)),
        access_log=[cut_log()],
        local_reply_config=hcm.LocalReplyConfig(mappers=_own_answers(settings)),
        # With no `internal_address_config` no caller is trusted: what it says in headers that steer Envoy
        # (x-envoy-retry-on, x-envoy-upstream-rq-timeout-ms, …) is dropped. An empty one would trust private networks.
        use_remote_address=True,
        # The provider need not know where the call came from, nor who carried it.
        skip_xff_append=True,
        generate_request_id=False,
        preserve_external_request_id=True,
        server_header_transformation=hcm.HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        # A path is compared with the routes in one form only. `%2F` stays: a model's name may hold it.
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
            config_source=followed(settings.xds_folder, ROUTES_FILE), route_config_name=routing.ROUTES
        )
    return manager


def _own_answers(settings: EnvoySettings) -> list[hcm.ResponseMapper]:
    """What Envoy says in place of a provider, in words and in the form of an API's error."""
    # A number in a filter must be changeable at run time; this one is called what nobody sets.
    number = core.RuntimeUInt32(default_value=413, runtime_key="sluice.unset")
    too_large = accesslog.AccessLogFilter(
        status_code_filter=accesslog.StatusCodeFilter(comparison=accesslog.ComparisonFilter(value=number))
    )
    size = f"the request's body is larger than {settings.body_limit} bytes"
    return [
        _mapper(_flagged("RLSE"), error_body(503, "overloaded_error", GATE_AWAY)),
        _mapper(too_large, error_body(413, "request_too_large", size)),
        # Every route to a provider has its name.
        *(
            _mapper(_flagged(*flags), error_body(503, "api_error", f"the provider %ROUTE_NAME% {why}"))
            for flags, why in UNREACHED.items()
        ),
    ]


def _flagged(*flags: str) -> accesslog.AccessLogFilter:
    return accesslog.AccessLogFilter(response_flag_filter=accesslog.ResponseFlagFilter(flags=list(flags)))


def _mapper(condition: accesslog.AccessLogFilter, body: str) -> hcm.ResponseMapper:
    answer = core.SubstitutionFormatString(
        text_format_source=core.DataSource(inline_string=body), content_type="application/json"
    )
    return hcm.ResponseMapper(filter=condition, body_format_override=answer)
