"""Where Envoy connects to: the providers, and the gate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.extensions.clusters.common.dns import v3 as common_dns
from envoy_data_plane.envoy.extensions.clusters.dns import v3 as dns
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream_http
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from sluice.config.merge import Configuration, Provider
from sluice_sidecar.envoy_config.messages import packed
from sluice_sidecar.envoy_settings import MIB, EnvoySettings
from sluice_sidecar.settings import Address, Failed, TcpAddress

GATE: Final = "sluice-gate"

CA_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, distroless
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat and kin
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)

UNBOUNDED: Final = 1_000_000
"""Envoy's default of 1024 calls, connections and streams would refuse calls that the gate admitted; each call in flight
holds one usage stream. The limits document bounds calls, this does not."""

CONNECT_TIMEOUT: Final = timedelta(seconds=10)
KEEPALIVE: Final = core.TcpKeepalive(keepalive_time=60, keepalive_interval=15, keepalive_probes=4)
"""Seconds. A model may be silent for minutes, and gateways on the way forget silent connections (AWS: after 350 s)."""
DNS_RETRY: Final = timedelta(seconds=1)
DNS_REFRESH: Final = timedelta(seconds=30)
"""Where the answer has no time to live of its own."""
IDLE_CONNECTION: Final = timedelta(seconds=60)
"""Shorter than the providers' front ends keep an idle connection, so that Envoy seldom sends into a closing one."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider's address, taken apart."""

    tls: bool
    host: str
    port: int
    authority: str
    """What stands in `Host`: the port only where it is not the scheme's own."""

    @property
    def is_ip(self) -> bool:
        """True if the host is an IP address, not a name."""
        try:
            ip_address(self.host)
        except ValueError:
            return False
        return True

    @classmethod
    def of(cls, provider: Provider) -> Upstream:
        """The upstream of a provider; the limits document was checked when it was read."""
        parts = urlsplit(provider.upstream)
        secure = parts.scheme == "https"
        own = 443 if secure else 80
        port = parts.port or own
        host = parts.hostname or ""
        return cls(secure, host, port, host if port == own else f"{host}:{port}")


def cluster_name(provider: Provider) -> str:
    """The name of the provider's cluster; no provider's name can make it the gate's."""
    return f"provider/{provider.name}"


def provider_clusters(configuration: Configuration, settings: EnvoySettings) -> list[cluster.Cluster]:
    """One cluster a provider."""
    return [_provider(provider, settings) for provider in configuration.providers.values()]


def gate_cluster(settings: EnvoySettings) -> cluster.Cluster:
    """The gate. It is no part of the files that Envoy follows: a changed cluster would cut the streams on it."""
    return cluster.Cluster(
        name=GATE,
        type=cluster.ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        per_connection_buffer_limit_bytes=MIB,
        load_assignment=_endpoint(GATE, address_of(settings.gate)),
        circuit_breakers=_unbounded(),
        typed_extension_protocol_options=_protocol(
            upstream_http.HttpProtocolOptions(
                explicit_http_config=upstream_http.HttpProtocolOptionsExplicitHttpConfig(
                    http2_protocol_options=core.Http2ProtocolOptions()
                )
            )
        ),
    )


def gate_service() -> core.GrpcService:
    """How filters call the gate."""
    return core.GrpcService(envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=GATE, skip_envoy_headers=True))


def address_of(address: Address) -> core.Address:
    """A Unix socket's path or a TCP address, as Envoy writes it."""
    if isinstance(address, Path):
        return core.Address(pipe=core.Pipe(path=str(address)))
    return core.Address(socket_address=core.SocketAddress(address=address.host, port_value=address.port))


def system_ca_bundle() -> str:
    """The file of the certificates that this system trusts. Raises `Failed` if there is none."""
    default = ssl.get_default_verify_paths()
    for path in (default.cafile, *CA_BUNDLES):
        if path and Path(path).is_file():
            return path
    raise Failed("no bundle of trusted certificates found; install ca-certificates, or name the file (ca_bundle)")


def _provider(provider: Provider, settings: EnvoySettings) -> cluster.Cluster:
    upstream = Upstream.of(provider)
    name = cluster_name(provider)
    return cluster.Cluster(
        name=name,
        type=cluster.ClusterDiscoveryType.STATIC if upstream.is_ip else None,
        cluster_type=None if upstream.is_ip else _by_name(),
        connect_timeout=CONNECT_TIMEOUT,
        per_connection_buffer_limit_bytes=MIB,
        load_assignment=_endpoint(name, address_of(TcpAddress(upstream.host, upstream.port))),
        circuit_breakers=_unbounded(),
        upstream_connection_options=cluster.UpstreamConnectionOptions(tcp_keepalive=KEEPALIVE),
        transport_socket=_tls(upstream, settings) if upstream.tls else None,
        typed_extension_protocol_options=_protocol(
            upstream_http.HttpProtocolOptions(
                common_http_protocol_options=core.HttpProtocolOptions(idle_timeout=IDLE_CONNECTION),
                auto_config=_either_version() if upstream.tls else None,
                explicit_http_config=None if upstream.tls else _version_1(),
            )
        ),
    )


def _by_name() -> cluster.ClusterCustomClusterType:
    """One logical host, whatever its name resolves to: a changed answer never cuts the connections in use."""
    config = dns.DnsCluster(
        all_addresses_in_single_endpoint=True,
        dns_lookup_family=common_dns.DnsLookupFamily.ALL,
        dns_refresh_rate=DNS_REFRESH,
        dns_failure_refresh_rate=dns.DnsClusterRefreshRate(base_interval=DNS_RETRY, max_interval=DNS_REFRESH),
        respect_dns_ttl=True,
    )
    return cluster.ClusterCustomClusterType(name="envoy.cluster.dns", typed_config=packed(config))


def _either_version() -> upstream_http.HttpProtocolOptionsAutoHttpConfig:
    """HTTP/2 where the TLS handshake offers it, else HTTP/1.1."""
    return upstream_http.HttpProtocolOptionsAutoHttpConfig(
        http_protocol_options=core.Http1ProtocolOptions(), http2_protocol_options=core.Http2ProtocolOptions()
    )


def _version_1() -> upstream_http.HttpProtocolOptionsExplicitHttpConfig:
    """In clear, HTTP/1.1 is what every server speaks."""
    return upstream_http.HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=core.Http1ProtocolOptions())


def _tls(upstream: Upstream, settings: EnvoySettings) -> core.TransportSocket:
    names = tls.SubjectAltNameMatcherSanType
    context = tls.UpstreamTlsContext(
        sni="" if upstream.is_ip else upstream.host,
        common_tls_context=tls.CommonTlsContext(
            validation_context=tls.CertificateValidationContext(
                trusted_ca=core.DataSource(filename=str(settings.ca_bundle or system_ca_bundle())),
                match_typed_subject_alt_names=[
                    tls.SubjectAltNameMatcher(
                        san_type=names.IP_ADDRESS if upstream.is_ip else names.DNS,
                        matcher=matcher.StringMatcher(exact=upstream.host),
                    )
                ],
            )
        ),
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(context))


def _endpoint(name: str, address: core.Address) -> endpoint.ClusterLoadAssignment:
    host = endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=address))
    return endpoint.ClusterLoadAssignment(
        cluster_name=name, endpoints=[endpoint.LocalityLbEndpoints(lb_endpoints=[host])]
    )


def _unbounded() -> cluster.CircuitBreakers:
    return cluster.CircuitBreakers(
        thresholds=[
            cluster.CircuitBreakersThresholds(
                max_connections=UNBOUNDED, max_pending_requests=UNBOUNDED, max_requests=UNBOUNDED, max_retries=0
            )
        ]
    )


def _protocol(options: upstream_http.HttpProtocolOptions) -> dict[str, Any]:
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(options)}
