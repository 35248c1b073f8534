"""What `sluice run` may be told of a store that gates share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice_sidecar.__main__ import COMMANDS, run, run_settings
from sluice_sidecar.command_line import parser_of
from sluice_sidecar.settings import RunSettings
from sluice_sidecar.stores.address import StoreAddress

RUN = ("run", "-f", "limits.yaml", "--grpc", "127.0.0.1:0")
STORE = ("--store", "rediss://gate@redis")


def told(*arguments: str) -> RunSettings:
    return run_settings(parser_of(COMMANDS).parse_args([*RUN, *arguments]))


def test_a_gate_counts_alone_unless_it_is_told_of_a_store() -> None:
    settings = told()

    assert settings.store is None
    assert (settings.store_password_file, settings.store_ca) == (None, None)
    assert (settings.store_prefix, settings.store_gates) == ("sluice", 1)


def test_everything_about_a_store_arrives_where_it_belongs() -> None:
    settings = told(
        *STORE,
        *("--store-password-file", "secret"),
        *("--store-prefix", "Team-a_1.x"),
        *("--store-ca-bundle", "/etc/ca.pem"),
        *("--store-gates", "12"),
    )

    assert settings.store == StoreAddress.parse("rediss://gate@redis")
    assert settings.store_password_file == Path.cwd() / "secret"
    assert settings.store_prefix == "Team-a_1.x"
    assert settings.store_ca == Path("/etc/ca.pem")
    assert settings.store_gates == 12


NO_STORE = "is about the store of --store, and there is none"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--store-password-file", "x"], f"--store-password-file {NO_STORE}"),
        (["--store-prefix", "x"], f"--store-prefix {NO_STORE}"),
        (["--store-ca-bundle", "x"], f"--store-ca-bundle {NO_STORE}"),
        (["--store-gates", "1"], f"--store-gates {NO_STORE}"),
        ([*STORE, "--state-dir", "x"], "--state-dir cannot go with --store: the store keeps the counts"),
        ([*STORE, "--start", "empty"], "--start is about the counts of --state-dir, and there is none"),
        ([*STORE, "--store-gates", "0"], "argument --store-gates: '0' is not a number from 1 to 1000000000"),
        ([*STORE, "--store-prefix", ""], "argument --store-prefix: a prefix has 1 to 64 letters, digits"),
        ([*STORE, "--store-prefix", "x" * 65], "argument --store-prefix: a prefix has 1 to 64 letters"),
        ([*STORE, "--store-prefix", "{x}"], "argument --store-prefix: a prefix has 1 to 64 letters"),
        (["--store", "redis"], "argument --store: it is no address of a store: write redis://HOST"),
        (
            ["--store", "redis://redis", "--store-ca-bundle", "x"],
            "--store-ca-bundle is about TLS, and the address of --store says none: begin it with rediss",
        ),
    ],
)
def test_what_cannot_be_meant_of_a_store_is_bad_input(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*RUN, *arguments])

    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--store", "redis://gate:5ecret@redis"], "a password has no place in an address"),
        (["--store-password", "5ecret"], "unrecognized arguments: --store-password\n"),
        (["--store-password=5ecret"], "unrecognized arguments: --store-password\n"),
        (["--stor", "redis://gate:5ecret@redis"], "unrecognized arguments: --stor\n"),
        (["redis://gate:5ecret@redis"], "unrecognized arguments: redis://…@redis\n"),
    ],
)
def test_no_complaint_repeats_a_password(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*RUN, *arguments])

    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert complaint in said
    assert "5ecret" not in said
