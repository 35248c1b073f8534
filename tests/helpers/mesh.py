"""A real Envoy between a recording gate and a recording provider, with one provider of each API configured."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.envoy import RunningEnvoy, free_port, running_envoy, short_folder
from helpers.recording import Answer, Entries, Received, RecordingGate, RecordingProvider, providing, send, serving
from sluice.config.merge import Configuration, merge
from sluice.config.types import FailurePolicy, LimitEntry, ProviderLimits, SubjectKind, SubjectSource
from sluice.core.keys import Scope
from sluice.core.limits import Limits
from sluice.usage.estimation import Estimation
from sluice.usage.profiles import Api
from sluice_sidecar.envoy_config import EnvoySettings, TcpAddress, bootstrap, write_files

TLS = Path(__file__).resolve().parents[1] / "data" / "tls"
CA_BUNDLE = TLS / "ca.pem"

SUBJECTS = {
    "header": SubjectSource(SubjectKind.HEADER, "x-user-id"),
    "apiKey": SubjectSource(SubjectKind.API_KEY),
    "constant": SubjectSource(SubjectKind.CONSTANT, "team-a"),
    "env": SubjectSource(SubjectKind.ENV, "POD_NAMESPACE"),
}
ONE_REQUEST = Limits(requests_per_minute=1)


def limits_of(
    name: str,
    api: Api,
    upstream: str,
    limits: Limits = ONE_REQUEST,
    failure_policy: FailurePolicy = FailurePolicy.ALLOW,
    **subjects: SubjectSource | None,
) -> ProviderLimits:
    """A limits document: one entry for each scope that is named, with the subject given for it."""
    entries = tuple(LimitEntry(Scope(scope), s, (), (), limits) for scope, s in subjects.items() if s is not None)
    return ProviderLimits(name, name, api, upstream, failure_policy, Estimation(), entries)


def usual(upstream: str) -> Configuration:
    """What `running_mesh` is configured with, unless it is told otherwise; all at one upstream."""
    header, key = SUBJECTS["header"], SUBJECTS["apiKey"]
    organization = SubjectSource(SubjectKind.HEADER, "x-org-id")
    return merge(
        [
            limits_of("openai", Api.OPENAI, upstream, User=header, Org=organization),
            limits_of("strict", Api.OPENAI, upstream, failure_policy=FailurePolicy.DENY, User=header),
            limits_of("keyed", Api.OPENAI, upstream, User=key),
            limits_of("anthropic", Api.ANTHROPIC, upstream, User=key),
            limits_of("gemini", Api.GEMINI, upstream, User=key, Project=SUBJECTS["constant"]),
        ]
    )


@dataclass(slots=True)
class Mesh:
    """What a test may touch."""

    gate: RecordingGate
    provider: RecordingProvider
    envoy: RunningEnvoy
    port: int
    """Envoy's, for applications."""
    provider_port: int
    folder: Path
    settings: EnvoySettings

    async def call(self, request: bytes) -> Call:
        """Send one request, and see what the gate was asked and what the provider got."""
        asked, received = len(self.gate.asked), len(self.provider.received)
        answer = await send(self.port, request)
        return Call(answer, self.gate.asked[asked:], self.provider.received[received:])

    def write(self, *documents: ProviderLimits) -> None:
        """New limits, for an Envoy that follows its files."""
        write_files(self.folder / "xds", merge(documents), self.settings)


@dataclass(slots=True)
class Call:
    """One call, from three sides."""

    answer: Answer
    asked: list[Entries]
    received: list[Received]

    @property
    def facts(self) -> dict[str, str]:
        """The entries of the one descriptor that the gate was asked about."""
        (descriptor,) = self.asked
        facts = dict(descriptor)
        assert len(facts) == len(descriptor), f"an entry comes twice: {descriptor}"
        return facts


@asynccontextmanager
async def running_mesh(
    configuration: Configuration | Callable[[str], Configuration] = usual, *, live: bool = False, **settings: Any
) -> AsyncIterator[Mesh]:
    """All three up; `live` for an Envoy that follows its files. It may be configured by the provider's address."""
    with short_folder() as folder:
        port, provider_port = free_port(), free_port()
        if callable(configuration):
            configuration = configuration(f"http://127.0.0.1:{provider_port}")
        laid_out = EnvoySettings(
            gate=folder / "gate.sock",
            admin_socket=folder / "admin.sock",
            listen=TcpAddress("127.0.0.1", port),
            xds_folder=folder / "xds" if live else None,
            **settings,
        )
        if live:
            (folder / "xds").mkdir()
            write_files(folder / "xds", configuration, laid_out)
        starting = running_envoy(bootstrap(configuration, laid_out), folder)
        async with (
            serving(RecordingGate(), folder / "gate.sock") as gate,
            providing(RecordingProvider(), provider_port) as provider,
        ):
            envoy = await asyncio.to_thread(starting.__enter__)
            try:
                yield Mesh(gate, provider, envoy, port, provider_port, folder, laid_out)
            finally:
                await asyncio.to_thread(starting.__exit__, *sys.exc_info())
