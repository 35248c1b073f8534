"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and, where it is asked for, the garbage collector.

RBAC and the audit log are on; every identity has a certificate of its own. Everything is in one folder, and every
process ends with the test run, even one that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.envoy import ROOT, free_port
from helpers.kube.pki import Authority, signing_key

READY_SECONDS = 40
TETHER = ROOT / "sidecar/sluice_sidecar/tether.py"
ADMIN = "admin"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}


def kube_assets() -> Path:
    """The folder with the binaries. Raises `FileNotFoundError` that says how to get them."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if named:
        return Path(named)
    found = subprocess.run(
        [str(ROOT / "tests/kube-assets/build.sh"), "--find"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise FileNotFoundError(found.stderr.strip())
    return Path(found.stdout.strip())


class Process:
    """A program of the control plane: started, killed, paused and started again with the same arguments."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(TETHER), str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it as it stands: its connections stay open, and nothing answers."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a word to anybody."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def check(self) -> None:
        """Raise with the end of its log if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.name} has ended:\n{self._log.read_text()[-3000:]}")


class ControlPlane:
    """Use it by `running`."""

    def __init__(self, folder: Path, *, collects_garbage: bool = False) -> None:
        self.folder = folder
        self.assets = kube_assets()
        self.authority = Authority(_made(folder / "pki"))
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self.admin = self.kubeconfig(ADMIN, ["system:masters"])
        self.audit_log = folder / "audit.log"
        peers, clients = free_port(), free_port()
        self._etcd_url = f"http://127.0.0.1:{clients}"
        self.etcd = self._process("etcd", self._etcd_arguments(peers))
        self.api_server = self._process("kube-apiserver", self._api_server_arguments(collects_garbage))
        self.controller_manager: Process | None = None
        if collects_garbage:
            self.controller_manager = self._process("kube-controller-manager", self._controller_manager_arguments())

    def start(self) -> None:
        self.etcd.start()
        self.api_server.start()
        self.wait_until_ready()
        if self.controller_manager is not None:
            self.controller_manager.start()

    def stop(self) -> None:
        for process in filter(None, (self.controller_manager, self.api_server, self.etcd)):
            process.stop()

    def wait_until_ready(self) -> None:
        """Until the API server says so, and has made the namespace `default`."""
        end = time.monotonic() + READY_SECONDS
        while not (self._answers("/readyz") and self._answers("/api/v1/namespaces/default")):
            self.etcd.check()
            self.api_server.check()
            if time.monotonic() > end:
                log = (self.folder / "kube-apiserver.log").read_text()[-3000:]
                raise TimeoutError(f"the API server is not ready after {READY_SECONDS} s:\n{log}")
            time.sleep(0.05)  # a program of others: there is nothing to wait on

    def kubeconfig(self, user: str, groups: Iterable[str] = (), server: str | None = None) -> Path:
        """A kubeconfig for this identity, with a certificate of its own."""
        name = user.replace(":", "-")
        certificate, key = self.authority.issue(name, user, groups)
        cluster = {"server": server or self.url, "certificate-authority": str(self.authority.file)}
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

    def audit(self) -> list[dict[str, Any]]:
        """Every call that has been answered so far."""
        return [json.loads(line) for line in self.audit_log.read_text().splitlines()]

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
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
        ]

    def _api_server_arguments(self, collects_garbage: bool) -> list[str]:
        certificate, key = self.authority.issue("kube-apiserver", "kube-apiserver")
        tokens = signing_key(self.folder / "pki" / "service-accounts.key")
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        # Without the controller manager nobody makes the service account that every pod would wait for.
        off = [] if collects_garbage else ["--disable-admission-plugins=ServiceAccount"]
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
            f"--audit-log-path={self.folder / 'audit.log'}",
            "--audit-log-mode=blocking",
            "--profiling=false",
            *off,
        ]

    def _controller_manager_arguments(self) -> list[str]:
        user = self.kubeconfig("system:kube-controller-manager")
        return [
            f"--kubeconfig={user}",
            f"--authentication-kubeconfig={user}",
            f"--authorization-kubeconfig={user}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--leader-elect=false",
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={self.folder / 'pki' / 'service-accounts.key'}",
            f"--root-ca-file={self.authority.file}",
        ]


@contextmanager
def running(folder: Path, *, collects_garbage: bool = False) -> Iterator[ControlPlane]:
    """A control plane for a while."""
    plane = ControlPlane(folder, collects_garbage=collects_garbage)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
