"""Every document that can be said can be written and read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.documents import documents
from sluice.config.document import parse, to_manifest
from sluice.config.types import ProviderLimits
from sluice.schema.yamltext import write


@given(st.lists(documents(), max_size=3))
def test_what_is_written_is_read_back(written: list[ProviderLimits]) -> None:
    text = write(map(to_manifest, written))

    assert parse(text, "limits.yaml") == tuple(written)
