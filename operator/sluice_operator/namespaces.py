"""Which namespaces are served: those that were named, or whichever of the cluster have something in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from sluice_operator.api import ClusterError
from sluice_operator.cluster import Cluster
from sluice_operator.lead import Leadership
from sluice_operator.logs import Complaint
from sluice_operator.reconcile import Reconciler

logger = logging.getLogger(__name__)


class Namespaces:
    """Starts and ends a `Reconciler` for each namespace that is served."""

    def __init__(
        self,
        cluster: Cluster,
        make: Callable[[str], Reconciler],
        leadership: Leadership,
        left: Callable[[str], None],
    ) -> None:
        """`left` is told of each namespace that is served no longer."""
        self._cluster = cluster
        self._make = make
        self._leadership = leadership
        self._left = left
        self._running: dict[str, tuple[Reconciler, asyncio.Task[None]]] = {}

    def changed(self, namespace: str) -> None:
        """Something may not be as it should in this namespace."""
        if namespace not in self._running:
            reconciler = self._make(namespace)
            self._running[namespace] = (reconciler, asyncio.create_task(reconciler.run()))
        self._running[namespace][0].changed()

    def all_changed(self) -> None:
        """This operator begins to lead, and has not looked for a while."""
        for reconciler, _ in self._running.values():
            reconciler.changed()

    async def serve(self, namespaces: Iterable[str]) -> None:
        """Serve these, and no others, until cancelled."""
        for namespace in namespaces:
            self.changed(namespace)
        try:
            await asyncio.Event().wait()
        finally:
            await self._stop(list(self._running))

    async def discover(self, every: float) -> None:
        """Serve every namespace of the cluster that has objects or gates, until cancelled."""
        complaint = Complaint(logger)
        try:
            while True:
                if self._leadership.leads():
                    try:
                        await self._look()
                        complaint.settled()
                    except ClusterError as error:
                        complaint.raised(f"namespaces cannot be discovered: {error}")
                await asyncio.sleep(every)
        finally:
            await self._stop(list(self._running))

    async def _look(self) -> None:
        objects = await self._cluster.provider_limits(None)
        there = {str(each["metadata"]["namespace"]) for each in objects} | await self._cluster.gate_namespaces()
        for namespace in there - set(self._running):
            self.changed(namespace)
        ended = [
            namespace
            for namespace, (reconciler, _) in self._running.items()
            if reconciler.is_empty and not reconciler.is_dirty and namespace not in there
        ]
        await self._stop(ended)

    async def _stop(self, ended: Sequence[str]) -> None:
        tasks = [self._running.pop(namespace)[1] for namespace in ended]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for namespace in ended:
            self._left(namespace)
