"""Which call goes to which provider, and what belongs to one provider alone.

`/<provider>/…` goes to the provider with the prefix taken off; a call whose `Host` is the provider's own goes there as
it is. Everything else is answered with 404, and never leaves. All that changes with the limits stands here and in the
clusters, never in the listener: a changed listener is drained, changed routes are simply the next call's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.ratelimit import v3 as ratelimit
from envoy_data_plane.envoy.type.matcher import v3 as matcher

from sluice.config.merge import Configuration, Provider
from sluice.config.types import StreamUsage
from sluice.usage.profiles import Profile, Shape
from sluice.usage.profiles.profile import EVERY_PATH, regex
from sluice_sidecar.envoy_config import callers, facts, filters
from sluice_sidecar.envoy_config.messages import error_body, packed
from sluice_sidecar.envoy_config.upstreams import Upstream, cluster_name
from sluice_sidecar.envoy_settings import EnvoySettings

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

WAY_BACK: Final = r"(?i).*(?:[/\\]|%(?:25)*(?:2f|5c))(?:\.|%(?:25)*2e){2}(?:(?:[/\\;]|%(?:25)*(?:2f|5c|3b)).*)?"
"""Paths with a segment `..`, however it and the slashes beside it are escaped."""

ANSWER_LIMIT: Final = 64 * 1024
"""Bytes that Envoy may answer a call with by itself: the list of providers must fit (Envoy's default is 4096)."""


UNTOUCHED: Final = {name: packed(route.FilterConfig(disabled=True)) for name in filters.CHAIN}
"""For what Envoy answers by itself: nothing is read, and nobody is asked."""


@dataclass(frozen=True, slots=True)
class _Served:
    """A provider, and what its routes have in common however a call comes in."""

    provider: Provider
    upstream: Upstream
    headers_to_add: list[core.HeaderValueOption]
    headers_to_remove: list[str]
    settings: EnvoySettings


def route_configuration(configuration: Configuration, settings: EnvoySettings) -> route.RouteConfiguration:
    """Every route: a virtual host for each provider's own name, and one for everything else."""
    served = [_served(provider, settings) for provider in configuration.providers.values()]
    return route.RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[*_by_host(served), _by_prefix(served)],
        max_direct_response_body_size_bytes=ANSWER_LIMIT,
        # The clusters may come a moment later than the routes that name them.
        validate_clusters=False,
    )


def _served(provider: Provider, settings: EnvoySettings) -> _Served:
    return _Served(
        provider,
        Upstream.of(provider),
        [_first_value(header) for header in callers.counted_headers(provider)],
        [*callers.identity_headers(provider), *HIDDEN_HEADERS],
        settings,
    )


def _by_prefix(served: Iterable[_Served]) -> route.VirtualHost:
    routes = [each for one in served for each in _routes(one, f"/{one.provider.name}")]
    return route.VirtualHost(
        name="by-prefix", domains=["*"], routes=[_no_tunnel(), _no_way_back(), *routes, _unknown(served)]
    )


def _by_host(served: Iterable[_Served]) -> Iterator[route.VirtualHost]:
    """Two providers may share a name (several models on one machine): the first one has what both would claim."""
    taken: set[str] = set()
    for one in served:
        domains = [domain for domain in _domains(one.upstream) if domain not in taken]
        taken.update(domains)
        if domains:
            name = f"by-host/{one.provider.name}"
            yield route.VirtualHost(
                name=name, domains=domains, routes=[_no_tunnel(), _no_way_back(), *_routes(one, "")]
            )


def _domains(upstream: Upstream) -> tuple[str, ...]:
    exact = f"{upstream.host}:{upstream.port}"
    if not upstream.is_ip and upstream.host != "localhost":
        return (exact, upstream.host, f"{upstream.host}:*")
    # Applications reach Envoy itself by such a name, at another port, and mean the prefixes.
    return (exact, upstream.authority) if upstream.authority != exact else (exact,)


def _routes(served: _Served, prefix: str) -> Iterator[route.Route]:
    """The provider's routes under the prefix; with an empty one, all that come in by its name."""
    yield from _refusals(served.provider, prefix)
    admission = filters.ADMISSION[served.provider.failure_policy]
    for match, shape in _apis(served.provider.profile, prefix):
        descriptor = ratelimit.RateLimitPerRoute(rate_limits=[facts.descriptor(served.provider, shape)])
        usage, unasked = filters.usage_source(shape.response, served.settings), None
        if shape.request.stream_usage:
            unasked = served.provider.stream_usage
            if unasked is StreamUsage.ESTIMATE and filters.READ_USAGE not in usage:
                unasked = None  # the gate is shown the body
        configs = {
            filters.READ_BODY: packed(facts.reading(shape, unasked)),
            admission: packed(descriptor),
            **usage,
        }
        if served.provider.profile.word.refusals:
            configs[filters.READ_REFUSAL] = filters.reading_refusals(served.provider)
        if unasked is not None:
            configs[filters.UNASKED] = filters.unasked_streams(shape)
        yield route.Route(
            name=served.provider.name,
            match=match,
            route=_action(served, prefix),
            request_headers_to_add=served.headers_to_add,
            request_headers_to_remove=served.headers_to_remove,
            request_body_buffer_limit=served.settings.body_limit,
            typed_per_filter_config=configs,
        )


def _first_value(header: str) -> core.HeaderValueOption:
    return core.HeaderValueOption(
        header=core.HeaderValue(key=header, value=f"%REQ({header})%"),
        append_action=core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS,
    )


def _action(served: _Served, prefix: str) -> route.RouteAction:
    action = route.RouteAction(
        cluster=cluster_name(served.provider),
        host_rewrite_literal=served.upstream.authority,
        # A whole call may take as long as it goes on; only silence ends it.
        timeout=timedelta(0),
        idle_timeout=IDLE_STREAM,
    )
    if prefix:
        action.regex_rewrite = matcher.RegexMatchAndSubstitute(
            pattern=matcher.RegexMatcher(regex=f"^{prefix}/?"), substitution="/"
        )
    return action


def _apis(profile: Profile, prefix: str) -> Iterator[tuple[route.RouteMatch, Shape]]:
    """Which path speaks which API. What none of them takes is counted as the last one."""
    for shape in profile.shapes:
        for pattern in shape.paths:
            if pattern != EVERY_PATH:
                path = matcher.RegexMatcher(regex=f"{prefix}{regex(pattern)}")
                yield route.RouteMatch(safe_regex=path), shape
                continue
            yield _under(prefix), shape
            return
    yield _under(prefix), profile.shapes[-1]


def _under(prefix: str) -> route.RouteMatch:
    return route.RouteMatch(path_separated_prefix=prefix) if prefix else route.RouteMatch(prefix="/")


def _refusals(provider: Provider, prefix: str) -> Iterator[route.Route]:
    """Calls whose caller cannot be told for sure: they are answered here, before the gate is asked."""
    for conditions, message in callers.doubtful_calls(provider):
        match = _under(prefix)
        match.headers = list(conditions)
        yield _answer(match, 400, "invalid_request_error", message)


def _no_tunnel() -> route.Route:
    """CONNECT asks for a tunnel, in which nothing could be limited.

    Envoy forbids it by itself, but only on a route: without one, the filters would wait for the end of its body.
    """
    match = route.RouteMatch(connect_matcher=route.RouteMatchConnectMatcher())
    return _answer(match, 405, "method_not_allowed", "no tunnels here: call /<provider>/… in plain HTTP")


def _no_way_back() -> route.Route:
    """Envoy resolves `..` between slashes, but not beside an escaped one, which some servers take for a slash.

    There `/v1/files/..%2Fchat/completions`, which costs nothing, would be `/v1/chat/completions`.
    """
    match = route.RouteMatch(safe_regex=matcher.RegexMatcher(regex=WAY_BACK))
    return _answer(match, 400, "invalid_request_error", "send the path without `..`")


def _unknown(served: Iterable[_Served]) -> route.Route:
    names = ", ".join(f"/{one.provider.name}/" for one in served) or "nothing yet"
    return _answer(route.RouteMatch(prefix="/"), 404, "not_found_error", f"no such provider; served here: {names}")


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
        typed_per_filter_config=UNTOUCHED,
    )
