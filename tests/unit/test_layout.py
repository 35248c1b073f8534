"""The shape of the tree: what import-linter cannot see."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ["sidecar", "operator"]
MODULE_LINES = 500

# Spelt as patterns, so that this file does not name them either.
REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|crates)\.(?:org|com|io)\b|\b(?:proxy|sum)\.golang\b|\bmaven\.(?:apache|org)\b"
)
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:tmp|work|root|home|Users|opt/wheels)/\w")


def files(folder: str = ".") -> list[Path]:
    """Return the files that git holds."""
    command = ["git", "ls-files", "-z", folder]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files()
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_a_source_root_is_no_package(root: str) -> None:
    # A package named `operator` would shadow the standard library's in every Python that starts in this folder.
    assert not (ROOT / root / "__init__.py").exists(), f"{root}/ is a source root: remove {root}/__init__.py"


def test_test_folders_are_no_packages() -> None:
    # In importlib mode every test file is a module of its own; `tests` itself is on the path, for `helpers`.
    assert sorted(ROOT.glob("tests/**/__init__.py")) == []


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_modules_are_short_enough_to_read_at_once(root: str) -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (ROOT / root).rglob("*.py")}
    assert {file: lines for file, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    ours = {str(file.relative_to(ROOT / root)) for root in SOURCE_ROOTS for file in files(root)}
    assert ours - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_locks_fulfil_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = chain(project["project"]["dependencies"], *project["dependency-groups"].values())
    asked = [Requirement(entry) for entry in entries if isinstance(entry, str)]
    locks = "\n".join(file.read_text() for file in ROOT.glob("requirements*.lock"))
    locked = {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", locks)}
    unmet = [
        str(each)
        for each in asked
        if (version := locked.get(canonicalize_name(each.name))) is None or version not in each.specifier
    ]
    assert unmet == [], "run `make lock` and commit the lock files"


def test_no_file_names_a_package_registry() -> None:
    # Which registry is used is the reader's own affair: theirs may be a mirror.
    assert lines_that_match(REGISTRY) == []


def test_no_file_names_a_path_of_somebody_s_machine() -> None:
    assert lines_that_match(MACHINE_PATH) == []


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [file for file in files() if file.suffix == ".md"]
    links = [(page, link) for page in pages for link in RELATIVE_LINK.findall(page.read_text())]
    assert links != []
    assert [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()] == []
