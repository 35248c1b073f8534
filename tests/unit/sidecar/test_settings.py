"""What the command line may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sluice.core.limits import SECOND
from sluice_sidecar.settings import (
    TcpAddress,
    address,
    count,
    duration,
    header_names,
    lease,
    socket_path,
    tcp_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:10000", TcpAddress("127.0.0.1", 10000)),
        ("localhost:0", TcpAddress("127.0.0.1", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("0.0.0.0:65535", TcpAddress("0.0.0.0", 65535)),
    ],
)
def test_an_address_is_an_ip_address_and_a_port(text: str, expected: TcpAddress) -> None:
    assert tcp_address(text) == expected


def test_an_address_prints_as_it_is_written() -> None:
    assert [str(tcp_address(text)) for text in ("127.0.0.1:1", "[::1]:1")] == ["127.0.0.1:1", "[::1]:1"]


def test_only_loopback_is_reached_from_nowhere_else() -> None:
    texts = ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "0.0.0.0:1", "10.0.0.1:1")
    assert [tcp_address(text).is_loopback for text in texts] == [True, True, True, False, False]


def test_an_address_may_be_written_as_a_url() -> None:
    assert address("http://127.0.0.1:10001/") == TcpAddress("127.0.0.1", 10001)


@pytest.mark.parametrize("text", ["/run/gate.sock", "unix:/run/gate.sock"])
def test_what_has_a_slash_is_a_socket(text: str) -> None:
    assert address(text) == Path("/run/gate.sock")


def test_a_socket_path_is_made_absolute() -> None:
    assert socket_path("gate.sock") == Path.cwd() / "gate.sock"


def test_a_socket_path_may_have_107_bytes_and_no_more() -> None:
    longest = "/" + "é" * 53
    assert socket_path(longest) == Path(longest)
    with pytest.raises(ValueError, match="has 108 bytes; a Unix socket's path has at most 107"):
        socket_path(longest + "x")


def test_durations_are_those_of_the_limits_document() -> None:
    assert [duration(text) for text in ("2s", "500ms", "1m30s")] == [2 * SECOND, SECOND // 2, 90 * SECOND]


def test_header_names_are_in_lower_case() -> None:
    assert header_names("X-Total, x-other,") == ("x-total", "x-other")


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (tcp_address, "10000", "is not an address: write an IP address and a port"),
        (tcp_address, "127.0.0.1:65536", "is not an address"),
        (tcp_address, "127.0.0.1:-1", "is not an address"),
        (tcp_address, "example.org:80", "names are not looked up"),
        (address, "here", "is not an address"),
        (duration, "2", "is not a duration: write 500ms, 2s"),
        (duration, "two seconds", "is not a duration"),
        (lease, "0s", "would give up every call"),
        (header_names, "x-good,x bad", "'x bad' is not the name of a header"),
        (count, "0", "is not a number from 1 to 1000000000"),
        (count, "1000000001", "is not a number"),
        (count, "many", "is not a number"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_can(read: Callable[[str], object], text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(text)
