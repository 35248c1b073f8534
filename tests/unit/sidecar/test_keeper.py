"""Counts that outlive their gate: saved as they change, put back at the start; and what is said where that fails."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from helpers.program import eventually
from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.buckets import Charge, Demand
from sluice.core.engine import Engine, EngineSettings
from sluice.core.keys import Scope
from sluice.core.limits import Cap
from sluice.core.permits import Call, Permit
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.settings import Failed, Start
from sluice_sidecar.stores import counts_format
from sluice_sidecar.stores.counts_format import HEAD, Moment
from sluice_sidecar.stores.keeper import SPARE, Changes, Keeper

SOON = 0.01
"""Seconds between two saves."""
CAPS = {"requestsPerMinute": 12, "tokensPerDay": 1200}


class Life:
    """One life of a gate, and who keeps its counts."""

    def __init__(self, folder: Path, start: Start, interval: float) -> None:
        changes = Changes()
        self.gate = Gate(Engine(settings=EngineSettings(), telemetry=changes), clock.now)
        self.keeper = Keeper(self.gate, changes, folder, start, interval)

    def call(self, user: str = "alice", tokens: int = 10) -> Permit:
        call = Call(self.gate.engine.rules.match("openai", {Scope.USER: user}), Demand(0, 1, tokens))
        permit = self.gate.engine.acquire(call, self.gate.clock())
        assert isinstance(permit, Permit)
        return permit

    def used(self, user: str = "alice") -> dict[str, int]:
        """Of each user the requests in the last minute, and the tokens in the last day."""
        for state in self.gate.engine.snapshot(self.gate.clock()).buckets:
            if state.key.subject == user:
                return {cap.value: window.used for cap, window in state.windows.items()}
        return {}

    async def saved(self, since: int | None = None) -> None:
        """Wait until all that has been counted until now is on disk."""
        moment = clock.now() if since is None else since

        async def is_so() -> bool:
            return self.keeper.state.saved_at >= moment

        await eventually(is_so, lambda: str(self.keeper.state))

    async def is_said(self, holds: Callable[[str], bool]) -> None:
        async def is_so() -> bool:
            return holds(self.keeper.state.problem)

        await eventually(is_so, lambda: str(self.keeper.state))


@asynccontextmanager
async def living(folder: Path, start: Start = Start.FULL, interval: float = SOON) -> AsyncIterator[Life]:
    """A gate from its start to an end that it was told to take."""
    life = Life(folder, start, interval)
    try:
        await life.keeper.restore()
        life.keeper.start()
        life.gate.apply(merge(parse(limits("openai", "http://127.0.0.1:9", CAPS), "test")), {})
        yield life
    finally:
        await life.keeper.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "sluice_sidecar.stores")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("sluice_sidecar.stores")]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def take_away(path: Path) -> None:
    path.unlink()


def used(requests: int, tokens: int) -> dict[str, int]:
    return {Cap.REQUESTS_PER_MINUTE.value: requests, Cap.TOKENS_PER_DAY.value: tokens}


async def test_what_was_counted_until_the_end_counts_at_the_next_start(folder: Path) -> None:
    async with living(folder, interval=3600) as life:
        await life.saved(0)
        life.call()
        life.call().commit_tokens(Charge(25), life.gate.clock())
    async with living(folder) as life:
        assert (life.used(), life.keeper.state.restored) == (used(2, 35), 1)


async def test_what_has_changed_is_saved_soon(folder: Path) -> None:
    async with living(folder) as life:
        await life.saved()
        permit = life.call()
        await life.saved()
        permit.commit_tokens(Charge(3), life.gate.clock())
        await life.saved()
        kept = counts_format.read((folder / "counts").read_bytes())

    assert [list(bucket.calls[60 * 10**9])[1:] for bucket in kept.buckets] == [[1, 3]]


async def test_only_what_has_changed_is_appended(folder: Path) -> None:
    async with living(folder) as life:
        for user in ("alice", "bob", "bob"):
            life.call(user)
            await life.saved()
        lines = (folder / "counts").read_bytes().splitlines()

    assert [(line.count(b'"alice"'), line.count(b'"bob"')) for line in lines[-3:]] == [(1, 0), (0, 1), (0, 1)]


async def test_the_time_that_has_passed_counts(folder: Path) -> None:
    async with living(folder) as life:
        life.call()
    kept = counts_format.read((folder / "counts").read_bytes())
    earlier = kept.moment._replace(wall=kept.moment.wall - 61 * 10**9, boot="of another machine")
    save = counts_format.line(earlier, [counts_format.bucket_texts(kept.buckets)])
    put(folder / "counts", HEAD + b"".join(save))

    async with living(folder) as life:
        assert life.used() == used(0, 10)


async def test_nothing_is_written_while_nothing_changes(folder: Path) -> None:
    async with living(folder) as life:
        life.call()
        await life.saved()
        size = (folder / "counts").stat().st_size
        for _ in range(5):
            await life.saved()

        assert (folder / "counts").stat().st_size == size


async def test_a_withdrawn_call_is_not_counted_at_the_next_start(folder: Path) -> None:
    async with living(folder) as life:
        permit = life.call()
        await life.saved()
        life.gate.engine.withdraw(permit, life.gate.clock())
    async with living(folder) as life:
        assert life.used() == used(0, 0)


async def test_a_file_that_has_grown_by_a_megabyte_is_written_anew(folder: Path) -> None:
    async with living(folder, interval=0) as life:
        saves, sizes = 0, [0]
        while sizes[-1] >= sizes[max(0, len(sizes) - 2)]:
            for number in range(500):
                life.call(f"user-{number}-{'x' * 200}", tokens=0)
            await life.saved()
            saves += 1
            sizes.append((folder / "counts").stat().st_size)
            assert saves < 50
        assert max(sizes) < SPARE + 2 * sizes[-1]


async def test_a_second_gate_does_not_start_on_the_same_folder(folder: Path) -> None:
    async with living(folder):
        with pytest.raises(Failed, match=r"^--state-dir .*state: another gate keeps its counts there$"):
            async with living(folder):
                pass


async def test_time_goes_on_on_the_axis_of_the_file(folder: Path) -> None:
    async with living(folder) as life:
        life.call()
    data = (folder / "counts").read_bytes()
    kept = counts_format.read(data)
    ahead = 10**15
    (bucket,) = kept.buckets
    calls = {length: [slots[0] + ahead // (length // 60), *slots[1:]] for length, slots in bucket.calls.items()}
    texts = [counts_format.bucket_texts([bucket._replace(calls=calls)])]
    shifted = kept.moment._replace(axis=kept.moment.axis + ahead)
    (folder / "counts").write_bytes(HEAD + b"".join(counts_format.line(shifted, texts)))

    async with living(folder) as life:
        assert abs(life.gate.clock() - clock.now() - ahead) < 10**9
        assert life.used() == used(1, 10)


# -- what is lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"something else", "is no file of counts"),
        (b"sluice counts 7\n", "has version 7 of the format, of another version of Sluice; this one reads version 1"),
        (HEAD + b"12345678 {}\n", "line 2 does not match its checksum"),
    ],
)
async def test_a_file_that_cannot_be_read_is_said_and_set_aside_and_the_gate_starts(
    folder: Path, log: Callable[[], list[str]], data: bytes, why: str
) -> None:
    put(folder / "counts", data)
    async with living(folder) as life:
        await life.saved()
        assert life.used() == {}
        life.call()

    assert log()[:2] == [
        f"{folder}/counts: {why}; it is set aside as {folder}/counts.damaged",
        "a gate has counted here before: what is not known of it starts as if nothing had been used",
    ]
    assert (folder / "counts.damaged").read_bytes() == data
    async with living(folder) as life:
        assert life.used() == used(1, 10)


async def test_of_a_damaged_file_what_stands_before_the_damage_counts(
    folder: Path, log: Callable[[], list[str]]
) -> None:
    async with living(folder) as life:
        life.call()
    with (folder / "counts").open("ab") as file:
        file.write(b"damage\n")
    async with living(folder) as life:
        assert life.used() == used(1, 10)
    assert counts_format.read((folder / "counts.damaged").read_bytes()).damage
    assert not counts_format.read((folder / "counts").read_bytes()).damage
    assert any("does not match its checksum; the saves before it are good; it is set aside" in line for line in log())


async def test_a_save_that_was_cut_by_a_kill_is_no_damage(folder: Path, log: Callable[[], list[str]]) -> None:
    async with living(folder) as life:
        life.call()
    with (folder / "counts").open("ab") as file:
        file.write(b"1234abcd {")
    async with living(folder) as life:
        assert life.used() == used(1, 10)
    assert not (folder / "counts.damaged").exists()
    assert log()[-1].startswith("restored the counts of 1 bucket, saved 0.")
    assert log()[-1].endswith(" s ago; a last save was cut off by the end")


async def test_a_first_start_is_full_whatever_is_said_of_the_start(folder: Path) -> None:
    async with living(folder, Start.EMPTY) as life:
        assert life.call().waited == 0


async def test_a_start_after_a_loss_is_as_it_is_said(folder: Path, log: Callable[[], list[str]]) -> None:
    for start, is_admitted in ((Start.EMPTY, False), (Start.FULL, True)):
        async with living(folder) as life:
            await life.saved()
        (folder / "counts").unlink()
        async with living(folder, start) as life:
            call = Call(life.gate.engine.rules.match("openai", {Scope.USER: "alice"}), Demand(0, 1, 1))
            assert isinstance(life.gate.engine.acquire(call, life.gate.clock()), Permit) is is_admitted
    lost = [line.rpartition(" starts ")[2] for line in log() if line.startswith("a gate has counted here before")]
    assert lost == ["as if its limits had been used up evenly until now", "as if nothing had been used"]


async def test_what_was_restored_is_known_and_no_start_is_empty(folder: Path) -> None:
    async with living(folder) as life:
        life.call()
    async with living(folder, Start.EMPTY) as life:
        assert life.used() == used(1, 10)
        assert life.call("bob").waited == 0


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_a_folder_that_cannot_be_used_is_said_once_and_the_gate_starts(
    folder: Path, log: Callable[[], list[str]]
) -> None:
    put(folder, b"no folder")
    async with living(folder) as life:
        await life.is_said(lambda problem: "Not a directory" in problem)
        life.call()
        assert not life.keeper.state.is_healthy
        failures = life.keeper.state.failures
        await eventually(lambda: _more_than(life, failures + 2))
        take_away(folder)
        await life.saved()
        assert life.keeper.state.is_healthy
    said = [line for line in log() if "cannot be saved" in line or "again" in line]
    assert said == [
        f"the counts cannot be saved, and calls go on: {folder}/lock: Not a directory",
        f"the counts are saved in {folder} again",
    ]
    async with living(folder) as life:
        assert life.used() == used(1, 10)


async def _more_than(life: Life, failures: int) -> bool:
    return life.keeper.state.failures > failures


async def test_a_save_that_fails_is_made_up_for(folder: Path) -> None:
    async with living(folder) as life:
        life.call()
        await life.saved()
        (folder / "counts.new").mkdir()
        (folder / "counts").unlink()
        life.call()
        await life.is_said(bool)
        (folder / "counts.new").rmdir()
        await life.saved()
        kept = counts_format.read((folder / "counts").read_bytes())

    assert list(kept.buckets[0].calls[60 * 10**9])[1::3] in ([2], [1, 1])


async def test_the_age_of_what_is_saved_grows_while_it_cannot_be(folder: Path) -> None:
    put(folder, b"no folder")
    async with living(folder) as life:
        await life.is_said(bool)
        assert life.keeper.state.saved_at <= clock.now()
        before = life.keeper.state.age
        await eventually(lambda: _older(life, before))


async def _older(life: Life, age: float) -> bool:
    return life.keeper.state.age > age


async def test_a_moment_is_that_of_the_machine(folder: Path) -> None:
    async with living(folder):
        pass
    moment: Moment = counts_format.read((folder / "counts").read_bytes()).moment

    assert moment.boot == clock.boot()
    assert abs(moment.wall - clock.wall_now()) < 60 * 10**9
    assert abs(moment.axis - moment.monotonic) < 10**6
