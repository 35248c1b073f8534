"""Decisions a second and how long one takes, of this gate and of any other rate-limit service, under one load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from bench import grpc_load, limits, machine
from bench.grpc_load import GrpcLoad
from bench.programs import free_address, gate, loader, program, python
from bench.samples import GOOD, Sample

PATH: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
MANY: Final = 32
"""Decisions in flight while decisions a second are counted."""
SUBJECTS: Final = 1000
"""Different callers, where a descriptor says `{}`."""
OVER_LIMIT: Final = "over limit"

FACTS: Final = (("model", "gpt-5-mini"), ("bytes", "1200"), ("max_tokens", "256"))
USER: Final = ("user", "user-{}")
THREE: Final = (USER, ("org", "acme"), ("project", "web"))


@dataclass(slots=True)
class Case:
    """One server and what it is asked."""

    name: str
    address: str
    path: str
    messages: tuple[bytes, ...]
    pid: int | None
    right: tuple[str, ...] = (GOOD,)
    """What it may answer."""
    one: list[Sample] = field(default_factory=list)
    """A sample a round, with one decision in flight."""
    many: list[Sample] = field(default_factory=list)
    """The same with `MANY`."""
    cpu: list[float] = field(default_factory=list)
    """The server's CPU seconds for each of `many`."""

    @property
    def surprises(self) -> int:
        """Answers other than those that are right."""
        answers = [pair for sample in (*self.one, *self.many) for pair in sample.answers.items()]
        return sum(count for answer, count in answers if answer not in self.right)


def messages(domain: str, entries: tuple[tuple[str, str], ...]) -> tuple[bytes, ...]:
    """Requests with that descriptor; one for each subject if a value says `{}`."""
    subjects = range(SUBJECTS if any("{}" in value for _, value in entries) else 1)
    return tuple(_message(domain, [(key, value.replace("{}", str(n))) for key, value in entries]) for n in subjects)


def _message(domain: str, entries: list[tuple[str, str]]) -> bytes:
    request = RateLimitRequest(domain=domain)
    descriptor = request.descriptors.add()
    for key, value in entries:
        descriptor.entries.add(key=key, value=value)
    return bytes(request.SerializeToString())


@contextmanager
def own_cases(folder: Path, core: int | None) -> Iterator[list[Case]]:
    """This gate with limits of three kinds, and gRPC in Python by itself."""
    documents = (
        limits.document("two", limits.entry("User", limits.TWO)),
        limits.document("six", *limits.THREE_BUCKETS),
        limits.document("full", limits.entry("User", ("requestsPerDay",), 1)),
    )
    file = limits.write(folder / "decisions.yaml", *documents)
    address, empty = free_address(), free_address()
    with (
        program(gate(file, "--grpc", address), address, folder, core) as pid,
        program(python("bench.empty_server", empty), empty, folder, core) as empty_pid,
    ):
        two = messages("sluice", (("provider", "two"), USER, *FACTS))
        six = messages("sluice", (("provider", "six"), *THREE, *FACTS))
        full = messages("sluice", (("provider", "full"), ("user", "one"), *FACTS))
        yield [
            Case("grpcio, an empty answer", empty, PATH, two, empty_pid),
            Case("Sluice, 1 bucket of 2 windows", address, PATH, two, pid),
            Case("Sluice, 3 buckets of 6 windows", address, PATH, six, pid),
            Case("Sluice, a refusal", address, PATH, full, pid, (OVER_LIMIT,)),
        ]


@contextmanager
def yardstick(folder: Path, core: int | None) -> Iterator[list[Case]]:
    """`nghttpd` with a file of two bytes, where it is installed: the least that HTTP/2 costs."""
    binary = shutil.which("nghttpd", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if binary is None:
        yield []
        return
    (folder / "two").write_text("ok")
    address = free_address()
    command = [binary, "--no-tls", "-a", "127.0.0.1", "-d", str(folder), address.rpartition(":")[2]]
    with program(command, address, folder, core) as pid:
        yield [Case("nghttpd, a file of two bytes", address, "/two", (), pid)]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it may take: `rounds` times both loads on every server."""

    rounds: int
    one_seconds: float
    many_seconds: float


def measure(folder: Path, plan: Plan, others: list[Case], say: Callable[[str], None]) -> list[Case]:
    """Every case in every round, one after the other. The servers share a core, the load has another."""
    cores = machine.cores()
    server_core, load_core = (cores[-1], cores[0]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        cases = [*stack.enter_context(own_cases(folder, server_core)), *others]
        cases += stack.enter_context(yardstick(folder, server_core))
        pool = stack.enter_context(loader(load_core))
        for case in cases:
            run(pool, case, MANY, 0.3)  # warm; the first caller of the full bucket is let through
        for number in range(plan.rounds):
            say(f"decisions: round {number + 1} of {plan.rounds}")
            for case in cases:
                case.one.append(run(pool, case, 1, plan.one_seconds))
                before = machine.cpu_seconds([case.pid] if case.pid else [])
                case.many.append(run(pool, case, MANY, plan.many_seconds))
                case.cpu.append(machine.cpu_seconds([case.pid] if case.pid else []) - before)
    return cases


def run(pool: ProcessPoolExecutor, case: Case, in_flight: int, seconds: float) -> Sample:
    """One load on one server."""
    return pool.submit(grpc_load.run, GrpcLoad(case.address, case.path, case.messages, in_flight, seconds)).result()
