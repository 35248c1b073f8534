"""Envoy's configuration as files: a real Envoy accepts what is printed, and what changes is written, once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.envoy import short_folder, validate
from helpers.mesh import CA_BUNDLE, SUBJECTS, limits_of
from helpers.system import limits
from sluice.config.document import parse
from sluice.config.merge import Configuration, merge
from sluice.config.types import FailurePolicy
from sluice.core.limits import SECOND, Limits
from sluice.usage.profiles import Api
from sluice_sidecar.envoy_config import EnvoySettings, UsageSource, bootstrap, clusters, routes, write_files
from sluice_sidecar.envoy_config.callers import NOT_ONE_KEY, NOT_UTF_8

SETTINGS = EnvoySettings(gate=Path("/run/gate.sock"), admin_socket=Path("/run/admin.sock"), ca_bundle=CA_BUNDLE)


def every_kind() -> Configuration:
    """A provider for each API and kind of subject, one that nothing limits, and one that is reached by TLS."""
    kinds = {"nobody": ("http", None), "tls": ("https", None)} | {k: ("http", s) for k, s in SUBJECTS.items()}
    return merge(
        limits_of(f"{api}-{kind}".lower(), api, f"{scheme}://{kind}.example".lower(), User=subject)
        for api in Api
        for kind, (scheme, subject) in kinds.items()
    )


@pytest.mark.parametrize("usage", UsageSource)
@pytest.mark.parametrize("configuration", [every_kind(), merge(())], ids=["every kind", "nothing"])
def test_envoy_accepts_the_bootstrap(configuration: Configuration, usage: UsageSource) -> None:
    with short_folder() as folder:
        assert validate(bootstrap(configuration, replace(SETTINGS, usage=usage)), folder) == ""


@pytest.mark.parametrize("path", ["/" + "a" * 127, "**/x" * 32, "/*a" * 42, "**/" * 42 + "a"])
def test_envoy_accepts_every_path_that_a_profile_may_have(path: str) -> None:
    """One that it does not like would hold back the limits of everybody."""
    profile = {"apis": [{"name": "long", "paths": [path]}]}
    document = limits("a" * 63, "http://a.example", {"requestsPerMinute": 1}, api="OpenAI", profile=profile)
    configuration = merge(parse(document, "test"))
    with short_folder() as folder:
        assert validate(bootstrap(configuration, SETTINGS), folder) == ""


def test_envoy_accepts_a_bootstrap_that_follows_files() -> None:
    with short_folder() as folder:
        settings = replace(SETTINGS, xds_folder=folder)
        write_files(folder, every_kind(), settings)
        assert validate(bootstrap(every_kind(), settings), folder) == ""


def test_the_files_hold_what_a_complete_bootstrap_holds() -> None:
    whole = bootstrap(every_kind(), SETTINGS)
    manager = whole["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    (in_file,) = routes(every_kind(), SETTINGS)["resources"]
    assert {key: value for key, value in in_file.items() if key != "@type"} == manager["routeConfig"]
    in_files = [each["name"] for each in clusters(every_kind(), SETTINGS)["resources"]]
    assert ["sluice-gate", *in_files] == [each["name"] for each in whole["staticResources"]["clusters"]]


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    settings = replace(SETTINGS, xds_folder=tmp_path)
    before = limits_of("one", Api.OPENAI, "http://one.example", User=SUBJECTS["header"])
    other_subject = limits_of("one", Api.OPENAI, "http://one.example", User=SUBJECTS["apiKey"])
    filters = ("sluice.admission.allow.json", "sluice.admission.deny.json")

    assert write_files(tmp_path, merge([before]), settings) == ("clusters.json", *filters, "routes.json")
    assert write_files(tmp_path, merge([before]), settings) == ()
    assert write_files(tmp_path, merge([other_subject]), settings) == ("routes.json",)
    assert write_files(tmp_path, merge([]), settings) == ("clusters.json", "routes.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clusters.json", "routes.json", *filters]


@pytest.mark.parametrize(
    ("waits", "timeout"), [((), "1s"), ((0,), "1s"), ((10 * SECOND, 3 * SECOND), "11s"), ((SECOND // 2,), "1.500s")]
)
def test_the_gate_has_a_second_more_than_the_longest_wait(waits: tuple[int, ...], timeout: str) -> None:
    configuration = merge(
        limits_of(f"p{i}", Api.OPENAI, "http://one.example", Limits(max_concurrent=1, max_wait=wait), User=subject)
        for i, wait in enumerate(waits)
        for subject in [SUBJECTS["header"]]
    )
    printed = json.dumps(bootstrap(configuration, SETTINGS))
    assert re.findall(r'"timeout": "([^"]+)", "failureModeDeny|"domain": "sluice", "timeout": "([^"]+)"', printed)
    assert printed.count(f'"domain": "sluice", "timeout": "{timeout}"') == len(FailurePolicy)


def test_a_given_time_limit_for_the_gate_is_taken() -> None:
    printed = json.dumps(bootstrap(merge(()), replace(SETTINGS, rls_timeout=timedelta(seconds=7))))
    assert printed.count('"domain": "sluice", "timeout": "7s"') == len(FailurePolicy)


@given(st.binary(max_size=8) | st.text(max_size=4).map(str.encode))
@example(b"\xed\xa0\x80")  # a surrogate
@example(b"\xc0\x80")  # NUL, overlong
@example(b"\xf4\x90\x80\x80")  # beyond U+10FFFF
def test_a_header_is_in_doubt_exactly_if_it_is_not_utf_8(value: bytes) -> None:
    try:
        value.decode()
        sound = True
    except UnicodeDecodeError:
        sound = False
    # Envoy's expressions see bytes, as Latin-1 shows them here.
    assert (re.fullmatch(NOT_UTF_8, value.decode("latin-1")) is None) == sound


@pytest.mark.parametrize(
    ("value", "sound"), [("Bearer sk-a_b.c/d+e=", True), ("", False), ("a,b", False), ("é", False)]
)
def test_a_key_is_in_doubt_if_it_is_empty_or_no_plain_text(value: str, sound: bool) -> None:
    assert (re.fullmatch(NOT_ONE_KEY, value) is None) == sound
