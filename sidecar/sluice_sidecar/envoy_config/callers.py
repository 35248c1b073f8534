"""Who calls: where the gate's subjects stand in a request, which requests are in doubt, what the provider may see.

An identity header is for the gate alone. An API key goes on to the provider, so it must be the one that was counted:
a call that brings two, in two places or in one, is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Final

from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.type.matcher import v3 as matcher

from sluice.config.merge import Provider
from sluice.config.types import SubjectKind
from sluice.usage.profiles import Api
from sluice_sidecar.identity import ACCOUNT_ENTRY, SUBJECT_ENTRIES

KEY_HEADERS: Final[Mapping[Api, tuple[str, ...]]] = {
    Api.OPENAI: ("authorization", "api-key"),
    Api.ANTHROPIC: ("x-api-key", "authorization"),
    Api.GEMINI: ("x-goog-api-key", "authorization"),
    Api.BEDROCK: ("authorization",),
    Api.COHERE: ("authorization",),
    Api.OLLAMA: ("authorization",),
}
"""The headers in which a caller's key may stand. Gemini takes it as a query parameter too."""
KEY_PARAMETER: Final = "key"

NOT_UTF_8: Final = (
    r"(?s).*(?:[\xc0\xc1\xf5-\xff]"  # in no UTF-8
    r"|(?:^|[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})[\x80-\xbf]"
    r"|(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})(?:[^\x80-\xbf]|$)"  # too short; above: too long
    r"|\xe0[\x80-\x9f]|\xed[\xa0-\xbf]|\xf0[\x80-\x8f]|\xf4[\x90-\xbf]"  # overlong, a surrogate, beyond Unicode
    r").*"
)
"""Bytes that are not UTF-8 (RFC 3629, section 4). Envoy's expressions know bytes, not characters; and a condition on a
header that comes twice holds if one of the values fulfils it, so it must describe what is bad."""
NOT_ONE_KEY: Final = r"(?s)(?:.*[^ -+\--~].*)?"
"""Empty, or with what no key holds: anything but printable ASCII, and the comma by which Envoy joins `authorization`
headers."""
_PARAMETER: Final = r"[?&](?:k|%6[Bb])(?:e|%65)(?:y|%79)="
KEY_IN_QUERY: Final = rf".*{_PARAMETER}.*"
NOT_ONE_KEY_IN_QUERY: Final = rf".*{_PARAMETER}(?:[^&]*[^&\w.~-]|.*{_PARAMETER}).*"
"""Two keys, or one with what no key holds: an escape may stand for a byte that is no text."""


def subject_actions(provider: Provider) -> Iterator[route.RateLimitAction]:
    """The descriptor's entries that say who calls; one that a call lacks is left out.

    The key is among them even where no limit counts by it: what a provider says of its own limits concerns the one
    account that the key stands for.
    """
    for scope, source in provider.subjects.items():
        entry = SUBJECT_ENTRIES[scope]
        if source.kind is SubjectKind.HEADER:
            yield _header_entry(entry, source.value)
        elif source.kind is SubjectKind.API_KEY:
            yield from _key_entries(entry, provider.profile.api)
    if not _limits_by_key(provider):
        yield from _key_entries(ACCOUNT_ENTRY, provider.profile.api)


def _key_entries(entry: str, api: Api) -> Iterator[route.RateLimitAction]:
    yield from (_header_entry(entry, header) for header in KEY_HEADERS[api])
    if api is Api.GEMINI:
        yield _parameter_entry(entry, KEY_PARAMETER)


def identity_headers(provider: Provider) -> tuple[str, ...]:
    """The headers that say who calls, for the gate alone: the provider does not see them."""
    return tuple(sorted(s.value for s in set(provider.subjects.values()) if s.kind is SubjectKind.HEADER))


def counted_headers(provider: Provider) -> tuple[str, ...]:
    """The headers whose first value was counted, and must be all that goes on to the provider."""
    return KEY_HEADERS[provider.profile.api] if _limits_by_key(provider) else ()


def doubtful_calls(provider: Provider) -> Iterator[tuple[list[route.HeaderMatcher], str]]:
    """Conditions under which it is not sure who calls, and what to answer.

    A value that is not UTF-8 makes the whole descriptor unreadable to the gate: to Envoy, that is a gate that cannot be
    asked, and `failurePolicy: Allow` would let the call pass.
    """
    for header in identity_headers(provider):
        yield [_matches(header, NOT_UTF_8)], f"the header {header} is not UTF-8 text"
    if _limits_by_key(provider):
        for conditions in _doubtful_keys(provider.profile.api):
            yield conditions, "send one API key, once: this call has several, or an empty or unreadable one"


def _doubtful_keys(api: Api) -> Iterator[list[route.HeaderMatcher]]:
    headers = KEY_HEADERS[api]
    places = [route.HeaderMatcher(name=header, present_match=True) for header in headers]
    for header in headers:
        yield [_matches(header, NOT_ONE_KEY)]
    if api is Api.GEMINI:
        places.append(_matches(":path", KEY_IN_QUERY))
        yield [_matches(":path", NOT_ONE_KEY_IN_QUERY)]
    for pair in combinations(places, 2):
        yield list(pair)


def _limits_by_key(provider: Provider) -> bool:
    return any(source.kind is SubjectKind.API_KEY for source in provider.subjects.values())


def _matches(header: str, pattern: str) -> route.HeaderMatcher:
    regex = matcher.RegexMatcher(regex=pattern)
    return route.HeaderMatcher(name=header, string_match=matcher.StringMatcher(safe_regex=regex))


def _header_entry(entry: str, header: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        request_headers=route.RateLimitActionRequestHeaders(
            descriptor_key=entry, header_name=header, skip_if_absent=True
        )
    )


def _parameter_entry(entry: str, parameter: str) -> route.RateLimitAction:
    return route.RateLimitAction(
        query_parameters=route.RateLimitActionQueryParameters(
            descriptor_key=entry, query_parameter_name=parameter, skip_if_absent=True
        )
    )
