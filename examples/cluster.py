"""The tour that `make run-operator` gives: limits are applied to a cluster, and a moment later calls heed them.

It starts a real control plane (etcd and kube-apiserver), installs the CRD and the Role, and starts the operator, a gate
with its Envoy, and a stand-in for the providers. There are no nodes: a stand-in for the kubelet fills the folder from
which the gate reads. It applies `limits.yaml`, makes calls, and shows what kubectl says. It ends all that it started.
Exit code 0: everything promised on the screen was seen. 1: something was not, and the last lines say what.

    KEEP=1        stay up afterwards, for a kubectl of your own
    SLUICE_ENVOY  the Envoy to start; by default the one that `make setup` installs
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from helpers.kube.client import NAMESPACES, client
from helpers.kube.control_plane import ControlPlane
from helpers.kube.control_plane import running as control_plane
from helpers.kube.gates import GatePod, running_gate
from helpers.kube.kubelet import kubelet
from helpers.kube.operator import grant, operating
from standin import StandIn
from tour_stage import HERE, Screen, derived_limits

NAMESPACE: Final = "team-a"
CRD: Final = HERE.parent / "crds/providerlimits.yaml"
CALL: Final = {"model": "gpt-5-mini", "max_tokens": 40, "messages": [{"role": "user", "content": "Hi"}]}
MORE: Final = '[{"op": "replace", "path": "/spec/limits/1/requestsPerMinute", "value": 100}]'
SOON: Final = 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The control plane as somebody with kubectl sees it, and the gate that runs in it."""

    plane: ControlPlane
    gate: GatePod
    screen: Screen

    async def kubectl(self, command: str) -> str:
        """Run a kubectl command line in the namespace, and show it with its output."""
        print(f"   $ kubectl {command}", flush=True)
        told = await asyncio.to_thread(self.plane.kubectl, "-n", NAMESPACE, *shlex.split(command))
        print("".join(f"   {line}\n" for line in told.splitlines()), flush=True)
        return told

    async def says(self, command: str, *words: str) -> bool:
        """Wait, without showing it, until what kubectl prints has these words in it."""

        async def is_so() -> bool:
            told = await asyncio.to_thread(self.plane.kubectl, "-n", NAMESPACE, *shlex.split(command))
            return all(word in told for word in words)

        return await happens(is_so)

    async def call(self, user: str) -> int:
        """One call through Envoy; the status of its answer."""
        url = f"{self.gate.program.url}/openai/v1/chat/completions"
        async with self.gate.program.client.post(url, json=CALL, headers={"x-user-id": user}) as answer:
            await answer.read()
            return answer.status


async def happens(what: Callable[[], Awaitable[bool]]) -> bool:
    """Wait until it is so; False if it is not soon."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON):
            while not await what():  # noqa: ASYNC110  other programs: nobody tells us
                await asyncio.sleep(0.1)
            return True
    return False


@contextlib.asynccontextmanager
async def cluster(screen: Screen, folder: Path) -> AsyncIterator[Cluster]:
    """Everything that there is, from started to ended."""
    async with AsyncExitStack() as stack:
        stand_in = await stack.enter_async_context(StandIn())
        limits = derived_limits(folder, stand_in.url)
        plane = stack.enter_context(control_plane(folder / "control-plane"))
        admin = await stack.enter_async_context(client(plane))
        await admin.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
        plane.kubectl("create", "-f", str(CRD))
        account = grant(plane, NAMESPACE)
        screen.row("the control plane", f"etcd and kube-apiserver at {plane.url}")
        await stack.enter_async_context(operating(account, "--namespace", NAMESPACE))
        screen.row("the operator", f"serves the namespace {NAMESPACE}, with the rights of examples/operator.yaml")
        node = await stack.enter_async_context(kubelet(admin.inside(NAMESPACE), folder / "pods"))
        plane.kubectl("-n", NAMESPACE, "apply", "-f", str(limits))
        screen.row("the limits", f"examples/limits.yaml, its upstreams replaced by a stand-in, in {limits}")
        pod = running_gate(node, "gate-0", "--envoy", "--listen", "127.0.0.1:0")
        gate = await stack.enter_async_context(pod)
        screen.row("the gate and Envoy", f"{gate.program.url}/openai/v1 and others")
        yield Cluster(plane, gate, screen)


async def applied(place: Cluster) -> None:
    place.screen.section("Applied", "Each object says whether it is in force, and how many gates run it.")
    ready = await place.says("get providerlimits", "openai", "1/1")
    ready &= await place.says("wait --for=condition=Ready --timeout=20s providerlimits --all", "openai")
    await place.kubectl("get providerlimits")
    place.screen.promise("all three are Ready", kept=ready)


async def changed(place: Cluster) -> None:
    place.screen.section(
        "Changed", "nightly-job may make three calls a minute. A patch gives it a hundred; nothing is restarted."
    )
    before = [await place.call("nightly-job") for _ in range(4)]
    place.screen.row("four calls", f"answered {', '.join(map(str, before))}")
    await place.kubectl(f"patch providerlimits openai --type=json -p {shlex.quote(MORE)}")
    begun = asyncio.get_running_loop().time()

    async def is_admitted() -> bool:
        return await place.call("nightly-job") == 200

    kept = await happens(is_admitted)
    took = asyncio.get_running_loop().time() - begun
    place.screen.promise("the fourth call was refused", before == [200, 200, 200, 429])
    place.screen.promise(f"{took:.1f} s after the patch the next one is admitted", kept)


async def shown(place: Cluster) -> None:
    place.screen.section("Shown", "alice makes fifty calls of her sixty a minute. The status follows within seconds.")
    for _ in range(50):
        await place.call("alice")
    kept = await place.says("get providerlimits openai", "50/60")
    await place.kubectl("get providerlimits")
    await place.kubectl("describe providerlimits openai")
    kept &= await place.says("get events", "LimitNear", "80 %")
    await place.kubectl("get events")
    place.screen.promise("RPM says 50/60, and an event that 80 % are used", kept)


async def stay(place: Cluster) -> None:
    """Stay up until interrupted, and say what to try."""
    print("\nIt stays up for commands of your own. Ctrl-C ends everything.\n")
    print(f"   export KUBECONFIG={place.plane.admin} PATH={place.plane.assets}:$PATH")
    print(f"   kubectl config set-context --current --namespace {NAMESPACE}")
    print("   kubectl get providerlimits -o wide --watch")
    print("   kubectl edit providerlimits openai")
    print("   kubectl explain providerlimits.spec.limits")
    print("   kubectl delete providerlimits openai")
    print("   kubectl get configmap sluice-limits -o yaml")
    print(f"   curl -i {place.gate.program.url}/openai/v1/chat/completions -H 'x-user-id: frank' \\")
    print('        -H \'content-type: application/json\' -d \'{"model": "m", "messages": []}\'', flush=True)
    await asyncio.Event().wait()


async def tour(screen: Screen) -> None:
    """Everything, from the first process to the end of the last."""
    print("Sluice's operator on a real API server: kubectl apply, and it is live.\n")
    with tempfile.TemporaryDirectory(prefix="sluice-cluster-") as folder:
        async with cluster(screen, Path(folder)) as place:
            for sight in (applied, changed, shown):
                await sight(place)
            if os.environ.get("KEEP", "0").lower() not in ("", "0", "no", "false"):
                await stay(place)


async def ended_by_signals(screen: Screen) -> None:
    """The tour; SIGTERM and Ctrl-C end it, with all that it started."""
    task = asyncio.create_task(tour(screen))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def main() -> int:
    """Give the tour; the exit code says whether it showed what it promised."""
    screen = Screen()
    try:
        asyncio.run(ended_by_signals(screen))
    except asyncio.CancelledError:
        print("\nInterrupted: everything that was started has ended.")
        return 1 if screen.broken else 0
    except (AssertionError, OSError) as error:
        screen.broken.append(str(error))
    for what in screen.broken:
        print(f"\nNot as promised: {what}")
    if not screen.broken:
        print("\nAll of it was as promised, and everything that was started has ended.")
    return 1 if screen.broken else 0


if __name__ == "__main__":
    sys.exit(main())
