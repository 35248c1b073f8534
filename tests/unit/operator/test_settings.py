"""What the command line of the operator may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice_operator import settings
from sluice_operator.settings import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::]:65535", Address("::", 65535)),
        ("localhost:80", Address("127.0.0.1", 80)),
    ],
)
def test_an_address_is_an_ip_address_and_a_port(text: str, expected: Address) -> None:
    assert settings.address(text) == expected


@pytest.mark.parametrize("address", [Address("127.0.0.1", 80), Address("::", 80)])
def test_an_address_is_written_as_it_is_read(address: Address) -> None:
    assert settings.address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "host:80", "::1:x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an"):
        settings.address(text)


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1.0), ("5s", 5.0), ("1m30s", 90.0), ("10m", 600.0)])
def test_an_interval_is_a_duration(text: str, seconds: float) -> None:
    assert settings.interval(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "0s", "900ms", "11m", "soon", "-1s"])
def test_an_interval_that_would_flood_or_starve_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 1s to 10m"):
        settings.interval(text)


@pytest.mark.parametrize("text", ["a", "team-a", "7", "a" * 63])
def test_a_namespace_is_a_dns_label(text: str) -> None:
    assert settings.namespace(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a-", "Team", "a.b", "a*", "a,b", "!a", "a" * 64, "a\n"])
def test_a_namespace_is_never_a_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="not the name of a namespace"):
        settings.namespace(text)


@pytest.mark.parametrize("text", ["", "a\nb", "ä", "a" * 254])
def test_an_identity_has_to_fit_into_a_lease(text: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        settings.identity(text)


def test_in_a_pod_the_namespace_is_that_of_its_service_account(tmp_path: Path) -> None:
    file = tmp_path / "namespace"
    file.write_text("team-a\n")
    assert settings.own_namespace({}, file) == "team-a"
    assert settings.own_namespace({"POD_NAMESPACE": "team-b"}, file) == "team-b"
    assert settings.own_namespace({}, tmp_path / "none") == ""


def test_out_of_a_cluster_the_kubeconfig_is_kubectls(tmp_path: Path) -> None:
    usual = tmp_path / ".kube" / "config"
    home = {"HOME": str(tmp_path)}
    assert settings.kubeconfig(home) is None
    usual.parent.mkdir()
    usual.touch()
    assert settings.kubeconfig(home) == usual
    assert settings.kubeconfig({**home, "KUBECONFIG": "one:two"}) == Path("one")
    assert settings.kubeconfig({**home, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
