"""Which of several operators writes: leader election by a Lease, with client-go's rules and times.

Theory of operation
    Whoever holds the Lease renews it every 2 s. Another takes it once it has seen no renewal for 15 s, counted by its
    own clock from when it saw the last one: so clocks need not agree. The holder itself stops 10 s after it *began* the
    last renewal that went through. What it writes is over 5 s before another may start.

    A process that was paused wakes up believing what it believed before. So `leads` asks the clock each time, before
    each write; and a ConfigMap is written only over the version that was read.

    Every change of the Lease names the version it was made from. Of two that take it at once, one gets a conflict.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sluice_operator import clock
from sluice_operator.api import ClusterError, Conflict, Json
from sluice_operator.cluster import Cluster
from sluice_operator.logs import Complaint

logger = logging.getLogger(__name__)

LEASE: Final = "sluice-operator"
TERM: Final = 15
"""Seconds without a renewal after which another may take the Lease."""
DEADLINE: Final = 10.0
"""Seconds after the beginning of its last renewal for which a leader leads."""
RETRY: Final = 2.0
"""Seconds between two attempts to renew, or to take."""
LONGEST_TERM: Final = 60
"""A Lease that claims more was not written by an operator, and keeps none of them away for longer."""


class Leadership(Protocol):
    """Whether this operator may write."""

    def leads(self) -> bool:
        """Ask before every write: the answer may change at any time."""
        ...


class Alone:
    """The leadership of an operator that is told to be the only one."""

    def leads(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Record:
    """What a Lease says."""

    holder: str
    """Empty if it was released."""
    term: int
    """Seconds."""
    transitions: int
    acquired: str
    """When this holder got it, as Kubernetes writes times; empty if it does not say."""
    version: str
    """The resourceVersion; empty for a Lease that is not there."""


FREE: Final = Record("", 0, 0, "", "")
"""No Lease at all."""


class Election:
    """What is known of the Lease, and what follows from it. Times are seconds of one monotonic clock."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._record: Record | None = None
        self._seen = 0.0
        self._until = float("-inf")

    @property
    def record(self) -> Record | None:
        """The Lease as it was seen last; None if it has to be read first."""
        return self._record

    def saw(self, record: Record, now: float) -> None:
        """The Lease was read. What counts is when it changed for us, not when it says it did."""
        if self._record is None or record.version != self._record.version:
            self._record = record
            self._seen = now
        if record.holder != self._identity:
            self._until = float("-inf")

    def may_claim(self, now: float) -> bool:
        """True if the Lease is free, ours, or its holder has been silent for its whole term."""
        record = self._record
        return record is not None and (
            record.holder in {"", self._identity} or now >= self._seen + min(max(record.term, TERM), LONGEST_TERM)
        )

    def renewed(self, record: Record, began: float) -> None:
        """The Lease was written in our name, by a call that began then."""
        self._record = record
        self._seen = began
        self._until = began + DEADLINE

    def forget(self) -> None:
        """Somebody else has changed it: it has to be read again. What was won stays won until its end."""
        self._record = None

    def release(self) -> None:
        """Lead no longer."""
        self._until = float("-inf")

    def leads(self, now: float) -> bool:
        return now < self._until


class Elector:
    """Takes part in the election, until cancelled."""

    def __init__(
        self, cluster: Cluster, namespace: str, identity: str, changed: Callable[[bool], None] = lambda _: None
    ) -> None:
        """`changed` is told, at the next attempt, that this operator has begun or ceased to lead."""
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity
        self._changed = changed
        self._election = Election(identity)
        self._complaint = Complaint(logger)
        self._led = False
        self._news = ""

    def leads(self) -> bool:
        return self._election.leads(clock.now())

    @property
    def leader(self) -> str:
        """Who holds the Lease, as far as is known; empty for nobody."""
        record = self._election.record
        return "" if record is None else record.holder

    async def run(self) -> None:
        while True:
            try:
                await self._attempt()
                self._complaint.settled()
            except Conflict:
                self._election.forget()
            except ClusterError as error:
                self._complaint.raised(f"leader election: {error}")
            self._tell()
            await asyncio.sleep(RETRY * random.uniform(0.9, 1.1))  # noqa: S311 - so that equals do not march in step

    async def release(self) -> None:
        """Let another begin at once. To be called when nothing is written any more."""
        was_leading, record = self.leads(), self._election.record
        self._election.release()
        if was_leading and record is not None:
            try:
                await self._write(Record("", 1, record.transitions, record.acquired, record.version))
            except ClusterError as error:
                logger.info("the Lease could not be released, and ends by itself: %s", error)
            else:
                logger.info("the Lease is released")

    async def _attempt(self) -> None:
        """Renew the Lease, or take it if it is free."""
        election = self._election
        if not self.leads() or election.record is None:
            election.saw(_record(await self._cluster.lease(self._namespace, LEASE)), clock.now())
        began = clock.now()
        before = election.record
        if before is None or not election.may_claim(began):
            return
        same = before.holder == self._identity
        acquired = before.acquired if same and before.acquired else _micro_time(clock.wall())
        transitions = before.transitions if same or not before.version else before.transitions + 1
        claim = Record(self._identity, TERM, transitions, acquired, before.version)
        election.renewed(await self._write(claim), began)

    async def _write(self, record: Record) -> Record:
        lease = _lease(record, _micro_time(clock.wall()))
        write = self._cluster.update_lease if record.version else self._cluster.create_lease
        return _record(await write(self._namespace, lease))

    def _tell(self) -> None:
        leads = self.leads()
        news = "leading" if leads else f"standing by: {self._reason()}"
        if news != self._news:
            self._news = news
            logger.info("%s", news)
        if leads != self._led:
            self._led = leads
            self._changed(leads)

    def _reason(self) -> str:
        """Why this operator does not lead."""
        if self.leader == self._identity:
            return "the Lease was not renewed in time"
        return f"{self.leader or 'nobody'} leads"


def _record(lease: Json | None) -> Record:
    if lease is None:
        return FREE
    spec: Mapping[str, Any] = lease.get("spec") or {}
    return Record(
        spec.get("holderIdentity") or "",
        spec.get("leaseDurationSeconds") or 0,
        spec.get("leaseTransitions") or 0,
        spec.get("acquireTime") or "",
        lease["metadata"]["resourceVersion"],
    )


def _lease(record: Record, now: str) -> Json:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, **({"resourceVersion": record.version} if record.version else {})},
        "spec": {
            **({"holderIdentity": record.holder} if record.holder else {}),
            "leaseDurationSeconds": record.term,
            "leaseTransitions": record.transitions,
            "acquireTime": record.acquired or now,
            "renewTime": now,
        },
    }


def _micro_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
