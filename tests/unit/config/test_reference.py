"""The declaration, the reference and the example say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.generated import LIMITS_MD, PROVIDERS_MD, generated
from sluice.config.declaration import DOCUMENT
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.core.keys import Scope
from sluice.core.limits import Cap
from sluice.schema.declare import Field, Object, Sequence, Text, Type, is_sound
from sluice.schema.yamltext import read
from sluice.usage.profiles import Catalog
from sluice.usage.profiles.declaration import OVERRIDES

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "limits.yaml"


def fields(declared: Type, path: str = "") -> Iterator[tuple[str, Field]]:
    if isinstance(declared, Sequence):
        yield from fields(declared.item, f"{path}[]")
    elif isinstance(declared, Object):
        for name, field in declared.fields.items():
            yield f"{path}.{name}", field
            yield from fields(field.type, f"{path}.{name}")


FIELDS = dict(fields(DOCUMENT))


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_a_file_that_is_written_by_make_generate_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generated()[path], "run `make generate`"


def test_every_document_in_the_documentation_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", LIMITS_MD.read_text(), re.DOTALL)

    assert [len(parse(block, "docs/limits.md")) for block in blocks] == [1, 1]


def test_every_profile_in_the_documentation_is_valid() -> None:
    document, part, profile, served = re.findall(r"```yaml\n(.*?)```", PROVIDERS_MD.read_text(), re.DOTALL)
    (tree,) = (each.tree for each in read(part))

    assert [limits.provider for limits in parse(document, "docs/providers.md")] == ["ollama"]
    assert isinstance(tree, dict)
    assert isinstance(spec := tree["spec"], dict)
    assert is_sound(OVERRIDES, spec["profile"])
    catalog = Catalog.of_texts({"acme.yaml": profile})
    assert catalog.profile("acme").shapes[0].name == "answers"
    assert [limits.upstream for limits in parse(served, "docs/providers.md", catalog)] == ["https://llm.acme.example"]


@pytest.mark.parametrize("path", [path for path, field in FIELDS.items() if field.example])
def test_an_example_of_a_field_is_valid(path: str) -> None:
    (document,) = read(FIELDS[path].example)

    assert is_sound(FIELDS[path].type, document.tree)


@pytest.mark.parametrize("path", [path for path, field in FIELDS.items() if field.default is not None])
def test_a_default_of_a_field_is_valid_and_the_field_is_not_required(path: str) -> None:
    assert is_sound(FIELDS[path].type, FIELDS[path].default)
    assert not FIELDS[path].required


@pytest.mark.parametrize("path", [path for path, field in FIELDS.items() if isinstance(field.type, Text)])
def test_a_pattern_is_one_that_re2_reads_too(path: str) -> None:
    declared = FIELDS[path].type

    assert isinstance(declared, Text)
    assert not re.search(r"\(\?|\\[1-9zZA]", declared.pattern)


def test_every_cap_of_the_engine_can_be_declared() -> None:
    assert {f".spec.limits[].{cap}" for cap in Cap} <= FIELDS.keys()


def test_the_example_makes_calls_pass_wait_and_fail() -> None:
    configuration = merge(parse(EXAMPLE.read_text(), "examples/limits.yaml"))
    (everybody,) = (
        applied.limits
        for applied in configuration.rules.match("openai", {Scope.USER: "alice"}, "gpt-4o-mini")
        if applied.key.scope is Scope.USER
    )
    (looping,) = (
        applied.limits
        for applied in configuration.rules.match("openai", {Scope.USER: "nightly-job"}, "gpt-4o-mini")
        if applied.key.scope is Scope.USER
    )

    assert list(configuration.providers) == ["openai", "anthropic", "gemini"]
    assert everybody.max_concurrent == 2
    assert everybody.max_wait > 0
    assert looping.requests_per_minute == 3
    assert looping.max_wait == 0
