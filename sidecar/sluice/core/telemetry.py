"""What the engine tells of its work, as it happens."""

from __future__ import annotations

import logging
from typing import Protocol

from sluice.core.decisions import Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.permits import Call, Permit

logger = logging.getLogger("sluice")


class Telemetry(Protocol):
    """Called inside the engine, once an event: keep it short, do not raise, and do not call the engine from it.

    A permit knows its keys, its estimate, what it really used (`tokens`), how that was settled and how long it waited.
    """

    def acquired(self, permit: Permit) -> None: ...

    def committed(self, permit: Permit) -> None: ...

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None: ...

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        """A limit in shadow mode had no room, and let the call pass."""

    def released(self, permit: Permit) -> None:
        """Also for a permit that was withdrawn: it is refunded, of 0 tokens, and was never committed."""

    def expired(self, permit: Permit) -> None: ...


class DebugLog:
    """The default: one line an event, at debug."""

    def acquired(self, permit: Permit) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "acquire %s keys=%s estimate=%d waited=%dns",
                permit.lease, permit.keys, permit.estimate, permit.waited,
            )  # fmt: skip

    def committed(self, permit: Permit) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "commit %s keys=%s estimate=%d actual=%d %s",
                permit.lease, permit.keys, permit.estimate, permit.tokens, permit.settled,
            )  # fmt: skip

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "reject key=%s estimate=%d reason=%s cap=%s waited=%dns",
                _shown(refusal.key), call.demand.tokens, refusal.reason, refusal.cap, waited,
            )  # fmt: skip

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "would reject (shadow) key=%s estimate=%d reason=%s cap=%s",
                refusal.key, call.demand.tokens, refusal.reason, refusal.cap,
            )  # fmt: skip

    def released(self, permit: Permit) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("release %s keys=%s", permit.lease, permit.keys)

    def expired(self, permit: Permit) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("expire %s keys=%s estimate=%d", permit.lease, permit.keys, permit.estimate)


def _shown(key: BucketKey) -> BucketKey:
    """A key without what a caller's body said: of the provider's own word, the model."""
    return key._replace(models="") if key.scope is Scope.PROVIDER else key


class Fanout:
    """Tells several of each event, one after the other."""

    def __init__(self, *sinks: Telemetry) -> None:
        self._sinks = sinks

    def acquired(self, permit: Permit) -> None:
        for sink in self._sinks:
            sink.acquired(permit)

    def committed(self, permit: Permit) -> None:
        for sink in self._sinks:
            sink.committed(permit)

    def rejected(self, call: Call, refusal: Refusal, waited: int) -> None:
        for sink in self._sinks:
            sink.rejected(call, refusal, waited)

    def would_reject(self, call: Call, refusal: Refusal) -> None:
        for sink in self._sinks:
            sink.would_reject(call, refusal)

    def released(self, permit: Permit) -> None:
        for sink in self._sinks:
            sink.released(permit)

    def expired(self, permit: Permit) -> None:
        for sink in self._sinks:
            sink.expired(permit)
