"""A small client for tests: objects are plain mappings, what goes wrong is one error with the API server's sentence."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import aiohttp

from helpers.kube.control_plane import ADMIN, ControlPlane

Object = dict[str, Any]


class Kind(NamedTuple):
    """Where the objects of a kind are found."""

    prefix: str
    plural: str
    namespaced: bool = True


LIMITS = Kind("/apis/sluice.dev/v1alpha1", "providerlimits")
CONFIG_MAPS = Kind("/api/v1", "configmaps")
PODS = Kind("/api/v1", "pods")
EVENTS = Kind("/api/v1", "events")
LEASES = Kind("/apis/coordination.k8s.io/v1", "leases")
NAMESPACES = Kind("/api/v1", "namespaces", namespaced=False)
CRDS = Kind("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Watched(NamedTuple):
    """One event of a watch: ADDED, MODIFIED, DELETED."""

    change: str
    object: Object


@dataclass(slots=True)
class Client:
    """Calls as one user. `namespace` is where namespaced kinds are meant."""

    session: aiohttp.ClientSession
    url: str
    namespace: str = "default"
    headers: tuple[tuple[str, str], ...] = ()
    """Of every call."""

    def inside(self, namespace: str) -> Client:
        """The same user in another namespace."""
        return replace(self, namespace=namespace)

    def as_user(self, user: str, *groups: str) -> Client:
        """Somebody else, by impersonation, which an administrator may. A service account is in its groups by itself."""
        asked = [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)]
        return replace(self, headers=tuple(asked))

    async def get(self, kind: Kind, name: str) -> Object:
        return await self._call("GET", self._path(kind, name))

    async def find(self, kind: Kind, name: str) -> Object | None:
        """The object, or None if there is none of that name."""
        try:
            return await self.get(kind, name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list(self, kind: Kind, **query: str) -> list[Object]:
        return list((await self._call("GET", self._path(kind), query=query))["items"])

    async def create(self, kind: Kind, manifest: Mapping[str, Any], **query: str) -> Object:
        """With `dryRun="All", fieldValidation="Strict"` only the server's opinion of it."""
        return await self._call("POST", self._path(kind), manifest, query=query)

    async def apply(self, kind: Kind, manifest: Mapping[str, Any], manager: str = "tests", part: str = "") -> Object:
        """Server-side apply, by force; `part` is a subresource such as `/status`."""
        path = self._path(kind, manifest["metadata"]["name"]) + part
        query = {"fieldManager": manager, "force": "true"}
        return await self._call("PATCH", path, manifest, "application/apply-patch+yaml", query)

    async def patch(self, kind: Kind, name: str, change: Mapping[str, Any], part: str = "") -> Object:
        """A JSON merge patch."""
        return await self._call("PATCH", self._path(kind, name) + part, change, "application/merge-patch+json")

    async def delete(self, kind: Kind, name: str, **options: Any) -> None:
        await self._call("DELETE", self._path(kind, name), options)

    async def delete_all(self, kind: Kind) -> None:
        """Every object of the namespace, at once."""
        await self._call("DELETE", self._path(kind), {"gracePeriodSeconds": 0})

    @asynccontextmanager
    async def watch(self, kind: Kind, **query: str) -> AsyncIterator[AsyncIterator[Watched]]:
        """Every change from now on; objects that are there already come first, as ADDED."""
        url, query = self.url + self._path(kind), {"watch": "true", **query}
        async with self.session.get(url, params=query, headers=self.headers) as answer:
            if answer.status != 200:
                raise ApiError(answer.status, _message(await answer.text()))
            yield _events(answer)

    def _path(self, kind: Kind, name: str = "") -> str:
        inside = f"/namespaces/{self.namespace}" if kind.namespaced else ""
        return f"{kind.prefix}{inside}/{kind.plural}" + (f"/{name}" if name else "")

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        async with self.session.request(
            method,
            self.url + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers=(("Content-Type", content_type), *self.headers),
        ) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise ApiError(answer.status, _message(text))
            return dict(json.loads(text))


@asynccontextmanager
async def client(plane: ControlPlane, user: str = ADMIN) -> AsyncIterator[Client]:
    """A client that is the administrator, or another user who has a kubeconfig."""
    connector = aiohttp.TCPConnector(ssl=plane.tls(user), limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 22) as session:
        yield Client(session, plane.url)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Watched]:
    async for line in answer.content:
        event = json.loads(line)
        if event["type"] == "ERROR":
            raise ApiError(event["object"].get("code", 500), event["object"].get("message", ""))
        yield Watched(event["type"], event["object"])


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
