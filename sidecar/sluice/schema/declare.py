"""A small language to declare documents in, and the walker that finds every mistake.

A declaration is data: types with bounds and a sentence on each field. The strict parser, the reference for people
and the schema for Kubernetes are all read from it, so its patterns keep to what RE2 and Python's `re` share.

Walking never stops at the first mistake and never raises on any tree. It is lazy: a reader who has seen enough
mistakes just stops asking.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from sluice.schema.durations import format_duration, parse_duration
from sluice.schema.yamltext import Plain, Refused, Tree

SHOWN: Final = 40
"""Characters of a wrong value that a message repeats."""
GUESSED: Final = 100
"""Unknown fields of one object that are compared with the known ones: each comparison costs some 0.1 ms."""

NEAR: Final = 0.87
"""How alike two words are, of 1, to be taken for one misspelt: `requestsPerMonth` is not `requestsPerMinute`."""


class Mistake(NamedTuple):
    """One mistake in a tree."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Anything:
    """A value that is not looked at."""

    @property
    def allowed(self) -> str:
        return "anything"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Text:
    """A text; the pattern holds for all of it."""

    pattern: str
    says: str
    """The pattern in words."""
    longest: int

    @property
    def allowed(self) -> str:
        return f"{self.says} (at most {self.longest} characters)"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if isinstance(tree, bool | int | float | Plain):
            fits = re.fullmatch(self.pattern, shown(tree)) is not None
            wanted = f"text: put {shown(tree)} in quotes" if fits else f"{self.allowed}, not {shown(tree)}"
            yield Mistake(path, f"must be {wanted}")
        elif not isinstance(tree, str):
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}")
        elif len(tree) > self.longest:
            yield Mistake(path, f"must be {self.allowed}, and this has {len(tree)}")
        elif re.fullmatch(self.pattern, tree) is None:
            meant = tree.lower() if re.fullmatch(self.pattern, tree.lower()) else None
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}{_hint(meant)}")


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return self.words[0] if len(self.words) == 1 else "one of " + ", ".join(self.words)

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if not isinstance(tree, str) or tree not in self.words:
            meant = nearest(tree, self.words) if isinstance(tree, str) else None
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}{_hint(meant)}")


@dataclass(frozen=True, slots=True)
class AlwaysTrue:
    """A field whose presence says it all."""

    @property
    def allowed(self) -> str:
        return "true"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if tree is not True:
            yield Mistake(path, f"must be true, not {shown(tree)}")


@dataclass(frozen=True, slots=True)
class Truth:
    """True or false."""

    @property
    def allowed(self) -> str:
        return "true or false"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if not isinstance(tree, bool):
            yield Mistake(path, f"must be true or false, not {shown(tree)}")


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number."""

    least: int
    most: int

    @property
    def allowed(self) -> str:
        return f"an integer from {self.least} to {self.most}"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if isinstance(tree, bool) or not isinstance(tree, int) or not self.least <= tree <= self.most:
            quoted = isinstance(tree, str) and re.fullmatch("0|[1-9][0-9]*", tree)
            quotes = ", without quotes" if quoted else ""
            yield Mistake(path, f"must be {self.allowed}{quotes}, not {shown(tree)}")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time, from nothing to a longest one in nanoseconds."""

    most: int

    @property
    def allowed(self) -> str:
        return f"a duration from 0s to {format_duration(self.most)}, such as 500ms, 10s or 1m30s"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        nanoseconds = parse_duration(tree) if isinstance(tree, str) else None
        if nanoseconds is None or nanoseconds > self.most:
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}")


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of one type."""

    item: Type
    most: int
    least: int = 0
    distinct: bool = False
    """No text stands in it twice."""

    @property
    def allowed(self) -> str:
        return f"a list of {self.least} to {self.most} items"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if not isinstance(tree, list):
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}")
            return
        if not self.least <= len(tree) <= self.most:
            yield Mistake(path, f"must be {self.allowed}, and this has {len(tree)}")
            return
        for index, item in enumerate(tree):
            yield from mistakes(self.item, item, f"{path}[{index}]")
            if self.distinct and isinstance(item, str) and item in tree[:index]:
                yield Mistake(f"{path}[{index}]", f"{shown(item)} is listed twice")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object."""

    type: Type
    about: str
    """One or two sentences for whoever writes the document."""
    required: bool = False
    default: Tree = None
    """What an absent field stands for; None where there is nothing to stand in."""
    example: str = ""
    immutable: bool = False
    """Kubernetes lets nobody change it in an object that is there; a reader of one text has nothing to compare."""


class Rule(NamedTuple):
    """A rule that the API server checks, in the Common Expression Language (CEL); `self` is the object."""

    holds: str
    """True for every sound object, and also for one whose only fault is of another kind."""
    message: str
    """What is said where it does not hold; `{self.name}` stands for the value of that field."""
    field: str = ""
    """The field that is to blame, below the object: CEL can name none inside a list."""
    missing: bool = False
    """The field is missing, rather than wrong."""


class Constraint(NamedTuple):
    """What crosses the fields of an object, said twice: for the parser and for the API server."""

    says: str
    """The constraint in one sentence, for the reference."""
    broken: Callable[[dict[str, Tree]], Iterable[Mistake]]
    """Where an object breaks it. The object may hold any other mistake too: this speaks of sound values only."""
    rules: tuple[Rule, ...]
    """The same for the API server, which skips these where a field is missing, unknown, too long or of a wrong type."""


@dataclass(frozen=True, slots=True)
class Object:
    """Fields by name. A field that is not declared is a mistake."""

    fields: Mapping[str, Field]
    constraints: tuple[Constraint, ...] = ()
    exactly_one: bool = False
    """One of the fields is given, and only one."""

    @property
    def allowed(self) -> str:
        one = "exactly one of " if self.exactly_one else ""
        required = [name for name, field in self.fields.items() if field.required]
        return f"an object with {one}{', '.join(required or self.fields)}"

    def mistakes(self, tree: Tree, path: str) -> Iterator[Mistake]:
        if not isinstance(tree, dict):
            yield Mistake(path, f"must be {self.allowed}, not {shown(tree)}")
            return
        unknown = [name for name in tree if name not in self.fields]
        meant = {name: nearest(name, self.fields) for name in unknown[:GUESSED]}
        for name in unknown:
            value = tree[name]
            hint = f"did you mean {meant[name]}?" if meant.get(name) else f"known are {', '.join(self.fields)}"
            message = value.why if isinstance(value, Refused) else f"unknown field; {hint}"
            yield Mistake(join(path, shortened(name)), message)
        given = [name for name in self.fields if name in tree]
        if self.exactly_one and (len(given) > 1 or not tree):
            yield Mistake(
                path, f"must have exactly one of {', '.join(self.fields)}; it has {', '.join(given) or 'none'}"
            )
        for name, field in self.fields.items():
            if name in tree:
                yield from mistakes(field.type, tree[name], join(path, name))
            elif field.required and name not in meant.values():
                yield Mistake(join(path, name), f"is required: {field.type.allowed}")
        for constraint in self.constraints:
            for mistake in constraint.broken(tree):
                yield Mistake(join(path, mistake.field), mistake.message)


Type: TypeAlias = Anything | Text | Word | AlwaysTrue | Truth | Integer | Duration | Sequence | Object
"""Every type there is: what translates a declaration into something else handles each of these.

`allowed` says what a value must be, `mistakes` finds what is wrong with a value that stands at a path.
"""


def mistakes(declared: Type, tree: Tree, path: str = "") -> Iterator[Mistake]:
    """Every mistake in a tree that stands at this path."""
    if isinstance(tree, Refused):
        yield Mistake(path, tree.why)
    else:
        yield from declared.mistakes(tree, path)


def is_sound(declared: Type, tree: Tree) -> bool:
    """True if the tree holds no mistake."""
    return next(mistakes(declared, tree), None) is None


def with_defaults(declared: Type, tree: Tree) -> Tree:
    """A sound tree, with every absent field that has a default filled in."""
    if isinstance(declared, Sequence) and isinstance(tree, list):
        return [with_defaults(declared.item, item) for item in tree]
    if isinstance(declared, Object) and isinstance(tree, dict):
        given = {name: tree.get(name, field.default) for name, field in declared.fields.items()}
        return {
            name: with_defaults(declared.fields[name].type, value) for name, value in given.items() if value is not None
        }
    return tree


def join(path: str, name: str) -> str:
    """The path of a field below a path; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def shown(tree: Tree) -> str:
    """A value as a message repeats it: short, on one line."""
    match tree:
        case None:
            return "nothing"
        case bool():
            return str(tree).lower()
        case str():
            return '"' + shortened(tree) + '"'
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return shortened(tree.text if isinstance(tree, Plain) else str(tree))


def shortened(text: str) -> str:
    """The beginning of a text, with what does not print escaped."""
    short = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def _hint(meant: str | None) -> str:
    return f"; did you mean {shortened(meant)}?" if meant else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known word that a word was most likely meant to be, if any is near."""
    by_lower_case = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower()[:SHOWN], by_lower_case, n=1, cutoff=NEAR)
    return by_lower_case[close[0]] if close else None
