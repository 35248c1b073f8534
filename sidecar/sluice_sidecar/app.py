"""The gate as a program: everything started in order, limits followed, and everything ended in order.

Start. Counts that were saved come first: the engine's time goes on from theirs. What the gate says of itself is served
next, while it may still wait for its limits. Admission comes after them: without limits every call would pass. The gate
serves before Envoy starts, because Envoy asks it from the first call on; `/readyz` says yes once both do. The builder
of Envoy's files loads in a thread meanwhile.

Change. The gate takes new limits first, then Envoy's files are written.

End. The first SIGTERM or SIGINT makes `/readyz` say no and stops new connections; the calls under way, the ones
that queue and their commits get the grace period. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from sluice.config.merge import Configuration, diff
from sluice.config.types import SubjectKind
from sluice.core.engine import Engine, EngineSettings
from sluice.core.limits import SECOND
from sluice.core.telemetry import Fanout, Telemetry
from sluice.core.upstream import UpstreamState
from sluice.errors import InvalidDocument, Problem
from sluice.usage.headers import USAGE_HEADERS
from sluice.usage.profiles import BUILT_IN
from sluice_sidecar import clock, watch
from sluice_sidecar.admin import Admin
from sluice_sidecar.commits import CommitWatch
from sluice_sidecar.envoy_files import EnvoyFiles
from sluice_sidecar.envoy_process import EnvoyProcess, find
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.gate import Gate
from sluice_sidecar.grpc_server import GrpcServer
from sluice_sidecar.health import Health, StoreHealth
from sluice_sidecar.logs import whereabouts
from sluice_sidecar.metrics import EventCounts, GateCollector
from sluice_sidecar.recent import RecentCounts
from sluice_sidecar.settings import Address, Failed, RunSettings, TcpAddress, shown, socket_path
from sluice_sidecar.stores.keeper import Changes, Keeper
from sluice_sidecar.stores.shared.client import Client
from sluice_sidecar.stores.shared.connections import password_source
from sluice_sidecar.stores.shared.scripts import Scripts
from sluice_sidecar.stores.shared.store import SharedStore
from sluice_sidecar.watch import Reading, Watch

logger = logging.getLogger(__name__)

ENDING: Final = 2.5
"""Seconds of the grace period, or a quarter of it, that are kept to end what serves no call any more."""
BOOTSTRAP: Final = "bootstrap.json"
POLL: Final = 0.1
"""Seconds between two looks at whether the last call has ended."""


class Sidecar:
    """One gate, its servers and perhaps its Envoy. `run` it once."""

    def __init__(self, settings: RunSettings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._health = Health()
        self._counts, self._recent = EventCounts(), RecentCounts(clock.now)
        bounds = EngineSettings(lease=settings.lease, max_keys=settings.max_keys, name=f"{secrets.token_hex(4)}-")
        changes = Changes()
        told: list[Telemetry] = [self._counts, self._recent]
        if settings.state_dir:
            told.append(changes)
        self._engine = Engine(settings=bounds, telemetry=Fanout(*told))
        self._gate = Gate(self._engine, clock.now)
        self._commits = CommitWatch(self._recent)
        self._keeper = Keeper(self._gate, changes, settings.state_dir, settings.start) if settings.state_dir else None
        self._store = self._shared_store()
        self._gate.store = self._store
        self._configuration = watch.configuration(Reading((), ()))
        self._catalog = BUILT_IN
        self._files: EnvoyFiles | None = None
        self._envoy: EnvoyProcess | None = None

    async def run(self) -> int:
        """Serve until a signal, then drain. Returns the exit code.

        Raises `InvalidDocument` if the limits are bad at the start, and `Failed` if anything else goes wrong.
        """
        signals = _Signals()
        serving = asyncio.create_task(self._serve())
        stop = asyncio.create_task(signals.first.wait())
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        code = 0
        if not serving.done():
            code = await self._drain(signals.second)
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        return code

    async def _serve(self) -> None:
        """Start everything, follow the limits, and end everything when cancelled."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            await self._restore_counts(stack)
            admin = await self._serve_admin(stack)
            self._catalog = await asyncio.to_thread(watch.catalog, settings.profiles)
            reading = await self._first_limits()
            if self._store is not None:
                stack.push_async_callback(self._store.close)  # after all that may still count
                await self._store.start()
            folder = stack.enter_context(_private_folder()) if settings.envoy else None
            if settings.envoy:
                _check_free(settings.listen)
            gate_socket = settings.socket or (folder / "gate.sock" if folder else None)
            self._files = self._envoys_files(gate_socket, folder)
            preparing = asyncio.create_task(asyncio.to_thread(self._prepare_envoy, folder))
            grpc = await self._serve_grpc(stack, gate_socket)
            self._health.waiting_for = "Envoy"
            await preparing
            calls = await self._start_envoy(stack, folder) if folder else "an Envoy that is started elsewhere"
            gc.collect()
            gc.freeze()  # what was imported stays: no later collection stops calls for some 50 ms to walk through it
            self._health.waiting_for = ""
            logger.info(
                "ready: calls at %s, status at %s, gRPC at %s; %s",
                calls, shown([admin]), shown([gate_socket, grpc]), in_force(self._configuration),
            )  # fmt: skip
            following = asyncio.create_task(self._follow(Watch(settings.files, reading)))
            stack.callback(following.cancel)
            if self._envoy is None:
                await following
            else:
                raise Failed(await self._envoy.ended())

    # -- start ---------------------------------------------------------------------------------------------------

    def _shared_store(self) -> SharedStore | None:
        settings = self._settings
        if settings.store is None:
            return None
        password = password_source(settings.store_password_file, self._environ)
        client = Client(settings.store, password, settings.store_ca)
        health = StoreHealth(
            address=str(settings.store),
            prefix=settings.store_prefix,
            clock=self._gate.clock,
            gates=settings.store_gates,
        )
        self._health.store = health
        return SharedStore(self._gate, client, health, secrets.token_hex(8), clock.wall_now, Scripts())

    async def _restore_counts(self, stack: AsyncExitStack) -> None:
        if self._keeper is not None:
            self._health.saving = self._keeper.state
            stack.push_async_callback(self._keeper.close)  # after all that may still count
            await self._keeper.restore()
            self._keeper.start()

    async def _first_limits(self) -> Reading:
        """Put the limits in force: those there are or, if the gate is to wait for them, those there will be."""
        reading = await asyncio.to_thread(watch.read, self._settings.files)
        files = Watch(self._settings.files, reading)
        while True:
            try:
                self._put_in_force(await asyncio.to_thread(watch.configuration, reading, self._catalog), reading)
            except InvalidDocument as error:
                if not self._settings.wait_for_limits:
                    raise
                self._health.waiting_for = f"limits: {error.problems[0]}"
                self._report("waiting for limits: no calls are served until they are there and right", error.problems)
                reading = await files.change()
            else:
                self._health.waiting_for = "start"
                return reading

    def _envoys_files(self, gate_socket: Path | None, folder: Path | None) -> EnvoyFiles | None:
        settings = self._settings
        gate = gate_socket or settings.grpc
        xds = settings.xds or (folder / "xds" if folder else None)
        if xds is None or gate is None:
            return None
        admin = (folder or xds) / "admin.sock"
        return EnvoyFiles(
            EnvoySettings(
                gate=gate,
                admin_socket=admin,
                listen=settings.listen,
                xds_folder=xds,
                usage=settings.usage_source,
                observed_headers=settings.usage_headers,
                ca_bundle=settings.ca_bundle,
            )
        )

    def _prepare_envoy(self, folder: Path | None) -> None:
        """Write what Envoy reads as it starts; blocks."""
        if self._files is None:
            return
        try:
            self._files.write(self._configuration)
            if folder is not None:
                (folder / BOOTSTRAP).write_text(self._files.bootstrap(self._configuration))
        except OSError as error:
            raise Failed(f"Envoy's files cannot be written: {error}") from error

    async def _serve_grpc(self, stack: AsyncExitStack, gate_socket: Path | None) -> TcpAddress | None:
        address = self._settings.grpc
        if gate_socket is not None:
            _claim(gate_socket)
        if address is not None and not address.is_loopback:
            logger.warning("whoever reaches %s can take and end permits: keep it to Envoy by a network policy", address)
        self._gate.start()
        stack.callback(asyncio.create_task(self._commits.run()).cancel)
        stack.push_async_callback(self._gate.close)
        total, *others = USAGE_HEADERS.provider_total
        names = (*self._settings.usage_headers, *total)
        headers = replace(USAGE_HEADERS, provider_total=(names, *others))
        server = GrpcServer(
            self._gate,
            headers,
            (self._counts.refused_upstream, self._recent.refused_upstream),
            (self._counts.untold, self._recent.untold),
        )
        try:
            port = await server.start(
                socket=None if gate_socket is None else str(gate_socket),
                address=None if address is None else str(address),
            )
        except RuntimeError as error:
            raise Failed(f"cannot serve gRPC at {shown([gate_socket, address])}: is it in use?") from error
        stack.push_async_callback(server.stop, 0.5)
        return None if address is None else replace(address, port=port)

    async def _serve_admin(self, stack: AsyncExitStack) -> Address:
        registry = CollectorRegistry()
        metrics = GateCollector(self._counts, self._gate.summary, self._health, self._commits, self._upstreams)
        registry.register(metrics)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        if isinstance(self._settings.admin, Path):
            _claim(self._settings.admin)
        admin = Admin(self._health, self._gate, registry, self._recent, self._commits)
        address = await admin.start(self._settings.admin)
        stack.push_async_callback(admin.stop)
        return address

    def _upstreams(self) -> tuple[UpstreamState, ...]:
        return self._engine.upstreams(self._gate.clock())

    async def _start_envoy(self, stack: AsyncExitStack, folder: Path) -> str:
        """Returns where it takes calls."""
        assert self._files is not None  # noqa: S101 - for the type checker: a folder comes with files
        binary = find(self._settings.envoy_binary)
        envoy = await EnvoyProcess.start(binary, folder / BOOTSTRAP, self._files.settings.admin_socket)
        stack.push_async_callback(envoy.stop, 1.0)
        await envoy.wait_until_live()
        self._envoy = envoy
        return " and ".join(await envoy.listening())

    # -- change --------------------------------------------------------------------------------------------------

    async def _follow(self, files: Watch) -> None:
        while True:
            try:
                await self._change(await files.change())
            except Exception as error:  # noqa: BLE001  the next change may go better
                logger.error("a change of the limits could not be put in force: %s", whereabouts(error))  # noqa: TRY400

    async def _change(self, reading: Reading) -> None:
        try:
            configuration = await asyncio.to_thread(watch.configuration, reading, self._catalog)
        except InvalidDocument as error:
            self._report("the limits files have mistakes; what was in force stays", error.problems)
            return
        before, had_mistakes = self._configuration, bool(self._health.problems)
        self._put_in_force(configuration, reading)
        changes = diff(before, configuration)
        if changes:
            news = "the limits files have changed"
        elif had_mistakes:
            news = "the mistakes in the limits files are gone, and nothing has changed"
        else:
            news = "the limits files are written differently, and say the same"
        logger.info("%s: %s", news, in_force(configuration))
        for change in changes:
            logger.info("changed: %s", change)
        if self._files is None:
            return
        try:
            await asyncio.to_thread(self._files.write, configuration)
        except (OSError, Failed) as error:
            problem = Problem(str(self._files.settings.xds_folder), "", "", f"cannot be written: {error}")
            self._report("the limits are in force, but Envoy keeps its last routes and providers", [problem])

    def _put_in_force(self, configuration: Configuration, reading: Reading) -> None:
        self._gate.apply(configuration, self._environ)
        self._configuration = configuration
        self._health.loaded(clock.wall(), reading.digests)
        for line in _warnings(configuration, self._environ):
            logger.warning("%s", line)

    def _report(self, what: str, problems: Iterable[Problem]) -> None:
        self._health.turned_down(problems)
        logger.error("%s", what)
        for problem in self._health.problems:
            logger.error("%s", problem)

    # -- end -----------------------------------------------------------------------------------------------------

    async def _drain(self, hurry: asyncio.Event) -> int:
        """Let the calls end, as long as the grace period lasts or until told to hurry. Returns the exit code."""
        was_ready, self._health.waiting_for = self._health.is_ready, "its end: it was told to stop"
        if not was_ready:
            return 0
        grace = self._settings.grace / SECOND
        logger.info("stopping: calls have %g s to end", grace)
        idle = asyncio.create_task(self._until_idle())
        hurried = asyncio.create_task(hurry.wait())
        patience = grace - min(ENDING, grace / 4)
        await asyncio.wait({idle, hurried}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        left = 0 if idle.done() else await self._calls()
        idle.cancel()
        hurried.cancel()
        totals = self._engine.summary().totals
        logger.info(
            "%s: %d call%s admitted, %d committed, %d estimated, %d refunded",
            f"{left} call{'s are' if left > 1 else ' is'} cut" if left else "every call has ended",
            totals.admitted, "" if totals.admitted == 1 else "s", totals.committed, totals.estimated, totals.refunded,
        )  # fmt: skip
        return 1 if hurry.is_set() and left else 0

    async def _until_idle(self) -> None:
        if self._envoy is not None:
            with contextlib.suppress(OSError):  # it has ended: so have its calls
                await self._envoy.drain()
        while await self._calls():  # noqa: ASYNC110 - Envoy tells of its calls only when asked
            await asyncio.sleep(POLL)

    async def _calls(self) -> int:
        """Calls under way or queued: what Envoy knows of covers those that nothing limits, too."""
        now = self._gate.summary()
        return max(now.in_flight + now.queued, 0 if self._envoy is None else await self._envoy.calls())


def in_force(configuration: Configuration) -> str:
    """A configuration in a few words."""
    limits = len(configuration.rules.rules)
    names = ", ".join(sorted(configuration.providers))
    return f"{limits} limit{'s' * (limits != 1)} for {names}" if names else "no limits"


def _warnings(configuration: Configuration, environ: Mapping[str, str]) -> Iterator[str]:
    """What is allowed and hardly meant."""
    if not configuration.rules.rules:
        yield "no limits are in force: the files hold none"
    for provider in configuration.providers.values():
        for scope, source in provider.subjects.items():
            if source.kind is SubjectKind.ENV and not environ.get(source.value):
                yield (
                    f"{provider.name}: the {scope} is to be read from the variable {source.value}, which is not set: "
                    "all calls share the bucket of callers without a name"
                )


def _claim(path: Path) -> None:
    """Make sure that a Unix socket can be served at the path; raises `Failed`.

    What a gate that was killed left there is taken over, but not from one that still answers.
    """
    if not path.parent.is_dir():
        raise Failed(f"{path}: there is no folder {path.parent}")
    if not path.exists():
        return
    if not path.is_socket():
        raise Failed(f"{path}: is there already, and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise Failed(f"{path}: another program serves there")


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that only this user may enter, for Envoy's files and sockets; removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-"))
    try:
        try:
            socket_path(str(folder / "admin.sock"))
        except ValueError as error:
            raise Failed(f"{error}, by setting TMPDIR") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_free(address: TcpAddress) -> None:
    """Raises `Failed` if somebody listens there already: Envoy would say it later, and in many words."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise Failed(f"--listen {address}: {os.strerror(error.errno or 0)}") from error


class _Signals:
    """SIGTERM, SIGINT and SIGHUP (a terminal that is closed), counted."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._tell)

    def _tell(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
