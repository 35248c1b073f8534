"""The fuzzer finds what is planted, and says how to see it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fuzzing import Ways, fuzz
from sluice.usage.headers import usage_from_headers


def test_a_planted_mistake_is_found_and_its_input_shortened_and_kept(tmp_path: Path) -> None:
    def check(data: bytes) -> None:
        if b"ab" in data and data.endswith(b"z"):
            raise ZeroDivisionError

    with pytest.raises(AssertionError, match=r"ZeroDivisionError\(\), input \d+ with seed 3") as told:
        fuzz("planted", check, [b"....a....b....z"], [b"a", b"."], folder=tmp_path, seconds=30, seed=3)
    (file,) = (tmp_path / "crashes").iterdir()
    assert file.read_bytes() == b"abz"
    assert f"SLUICE_FUZZ_INPUT={file} make test-fuzz" in str(told.value)


def test_the_corpus_is_tried_before_anything_else(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus" / "planted"
    corpus.mkdir(parents=True)
    (corpus / "of old").write_bytes(b"known")
    tried: list[bytes] = []
    fuzz("planted", tried.append, [b"seed"], [b"word"], folder=tmp_path, seconds=0, seed=3)

    assert list(dict.fromkeys(tried)) == [b"known", b"seed"]


def test_a_way_through_the_library_is_new_once() -> None:
    ways = Ways()

    def read(value: str) -> bool:
        return ways.new_in(lambda: usage_from_headers([("x-usage-total-tokens", value)]))

    assert [read("1"), read("1"), read(""), read("")] == [True, False, True, False]
