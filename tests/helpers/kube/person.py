"""Somebody at a terminal, with kubectl, who waits for what the operator has to tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from helpers.kube.client import Object
from helpers.kube.control_plane import ControlPlane
from helpers.kube.gates import GatePod
from helpers.program import eventually

PATIENCE = 20.0
"""Seconds for what the operator does within one or two of its intervals."""


def limits(name: str, *entries: dict[str, Any], provider: str = "openai", **spec: Any) -> Object:
    """An object whose entries are of users, who are known by a header."""
    source = {"scope": "User", "subject": {"header": "x-user-id"}}
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": name},
        "spec": {"provider": provider, "limits": [source | each for each in entries], **spec},
    }


class Person:
    """Somebody at a terminal, with kubectl."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self._plane.kubectl, "-n", self._namespace, *arguments, stdin=stdin)

    async def apply(self, manifest: Object) -> str:
        return (await self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))).strip()

    async def row(self, name: str) -> list[str]:
        """What `kubectl get` prints of an object, but for its age."""
        return (await self.kubectl("get", "providerlimits", name, "--no-headers")).split()[:-1]

    async def sees(self, name: str, *row: str) -> None:
        """Wait until `kubectl get` prints this."""
        now: list[str] = []

        async def is_so() -> bool:
            now[:] = await self.row(name)
            return now == [name, *row]

        await eventually(is_so, lambda: str(now), PATIENCE)

    async def status(self, name: str) -> Object:
        found = json.loads(await self.kubectl("get", "providerlimits", name, "-o", "json"))
        return dict(found.get("status", {}))

    async def counts(self, name: str, used: int, rejected: int) -> None:
        """Wait until the status says so much of the fullest window, and of calls that were refused."""
        now: Object = {}

        async def is_so() -> bool:
            now.update(await self.status(name))
            hottest, usage = now.get("hottest", [{}])[0], now.get("usage", {})
            return (hottest.get("used"), usage.get("rejected")) == (used, rejected)

        await eventually(is_so, lambda: json.dumps(now), PATIENCE)

    async def reads(self, name: str, kind: str, status: str, reason: str) -> str:
        """Wait for a condition; returns its message."""
        return await self._condition(name, kind, lambda now: (now["status"], now["reason"]) == (status, reason))

    async def is_told(self, name: str, kind: str, status: str, reason: str, message: str) -> None:
        """Wait for a condition with this message."""
        wanted = {"status": status, "reason": reason, "message": message}
        await self._condition(name, kind, lambda now: now.items() >= wanted.items())

    async def _condition(self, name: str, kind: str, holds: Callable[[Object], bool]) -> str:
        now: Object = {}

        async def is_so() -> bool:
            by_type = {each["type"]: each for each in (await self.status(name)).get("conditions", ())}
            now.update(by_type.get(kind, {}))
            return bool(now) and holds(now)

        await eventually(is_so, lambda: json.dumps(now), PATIENCE)
        return str(now["message"])

    async def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of each event of an object, oldest first; of one that was told again, each time."""
        found = json.loads(await self.kubectl("get", "events", "-o", "json"))["items"]
        own = [each for each in found if each["involvedObject"]["name"] == name]
        own.sort(key=lambda each: (each["firstTimestamp"], each["metadata"]["resourceVersion"]))
        return [(each["reason"], each["message"]) for each in own for _ in range(each["count"])]


async def became(gate: GatePod, *, refuses: bool, provider: str = "openai", user: str = "alice") -> None:
    """Wait until the gate decides so."""
    async with asyncio.timeout(PATIENCE):
        while await gate.refuses(user, provider) is not refuses:  # noqa: ASYNC110  another process: nobody tells us
            await asyncio.sleep(0.002)
