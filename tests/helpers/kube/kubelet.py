"""What a kubelet does for the gate's pods, without containers: it projects their ConfigMap into a folder.

A changed annotation makes it look at once: on a real kubelet 1.35 the file changed 0.21 to 0.29 s after the pod was
annotated. Without one it looks once a minute. The files are swapped as the kubelet swaps them: a new folder, and
`..data` renamed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from helpers.kube.client import CONFIG_MAPS, PODS, Client, Object

DELAY = 0.25
PERIOD = 60.0
VOLUME = "limits"
LABEL = "sluice.dev/gate"
CONFIG_MAP = "sluice-limits"


def gate_pod(name: str, port: int, config_map: str = CONFIG_MAP) -> Object:
    """A pod that holds a gate, as the API server takes it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "gate",
                    "image": "sluice",
                    "ports": [{"name": "sluice-admin", "containerPort": port}],
                    "volumeMounts": [{"name": VOLUME, "mountPath": "/etc/sluice"}],
                }
            ],
            "volumes": [{"name": VOLUME, "configMap": {"name": config_map, "optional": True}}],
        },
    }


class Kubelet:
    """Runs the pods of a namespace, as far as their volumes and their addresses go. Use it by `kubelet`."""

    def __init__(self, api: Client, folder: Path, delay: float) -> None:
        self._api = api
        self._folder = folder
        self._delay = delay
        self._annotations: dict[str, Mapping[str, str]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = count(1)

    async def run_pod(self, name: str, port: int) -> Path:
        """Start a pod whose gate serves there; returns the folder of its volume, which is filled already."""
        pod = await self._api.create(PODS, gate_pod(name, port))
        self._annotations[name] = pod["metadata"].get("annotations", {})
        self._changed[name] = asyncio.Event()
        folder = self.volume(name)
        folder.mkdir(parents=True)
        await self._project(name)
        self._tasks.add(asyncio.create_task(self._keep(name)))
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        await self._api.patch(PODS, name, {"status": status}, part="/status")
        return folder

    def volume(self, name: str) -> Path:
        return self._folder / name

    def start(self) -> None:
        self._tasks.add(asyncio.create_task(self._follow()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        """Notice each pod whose annotations have changed."""
        async with self._api.watch(PODS) as changes:
            async for _, pod in changes:
                name, annotations = pod["metadata"]["name"], pod["metadata"].get("annotations", {})
                if annotations != self._annotations.get(name, annotations):
                    self._annotations[name] = annotations
                    self._changed[name].set()

    async def _keep(self, name: str) -> None:
        """Keep a pod's volume up to date."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed[name].wait(), PERIOD)
                await asyncio.sleep(self._delay)  # what a kubelet takes
            self._changed[name].clear()
            await self._project(name)

    async def _project(self, name: str) -> None:
        config_map = await self._api.find(CONFIG_MAPS, CONFIG_MAP)
        project(self.volume(name), (config_map or {}).get("data", {}), next(self._numbers))


def project(volume: Path, data: Mapping[str, str], number: int) -> None:
    """Bring a volume's files up to date, all at once for whoever reads them."""
    new = volume / f"..{number}"
    new.mkdir()
    for key, text in data.items():
        (new / key).write_text(text)
    old = volume.joinpath("..data").resolve() if (volume / "..data").exists() else None
    link = volume / "..data_tmp"
    link.symlink_to(new.name)
    link.replace(volume / "..data")
    for key in data:
        if not (volume / key).is_symlink():
            (volume / key).symlink_to(f"..data/{key}")
    for file in volume.iterdir():
        if not file.name.startswith("..") and file.name not in data:
            file.unlink()
    if old is not None:
        shutil.rmtree(old)


@asynccontextmanager
async def kubelet(api: Client, folder: Path, *, delay: float = DELAY) -> AsyncIterator[Kubelet]:
    """A kubelet for a while."""
    running = Kubelet(api, folder, delay)
    running.start()
    try:
        yield running
    finally:
        await running.stop()
