"""What `sluice providers` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sluice.schema.yamltext import read
from sluice.usage.profiles import BUILT_IN, Catalog
from sluice_sidecar.__main__ import BAD_INPUT, OK, run
from sluice_sidecar.provider_table import table


def test_the_table_has_a_line_for_each_provider() -> None:
    lines = table(map(BUILT_IN.profile, BUILT_IN.names)).splitlines()

    assert lines[0].split()[:3] == ["PROVIDER", "ADDRESS", "APIS"]
    assert [line.split()[0] for line in lines[1:]] == list(BUILT_IN.names)


@pytest.mark.parametrize(
    ("provider", "cells"),
    [
        (
            "openai",
            [
                "openai",
                "https://api.openai.com",
                "responses embeddings completions",
                "envoy",
                "max(input,cap)",
                "each token",
                "requests, tokens",
            ],
        ),
        (
            "anthropic",
            [
                "anthropic",
                "https://api.anthropic.com",
                "messages",
                "envoy",
                "input+learned",
                "cache reads 0%, by model",
                "requests, tokens, input tokens, output tokens",
            ],
        ),
        (
            "bedrock",
            [
                "bedrock",
                "your own",
                "openai anthropic converse invoke",
                "body envoy headers",
                "input+cap",
                "cache reads 0%, by model",
                "none",
            ],
        ),
    ],
)
def test_a_line_says_what_the_profile_supports(provider: str, cells: list[str]) -> None:
    line = table([BUILT_IN.profile(provider)]).splitlines()[1]

    assert [cell.strip() for cell in line.split("  ") if cell] == cells


def test_the_command_prints_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers"]) == OK
    assert capsys.readouterr().out.rstrip() == table(map(BUILT_IN.profile, BUILT_IN.names))


def test_a_profile_is_printed_as_a_file_could_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers", "groq"]) == OK
    printed = capsys.readouterr().out

    assert [document.tree for document in read(printed)] == [BUILT_IN.tree("groq")]
    assert Catalog.of_texts({"groq.yaml": printed}).profile("groq") == BUILT_IN.profile("groq")


def test_profiles_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers", "-o", "json", "xai", "vllm"]) == OK
    assert json.loads(capsys.readouterr().out) == [BUILT_IN.tree("xai"), BUILT_IN.tree("vllm")]


def test_profiles_of_ones_own_are_there_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acme.yaml").write_text("provider: acme\nlike: mistral\nupstream: https://llm.example.com\n")

    assert run(["providers", "--profiles", str(tmp_path), "-o", "table", "acme"]) == OK
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["acme", "https://llm.example.com"]


def test_a_provider_that_nobody_knows_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["providers", "acme"])

    assert ended.value.code == BAD_INPUT
    assert "there is no profile of acme: known are anthropic, azure" in capsys.readouterr().err
