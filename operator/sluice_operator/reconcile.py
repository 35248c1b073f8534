"""One namespace: from what is there to what should be, again and again.

Theory of operation
    Two loops, which share what they know.

    `_configure` waits for a change, reads, plans and writes ConfigMaps and pods. It asks no gate: a change is on its
    way before anybody is waited for.

    `_tell` looks at everything each interval, and soon after a change: it asks the gates, plans again and writes
    statuses and events. If it finds a ConfigMap or a pod that is not as it should be, it hands over to the other loop.

    Neither trusts an event: each turn reads what is there. A turn that fails is tried again, and one that is cut short
    leaves nothing that the next would not find. A plan that was carried out plans nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeVar

from sluice.config.render import ENVOY, GENERATION, LIMITS
from sluice_operator import clock
from sluice_operator.api import ClusterError, Conflict, Failing, Invalid, Json, NotFound, Unavailable
from sluice_operator.cluster import Cluster, GatePod
from sluice_operator.collect import Collector, unasked
from sluice_operator.lead import Leadership
from sluice_operator.logs import Complaint, whereabouts
from sluice_operator.metrics import Metrics
from sluice_operator.planning.plan import (
    AnnotatePod,
    ApplyConfigMap,
    DeleteConfigMap,
    EmitEvent,
    Plan,
    WriteStatus,
    plan,
)
from sluice_operator.planning.state import Gate, Observed

T = TypeVar("T")
logger = logging.getLogger(__name__)

QUIET: Final = 0.05
"""Seconds without a further change before one is acted on: an apply of many objects is one change."""
IMPATIENCE: Final = 0.5
"""Seconds after which a change is acted on, though others keep coming."""
FOLLOWED: Final = 1.0
"""Seconds in which gates follow a change. Asked sooner, they tell what is over in a moment, and a status that says so
stands for five seconds."""
RENDERINGS: Final = 16
"""Texts whose contents are remembered: a gate that runs an older one counts as running none."""
WRITERS: Final = 16
"""Writes of one kind under way at a time."""
POLL: Final = 0.5
"""Seconds between two looks at whether this operator leads."""


class Retreat:
    """How long to wait after a failure: longer each time, with jitter."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    def seconds(self, error: Exception) -> float:
        """After one more failure. Somebody else's change asks for a new look at once; a missing right can wait."""
        self._failures += 1
        first, most = (0.02, 1.0) if isinstance(error, Conflict | NotFound) else (0.25, 5.0)
        if not isinstance(error, Conflict | NotFound | Unavailable):
            first = most
        return min(most, first * 2.0 ** min(self._failures - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class NotLeading(Exception):
    """The Lease ran out in the middle of a turn: whoever leads now does the rest."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a turn has read."""

    objects: list[Json]
    config_maps: Mapping[str, Json]
    pods: list[GatePod]

    @property
    def is_empty(self) -> bool:
        return not (self.objects or self.config_maps or self.pods)


class Reconciler:
    """Keeps one namespace as it should be, while this operator leads."""

    def __init__(
        self,
        namespace: str,
        cluster: Cluster,
        collector: Collector,
        leadership: Leadership,
        metrics: Metrics,
        interval: float,
    ) -> None:
        self.namespace = namespace
        self.is_empty = False
        """True if there was nothing at all at the last look."""
        self._cluster = cluster
        self._collector = collector
        self._leadership = leadership
        self._metrics = metrics
        self._interval = interval
        self._dirty = asyncio.Event()
        self._changed_at = 0.0
        self._tell_soon = asyncio.Event()
        self._looked_at = 0.0
        self._gates: tuple[Gate, ...] = ()
        self._history: OrderedDict[str, Mapping[str, int]] = OrderedDict()
        self._written: dict[str, float] = {}
        self._refused = Complaint(logger)
        self.changed()

    @property
    def is_dirty(self) -> bool:
        return self._dirty.is_set()

    def changed(self) -> None:
        """Something may not be as it should: look soon."""
        self._changed_at = clock.now()
        self._dirty.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._repeat("configure", self._until_changed, self._configure))
            loops.create_task(self._repeat("tell", self._until_due, self._tell))

    # -- the loops -----------------------------------------------------------------------------------------------

    async def _repeat(self, what: str, due: Callable[[], Awaitable[None]], turn: Callable[[], Awaitable[None]]) -> None:
        retreat, complaint = Retreat(), Complaint(logger)
        while True:
            await due()
            while not self._leadership.leads():  # noqa: ASYNC110  a deadline that passes tells nobody
                await asyncio.sleep(POLL)
            try:
                with self._metrics.turn(what, self.namespace):
                    await turn()
            except NotLeading:
                continue
            except ClusterError as error:
                if not isinstance(error, Conflict | NotFound):
                    complaint.raised(f"{self.namespace}: {error}")
                await asyncio.sleep(retreat.seconds(error))
            except Exception as error:  # noqa: BLE001  one namespace's trouble stays its own
                complaint.raised(f"{self.namespace}: {what} failed: {whereabouts(error)}")
                await asyncio.sleep(retreat.seconds(error))
            else:
                retreat.succeeded()
                complaint.settled()

    async def _until_changed(self) -> None:
        await self._dirty.wait()
        latest = clock.now() + IMPATIENCE
        while (wait := min(self._changed_at + QUIET, latest) - clock.now()) > 0:  # noqa: ASYNC110  a later change moves it
            await asyncio.sleep(wait)
        self._dirty.clear()

    async def _until_due(self) -> None:
        try:
            async with asyncio.timeout(self._interval):
                await self._tell_soon.wait()
        except TimeoutError:
            return
        self._tell_soon.clear()
        # Without gates at once, but where each look finds the same thing to write again, it is no more often written.
        await asyncio.sleep(FOLLOWED if self._gates else self._looked_at + FOLLOWED - clock.now())

    # -- configure -----------------------------------------------------------------------------------------------

    async def _configure(self) -> None:
        try:
            helped = await self._put_in_force()
        except Exception:
            self._dirty.set()
            raise
        if helped:
            self._tell_soon.set()

    async def _put_in_force(self) -> bool:
        """False if nothing that was due could be done."""
        found = await self._read()
        todo = await self._plan(found, unasked(found.pods, self._gates))
        maps = [write for write in todo.writes if not isinstance(write, AnnotatePod)]
        for write in maps:
            await self._write_config_map(write)
        pods = [write for write in todo.writes if isinstance(write, AnnotatePod)]
        told = sum(await self._each(pods, self._annotate))
        for write in maps:
            logger.info("%s: %s", self.namespace, _news(write, len(todo.rendered[1]), told))
        return bool(maps or told or not pods)

    async def _write_config_map(self, write: ApplyConfigMap | DeleteConfigMap) -> None:
        self._may_write()
        with self._metrics.write("configmap", self.namespace):
            if isinstance(write, ApplyConfigMap):
                await self._cluster.apply_config_map(self.namespace, write.manifest, write.resource_version)
            else:
                await self._cluster.delete_config_map(self.namespace, write.name, write.uid, write.resource_version)

    async def _annotate(self, write: AnnotatePod) -> bool:
        """False for a pod that is gone, or takes no annotation more: others are told all the same."""
        self._may_write()
        try:
            with self._metrics.write("pod", self.namespace):
                await self._cluster.annotate_pod(self.namespace, write.name, write.uid, write.value)
        except (NotFound, Conflict):
            return False
        except Invalid as error:
            self._refused.raised(f"{self.namespace}: {error}")
            return False
        return True

    # -- tell ----------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        self._looked_at = clock.now()
        found = await self._read()
        self._gates = await self._collector.gates(found.pods)
        todo = await self._plan(found, self._gates)
        self._metrics.saw(self.namespace, found.objects, self._gates)
        self.is_empty = found.is_empty
        self._written = {uid: at for uid, at in self._written.items() if uid in {_uid(each) for each in found.objects}}
        if todo.writes:
            self.changed()
        if any(not isinstance(write, AnnotatePod) for write in todo.writes):
            return  # what the statuses would say is not so yet
        versions = {_uid(each): str(each["metadata"]["resourceVersion"]) for each in found.objects}
        events: dict[str, list[EmitEvent]] = {}
        for event in todo.events:
            events.setdefault(event.uid, []).append(event)

        async def write_status(write: WriteStatus) -> bool:
            # The event first: if the operator dies between the two, the next one emits it again under the same name.
            for event in events.get(write.uid, ()):
                await self._emit(event, versions[write.uid])
            return await self._write_status(write)

        await self._each(todo.statuses, write_status)

    async def _write_status(self, write: WriteStatus) -> bool:
        self._may_write()
        try:
            with self._metrics.write("status", self.namespace):
                await self._cluster.apply_status(self.namespace, write.name, write.uid, write.status)
        except (NotFound, Conflict):
            return False  # another object by now, or none: the next turn sees
        except (Invalid, Failing) as error:  # this one has no place for it: others are told all the same
            self._refused.raised(f"{self.namespace}: {error}")
            return False
        self._written[write.uid] = clock.wall()
        return True

    async def _emit(self, event: EmitEvent, version: str) -> None:
        self._may_write()
        try:
            with self._metrics.write("event", self.namespace):
                await self._cluster.create_event(self.namespace, event, version)
        except (NotFound, Invalid) as error:
            logger.warning("%s: an event is lost: %s", self.namespace, error)

    # -- both ----------------------------------------------------------------------------------------------------

    async def _read(self) -> Found:
        cluster, namespace = self._cluster, self.namespace
        # The objects last: a ConfigMap that is older than they are fails on its version, and not the other way round.
        maps = {name: await cluster.config_map(namespace, name) for name in (LIMITS, ENVOY)}
        pods = await cluster.gate_pods(namespace)
        objects = await cluster.provider_limits(namespace)
        return Found(objects, {name: each for name, each in maps.items() if each is not None}, pods)

    async def _plan(self, found: Found, gates: tuple[Gate, ...]) -> Plan:
        observed = Observed(found.config_maps, gates, dict(self._history), dict(self._written), bootstrap())
        # In a thread: a thousand objects take a while, in which the Lease has to be renewed.
        result = await asyncio.to_thread(plan, found.objects, observed, clock.wall())
        for digest, forms in (result.found, result.rendered):
            self._history[digest] = forms
            self._history.move_to_end(digest)
        while len(self._history) > RENDERINGS:
            self._history.popitem(last=False)
        return result

    def _may_write(self) -> None:
        if not self._leadership.leads():
            raise NotLeading

    async def _each(self, items: Sequence[T], write: Callable[[T], Awaitable[bool]]) -> list[bool]:
        """Write all of them, some at a time; the first failure ends it."""
        slots = asyncio.Semaphore(WRITERS)

        async def one(item: T) -> bool:
            async with slots:
                return await write(item)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in items]
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        return [task.result() for task in tasks]


@cache
def bootstrap() -> str:
    """The Envoy bootstrap of the gateway, which is the same for all limits. `make generate` writes it."""
    return files("sluice_operator").joinpath("data", "envoy-gateway.json").read_text()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


def _uid(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["uid"])


def _news(write: ApplyConfigMap | DeleteConfigMap, objects: int, told: int) -> str:
    """What has changed, for the log."""
    if isinstance(write, DeleteConfigMap):
        return f"{write.name} deleted: nothing needs it any more"
    generation = write.manifest["metadata"]["annotations"].get(GENERATION)
    if generation is None:
        return f"{write.manifest['metadata']['name']} written"
    return (
        f"limits generation {generation}: {objects} object{'s' * (objects != 1)} in force, "
        f"told {told} gate{'s' * (told != 1)}"
    )
