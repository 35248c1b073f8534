"""What a gate asks its shared store for a decision: the commands that the bench puts to Redis without a gate."""

from __future__ import annotations

from collections.abc import Iterator

from bench.redis_server import Command


def scripts() -> list[Command]:
    """What the server must be told before it is asked: `SCRIPT LOAD` with each script."""
    return []


def acquires(buckets: int, number: int, subjects: int) -> Iterator[Command]:  # noqa: ARG001  # until there is a script
    """`number` decisions, an `EVALSHA` each, over so many buckets of two windows; each user in turn.

    Ids are new every time, so that no decision is taken for one that was made before. Nothing, as long as there is no
    script to call.
    """
    yield from ()
