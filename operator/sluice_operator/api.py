"""The Kubernetes API as a transport: one call, its answer as plain JSON, its failure as one error of a small tree.

The official client loads the configuration, keeps the credentials fresh and makes the requests; its typed models are
not used. No other module knows it. Errors are sentences and never quote an object.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Self, TypeAlias
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from sluice.errors import SluiceError

Json: TypeAlias = dict[str, Any]

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"

CONNECT_SECONDS: Final = 3.0
CALL_SECONDS: Final = 10.0
"""Of one call, from its start to the last byte of its answer."""
LEAD_SECONDS: Final = 4.0
"""The same for the Lease: a leader has ten seconds to renew it, and tries twice."""
PAGE: Final = 500
"""Objects asked for at once, as kubectl does."""


class Lane(IntEnum):
    """Calls that wait for each other. The value is how many of a lane are under way at a time."""

    LEAD = 1
    """The Lease: waits for nothing else."""
    WORK = 16
    """Reads, ConfigMaps and pods."""
    TELL = 8
    """Statuses and events: a thousand of them are in nobody's way."""


class ClusterError(SluiceError):
    """A call to the Kubernetes API that did not do what it should."""


class NotFound(ClusterError):
    """The object is not there."""


class NotInstalled(ClusterError):
    """The cluster does not know the kind."""


class Conflict(ClusterError):
    """Somebody else was faster: the object is another one by now, or has changed."""


class Denied(ClusterError):
    """The operator may not do this, and will not be able to until somebody gives it the right."""


class Invalid(ClusterError):
    """The API server will never take this."""


class Unavailable(ClusterError):
    """No answer, or one that says to try again later."""


class Failing(Unavailable):
    """The API server is there and fails: for one, to store an object that this write would make too large."""


class NoCluster(SluiceError):
    """There is no configuration that says where the cluster is."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the API server, for a client of another make. Paths are of files, None where there is none."""

    server: str
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    verify: bool
    authorization: str | None
    """The value of the header of that name."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call, with what its errors say of it."""

    method: str
    path: str
    verb: str
    resource: str
    query: Mapping[str, str]
    body: Any = None
    content: str = JSON
    lane: Lane = Lane.WORK

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    @property
    def where(self) -> str:
        """Where it is about, for a person."""
        _, inside, rest = self.path.partition("/namespaces/")
        return f"in the namespace {rest.split('/')[0]}" if inside else "in the cluster"

    @property
    def remedy(self) -> str:
        """What has to be done where a right is missing."""
        if "/namespaces/" in self.path:
            return "a Role has to allow it, as examples/operator.yaml shows"
        return "a ClusterRole has to allow it, as examples/operator-all-namespaces.yaml shows"


class Api:
    """Calls to one API server. Methods raise `ClusterError`s and nothing else."""

    def __init__(self, configuration: Configuration, kubeconfig: Path | None) -> None:
        self._kubeconfig = kubeconfig
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._slots = {lane: asyncio.Semaphore(lane) for lane in Lane}
        self.errors: dict[tuple[str, str], int] = {}
        """Calls that failed, by (what was tried, kind of error)."""

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> Self:
        """With a kubeconfig file, or else as the pod that this is; makes no call yet. Raises `NoCluster`."""
        return cls(await _configuration(kubeconfig), kubeconfig)

    async def close(self) -> None:
        await self._client.close()

    async def connection(self) -> Connection:
        """With credentials that are fresh now."""
        with contextlib.suppress(NoCluster):
            self._configuration = await _configuration(self._kubeconfig)
        configuration = self._configuration
        return Connection(
            configuration.host,
            configuration.ssl_ca_cert or None,
            configuration.cert_file or None,
            configuration.key_file or None,
            bool(configuration.verify_ssl),
            await configuration.get_api_key_with_prefix("BearerToken", alias="authorization"),
        )

    async def call(self, request: Request) -> Json:
        """Make a call; returns the answer."""
        try:
            try:
                return await self._attempt(request)
            except _Expired:
                await self._renew()
                return await self._attempt(request)
        except ClusterError as error:
            if isinstance(error, NotFound) and request.verb == "get":
                raise  # an answer like any other
            key = (str(request), type(error).__name__)
            self.errors[key] = self.errors.get(key, 0) + 1
            raise

    async def _attempt(self, request: Request) -> Json:
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        seconds = LEAD_SECONDS if request.lane is Lane.LEAD else CALL_SECONDS
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        headers = {"Accept": JSON, "Content-Type": request.content}
        try:
            async with self._slots[request.lane]:
                serialized = await self._client.param_serialize(
                    request.method, path, header_params=headers, body=request.body, auth_settings=["BearerToken"]
                )
                response = await self._client.call_api(*serialized, _request_timeout=timeout)
                text = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
            raise Unavailable(f"the API server cannot be reached at {self._configuration.host} ({why})") from error
        if response.status >= 400:
            raise _error(request, response.status, text)
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise Unavailable(f"the API server's answer to {request} is not JSON") from error

    async def _renew(self) -> None:
        """Read the credentials again: those of before have expired."""
        with contextlib.suppress(NoCluster):
            self._configuration = await _configuration(self._kubeconfig)
            old, self._client = self._client, ApiClient(self._configuration)
            await old.close()

    async def pages(self, path: str, resource: str, query: Mapping[str, str]) -> list[Json]:
        """List all objects at a path, page by page."""
        items: list[Json] = []
        following = ""
        while True:
            paged = {**query, "limit": str(PAGE), **({"continue": following} if following else {})}
            page = await self.call(Request("GET", path, "list", resource, paged))
            for item in page["items"]:
                item["metadata"].pop("managedFields", None)  # the greater part of an object, and of no use here
                items.append(item)
            following = page["metadata"].get("continue", "")
            if not following:
                return items


class _Expired(Denied):
    """The API server does not know who this is."""


async def _configuration(kubeconfig: Path | None) -> Configuration:
    configuration = Configuration()
    configuration.connection_pool_maxsize = 0  # lanes bound the calls; a Lease waits for no connection
    try:
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, ValueError) as error:
        where = "the service account of this pod" if kubeconfig is None else str(kubeconfig)
        hint = " (outside a cluster: --kubeconfig FILE)" if kubeconfig is None else ""
        raise NoCluster(f"{where}: cannot be read: {error}{hint}") from error
    except Exception as error:  # whatever the library stumbles over in a file of another shape
        raise NoCluster(f"{kubeconfig}: is not a kubeconfig ({type(error).__name__})") from error
    return configuration


def _error(request: Request, status: int, text: bytes) -> ClusterError:
    """An answer that is an error, as a sentence. The server's own message stays out of it: it may quote an object."""
    match status:
        case 401:
            return _Expired(f"may not {request}: the API server does not accept the operator's credentials")
        case 403:
            return Denied(f"may not {request} {request.where}: {request.remedy}")
        case 404 if request.verb == "list":
            return NotInstalled(f"the cluster knows no {request.resource}: apply crds/providerlimits.yaml")
        case 404:
            return NotFound(f"cannot {request} {request.where}: it is not there")
        case 409 | 410 | 412:
            return Conflict(f"cannot {request}: it has changed meanwhile")
        case 408 | 425 | 429:
            return Unavailable(f"the API server asks to {request} later ({status})")
        case 500:
            return Failing(f"the API server fails to {request} (500 {_phrase(status)})")
        case _ if status >= 500:
            return Unavailable(f"the API server fails to {request} ({status} {_phrase(status)})")
    return Invalid(f"the API server refuses to {request} ({status} {_reason(text)})")


def _reason(text: bytes) -> str:
    """The one word of the answer's `reason`."""
    try:
        reason = json.loads(text)["reason"]
    except (ValueError, KeyError, TypeError):
        return "without a reason"
    return reason if isinstance(reason, str) and reason.isalpha() else "without a reason"


def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "unknown"
