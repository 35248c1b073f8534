"""What a person may see of buckets that gates share: the counts are the store's, all else is this gate's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sluice.core.keys import BucketKey
from sluice.core.limits import Cap
from sluice.core.states import BucketState, WindowState
from sluice.core.windows import NEVER, SLOTS, SlidingWindow
from sluice_sidecar.gate import Gate
from sluice_sidecar.stores.shared import decision
from sluice_sidecar.stores.shared.client import StoreError
from sluice_sidecar.stores.shared.keyspace import Keyspace

AT_ONCE: Final = 50
"""Buckets looked at in one step of the server."""


async def of_all(
    states: Sequence[BucketState],
    gate: Gate,
    keyspaces: Mapping[str, Keyspace],
    queued_in: Callable[[BucketKey], int],
) -> list[BucketState]:
    """These buckets as the store counts them; as this gate does, where the store does not answer.

    Calls in flight that no limit caps are this gate's alone. `queued_in` says how many wait here for room in the store.
    """
    by_provider: dict[str, list[BucketState]] = {}
    for state in states:
        by_provider.setdefault(state.key.provider, []).append(state)
    seen: dict[BucketKey, BucketState] = {}
    for provider, of_provider in by_provider.items():
        keyspace = keyspaces.get(provider)
        for at in range(0, len(of_provider) if keyspace is not None else 0, AT_ONCE):
            assert keyspace is not None  # noqa: S101 - for the type checker
            seen |= await _peeked(keyspace, of_provider[at : at + AT_ONCE], gate, queued_in)
    return [seen.get(state.key, state) for state in states]


async def _peeked(
    keyspace: Keyspace, states: Sequence[BucketState], gate: Gate, queued_in: Callable[[BucketKey], int]
) -> dict[BucketKey, BucketState]:
    of_key = {state.key: state for state in states}
    buckets = gate.engine.visit(tuple(of_key), gate.clock(), lambda bucket, _: bucket)
    windows = {bucket.key: bucket.windows + bucket.parts for bucket in buckets}
    try:
        told = await keyspace.peek(buckets)
    except StoreError:
        return {}
    server = keyspace.server_time(gate.clock())
    return {
        bucket.key: _as_told(of_key[bucket.key], windows[bucket.key], in_flight, heads, server, queued_in(bucket.key))
        for bucket, (in_flight, heads) in zip(buckets, told, strict=True)
    }


def _as_told(
    state: BucketState, counted: Sequence[SlidingWindow], in_flight: int, heads: list[bytes], server: int, queued: int
) -> BucketState:
    windows: dict[Cap, WindowState] = {}
    for window, head in zip(counted, heads, strict=True):
        newest, *used = decision.totals(head)
        size = window.length // SLOTS
        reset = max(0, (newest + SLOTS + 1) * size - server * 1000) if any(used) else 0
        for cap, limit, count in zip(window.caps, (window.first_limit, window.second_limit), used, strict=True):
            if limit != NEVER:
                windows[cap] = WindowState(limit, count, reset)
    own = state.in_flight if state.max_concurrent is None else in_flight
    return replace(state, windows=windows, in_flight=own, queued=state.queued + queued)
