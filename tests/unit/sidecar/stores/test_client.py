"""Questions to the store: how long they are waited for, what becomes of late answers, and what is told of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions

from helpers.driven import DrivenLoop, driven
from sluice.core.limits import MILLISECOND, SECOND
from sluice_sidecar.stores.address import PASSWORD_VARIABLE, StoreAddress
from sluice_sidecar.stores.shared.client import LATE, MOST_LATE, PATIENCE, TURNS, Ask, StoreError, _Patience
from sluice_sidecar.stores.shared.connections import Credentials, password_source
from sluice_sidecar.stores.shared.scripts import Script
from sluice_sidecar.stores.shared.troubles import PasswordError, explained

SECRET = "hunter2-the-password"
NANOSECONDS = int(PATIENCE * SECOND)
SCRIPT = Script("return 1", "e0e1")


def in_driven_time(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=DrivenLoop) as runner:
        runner.run(_awaited(test))


async def _awaited(test: Callable[[], Awaitable[None]]) -> None:
    await test()


async def turns(number: int = 2 * TURNS) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# -- patience ------------------------------------------------------------------------------------------------------


class Waiting:
    """Somebody who has asked just now."""

    def __init__(self) -> None:
        self.gave_up: list[list[Ask]] = []
        self.asks: list[Ask] = []
        _Patience(self.asks, self.gave_up.append)

    async def after(self, nanoseconds: int) -> bool:
        """True if it has been given up by then; the loop looks at the time just now."""
        driven().now += nanoseconds
        await turns()
        return bool(self.gave_up)


def test_an_answer_is_waited_for_so_long_and_no_longer() -> None:
    async def test() -> None:
        waiting = Waiting()

        assert not await waiting.after(NANOSECONDS - MILLISECOND)
        assert await waiting.after(MILLISECOND + 1000)
        assert waiting.gave_up == [waiting.asks]

    in_driven_time(test)


def test_an_answer_that_has_come_by_then_is_read_first() -> None:
    async def test() -> None:
        waiting = Waiting()
        driven().now += NANOSECONDS + 1000

        await turns(TURNS)
        assert not waiting.gave_up
        await turns(TURNS)
        assert waiting.gave_up

    in_driven_time(test)


@pytest.mark.parametrize("late", [int(LATE * SECOND) + MILLISECOND, 40 * MILLISECOND])
def test_where_the_loop_was_late_the_store_has_that_time_too(late: int) -> None:
    async def test() -> None:
        waiting = Waiting()

        assert not await waiting.after(NANOSECONDS + late)
        assert not await waiting.after(late - MILLISECOND)
        assert await waiting.after(MILLISECOND + 1000)

    in_driven_time(test)


def test_a_loop_that_is_a_little_late_gives_up_at_once() -> None:
    async def test() -> None:
        assert await Waiting().after(NANOSECONDS + int(LATE * SECOND) - MILLISECOND)

    in_driven_time(test)


def test_a_loop_that_is_late_again_and_again_gives_up_in_the_end() -> None:
    async def test() -> None:
        waiting, begun = Waiting(), driven().now
        while not await waiting.after(NANOSECONDS + 10 * MILLISECOND):
            assert driven().now - begun < int((PATIENCE + MOST_LATE) * SECOND)

        assert driven().now - begun < int((PATIENCE + MOST_LATE) * SECOND) + 2 * NANOSECONDS
        assert await Waiting().after(NANOSECONDS + int(MOST_LATE * SECOND))

    in_driven_time(test)


# -- late answers --------------------------------------------------------------------------------------------------


def asked() -> tuple[Ask, list[Any]]:
    """A question, and the answers that came late."""
    ask, late = Ask(SCRIPT, [], []), list[Any]()
    ask.late = late.append
    return ask, late


async def test_an_answer_in_time_is_not_late() -> None:
    ask, late = asked()
    ask.answer([1])
    ask.give_up()

    assert await ask.future == [1]
    assert late == []


async def test_an_answer_after_patience_has_ended_is_told_as_late_once() -> None:
    ask, late = asked()
    ask.give_up()
    ask.answer([1])

    with pytest.raises(StoreError, match="did not answer within 15 ms"):
        await ask.future
    ask.settle_late()
    assert late == [[1]]


async def test_an_answer_for_somebody_who_has_gone_is_late_whenever_it_comes() -> None:
    before, late_before = asked()
    before.answer([1])
    before.settle_late()
    after, late_after = asked()
    after.future.cancel()
    after.settle_late()
    after.answer([2])

    assert (late_before, late_after) == ([[1]], [[2]])


async def test_a_failure_is_never_late() -> None:
    ask, late = asked()
    ask.answer(StoreError("is full"))
    ask.settle_late()
    ask.answer(StoreError("is full"))

    with pytest.raises(StoreError, match="is full"):
        await ask.future
    assert late == []


# -- what is told --------------------------------------------------------------------------------------------------

SAID = (
    f"user gate password {SECRET}",
    f"ERR {SECRET}",
    f"{SECRET} ERR",
    f"WRONGPASS invalid username-password pair {SECRET} or user is disabled.",
    f"invalid username-password pair: {SECRET}",
    f"NOAUTH {SECRET} required",
    f"NOPERM User {SECRET} has no permissions to run the 'evalsha' command",
    f"this user has no permissions to access one of the keys {SECRET}",
    f"Connection closed by server {SECRET}",
    f"Error 111 connecting to {SECRET}:6379",
    f"user_script:1: {SECRET} script: 1234, on @user_script:1.",
    "",
)
ERRORS = [
    error
    for error in vars(redis.exceptions).values()
    if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == "redis.exceptions"
]
ADDRESSES = (
    "redis://127.0.0.1", "rediss://127.0.0.1", "unix:///nowhere.sock", "redis+sentinel://127.0.0.1/main",
    "redis+cluster://127.0.0.1",
)  # fmt: skip


def made(error: type[Exception], text: str) -> Exception | None:
    try:
        return error(text)
    except (TypeError, ValueError):  # those that read their text themselves
        return None


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("error", [*ERRORS, OSError, ConnectionRefusedError, TimeoutError, UnicodeError])
def test_what_is_told_of_a_failure_repeats_nothing_that_was_sent(error: type[Exception], address: str) -> None:
    where = StoreAddress.parse(address)
    for text in SAID:
        failure = made(error, text)
        if failure is None or isinstance(failure, PasswordError):
            continue
        wrapped = redis.exceptions.ConnectionError(text)
        wrapped.__cause__ = failure
        for each in (failure, wrapped):
            told = explained(each, where, 1.0)
            assert told
            assert "hunter2" not in told


# -- the password --------------------------------------------------------------------------------------------------


def test_the_password_is_read_from_the_file_each_time_without_the_end_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "password"
    source = password_source(file, {PASSWORD_VARIABLE: "not this one"})
    assert source is not None

    told = []
    for text in ("first\n", "second", " with blanks \r\n", "\n"):
        file.write_text(text)
        told.append(source())

    assert told == ["first", "second", " with blanks ", ""]


def test_without_a_file_it_is_that_of_the_variable() -> None:
    source = password_source(None, {PASSWORD_VARIABLE: SECRET})

    assert source is not None
    assert source() == SECRET


@pytest.mark.parametrize("environ", [{}, {PASSWORD_VARIABLE: ""}])
def test_without_either_there_is_none(environ: dict[str, str]) -> None:
    assert password_source(None, environ) is None


@pytest.mark.parametrize("content", [None, SECRET.encode() + b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named_by_its_flag_and_not_quoted(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret-name"
    if content is not None:
        file.write_bytes(content)
    source = password_source(file, {})
    assert source is not None

    with pytest.raises(PasswordError, match="--store-password-file") as failure:
        source()
    assert "secret" not in str(failure.value).replace("--store-password-file", "")
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("user", "password", "given"),
    [("", "p", ("p",)), ("gate", "p", ("gate", "p")), ("gate", None, ("gate", ""))],
)
def test_a_user_who_is_named_comes_with_the_password(user: str, password: str | None, given: tuple[str, ...]) -> None:
    assert Credentials(user, None if password is None else lambda: password).get_credentials() == given
