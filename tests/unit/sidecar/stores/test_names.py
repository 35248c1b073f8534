"""What things are called on the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.core.keys import OVERFLOW, SCOPES, BucketKey, Scope
from sluice_sidecar.stores.shared.names import Keys

KEYS = Keys("team-a", "openai", "gate-1")
OTHERS = (KEYS.gates, KEYS.tickets, KEYS.epoch, KEYS.recovery, KEYS.batch, KEYS.wakes, KEYS.word)
ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from(":%{},*|"), max_size=8)
SUBJECTS = ANY_TEXT | st.sampled_from(("", "a", "a:b", ":", "*", "gpt:alice", OVERFLOW, "{x}", "é", "\udcc3\udca9"))
MODELS = ANY_TEXT | st.sampled_from(("", "a", "a:b", ":", "*", "gpt", "gpt:", "gpt%3A", "gpt,o3"))
BUCKETS = st.builds(BucketKey, st.just("openai"), st.sampled_from(SCOPES), SUBJECTS, MODELS)


@given(BUCKETS, BUCKETS)
def test_two_buckets_never_share_a_key(first: BucketKey, second: BucketKey) -> None:
    ours, theirs = KEYS.bucket(first), KEYS.bucket(second)

    assert (ours == theirs) == (first == second)
    assert first == second or not set(ours) & set(theirs)


@given(BUCKETS)
def test_the_keys_of_a_bucket_differ_from_each_other_and_from_all_others(key: BucketKey) -> None:
    stored = KEYS.bucket(key)

    assert len({*stored, *OTHERS}) == len(stored) + len(OTHERS)


@given(BUCKETS)
def test_all_keys_of_a_provider_stand_in_one_hash_slot_whatever_callers_call_themselves(key: BucketKey) -> None:
    tags = {_tag(name) for name in (*KEYS.bucket(key), *OTHERS)}

    assert tags == {b"team-a/openai"}


@pytest.mark.parametrize(("prefix", "provider"), [("team-b", "openai"), ("team-a", "acme"), ("team", "a-openai")])
def test_gates_of_another_prefix_or_provider_share_nothing(prefix: str, provider: str) -> None:
    others = Keys(prefix, provider, "gate-1")
    alice = ("openai", Scope.USER, "alice")

    assert not {*KEYS.bucket(BucketKey(*alice)), *OTHERS} & {
        *others.bucket(BucketKey(*alice)), others.gates, others.tickets, others.epoch, others.recovery, others.batch,
        others.wakes, others.word,
    }  # fmt: skip


def test_gates_share_everything_but_what_is_told_to_one_of_them() -> None:
    other = Keys("team-a", "openai", "gate-2")

    assert (other.gates, other.tickets, other.epoch, other.recovery, other.word) == (
        KEYS.gates, KEYS.tickets, KEYS.epoch, KEYS.recovery, KEYS.word,
    )  # fmt: skip
    assert not {other.batch, other.wakes} & {KEYS.batch, KEYS.wakes}


def _tag(name: bytes) -> bytes:
    """What Redis hashes of a key: what stands between the first `{` and the next `}`."""
    return name[name.index(b"{") + 1 : name.index(b"}")]
