"""Changes of `ProviderLimits`, as kopf hears of them: all that they do is to say where something changed.

kopf runs on a loop and a thread of its own. It takes every task of its loop for one of its own and cancels them when it
ends, it takes the signals, and it ends for good when the API server is away for long: here it is started again.
It stores nothing in objects: no peering, no finalizers, no annotations, no events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import kopf

from sluice.config.crd import GROUP, PLURAL, VERSION
from sluice_operator.api import CALL_SECONDS, CONNECT_SECONDS, PAGE, Api, ClusterError
from sluice_operator.cluster import Cluster
from sluice_operator.logs import Complaint, whereabouts

logger = logging.getLogger(__name__)

AGAIN: Final = 2.0
"""Seconds until the objects are asked for again, while they cannot be had."""
FAREWELL: Final = 1.0
"""Seconds that kopf has to end its watches."""
Changed = Callable[[str], None]


def is_news(event: kopf.RawEvent) -> bool:
    """False for the echo of our own writes: a status that already speaks of the spec as it is."""
    body: Any = event["object"]
    metadata, status = body.get("metadata", {}), body.get("status") or {}
    seen = event["type"] == "MODIFIED" and status.get("observedGeneration") == metadata.get("generation")
    return not seen or "deletionTimestamp" in metadata


def registry(changed: Changed, login: Callable[..., Any]) -> kopf.OperatorRegistry:
    """The handlers. `changed` is called in kopf's thread."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(login)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    def provider_limits(event: kopf.RawEvent, namespace: str | None, **_: Any) -> None:
        if namespace is not None and is_news(event):
            changed(namespace)

    return handlers


class Watch:
    """Tells of changes in some namespaces, or in all for none, until cancelled."""

    def __init__(self, api: Api, cluster: Cluster, namespaces: Sequence[str], changed: Changed) -> None:
        self._api = api
        self._cluster = cluster
        self._namespaces = tuple(namespaces)
        self._changed = changed
        self._complaint = Complaint(logger)

    async def run(self) -> None:
        while True:
            await self._until_served()
            await self._watch()
            await asyncio.sleep(AGAIN)

    async def _until_served(self) -> None:
        """Kopf looks for the resource when it starts, and never again."""
        while True:
            try:
                for namespace in self._namespaces or (None,):
                    await self._cluster.check_served(namespace)
            except ClusterError as error:
                self._complaint.raised(f"nothing can be watched: {error}")
                await asyncio.sleep(AGAIN)
            else:
                self._complaint.settled()
                return

    async def _watch(self) -> None:
        """Run kopf until it ends by itself."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def changed(namespace: str) -> None:
            loop.call_soon_threadsafe(self._changed, namespace)

        async def login(**_: object) -> kopf.ConnectionInfo:
            connecting = asyncio.run_coroutine_threadsafe(self._connection(), loop)
            return await asyncio.wrap_future(connecting)

        stop = threading.Event()
        thread = threading.Thread(
            target=self._run_kopf,
            args=(registry(changed, login), stop, lambda: loop.call_soon_threadsafe(ended.set)),
            name="kopf",
            daemon=True,  # an end of the program waits for it no longer than FAREWELL
        )
        thread.start()
        try:
            await ended.wait()
        finally:
            stop.set()
            if not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL):
                        await ended.wait()

    async def _connection(self) -> kopf.ConnectionInfo:
        connection = await self._api.connection()
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_file,
            certificate_path=connection.certificate_file,
            private_key_path=connection.key_file,
            insecure=not connection.verify,
            scheme=_word(connection.authorization, 0),
            token=_word(connection.authorization, 1),
            trust_env=True,  # as the other client does
        )

    def _run_kopf(self, handlers: kopf.OperatorRegistry, stop: threading.Event, ended: Callable[[], object]) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=handlers,
                    settings=_settings(),
                    standalone=True,
                    clusterwide=not self._namespaces,
                    namespaces=self._namespaces,
                    stop_flag=stop,
                )
            )
        except Exception as error:  # noqa: BLE001  whatever it was, the next run may go better
            logger.warning("the watch has ended and starts again: %s", whereabouts(error))
        finally:
            with contextlib.suppress(RuntimeError):  # the program's own loop is over
                ended()


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.networking.request_timeout = CALL_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = (0.5, 1, 2)
    settings.watching.chunk_size = PAGE
    settings.watching.reconnect_backoff = 0.5
    settings.queueing.idle_timeout = 0.5  # a task for each object stays no longer
    settings.queueing.exit_timeout = 0.1
    return settings


def _word(header: str | None, number: int) -> str | None:
    words = (header or "").split(" ", 1)
    return words[number] if len(words) == 2 else None
