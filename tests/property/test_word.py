"""Whatever a provider says, the gate makes something of it that the engine can take, and never fails."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sluice.core.limits import MAX_COUNT
from sluice.usage.profiles import BUILT_IN
from sluice.usage.word import LONGEST, Dialect

DIALECTS = [Dialect.of(BUILT_IN.profile(name).word) for name in BUILT_IN.names]
VALUES = st.one_of(
    st.binary(max_size=40),
    st.integers(-1, 10**18).map(lambda number: str(number).encode()),
    st.floats().map(lambda number: str(number).encode()),
    st.from_regex(rb"([0-9]{1,4}(d|h|ms|m|s|us|ns)){1,4}", fullmatch=True),
    st.from_regex(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,12})?(Z|[+-][0-9]{2}:[0-9]{2})"),
    st.from_regex(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("error", "code", "@type", "retryDelay", "type", "details")), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(
    st.sampled_from(DIALECTS),
    st.integers(100, 599) | st.sampled_from((402, 429, 503, 529)),
    st.data(),
    st.text(max_size=200) | JSON.map(json.dumps),
    st.integers(0, 2**62),
)
def test_anything_is_heard(dialect: Dialect, status: int, data: st.DataObject, body: str, wall: int) -> None:
    headers = data.draw(st.dictionaries(st.sampled_from(sorted(dialect.headers)), VALUES, max_size=8))
    said = dialect.feedback(status, headers, body, wall)
    assert said.retry_after is None or 0 <= said.retry_after <= LONGEST
    for quota in said.quotas:
        assert 0 <= quota.remaining <= MAX_COUNT
        assert quota.limit is None or quota.remaining <= quota.limit <= MAX_COUNT
        assert 0 <= quota.reset <= LONGEST
