"""What a kubelet does for the gate's pods, without containers: it projects their ConfigMap into a folder.

A changed annotation makes it look at once: on a real kubelet 1.35 the file changed 0.21 to 0.29 s after the pod was
annotated. Without one it looks once a minute. The files are swapped as the kubelet swaps them: a new folder, and
`..data` renamed over. Like a kubelet it outlives an API server that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from helpers.kube.client import CONFIG_MAPS, PODS, ApiError, Client, Object

DELAY = 0.25
PERIOD = 60.0
RETRY = 0.2
NODE = "node"
VOLUME = "limits"
LABEL = "sluice.dev/gate"
CONFIG_MAP = "sluice-limits"


def gate_pod(name: str, port: int) -> Object:
    """A pod that holds a gate, as the API server takes it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": {
            "nodeName": NODE,  # so that it is ending for a while before it is gone
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "gate",
                    "image": "sluice",
                    "ports": [{"name": "sluice-admin", "containerPort": port}],
                    "volumeMounts": [{"name": VOLUME, "mountPath": "/etc/sluice"}],
                }
            ],
            "volumes": [{"name": VOLUME, "configMap": {"name": CONFIG_MAP, "optional": True}}],
        },
    }


@dataclass(slots=True)
class Running:
    """A pod on the node."""

    volume: Path
    annotations: Mapping[str, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    upkeep: asyncio.Task[None] | None = None


class Kubelet:
    """Runs the pods of a namespace, as far as their volumes and their addresses go. Use it by `kubelet`."""

    def __init__(self, api: Client, folder: Path, delay: float) -> None:
        self._api = api
        self._folder = folder
        self._delay = delay
        self._pods: dict[str, Running] = {}
        self._following: asyncio.Task[None] | None = None
        self._numbers = count(1)

    async def run_pod(self, name: str, port: int) -> Path:
        """Start a pod whose gate serves there; returns the folder of its volume, which is filled already."""
        pod = self._pods[name] = Running(self._folder / name)
        pod.volume.mkdir(parents=True)
        await self._api.create(PODS, gate_pod(name, port))
        await self._project(pod)
        pod.upkeep = asyncio.create_task(self._keep(pod))
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        await self._api.patch(PODS, name, {"status": status}, part="/status")
        return pod.volume

    async def end_pod(self, name: str) -> None:
        """Ask a pod to end; until `remove_pod` it is ending."""
        await self._api.delete(PODS, name)

    async def remove_pod(self, name: str) -> None:
        """A pod is gone. Its folder stays."""
        await _cancelled(self._pods.pop(name).upkeep)
        await self._api.delete(PODS, name, gracePeriodSeconds=0)

    def start(self) -> None:
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        await _cancelled(self._following)
        for pod in self._pods.values():
            await _cancelled(pod.upkeep)

    async def _follow(self) -> None:
        """Notice each pod whose annotations have changed."""

        async def once() -> None:
            async with self._api.watch(PODS) as changes:
                async for _, found in changes:
                    pod, annotations = (
                        self._pods.get(found["metadata"]["name"]),
                        found["metadata"].get("annotations", {}),
                    )
                    if pod is not None and annotations != pod.annotations:
                        pod.annotations = annotations
                        pod.changed.set()

        while True:
            await _insist(once)

    async def _keep(self, pod: Running) -> None:
        """Keep a pod's volume up to date."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pod.changed.wait(), PERIOD)
                await asyncio.sleep(self._delay)  # what a kubelet takes
            pod.changed.clear()
            await _insist(lambda: self._project(pod))

    async def _project(self, pod: Running) -> None:
        config_map = await self._api.find(CONFIG_MAPS, CONFIG_MAP)
        project(pod.volume, (config_map or {}).get("data", {}), next(self._numbers))


def project(volume: Path, data: Mapping[str, str], number: int) -> None:
    """Bring a volume's files up to date, all at once for whoever reads them. `number` is a new one each time."""
    new = volume / f"..{number}"
    new.mkdir()
    for key, text in data.items():
        (new / key).write_text(text)
    current = volume / "..data"
    old = current.resolve() if current.exists() else None
    link = volume / "..data_tmp"
    link.symlink_to(new.name)
    link.replace(current)
    for key in data:
        if not (volume / key).is_symlink():
            (volume / key).symlink_to(f"..data/{key}")
    for file in tuple(volume.iterdir()):
        if not file.name.startswith("..") and file.name not in data:
            file.unlink()
    if old is not None:
        shutil.rmtree(old)


@asynccontextmanager
async def kubelet(api: Client, folder: Path, *, delay: float = DELAY) -> AsyncIterator[Kubelet]:
    """A kubelet for a while, for the pods in the client's namespace; their volumes are in `folder`."""
    running = Kubelet(api, folder, delay)
    running.start()
    try:
        yield running
    finally:
        await running.stop()


async def _insist(step: Callable[[], Awaitable[None]]) -> None:
    """Do it, again if the API server does not let it be done."""
    while True:
        try:
            return await step()
        except (aiohttp.ClientError, ApiError, TimeoutError):
            await asyncio.sleep(RETRY)


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    """Wait until the task has ended for it. Raises what it failed with before."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
