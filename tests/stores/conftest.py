"""The servers that the tests of this folder share, each started once, when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

import pytest

from helpers.house import GATES_USER, gates_rights
from helpers.pki import Authority
from helpers.redis import RedisServer, running_redis
from helpers.redis_groups import RedisCluster, running_cluster

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
    """The Redis under test, where nobody but a user with the rights that the documentation names may do anything."""
    with lasting(running_redis(users={GATES_USER: gates_rights(), "default": "on nopass ~* &* +@all"})) as server:
        yield server


@pytest.fixture(scope="session")
def oldest() -> Iterator[RedisServer]:
    """The oldest Redis that is supported."""
    with lasting(running_redis(oldest=True, users={GATES_USER: gates_rights()})) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[RedisCluster]:
    """Three nodes."""
    with lasting(running_cluster(users={GATES_USER: gates_rights()})) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
