"""YAML as plain trees, with nothing guessed.

YAML 1.1, YAML 1.2, PyYAML and kubectl disagree on what an unquoted `on`, `017`, `0o17`, `1_000`, `1e3` or `2026-01-02`
is. Here such a word stays a `Plain`, and the schema asks for quotes or for a plain integer where the word is used.
What a limits document has no use for (anchors, tags, a key given twice) becomes a `Refused`, so that the mistake is
reported at its own field, beside all the others.

The text is hostile until proven otherwise: its size and its depth are bounded, anchors are never followed, and the
tree is built from the parser's events, because PyYAML's own composer recurses in C as deep as the text tells it to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import yaml

from sluice.errors import SluiceError

MAX_BYTES: Final = 1 << 20
"""The size of one text: what etcd takes for one object is a little more."""
MAX_DEPTH: Final = 64
"""Deeper than Kubernetes' own bookkeeping in `managedFields` goes."""

# PyYAML's C parser where it was built in: some twenty times faster.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_resolver: Any = yaml.resolver.Resolver()
_INTEGER: Final = re.compile("-?(0|[1-9][0-9]{0,18})")
# Numbers and truth values that PyYAML takes for text and other readers do not.
_AMBIGUOUS: Final = re.compile(r"0o[0-7]+|[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[yYnN]")


class Unreadable(SluiceError):
    """The text is not YAML, or larger or deeper than a limits document may be."""


@dataclass(frozen=True, slots=True)
class Plain:
    """An unquoted word that YAML's readers disagree on."""

    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that YAML allows and a limits document does not."""

    why: str


Tree: TypeAlias = "bool | int | float | str | Plain | Refused | list[Tree] | dict[str, Tree] | None"
"""A document before anybody has checked it. Floats come from JSON only: in YAML text a fraction is a `Plain`."""


class Document(NamedTuple):
    """One YAML document of a text."""

    number: int
    """From 1, empty documents included."""
    tree: Tree


def read(text: str) -> Iterator[Document]:
    """The documents of a text, one by one, empty ones left out; raises `Unreadable` where the reading has to end."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Unreadable(f"is not valid Unicode at character {error.start + 1}") from None
    if size > MAX_BYTES:
        raise Unreadable(f"has {size} bytes; at most {MAX_BYTES} are read")
    number = 0
    events = yaml.parse(text, Loader=_Loader)
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                number += 1
                tree = _build(next(events), events, MAX_DEPTH)
                if tree is not None:
                    yield Document(number, tree)
    except yaml.YAMLError as error:
        raise Unreadable(f"is not YAML: {_complaint(error)}") from None


def write(manifests: Iterable[Mapping[str, Any]]) -> str:
    """The YAML text of manifests, which every reader reads alike."""
    return str(yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False))


def read_word(word: str) -> Tree:
    """What an unquoted word says: nothing, a truth value, an integer, text, or something that readers disagree on."""
    if word in ("", "~", "null"):
        return None
    if word in ("true", "false"):
        return word == "true"
    if _INTEGER.fullmatch(word):
        return int(word)
    tag = _resolver.resolve(yaml.ScalarNode, word, (True, False))
    if tag != "tag:yaml.org,2002:str" or _AMBIGUOUS.fullmatch(word):
        return Plain(word)
    return word


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if read_word(text) == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def _build(event: Any, events: Iterator[Any], depth: int) -> Tree:
    if depth == 0:
        raise Unreadable(f"line {event.start_mark.line + 1}: nests more than {MAX_DEPTH} levels deep")
    if isinstance(event, yaml.AliasEvent):
        return Refused("anchors and aliases are not read: write the value out")
    if isinstance(event, yaml.ScalarEvent):
        tree = event.value if event.style else read_word(event.value)
    elif isinstance(event, yaml.SequenceStartEvent):
        tree = _build_list(events, depth - 1)
    else:
        tree = _build_mapping(events, depth - 1)
    if event.anchor:
        return Refused("anchors and aliases are not read: write the value out")
    if event.tag:
        return Refused(f"tags are not read: leave {event.tag} out")
    return tree


def _build_list(events: Iterator[Any], depth: int) -> Tree:
    items: list[Tree] = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        items.append(_build(event, events, depth))
    return items


def _build_mapping(events: Iterator[Any], depth: int) -> Tree:
    fields: dict[str, Tree] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if isinstance(event, yaml.ScalarEvent):
            key, value = event.value, _build(next(events), events, depth)
            fields[key] = Refused("is given twice: keep one of them") if key in fields else value
        else:
            _build(event, events, depth)
            _build(next(events), events, depth)
            fields["?"] = Refused("a key must be a word")
    return fields


def _complaint(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + (getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read")
