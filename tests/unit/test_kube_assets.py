"""The script that finds or builds the control plane, with a stand-in for Go that only says what it was asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.envoy import ROOT

SCRIPT = ROOT / "tests/kube-assets/build.sh"
NEEDED = ("bash", "cat", "chmod", "cut", "dirname", "mkdir", "mktemp", "mv", "rm", "sha256sum", "touch", "uname")
PROGRAMS = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"]

GO = """#!/usr/bin/env bash
echo "$*" >> "$HOME/go.log"
case $1 in
    list) echo v1.35.4 ;;
    build)
        while [ "$1" != -o ]; do shift; done
        [ ! -e "$HOME/fails" ] || exit 1
        case $2 in
            */) for program in "${@:3}"; do touch "$2${program##*/}"; chmod 755 "$2${program##*/}"; done ;;
            *) touch "$2"; chmod 755 "$2" ;;
        esac ;;
esac
"""


class Machine:
    """One with the few commands that the script needs, and maybe Go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in NEEDED:
            (self.bin / name).symlink_to(shutil.which(name) or name)

    def install_go(self) -> None:
        (self.bin / "go").write_text(GO)
        (self.bin / "go").chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        known = {"PATH": str(self.bin), "HOME": str(self.folder)}
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            cwd=self.folder,
            env=known | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=20)
        return process.returncode, out.strip(), err

    @property
    def built(self) -> list[Path]:
        return list((self.folder / ".cache/sluice/kube-assets").glob("*"))

    @property
    def asked_of_go(self) -> list[str]:
        return (self.folder / "go.log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_built_is_found_again(machine: Machine) -> None:
    machine.install_go()
    code, folder, _ = machine.run()
    assert (code, sorted(each.name for each in Path(folder).iterdir())) == (0, PROGRAMS)
    asked = machine.asked_of_go
    assert machine.run() == (0, folder, "")
    assert machine.run("--find") == (0, folder, "")
    assert machine.asked_of_go == asked


def test_the_programs_know_their_version(machine: Machine) -> None:
    machine.install_go()
    machine.run()
    stamps = re.findall(r"version\.(\w+)=(\S+)", "\n".join(machine.asked_of_go))
    assert {"gitVersion": "v1.35.4", "gitMajor": "1", "gitMinor": "35"}.items() <= dict(stamps).items()


def test_the_cache_is_where_the_environment_says(machine: Machine) -> None:
    machine.install_go()
    _, folder, _ = machine.run(XDG_CACHE_HOME=str(machine.folder / "elsewhere"))
    assert Path(folder).parent == machine.folder / "elsewhere/sluice/kube-assets"


def test_two_builds_at_once_end_with_the_same_folder(machine: Machine) -> None:
    machine.install_go()
    builds = [machine.start() for _ in range(4)]
    folders = {build.communicate(timeout=20)[0].strip() for build in builds}
    assert [build.returncode for build in builds] == [0] * 4
    assert {str(each) for each in machine.built} == folders


def test_a_build_that_fails_leaves_nothing(machine: Machine) -> None:
    machine.install_go()
    (machine.folder / "fails").touch()
    code, folder, _ = machine.run()
    assert (code, folder, machine.built) == (1, "", [])


def test_without_go_it_says_how_to_get_the_programs(machine: Machine) -> None:
    version = re.search(r"(?m)^go (\d+\.\d+)", (SCRIPT.parent / "go.mod").read_text())
    assert version is not None
    code, _, err = machine.run()
    assert code == 1
    for word in ("tests/kube-assets/go.mod", f"Go {version.group(1)} or later", "KUBEBUILDER_ASSETS", "setup-envtest"):
        assert word in err


def test_what_is_not_built_is_only_asked_for(machine: Machine) -> None:
    machine.install_go()
    code, _, err = machine.run("--find")
    assert (code, "make kube-assets" in err, machine.built) == (1, True, [])


def test_programs_of_your_own_are_taken_as_they_are(machine: Machine) -> None:
    own = machine.folder / "own"
    own.mkdir()
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (own / name).touch(mode=0o755)
    assert machine.run(KUBEBUILDER_ASSETS="own") == (0, str(own), "")
    (own / "etcd").unlink()
    code, _, err = machine.run(KUBEBUILDER_ASSETS="own")
    assert code == 1
    assert "KUBEBUILDER_ASSETS names own, and there is no etcd" in err
