"""The servers that the tests of this folder share, each started once, when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

import pytest

from helpers.redis import RedisServer, running_redis

Made = TypeVar("Made")


@contextmanager
def lasting(making: AbstractAsyncContextManager[Made]) -> Iterator[Made]:
    """What an async context manager makes, for longer than a test's loop lives."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        made = runner.run(making.__aenter__())
        try:
            yield made
        finally:
            runner.run(making.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with lasting(running_redis()) as server:
        yield server
