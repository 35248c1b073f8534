"""The reference of the limits document in Markdown, from its declaration: it stands in `docs/limits.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sluice.config.declaration import DOCUMENT
from sluice.schema.declare import Anything, Constraint, Field, Object, Sequence, Text, Type, join

BEGIN: Final = "<!-- The next lines are written by `make generate`; a test compares them. -->"
END: Final = "<!-- End of what is written by `make generate`. -->"


class _Row(NamedTuple):
    path: str
    field: Field


def reference() -> str:
    """The table of every field, and the constraints that cross fields; begins and ends with its marks."""
    lines = [
        BEGIN,
        "",
        "| field | meaning | allowed | default | example |",
        "| --- | --- | --- | --- | --- |",
        *map(_line, _rows(DOCUMENT, "")),
        "",
        "What crosses fields:",
        "",
        *(f"- {constraint.says}" for constraint in _constraints(DOCUMENT)),
        "",
        END,
    ]
    return "\n".join(lines)


def _rows(declared: Type, path: str) -> Iterator[_Row]:
    if isinstance(declared, Sequence):
        yield from _rows(declared.item, f"{path}[]")
    elif isinstance(declared, Object):
        for name, field in declared.fields.items():
            if not isinstance(field.type, Anything):
                yield _Row(join(path, name), field)
                yield from _rows(field.type, join(path, name))


def _constraints(declared: Type) -> Iterator[Constraint]:
    if isinstance(declared, Sequence):
        yield from _constraints(declared.item)
    elif isinstance(declared, Object):
        yield from declared.constraints
        for field in declared.fields.values():
            yield from _constraints(field.type)


def _line(row: _Row) -> str:
    field = row.field
    default = "required" if field.required else "" if field.default in (None, {}, []) else f"`{field.default}`"
    example = f"`{field.example}`" if field.example else ""
    return f"| `{row.path}` | {field.about} | {_allowed(field.type)} | {default} | {example} |"


def _allowed(declared: Type) -> str:
    match declared:
        case Object(exactly_one=False):
            return "an object"
        case Sequence(item=Text() as item):
            return f"{declared.allowed}, each {item.allowed}"
        case _:
            return declared.allowed
