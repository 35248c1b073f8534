"""The operator as a program: everything started in order, and everything ended in order.

Start. Nothing waits for the cluster: whatever is missing (the API server, the CRD, a right) is said, and tried again.

End. The first SIGTERM or SIGINT stops the loops; each write is whole or not at all, so that they can stop anywhere.
Then the Lease is released, and another begins at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from contextlib import AsyncExitStack
from typing import Final

from sluice_operator.admin import Admin
from sluice_operator.api import Api
from sluice_operator.cluster import Cluster
from sluice_operator.collect import Collector
from sluice_operator.handlers import Watch
from sluice_operator.lead import Alone, Elector
from sluice_operator.metrics import Metrics
from sluice_operator.namespaces import Namespaces
from sluice_operator.reconcile import Reconciler
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)

DISCOVERY: Final = 60.0
"""Seconds between two looks for namespaces that have only gates, where all are served."""
RELEASE: Final = 1.5
"""Seconds that releasing the Lease may take: the program ends within 5 s, whatever the API server does."""


class Operator:
    """One operator. `run` it once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> int:
        """Serve until a signal. Returns the exit code; raises `NoCluster` and `CannotServe`."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            serving = await self._start(stack)
            stopped = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if serving in done:
                await serving  # it does not end by itself: this raises what ended it
            logger.info("stopping")
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        return 0

    async def _start(self, stack: AsyncExitStack) -> asyncio.Task[None]:
        settings = self._settings
        api = await Api.connect(settings.kubeconfig)
        stack.push_async_callback(api.close)
        cluster = Cluster(api)
        collector = Collector()
        stack.push_async_callback(collector.close)

        def lead_changed(leads: bool) -> None:  # noqa: FBT001  the elector's word
            if leads:
                namespaces.all_changed()

        def make(namespace: str) -> Reconciler:
            return Reconciler(namespace, cluster, collector, leadership, metrics, settings.interval)

        def waiting_for() -> str:
            if elector is not None and not elector.leads():
                return "" if elector.leader else "the Lease"
            return "" if metrics.has_configured(settings.namespaces) else "the first look at every namespace"

        elector = None
        if settings.lease_namespace:
            elector = Elector(cluster, settings.lease_namespace, settings.identity, lead_changed)
        leadership = Alone() if elector is None else elector
        metrics = Metrics(leadership.leads, lambda: api.errors)
        namespaces = Namespaces(cluster, make, leadership, metrics.left)
        admin = Admin(metrics, waiting_for)
        stack.push_async_callback(admin.stop)
        addresses = await admin.start(settings.health, settings.metrics)
        logger.info(
            "serving %s; health at %s",
            ", ".join(settings.namespaces) or "all namespaces",
            " and ".join(map(str, addresses)),
        )
        watch = Watch(api, cluster, settings.namespaces, namespaces.changed)
        return asyncio.create_task(self._serve(namespaces, watch, elector))

    async def _serve(self, namespaces: Namespaces, watch: Watch, elector: Elector | None) -> None:
        """Everything at once, until cancelled; the Lease goes last."""
        named = self._settings.namespaces
        serving = namespaces.serve(named) if named else namespaces.discover(DISCOVERY)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serving)
                tasks.create_task(watch.run())
                if elector is not None:
                    tasks.create_task(elector.run())
        finally:
            if elector is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RELEASE):
                        await elector.release()
