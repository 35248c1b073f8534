"""What gates tell each other of the provider's own limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import MAX_COUNT, MINUTE, SECOND
from sluice.core.words import Amount, Feedback, Quota, RefusedAs
from sluice_sidecar.stores.shared.word import LONGEST, MOST_ACCOUNTS, MOST_QUOTAS, QUIET, Speaker

ACCOUNT = BucketKey("openai", Scope.PROVIDER, "5f2c", "gpt-5")
QUOTA = Quota("left", Amount.TOKENS, 700, 40_000, 17 * SECOND)
LEFT = Feedback((QUOTA,))
REFUSED = Feedback((), RefusedAs.RATE_LIMITED, 7 * SECOND)

COUNTS = st.integers(0, MAX_COUNT)
QUOTAS = st.builds(Quota, st.text(max_size=8), st.sampled_from(Amount), COUNTS, st.none() | COUNTS, COUNTS)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def told(feedback: Feedback, pause: int = 0, now: int = 0, account: BucketKey = ACCOUNT) -> bytes:
    message = Speaker("gate-1").message(account, feedback, pause, now)
    assert message is not None
    return message


def heard(message: bytes) -> tuple[BucketKey, Feedback] | None:
    return Speaker("gate-2").heard("openai", message)


# -- what is told --------------------------------------------------------------------------------------------------


@given(
    st.lists(QUOTAS, min_size=1, max_size=MOST_QUOTAS).map(tuple),
    st.none() | st.sampled_from(RefusedAs),
    st.integers(1, MAX_COUNT),
    st.text(max_size=8),
)
def test_another_gate_hears_what_was_told(
    quotas: tuple[Quota, ...], refused: RefusedAs | None, pause: int, model: str
) -> None:
    account = ACCOUNT._replace(models=model)

    assert heard(told(Feedback(quotas, refused, 3), pause, account=account)) == (
        account,
        Feedback(quotas, refused, pause),
    )


def test_a_gate_does_not_hear_itself() -> None:
    speaker = Speaker("gate-1")
    message = speaker.message(ACCOUNT, REFUSED, 7 * SECOND, 0)

    assert message is not None
    assert speaker.heard("openai", message) is None


def test_a_pause_is_told_as_long_as_it_is_here() -> None:
    assert heard(told(REFUSED, 3 * SECOND)) == (ACCOUNT, Feedback((), RefusedAs.RATE_LIMITED, 3 * SECOND))


def test_a_refusal_that_pauses_nothing_is_not_told() -> None:
    assert Speaker("gate-1").message(ACCOUNT, Feedback((), RefusedAs.OVERLOADED), 0, 0) is None


def test_an_answer_that_says_nothing_is_not_told() -> None:
    assert Speaker("gate-1").message(ACCOUNT, Feedback(), 0, 0) is None
    assert Speaker("gate-1").message(ACCOUNT, Feedback(), 7 * SECOND, 0) is None


def test_of_quotas_there_is_a_message_in_a_while_for_each_account() -> None:
    speaker, other = Speaker("gate-1"), ACCOUNT._replace(subject="other")

    times = [now for now in range(0, SECOND, QUIET // 8) if speaker.message(ACCOUNT, LEFT, 0, now) is not None]

    assert times == list(range(0, SECOND, QUIET))
    assert speaker.message(other, LEFT, 0, SECOND - 1) is not None


def test_every_refusal_is_told_at_once() -> None:
    speaker = Speaker("gate-1")
    assert speaker.message(ACCOUNT, LEFT, 0, 0) is not None

    assert [speaker.message(ACCOUNT, REFUSED, MINUTE, now) is None for now in range(5)] == [False] * 5


def test_it_is_known_of_so_many_accounts_when_they_were_spoken_of() -> None:
    speaker = Speaker("gate-1")
    for number in range(3 * MOST_ACCOUNTS):
        assert speaker.message(ACCOUNT._replace(subject=str(number)), LEFT, 0, 0) is not None

    assert len(speaker._told) <= MOST_ACCOUNTS  # noqa: SLF001 - memory that callers could fill


def test_of_so_many_quotas_no_more_are_told_than_are_read() -> None:
    quotas = tuple(QUOTA._replace(name=str(number)) for number in range(3 * MOST_QUOTAS))

    assert heard(told(Feedback(quotas))) == (ACCOUNT, Feedback(quotas[:MOST_QUOTAS]))


# -- what is heard -------------------------------------------------------------------------------------------------


def said(**changes: Any) -> bytes:
    whole = {
        "gate": "gate-1", "subject": "5f2c", "model": "gpt-5", "quotas": [["left", "tokens", 700, 40_000, 17]],
        "refused": "RateLimited", "pause": 7,
    }  # fmt: skip
    return json.dumps({**whole, **changes}).encode()


def test_the_message_that_the_others_are_made_from_is_heard() -> None:
    assert heard(said()) is not None


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\x00", b"\xff\xfe", b"null", b"7", b'"gate-1"', b"[]", b"{}", b"NaN", b"{", b'{"gate":' * 500,
        b"[" * 5000, b"[" * (LONGEST - 1), b'{"gate":' * (LONGEST // 8), b"9" * 5000, b"1e999",
        said()[:-1], said() + b"x", said().replace(b"17", b"1" * 4000), b" " * 2**20 + said(),
        said(subject="x" * 2**20),
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_message_of_a_gate_is_not_heard(message: bytes) -> None:
    assert heard(message) is None


@pytest.mark.parametrize("value", [None, True, -1, 2**53, 10**400, 0.5, "7", [], {}, float("inf"), float("nan")])
def test_a_pause_that_is_no_count_is_not_heard(value: object) -> None:
    assert heard(said(pause=value)) is None


@pytest.mark.parametrize(
    "quotas",
    [
        None, 7, "left", {"left": 1}, [7], ["left!"], [None], [{}], [[]], [["left", "tokens", 1, 2]],
        [["left", "tokens", 1, 2, 3, 4]], [["left", "bananas", 1, 2, 3]], [[7, "tokens", 1, 2, 3]],
        [["left", "tokens", -1, 2, 3]], [["left", "tokens", 1, 2.0, 3]], [["left", "tokens", 1, 2, True]],
        [["left", "tokens", 2**60, 2, 3]], [["left", [], 1, 2, 3]], [["left", "tokens", None, 2, 3]],
    ],
    ids=str,
)  # fmt: skip
def test_quotas_of_another_shape_are_not_heard(quotas: object) -> None:
    assert heard(said(quotas=quotas)) is None


@pytest.mark.parametrize("name", ["subject", "model"])
@pytest.mark.parametrize("value", [None, 7, True, [], {}])
def test_an_account_of_another_shape_is_not_heard(name: str, value: object) -> None:
    assert heard(said(**{name: value})) is None


@pytest.mark.parametrize("value", ["", "Tired", 7, True, [], {}])
def test_a_refusal_of_another_kind_is_not_heard(value: object) -> None:
    assert heard(said(refused=value)) is None


@given(st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_heard_as_nothing(message: bytes) -> None:
    assert heard(message) is None


@given(st.sampled_from(("gate", "subject", "model", "quotas", "refused", "pause")), ANY_JSON)
def test_a_part_that_is_anything_whatever_makes_no_other_message_of_it(name: str, value: object) -> None:
    found = heard(said(**{name: value}))

    if found is not None:
        account, feedback = found
        assert (type(account.subject), type(account.models)) == (str, str)
        assert feedback.retry_after is None or 0 < feedback.retry_after <= MAX_COUNT
        assert len(feedback.quotas) <= MOST_QUOTAS
