"""One quota for many gates: Sluice with its counts in Redis beside envoyproxy/ratelimit, on the same Redis in one run.

The services have a core, Redis and the load share the other one. What Redis spends on a decision, as each service sends
it, is measured twice: under the services, and without them (`replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import decisions, limits, machine, peer, redis_server, replay
from bench.acquires import acquires, scripts
from bench.decisions import FACTS, MANY, PATH, SUBJECTS, THREE, USER, Case
from bench.programs import free_address, gate, loader, program
from bench.redis_server import Monitor, Redis, Work
from bench.replay import Kind

HEARD_SECONDS: Final = 0.5
"""Long enough for a decision for each subject, one after the other."""

ONE_WINDOW: Final = ("requestsPerMinute",)
TWO_WINDOWS: Final = ("requestsPerMinute", "requestsPerHour")


@dataclass(frozen=True, slots=True)
class Task:
    """What both services are asked to limit, so that it can be compared."""

    name: str
    provider: str
    scopes: tuple[str, ...]
    windows: tuple[str, ...]


TASKS: Final = (
    Task("1 bucket of 1 window", "one", ("user",), ONE_WINDOW),
    Task("1 bucket of 2 windows", "two", ("user",), TWO_WINDOWS),
    Task("3 buckets of 2 windows", "six", tuple(peer.SCOPES), TWO_WINDOWS),
)


@dataclass(slots=True)
class SharedCase(Case):
    """A service, one of the tasks, and what Redis did meanwhile."""

    task: Task = TASKS[0]
    is_peer: bool = False
    redis: list[Work] = field(default_factory=list)
    """For each of `many`."""


@dataclass(slots=True)
class Comparison:
    """What was measured, and what was left out."""

    cases: list[SharedCase] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def measure(folder: Path, plan: decisions.Plan, plan_of_redis: replay.Plan, say: Callable[[str], None]) -> Comparison:
    """Every service and task in every round, one after the other; then Redis by itself."""
    found = Comparison()
    binary = redis_server.find()
    if binary is None:
        found.left_out.append("all of it: there is no redis-server; install one, or let SLUICE_REDIS name it")
        return found
    cores = machine.cores()
    server_core, load_core = (cores[-1], cores[0]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server.running(binary, folder, load_core))
        with _services(found, redis, folder, server_core), loader(load_core) as pool:
            _measure_services(found, redis, plan, pool, say)
        found.kinds += [
            Kind(f"Sluice, {task.name}", task.name, _ours(len(task.scopes)), setup=scripts())
            for task in TASKS
            if task.windows is TWO_WINDOWS
        ]
        found.kinds = [kind for kind in found.kinds if list(kind.decisions(1))]
        say("shared: Redis by itself")
        pool = stack.enter_context(loader(server_core))  # the services have left
        replay.measure(redis, found.kinds, plan_of_redis, SUBJECTS, pool)
    return found


def _ours(buckets: int) -> Callable[[int], Iterator[replay.Decision]]:
    return lambda number: ([command] for command in acquires(buckets, number, SUBJECTS))


@contextmanager
def _services(found: Comparison, redis: Redis, folder: Path, core: int | None) -> Iterator[None]:
    with ExitStack() as stack:
        rival = peer.find()
        if rival is None:
            found.left_out.append(f"{peer.NAME}: it is not built; `make bench-peers` does that, with Go")
        else:
            address, pid = stack.enter_context(peer.running(rival, redis.address, folder, core))
            found.cases += [_peer_case(task, address, pid) for task in TASKS]
        documents = [limits.document(task.provider, *_entries(task)) for task in TASKS]
        file = limits.write(folder / "shared.yaml", *documents)
        address = free_address()
        command = gate(file, "--grpc", address, "--store", f"redis://{redis.address}")
        pid = stack.enter_context(program(command, address, folder, core))
        found.cases += [_own_case(task, address, pid) for task in TASKS]
        yield


def _entries(task: Task) -> Iterator[dict[str, object]]:
    return (limits.entry(scope.capitalize(), task.windows) for scope in task.scopes)


def _own_case(task: Task, address: str, pid: int) -> SharedCase:
    subjects = THREE if len(task.scopes) > 1 else (USER,)
    messages = decisions.messages("sluice", (("provider", task.provider), *subjects, *FACTS))
    return SharedCase(f"Sluice, {task.name}", address, PATH, messages, pid, task=task)


def _peer_case(task: Task, address: str, pid: int) -> SharedCase:
    messages = peer.messages(task.scopes, peer.UNITS[: len(task.windows)], SUBJECTS)
    limits_told = len(task.scopes) * len(task.windows)
    name = f"ratelimit, {limits_told} limit{'s' if limits_told > 1 else ''}"
    return SharedCase(name, address, PATH, messages, pid, task=task, is_peer=True)


def _measure_services(
    found: Comparison, redis: Redis, plan: decisions.Plan, pool: ProcessPoolExecutor, say: Callable[[str], None]
) -> None:
    for case in found.cases:
        decisions.run(pool, case, MANY, 0.3)  # warm
    for number in range(plan.rounds):
        say(f"shared: round {number + 1} of {plan.rounds}")
        for case in found.cases:
            assert case.pid is not None
            case.one.append(decisions.run(pool, case, 1, plan.one_seconds))
            before, done = machine.cpu_seconds([case.pid]), redis.work()
            case.many.append(decisions.run(pool, case, MANY, plan.many_seconds))
            case.redis.append(redis.work().since(done))
            case.cpu.append(machine.cpu_seconds([case.pid]) - before)
    for case in found.cases:
        if case.is_peer:
            monitor = Monitor(redis)
            sample = decisions.run(pool, case, 1, HEARD_SECONDS)
            found.kinds.append(
                Kind(case.name, case.task.name, replay.heard(monitor.commands(), sample.count), is_peer=True)
            )
