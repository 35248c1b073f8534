"""The filter chain: what Envoy does to every call, in this order.

    unasked → read body → admission (fail open, fail closed) → usage stream → read usage → read refusal → router

Request filters run left to right, response filters right to left: the usage stream sees what stands on its right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import betterproto2
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.ratelimit import v3 as ratelimit_service
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.extensions.filters.http.ratelimit import v3 as ratelimit
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from sluice.config.merge import Configuration, Provider
from sluice.config.types import FailurePolicy
from sluice.core.limits import MILLISECOND
from sluice.usage.profiles.profile import Profile, Response, Shape
from sluice.usage.word import headers_of
from sluice_sidecar.envoy_config import facts
from sluice_sidecar.envoy_config.following import filter_file, followed
from sluice_sidecar.envoy_config.messages import opaque, packed
from sluice_sidecar.envoy_config.upstreams import gate_service
from sluice_sidecar.envoy_settings import MIB, EnvoySettings
from sluice_sidecar.protos import ATTRIBUTES, LEASE_NAMESPACE, REFUSAL_NAMESPACE, USAGE_NAMESPACE
from sluice_sidecar.settings import UsageSource

DOMAIN: Final = "sluice"

UNASKED: Final = "sluice.unasked"
READ_BODY: Final = "sluice.read_body"
ADMISSION: Final = {FailurePolicy.ALLOW: "sluice.admission.allow", FailurePolicy.DENY: "sluice.admission.deny"}
"""Whether a call passes when the gate cannot be asked is fixed for a filter, so there are two; a route gives its
descriptor to one of them, and the other, which has none, asks nothing."""
USAGE_STREAM: Final = "sluice.usage_stream"
READ_USAGE: Final = "sluice.read_usage"
READ_REFUSAL: Final = "sluice.read_refusal"
MARGIN: Final = timedelta(seconds=1)
"""What the gate has beyond `maxWait` to answer, and all it has where nothing queues."""

CHAIN: Final = (READ_BODY, *ADMISSION.values(), USAGE_STREAM, READ_USAGE)
"""What every route passes unless it says otherwise; the first of all and the last are off until a route wants them."""

OBSERVED_HEADERS: Final = (
    ":status",
    "content-type",
    "content-encoding",
    "retry-after*",
    "x-ratelimit*",
    "ratelimit*",
    "x-tokenlimit-*",
    "anthropic-ratelimit-*",
    "x-should-retry",
    "x-usage-*",
    "x-amzn-bedrock-*",
    "x-amzn-errortype",
)
"""All that the gate needs of the headers: of the request nothing (a key stands there), of the answer these. They cover
every built-in profile; a profile of one's own that names others has them too, as of Envoy's next start."""

AI_PROTOCOL_MANAGER: Final = "envoy.extensions.filters.http.ai_protocol_manager.v3"


def http_filters(configuration: Configuration, settings: EnvoySettings) -> Iterator[hcm.HttpFilter]:
    """The whole chain, in order."""
    # Answers pass it last, so that whoever reads usage has read it. Most routes have no use for it, and do without it.
    yield hcm.HttpFilter(name=UNASKED, typed_config=packed(facts.unasked_streams()), disabled=True)
    yield _filter(READ_BODY, facts.body_reader())
    for name, config in admission_filters(configuration, settings).items():
        yield _filter(name, config) if settings.xds_folder is None else _followed_filter(name, settings.xds_folder)
    yield _filter(USAGE_STREAM, _usage_stream(configuration, settings))
    if settings.usage is UsageSource.METADATA:
        yield hcm.HttpFilter(name=READ_USAGE, typed_config=_read_usage())
    yield hcm.HttpFilter(name=READ_REFUSAL, typed_config=packed(facts.refusal_reader()), disabled=True)
    yield _filter("envoy.filters.http.router", router.Router(suppress_envoy_headers=True))


def admission_filters(configuration: Configuration, settings: EnvoySettings) -> dict[str, ratelimit.RateLimit]:
    """The two filters that ask the gate, by name. Their time limit changes with the limits, so Envoy follows them."""
    timeout = settings.rls_timeout or _longest_wait(configuration) + MARGIN
    return {name: _admission(policy, timeout) for policy, name in ADMISSION.items()}


def _longest_wait(configuration: Configuration) -> timedelta:
    nanoseconds = max((rule.limits.max_wait for rule in configuration.rules.rules), default=0)
    return timedelta(milliseconds=-(-nanoseconds // MILLISECOND))


def _filter(name: str, config: betterproto2.Message) -> hcm.HttpFilter:
    return hcm.HttpFilter(name=name, typed_config=packed(config))


def _followed_filter(name: str, folder: Path) -> hcm.HttpFilter:
    source = core.ExtensionConfigSource(
        config_source=followed(folder, filter_file(name)), type_urls=[packed(ratelimit.RateLimit()).type_url]
    )
    return hcm.HttpFilter(name=name, config_discovery=source)


def _admission(policy: FailurePolicy, timeout: timedelta) -> ratelimit.RateLimit:
    return ratelimit.RateLimit(
        domain=DOMAIN,
        timeout=timeout,
        failure_mode_deny=policy is FailurePolicy.DENY,
        status_on_error=types.HttpStatus(code=types.StatusCode.ServiceUnavailable),
        rate_limit_service=ratelimit_service.RateLimitServiceConfig(
            grpc_service=gate_service(), transport_api_version=core.ApiVersion.V3
        ),
        disable_x_envoy_ratelimited_header=True,
        # Every gated answer tells what is left of the tightest limit: x-ratelimit-limit, -remaining, -reset.
        enable_x_ratelimit_headers=ratelimit.RateLimitXRateLimitHeadersRfcVersion.DRAFT_VERSION_03,
    )


def unasked_streams(shape: Shape) -> Any:
    """For a route on which a stream may tell no usage, or more than its caller asked for."""
    return packed(route.FilterConfig(config=packed(facts.texts(shape))))


def reading_refusals(provider: Provider) -> Any:
    """For the routes of a provider that refuses calls."""
    return packed(route.FilterConfig(config=packed(facts.refusals(provider))))


def usage_source(response: Response, settings: EnvoySettings) -> dict[str, Any]:
    """How the usage of a route's answers is found out, where that is not what the chain does by itself."""
    if settings.usage is UsageSource.BODY:
        return {}
    if response.envoy_reads:
        return {READ_USAGE: usage_protocol(response.envoy_reads)}
    return {USAGE_STREAM: observed_body()} if response.fields.names else {}


def observed_body() -> Any:
    """For a route of whose answers the gate is shown the body: observed, not waited for."""
    mode = _processing_mode(ext_proc.ProcessingModeBodySendMode.STREAMED)
    return packed(ext_proc.ExtProcPerRoute(overrides=ext_proc.ExtProcOverrides(processing_mode=mode)))


def _processing_mode(response_body: ext_proc.ProcessingModeBodySendMode) -> ext_proc.ProcessingMode:
    send, skip = ext_proc.ProcessingModeHeaderSendMode.SEND, ext_proc.ProcessingModeHeaderSendMode.SKIP
    return ext_proc.ProcessingMode(
        request_header_mode=send,
        response_header_mode=send,
        # Without it Envoy would close the stream, and end the permit, at the answer's headers.
        response_trailer_mode=send,
        request_trailer_mode=skip,
        request_body_mode=ext_proc.ProcessingModeBodySendMode.NONE,
        response_body_mode=response_body,
    )


def observed_headers(configuration: Configuration, settings: EnvoySettings) -> tuple[str, ...]:
    """Names and prefixes of the headers that the gate is shown."""
    known = (*OBSERVED_HEADERS, *settings.observed_headers)
    profiles = (provider.profile for provider in configuration.providers.values())
    return (*known, *sorted({name for each in profiles for name in headers_told(each) if not _covers(known, name)}))


def headers_told(profile: Profile) -> Iterator[str]:
    """The headers in which a provider says something to us."""
    yield from headers_of(profile.word)
    for shape in profile.shapes:
        yield from shape.response.headers.names


def _covers(known: Iterable[str], name: str) -> bool:
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in known)


def _usage_stream(configuration: Configuration, settings: EnvoySettings) -> ext_proc.ExternalProcessor:
    bodies = ext_proc.ProcessingModeBodySendMode
    headers = [_header_matcher(name) for name in observed_headers(configuration, settings)]
    return ext_proc.ExternalProcessor(
        grpc_service=gate_service(),
        # Envoy tells and never waits: a slow or absent gate cannot hold up or change an answer.
        observability_mode=True,
        deferred_close_timeout=settings.deferred_close_timeout,
        failure_mode_allow=True,
        message_timeout=timedelta(seconds=5),
        processing_mode=_processing_mode(bodies.STREAMED if settings.usage is UsageSource.BODY else bodies.NONE),
        forward_rules=ext_proc.HeaderForwardingRules(allowed_headers=matcher.ListStringMatcher(patterns=headers)),
        response_attributes=list(ATTRIBUTES),
        metadata_options=ext_proc.MetadataOptions(
            forwarding_namespaces=ext_proc.MetadataOptionsMetadataNamespaces(
                untyped=[LEASE_NAMESPACE, REFUSAL_NAMESPACE],
                typed=[USAGE_NAMESPACE] if settings.usage is UsageSource.METADATA else [],
            )
        ),
    )


def _header_matcher(name: str) -> matcher.StringMatcher:
    if name.endswith("*"):
        return matcher.StringMatcher(prefix=name[:-1])
    return matcher.StringMatcher(exact=name)


def _read_usage() -> Any:
    """Routes that name no protocol carry no LLM answers, so nothing is read there."""
    return opaque(
        f"{AI_PROTOCOL_MANAGER}.AiProtocolManager",
        {
            "response_handling": {
                "token_usage": {
                    "include_unconfigured_routes": False,
                    "metadata_namespace": USAGE_NAMESPACE,
                    "usage_signal": "SYNTHESIZE_TRAILERS",
                    # The most that Envoy takes; of a larger answer the usage is not read.
                    "limits": {"max_json_body_size": 10 * MIB, "max_sse_event_size": 10 * MIB},
                }
            }
        },
    )


def usage_protocol(protocol: str) -> Any:
    """The form of a route's answers, as `envoy.type.ai.v3.LLMProtocol` names it."""
    return opaque(f"{AI_PROTOCOL_MANAGER}.AiProtocolManagerPerRoute", {"response": {"llm_protocol": protocol}})
