"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and, where it is asked for, the garbage collector.

RBAC and the audit log are on; every identity has a certificate of its own. Everything is in one folder, and every
process ends with the test run, even one that is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.envoy import ROOT
from helpers.kube.audit import POLICY, Audited, audited
from helpers.pki import Authority, signing_key
from helpers.process import Process, lasting_ports

READY_SECONDS = 40
ADMIN = "admin"
CONTROLLER_MANAGER = "kube-controller-manager"


def kube_assets() -> Path:
    """The folder with the programs. Raises `FileNotFoundError` that says how to get them."""
    script = str(ROOT / "tests/kube-assets/build.sh")
    found = subprocess.run([script, "--find"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise FileNotFoundError(found.stderr.strip())
    return Path(found.stdout.strip())


class ControlPlane:
    """Use it by `running`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.assets = kube_assets()
        self.authority = Authority(_made(folder / "pki"))
        self._port, clients, peers = lasting_ports(3)
        self.url = f"https://127.0.0.1:{self._port}"
        self.admin = self.kubeconfig(ADMIN, ["system:masters"])
        self._etcd_url = f"http://127.0.0.1:{clients}"
        self.etcd = self._process("etcd", self._etcd_arguments(peers))
        self.api_server = self._process("kube-apiserver", self._api_server_arguments())

    def start(self) -> None:
        self.etcd.start()
        self.api_server.start()
        self.wait_until_ready()

    def stop(self) -> None:
        """End it. What was stored is gone, the logs stay."""
        self.api_server.kill()
        self.etcd.kill()
        shutil.rmtree(self._etcd_data, ignore_errors=True)

    def mend(self) -> None:
        """Let everything run again, whatever a test has done to it."""
        for process in (self.etcd, self.api_server):
            process.resume()
            if not process.runs:
                process.start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until the API server says so, and has made the namespace `default`."""
        end = time.monotonic() + READY_SECONDS
        while not (self._answers("/readyz") and self._answers("/api/v1/namespaces/default")):
            self.etcd.check()
            self.api_server.check()
            if time.monotonic() > end:
                raise TimeoutError(f"the API server is not ready after {READY_SECONDS} s:\n{self.api_server.tail}")
            time.sleep(0.05)  # a program of others: there is nothing to wait on

    async def until_ready(self) -> None:
        """The same, while the event loop goes on."""
        await asyncio.to_thread(self.wait_until_ready)

    @contextmanager
    def collecting_garbage(self) -> Iterator[Process]:
        """With the controller manager, for a while: it deletes what has lost its owner, and what a namespace held.

        It looks for new kinds every 30 s, so let a CRD be there before. Skips the test if there is no controller
        manager: setup-envtest fetches none.
        """
        if not (self.assets / CONTROLLER_MANAGER).exists():
            pytest.skip(f"the programs that KUBEBUILDER_ASSETS names are without {CONTROLLER_MANAGER}")
        process = self._process(CONTROLLER_MANAGER, self._controller_manager_arguments())
        process.start()
        try:
            yield process
            process.check()
        finally:
            process.kill()

    def kubeconfig(self, user: str, groups: Iterable[str] = ()) -> Path:
        """A kubeconfig for this identity, with a certificate of its own."""
        name = user.replace(":", "-")
        certificate, key = self.authority.issue(name, user, groups)
        cluster = {"server": self.url, "certificate-authority": str(self.authority.file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": user, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": user}}],
            "current-context": "tests",
        }
        path = self.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def tls(self, user: str = ADMIN) -> ssl.SSLContext:
        """For a client that is a user who has a kubeconfig."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        certificate = self.folder / "pki" / user.replace(":", "-")
        context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        return context

    def kubectl(self, *arguments: str, stdin: str | None = None, user: Path | None = None) -> str:
        """What kubectl prints; raises `AssertionError` with its complaint if it fails."""
        done = self.try_kubectl(*arguments, stdin=stdin, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str | None = None, user: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or by another kubeconfig."""
        command = [str(self.assets / "kubectl"), "--kubeconfig", str(user or self.admin), *arguments]
        environment = os.environ | {"HOME": str(self.folder)}
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=30, env=environment
        )

    def audit(self) -> list[Audited]:
        """Every call that has ended so far, but those of the API server to itself."""
        return audited(self._audit_log)

    @property
    def _audit_log(self) -> Path:
        return self.folder / "audit.log"

    @property
    def _etcd_data(self) -> Path:
        return self.folder / "etcd"

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=2, context=self.tls()):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def _process(self, name: str, arguments: list[str]) -> Process:
        return Process(name, [str(self.assets / name), *arguments], self.folder / f"{name}.log")

    def _etcd_arguments(self, peers: int) -> list[str]:
        peer_url = f"http://127.0.0.1:{peers}"
        return [
            f"--data-dir={self._etcd_data}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
        ]

    def _api_server_arguments(self) -> list[str]:
        certificate, key = self.authority.issue("kube-apiserver", "kube-apiserver")
        tokens = signing_key(self.folder / "pki" / "service-accounts.key")
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(POLICY))
        return [
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=Node,RBAC",
            f"--client-ca-file={self.authority.file}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={tokens}",
            f"--service-account-signing-key-file={tokens}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._audit_log}",
            "--audit-log-mode=blocking",
            "--profiling=false",
            # Nobody makes the service account that every pod would wait for.
            "--disable-admission-plugins=ServiceAccount",
        ]

    def _controller_manager_arguments(self) -> list[str]:
        # With rights of its own: else each controller would have a service account, which takes two more controllers.
        user = self.kubeconfig(f"system:{CONTROLLER_MANAGER}", ["system:masters"])
        return [
            f"--kubeconfig={user}",
            "--secure-port=0",
            "--leader-elect=false",
            "--controllers=garbage-collector-controller,namespace-controller",
        ]


@contextmanager
def running(folder: Path) -> Iterator[ControlPlane]:
    """A control plane for a while."""
    plane = ControlPlane(folder)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
