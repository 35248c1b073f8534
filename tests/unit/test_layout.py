"""The shape of the tree: what import-linter cannot see."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES = 500

# Spelt as patterns, so that this file does not name them either.
REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|crates|rubygems|docker)\.(?:org|com|io)\b|\b(?:proxy|sum)\.golang\b|\bmaven\.(?:apache|org)\b"
)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:tmp|work|root|home|Users|opt/wheels)/\w")


def tracked() -> list[Path]:
    """Return every text file that git holds or would take in."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    files = [ROOT / name for name in listing.split("\0") if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()[:8192]]


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in tracked()
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("root", ["sidecar", "operator"])
def test_a_source_root_is_no_package(root: str) -> None:
    # A package named `operator` would shadow the standard library's in every Python that starts in this folder.
    assert not (ROOT / root / "__init__.py").exists(), f"{root}/ is a source root: remove {root}/__init__.py"


def test_test_folders_are_no_packages() -> None:
    # In importlib mode every test file is a module of its own; `tests` itself is on the path, for `helpers`.
    assert sorted(ROOT.glob("tests/**/__init__.py")) == []


@pytest.mark.parametrize("root", ["sidecar", "operator"])
def test_modules_are_short_enough_to_read_at_once(root: str) -> None:
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in (ROOT / root).rglob("*.py")}
    assert {file: lines for file, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_no_file_names_a_package_registry() -> None:
    # Which registry is used is the reader's own affair: theirs may be a mirror.
    assert lines_that_match(REGISTRY) == []


def test_no_file_names_a_path_of_somebody_s_machine() -> None:
    assert lines_that_match(MACHINE_PATH) == []
