"""The limits files: what is read, and which changes are seen."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from helpers.system import limits
from sluice.errors import InvalidDocument
from sluice.usage.profiles import BUILT_IN
from sluice_sidecar.watch import Reading, Watch, catalog, configuration, read

UPSTREAM = "http://127.0.0.1:1"
GOOD = limits("openai", UPSTREAM, {"requestsPerMinute": 1})
BETTER = limits("openai", UPSTREAM, {"requestsPerMinute": 2})


def names(reading: Reading) -> list[str]:
    return [Path(source).name for source, _ in reading.files]


def problems(*paths: Path) -> list[str]:
    with pytest.raises(InvalidDocument) as raised:
        configuration(read(paths))
    return [str(problem) for problem in raised.value.problems]


async def change_after(watched: Path, edit: object) -> Reading:
    """What a watch tells once `edit` has been done."""
    watch = Watch([watched], read([watched]), interval=0.001, settle=0.001)
    assert callable(edit)
    edit()
    async with asyncio.timeout(10):
        return await watch.change()


def test_of_a_folder_the_limits_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.json", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "folder.yaml").mkdir()

    assert names(read([tmp_path])) == ["a.yaml", "b.yml", "c.json"]


def test_files_are_read_in_the_order_of_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.yaml").write_text(GOOD)
    (tmp_path / "z.any-name").write_text(GOOD)

    assert names(read([tmp_path / "z.any-name", folder])) == ["z.any-name", "a.yaml"]


def test_every_mistake_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(limits("openai", UPSTREAM, {"requestsPerMinute": -1, "maxWait": "soon"}))
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    (tmp_path / "c.yaml").write_text(GOOD)
    absent = tmp_path / "absent.yaml"

    found = problems(tmp_path, absent)

    assert len(found) == 4
    assert f"{absent}: cannot be read: No such file or directory" in found
    assert f"{tmp_path / 'b.yaml'}: is not UTF-8: byte 1 cannot be read" in found


def test_every_mistake_of_every_profile_is_told_at_once(tmp_path: Path) -> None:
    for name, text in (("a", b"provider: acme\nlike: openai\n"), ("b", b"\xff"), ("c", b"provider: acme\napi: X\n")):
        (tmp_path / f"{name}.yaml").write_bytes(text)

    with pytest.raises(InvalidDocument) as raised:
        catalog(tmp_path)

    assert [(Path(problem.source).name, problem.field) for problem in raised.value.problems] == [
        ("b.yaml", ""),
        ("c.yaml", "api"),
        ("c.yaml", "apis"),
        ("c.yaml", "provider"),
    ]
    assert raised.value.problems[-1].message == (
        f"is acme in {tmp_path / 'a.yaml'} too: a provider has one profile; keep one of the files"
    )


def test_without_a_folder_of_profiles_the_built_in_ones_are_there() -> None:
    assert catalog(None) is BUILT_IN


def test_limits_are_read_by_the_profiles_of_ones_own(tmp_path: Path) -> None:
    profiles, file = tmp_path / "profiles", tmp_path / "limits.yaml"
    profiles.mkdir()
    (profiles / "acme.yaml").write_text("provider: acme\nlike: anthropic\nupstream: https://llm.acme.example\n")
    file.write_text(
        "{apiVersion: sluice.dev/v1alpha1, kind: ProviderLimits, metadata: {name: acme}, spec: {provider: acme}}"
    )

    provider = configuration(read([file]), catalog(profiles)).providers["acme"]

    assert provider.upstream == "https://llm.acme.example"
    assert provider.profile.shapes == BUILT_IN.profile("anthropic").shapes


def test_a_file_without_a_document_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text("# nothing yet\n")

    assert problems(file) == [f"{file}: holds no document: write one, or remove the file"]


def test_a_folder_without_a_limits_file_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(GOOD)

    with pytest.raises(InvalidDocument) as caught:
        configuration(read([tmp_path]))

    assert str(caught.value) == f"{tmp_path}: holds no file to read (*.yaml, *.yml, *.json): write one"


def test_a_file_that_is_given_twice_is_one_mistake(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD)

    assert problems(file, tmp_path) == [f"{file}: is given twice: name it once, by itself or by its folder"]


def test_an_empty_list_says_that_nothing_is_to_be_in_force(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("apiVersion: v1\nkind: List\nitems: []\n")

    assert configuration(read([tmp_path])).documents == ()


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD, encoding="utf-8-sig")

    assert list(configuration(read([file])).providers) == ["openai"]


async def test_an_edit_in_place_is_seen_even_if_size_and_time_stay(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD)
    before = file.stat()

    def edit() -> None:
        file.write_text(BETTER)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    reading = await change_after(file, edit)

    assert file.stat().st_size == before.st_size
    assert reading.files == ((str(file), BETTER.encode()),)


async def test_a_file_renamed_over_it_is_seen(tmp_path: Path) -> None:
    file, beside = tmp_path / "limits.yaml", tmp_path / "limits.new"
    file.write_text(GOOD)
    beside.write_text(BETTER)

    reading = await change_after(file, lambda: beside.rename(file))

    assert reading.files == ((str(file), BETTER.encode()),)


async def test_a_config_map_that_the_kubelet_swaps_is_seen(tmp_path: Path) -> None:
    # As the kubelet does it: files in a dated folder, `..data` renamed onto the new one, links that never change.
    for generation, text in (("..2026_01", GOOD), ("..2026_02", BETTER)):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "limits.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "limits.yaml").symlink_to("..data/limits.yaml")
    (tmp_path / "..data_tmp").symlink_to("..2026_02")

    reading = await change_after(tmp_path, lambda: (tmp_path / "..data_tmp").rename(tmp_path / "..data"))

    assert reading.files == ((str(tmp_path / "limits.yaml"), BETTER.encode()),)


async def test_a_file_more_in_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)

    reading = await change_after(tmp_path, lambda: (tmp_path / "b.yaml").write_text(GOOD))

    assert names(reading) == ["a.yaml", "b.yaml"]


async def test_a_file_less_in_a_folder_is_a_change_and_no_problem(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(GOOD)

    reading = await change_after(tmp_path, (tmp_path / "b.yaml").unlink)

    assert (names(reading), reading.problems) == (["a.yaml"], ())


async def test_a_named_file_that_is_deleted_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD)

    reading = await change_after(file, file.unlink)

    assert [str(problem) for problem in reading.problems] == [f"{file}: cannot be read: No such file or directory"]


async def test_a_change_counts_only_once_it_holds_still(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD)
    watch = Unsettled(file, ["half a doc", "half a document", BETTER])

    async with asyncio.timeout(10):
        reading = await watch.change()

    assert reading.files == ((str(file), BETTER.encode()),)


async def test_what_is_taken_back_before_it_has_settled_is_no_change(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(GOOD)
    watch = Unsettled(file, ["half a document", GOOD, BETTER])

    async with asyncio.timeout(10):
        reading = await watch.change()

    assert reading.files == ((str(file), BETTER.encode()),)


class Unsettled(Watch):
    """A watch of a file that somebody writes between one look and the next."""

    def __init__(self, file: Path, writes: list[str]) -> None:
        super().__init__([file], read([file]), interval=0, settle=0)
        self._file = file
        self._writes = writes

    async def _look(self) -> Reading:
        if self._writes:
            self._file.write_text(self._writes.pop(0))
        return await super()._look()


def test_a_file_is_known_by_the_bytes_it_holds(tmp_path: Path) -> None:
    given, folder = tmp_path / "given.yaml", tmp_path / "folder"
    folder.mkdir()
    given.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    (folder / "a.yaml").write_text(BETTER)

    assert read([given, folder]).digests == {
        str(given): hashlib.sha256(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n").hexdigest(),
        str(folder / "a.yaml"): hashlib.sha256(BETTER.encode()).hexdigest(),
    }
