"""Which call goes to which provider, and what belongs to one provider alone.

`/<provider>/…` goes to the provider with the prefix taken off; a call whose `Host` is the provider's own goes there as
it is. Everything else is answered with 404, and never leaves. All that changes with the limits stands here and in the
clusters, never in the listener: a changed listener is drained, changed routes are simply the next call's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.ratelimit import v3 as ratelimit
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from sluice.config.merge import Configuration, Provider
from sluice.usage.profiles import Api
from sluice_sidecar.envoy_config import callers, facts, filters
from sluice_sidecar.envoy_config.messages import error_body, packed
from sluice_sidecar.envoy_config.settings import EnvoySettings, UsageSource
from sluice_sidecar.envoy_config.upstreams import Upstream, cluster_name

ROUTES: Final = "sluice-routes"

IDLE_STREAM: Final = timedelta(minutes=30)
"""How long nothing may come from a provider: a model may think for many minutes before its first byte."""

HIDDEN_HEADERS: Final = (
    # A compressed answer hides its usage from Envoy and from the gate.
    "accept-encoding",
    # Where the call came from is no business of the provider's.
    "x-envoy-external-address",
    "x-forwarded-for",
    "x-forwarded-proto",
)

ANSWER_LIMIT: Final = 64 * 1024
"""Bytes that Envoy may answer a call with by itself: the list of providers must fit (Envoy's default is 4096)."""


def route_configuration(configuration: Configuration, settings: EnvoySettings) -> route.RouteConfiguration:
    """Every route: a virtual host for each provider's own name, and one for everything else."""
    return route.RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[*_by_host(configuration, settings), _by_prefix(configuration, settings)],
        max_direct_response_body_size_bytes=ANSWER_LIMIT,
        # The clusters may come a moment later than the routes that name them.
        validate_clusters=False,
    )


def _by_prefix(configuration: Configuration, settings: EnvoySettings) -> route.VirtualHost:
    providers = configuration.providers.values()
    routes = [each for provider in providers for each in _routes(provider, f"/{provider.name}", settings)]
    return route.VirtualHost(name="by-prefix", domains=["*"], routes=[_no_tunnel(), *routes, _unknown(configuration)])


def _by_host(configuration: Configuration, settings: EnvoySettings) -> Iterator[route.VirtualHost]:
    """Two providers may share a name (several models on one machine): the first one has what both would claim."""
    taken: set[str] = set()
    for provider in configuration.providers.values():
        domains = [domain for domain in _domains(Upstream.of(provider)) if domain not in taken]
        taken.update(domains)
        if domains:
            routes = [_no_tunnel(), *_routes(provider, "", settings)]
            yield route.VirtualHost(name=f"by-host/{provider.name}", domains=domains, routes=routes)


def _domains(upstream: Upstream) -> tuple[str, ...]:
    host = upstream.host
    exact = f"{host}:{upstream.port}"
    if upstream.is_ip or host == "localhost":
        # Applications reach Envoy itself by such a name, at another port, and mean the prefixes.
        return (exact, upstream.authority) if upstream.authority != exact else (exact,)
    return (exact, host, f"{host}:*")


def _routes(provider: Provider, prefix: str, settings: EnvoySettings) -> Iterator[route.Route]:
    yield from _refusals(provider, prefix)
    for match, protocol in _protocols(provider, prefix):
        yield route.Route(
            match=match,
            route=_action(provider, prefix),
            request_headers_to_add=[_first_value(header) for header in callers.counted_headers(provider)],
            request_headers_to_remove=[*callers.identity_headers(provider), *HIDDEN_HEADERS],
            request_body_buffer_limit=settings.body_limit,
            typed_per_filter_config=_filters(provider, protocol, settings),
        )


def _first_value(header: str) -> core.HeaderValueOption:
    return core.HeaderValueOption(
        header=core.HeaderValue(key=header, value=f"%REQ({header})%"),
        append_action=core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS,
    )


def _action(provider: Provider, prefix: str) -> route.RouteAction:
    action = route.RouteAction(
        cluster=cluster_name(provider),
        host_rewrite_literal=Upstream.of(provider).authority,
        # A whole call may take as long as it goes on; only silence ends it.
        timeout=timedelta(0),
        idle_timeout=IDLE_STREAM,
    )
    if prefix:
        action.regex_rewrite = matcher.RegexMatchAndSubstitute(
            pattern=matcher.RegexMatcher(regex=f"^{prefix}/?"), substitution="/"
        )
    return action


def _protocols(provider: Provider, prefix: str) -> Iterator[tuple[route.RouteMatch, str]]:
    """Which of the API's answers come from which path."""
    every = _under(prefix)
    match provider.api:
        case Api.OPENAI:
            responses = matcher.RegexMatcher(regex=f"{prefix}(/.*)?/responses(/.*)?")
            yield route.RouteMatch(safe_regex=responses), "OPENAI_RESPONSES"
            yield every, "OPENAI_CHAT_COMPLETIONS"
        case Api.ANTHROPIC:
            yield every, "ANTHROPIC_MESSAGES"
        case Api.GEMINI:
            yield every, "GEMINI_GENERATE_CONTENT"


def _under(prefix: str) -> route.RouteMatch:
    return route.RouteMatch(path_separated_prefix=prefix) if prefix else route.RouteMatch(prefix="/")


def _filters(provider: Provider, protocol: str, settings: EnvoySettings) -> dict[str, Any]:
    configs = {
        filters.ADMISSION[provider.failure_policy]: packed(
            ratelimit.RateLimitPerRoute(rate_limits=[facts.descriptor(provider)])
        )
    }
    if provider.api is Api.GEMINI:
        configs[filters.READ_PATH] = packed(facts.path_reader())
    if settings.usage is UsageSource.METADATA:
        configs[filters.READ_USAGE] = filters.usage_protocol(protocol)
    return configs


def _refusals(provider: Provider, prefix: str) -> Iterator[route.Route]:
    """Calls whose caller cannot be told for sure: they are answered here, before the gate is asked."""
    for conditions, message in callers.doubtful_calls(provider):
        match = _under(prefix)
        match.headers = list(conditions)
        yield _answer(match, 400, "invalid_request_error", message)


def _no_tunnel() -> route.Route:
    """CONNECT asks for a tunnel, in which nothing could be limited."""
    match = route.RouteMatch(connect_matcher=route.RouteMatchConnectMatcher())
    return _answer(match, 405, "method_not_allowed", "no tunnels here: call /<provider>/… in plain HTTP")


def _unknown(configuration: Configuration) -> route.Route:
    served = ", ".join(f"/{name}/" for name in configuration.providers) or "nothing yet"
    return _answer(route.RouteMatch(prefix="/"), 404, "not_found_error", f"no such provider; served here: {served}")


def _answer(match: route.RouteMatch, status: int, kind: str, message: str) -> route.Route:
    """A route that Envoy answers by itself."""
    body = error_body(status, kind, message)
    return route.Route(
        match=match,
        direct_response=route.DirectResponseAction(status=status, body=core.DataSource(inline_string=body)),
        response_headers_to_add=[
            core.HeaderValueOption(
                header=core.HeaderValue(key="content-type", value="application/json"),
                append_action=core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
        typed_per_filter_config={name: packed(route.FilterConfig(disabled=True)) for name in filters.CHAIN},
    )
