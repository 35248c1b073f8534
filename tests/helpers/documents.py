"""Random limits documents: everything that can be said."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from sluice.config.entries import CALL_HEADERS, SECRET_HEADERS
from sluice.config.types import FailurePolicy, LimitEntry, ProviderLimits, StreamUsage, SubjectKind, SubjectSource
from sluice.core.keys import SCOPES
from sluice.core.limits import (
    CAPS_BY_LENGTH,
    MAX_COUNT,
    MILLISECOND,
    MINUTE,
    Cap,
    Limits,
    Mode,
    Sharing,
    StoreFailure,
)
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import Api
from sluice.usage.profiles.profile import EstimationMode

COUNTS = st.one_of(st.sampled_from([0, 1, MAX_COUNT]), st.integers(0, MAX_COUNT))
LABELS = st.lists(st.text("ab09", min_size=1, max_size=9), min_size=1, max_size=3).map("-".join)
# Everything that YAML treats apart, and characters of one to four bytes.
ALPHABET = "ab09 ,.:;-?*&!|>#%@`'\"{}[]<=~\\/\u00a0\u00e9\u2028\u20ac\ufeff\ufffe\U0001f600\U0010ffff"
SURPRISES = st.sampled_from(["on", "y", "1e3", "0o17", "1_0", "~", "2026-01-02", "<<", ".nan", " ", "'", "# no"])
TEXTS = st.one_of(SURPRISES, st.text(ALPHABET, min_size=1, max_size=20))
PATTERNS = TEXTS.filter(lambda text: "," not in text)
HEADERS = st.text("ab09!#$%&'*+.^_`|~-", min_size=1, max_size=9)
SOURCES = st.one_of(
    st.builds(
        SubjectSource,
        st.just(SubjectKind.HEADER),
        HEADERS.filter(lambda name: name not in SECRET_HEADERS + CALL_HEADERS),
    ),
    st.builds(SubjectSource, st.just(SubjectKind.CONSTANT), TEXTS),
    st.builds(SubjectSource, st.just(SubjectKind.ENV), st.text("AZaz_", min_size=1, max_size=9)),
    st.just(SubjectSource(SubjectKind.API_KEY)),
)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    caps: dict[str, Any] = {}
    for names in (*(caps.values() for caps in CAPS_BY_LENGTH), [Cap.MAX_CONCURRENT]):
        chosen = draw(st.lists(st.sampled_from(tuple(names)), unique=True))
        counts = sorted(draw(COUNTS) for _ in chosen)
        caps |= zip((cap.attribute for cap in names if cap in chosen), counts, strict=True)
    if not caps:
        caps = {"max_concurrent": draw(COUNTS)}
    longest = 0 if 0 in caps.values() else 5 * MINUTE // MILLISECOND
    return Limits(
        **caps,
        max_wait=draw(st.integers(0, longest)) * MILLISECOND,
        mode=draw(st.sampled_from(Mode)),
        failure_policy=draw(st.sampled_from(StoreFailure)),
    )


@st.composite
def documents(draw: st.DrawFn) -> ProviderLimits:
    sources = {scope: draw(SOURCES) for scope in SCOPES}
    # A different number in front of each pattern keeps the entries apart.
    entries = [
        LimitEntry(
            scope,
            sources[scope],
            tuple(f"{index}{pattern}" for pattern in draw(st.lists(PATTERNS, unique=True, min_size=1, max_size=3))),
            tuple(draw(st.lists(PATTERNS, unique=True, max_size=3))),
            draw(limits()),
        )
        for index, scope in enumerate(draw(st.lists(st.sampled_from(SCOPES), max_size=4)))
    ]
    host, port = draw(LABELS), draw(st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format)))
    return ProviderLimits(
        name=draw(LABELS),
        provider=draw(LABELS),
        api=draw(st.sampled_from(Api)),
        upstream=draw(st.sampled_from(["http://", "https://"])) + host + port,
        failure_policy=draw(st.sampled_from(FailurePolicy)),
        stream_usage=draw(st.sampled_from(StreamUsage)),
        sharing=draw(st.sampled_from(Sharing)),
        estimation=Estimation(
            draw(st.none() | st.sampled_from(EstimationMode)),
            draw(st.integers(1, 64)),
            draw(st.integers(1, MAX_COUNT)),
            draw(st.integers(1, 99)),
        ),
        limits=tuple(entries),
    )
