"""The references in Markdown, from the declarations.

That of limits documents stands in `docs/limits.md`; that of profiles, with what the built-in ones know, in
`docs/providers.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from sluice.config.declaration import DOCUMENT
from sluice.schema.declare import Anything, Constraint, Field, Object, Sequence, Text, Type, join
from sluice.usage.profiles import BUILT_IN, Profile
from sluice.usage.profiles.declaration import PROFILE
from sluice.usage.profiles.summary import costly, counted, limits, model, read_by, refusals, reserved, streams, told

BEGIN: Final = "<!-- The next lines are written by `make generate`; a test compares them. -->"
END: Final = "<!-- End of what is written by `make generate`. -->"

_FIELD_COLUMNS: Final = ("field", "meaning", "allowed", "default", "example")


class _Row(NamedTuple):
    path: str
    field: Field


def limits_reference() -> str:
    """The table of every field, and the constraints that cross fields; begins and ends with its marks."""
    return _marked(
        *_table(_FIELD_COLUMNS, map(_line, _rows(DOCUMENT, "", closed="spec.profile"))),
        "",
        "What crosses fields:",
        "",
        *(f"- {constraint.says}" for constraint in _constraints(DOCUMENT)),
    )


def providers_reference() -> str:
    """What is known of each provider, where that comes from, and every field of a profile; with its marks."""
    profiles = [BUILT_IN.profile(name) for name in BUILT_IN.names]
    return _marked(
        "## What works for each",
        "",
        *_table(
            (
                "provider",
                "API",
                "paths",
                "model",
                "output is bounded by",
                "usage tells",
                "a stream tells it",
                "read by",
            ),
            (row for profile in profiles for row in _apis(profile)),
        ),
        "",
        "## How each counts and refuses",
        "",
        *_table(
            ("provider", "reserved of a call", "in the end", "tells what is left of", "refusals"),
            map(_counting, profiles),
        ),
        "",
        "## Every field of a profile",
        "",
        *_table(_FIELD_COLUMNS, map(_line, _rows(PROFILE, ""))),
        "",
        "## Where the facts come from",
        *(line for profile in profiles for line in _sources(profile)),
    )


def _marked(*lines: str) -> str:
    return "\n".join([BEGIN, "", *lines, "", END])


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = tuple(columns)
    for row in (columns, ("---",) * len(columns), *rows):
        yield f"| {' | '.join(row)} |"


def _apis(profile: Profile) -> Iterator[tuple[str, ...]]:
    for shape in costly(profile):
        yield (
            f"`{profile.provider}`",
            shape.name,
            _code(shape.paths),
            model(shape),
            _code(shape.request.output_caps),
            told(shape),
            streams(shape),
            read_by(shape),
        )


def _counting(profile: Profile) -> tuple[str, ...]:
    return (
        f"`{profile.provider}`",
        reserved(profile.counting),
        "; ".join(counted(profile.counting)).replace("*", "\\*") or "each token once",
        limits(profile),
        "; ".join(refusals(profile)).replace("_", "\\_"),
    )


def _sources(profile: Profile) -> Iterator[str]:
    yield from ("", f"### {profile.title}", "")
    for source in profile.sources:
        note = f" {source.note}" if source.note else ""
        yield f"- {source.fact} ([source]({source.at})){note}"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _rows(declared: Type, path: str, closed: str = "") -> Iterator[_Row]:
    if isinstance(declared, Sequence):
        yield from _rows(declared.item, f"{path}[]", closed)
    elif isinstance(declared, Object) and (not closed or path != closed):
        for name, field in declared.fields.items():
            if not isinstance(field.type, Anything):
                yield _Row(join(path, name), field)
                yield from _rows(field.type, join(path, name), closed)


def _constraints(declared: Type) -> Iterator[Constraint]:
    if isinstance(declared, Sequence):
        yield from _constraints(declared.item)
    elif isinstance(declared, Object):
        yield from declared.constraints
        for field in declared.fields.values():
            yield from _constraints(field.type)


def _line(row: _Row) -> tuple[str, ...]:
    field = row.field
    default = "required" if field.required else "" if field.default in (None, {}, []) else f"`{field.default}`"
    example = f"`{field.example}`" if field.example else ""
    cells = (f"`{row.path}`", field.about, _allowed(field.type), default, example)
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _allowed(declared: Type) -> str:
    match declared:
        case Object(exactly_one=False):
            return "an object"
        case Sequence(item=Text() as item):
            return f"{declared.allowed}, each {item.allowed}"
        case _:
            return declared.allowed
