"""The forms of an object: each generation of its spec that a gate can run, as a document and as text.

Reading and writing YAML is most of the work of a plan, and of a thousand objects one has changed: so forms are kept, by
value, and a plan in which nothing changed reads none anew.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sluice.config.declaration import API_VERSION, KIND
from sluice.config.document import from_manifest
from sluice.config.merge import rules_of
from sluice.config.render import SEPARATOR, content_hash, document_text
from sluice.config.types import ProviderLimits
from sluice.core.rules import Rule
from sluice.errors import InvalidDocument, Problem
from sluice.schema import yamltext

T = TypeVar("T")

KEPT: Final = 4_000_000
"""Characters of the specs whose forms are kept, and of the texts: the objects of several large namespaces. A form takes
some six times as much, so nobody fills the operator's memory with them."""
LARGEST_KEPT: Final = 8192
"""Characters of a spec or a text whose form is kept. Larger ones, of which a namespace has room for some hundred, are
read anew each time, so that nobody drives out the others."""


@dataclass(frozen=True, slots=True)
class Form:
    """One generation of an object that a gate can run."""

    uid: str
    generation: int
    document: ProviderLimits
    rules: tuple[Rule, ...]
    text: str
    """Its document in the limits text."""

    @property
    def name(self) -> str:
        return self.document.name


class Kept(Generic[T]):
    """A function whose results are kept, those that were asked for last. Its last argument is the text that is counted.

    Threads share it.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._results: OrderedDict[tuple[Any, ...], T] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> T:
        with self._lock:
            if arguments in self._results:
                self._results.move_to_end(arguments)
                return self._results[arguments]
        result = self._function(*arguments)
        if len(arguments[-1]) <= LARGEST_KEPT:
            with self._lock:
                self._size += 0 if arguments in self._results else len(arguments[-1])
                self._results[arguments] = result
                while self._size > KEPT:
                    (*_, text), _ = self._results.popitem(last=False)
                    self._size -= len(text)
        return result


def size_of(manifest: Mapping[str, Any]) -> int:
    """Characters of an object's spec as JSON: what it takes to read it goes by that."""
    try:
        return len(json.dumps(manifest.get("spec"), ensure_ascii=False))
    except RecursionError:
        return 0  # which is found without reading it


def form_of(manifest: Mapping[str, Any]) -> Form | tuple[Problem, ...]:
    """The form of an object as the API's JSON has it, or every mistake in it."""
    metadata = manifest["metadata"]
    try:
        spec = json.dumps(manifest.get("spec"), ensure_ascii=False)
        spec.encode()
    except RecursionError:
        return (Problem("", f"{KIND}/{metadata['name']}", "spec", "nests too deeply to be read"),)
    except UnicodeEncodeError:
        return (Problem("", f"{KIND}/{metadata['name']}", "spec", "holds text that is not valid Unicode"),)
    return _read_once(metadata["name"], metadata["uid"], metadata["generation"], spec)


def _read(name: str, uid: str, generation: int, spec: str) -> Form | tuple[Problem, ...]:
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": json.loads(spec)}
    try:
        return _form(manifest, uid, generation)
    except InvalidDocument as error:
        return error.problems


def _form(manifest: Mapping[str, Any], uid: str, generation: int) -> Form:
    document = from_manifest(manifest, "")
    text = document_text(document, uid=uid, generation=generation)
    return Form(uid, generation, document, rules_of(document), text)


class Remembered:
    """The forms in a limits text that was written before: the only place where an object's last good form is kept.

    Somebody may have edited the text: what cannot be read is not there.
    """

    def __init__(self, text: str) -> None:
        self.digest = content_hash(text)
        self._texts = text.split("\n" + SEPARATOR)
        self._lines = frozenset(each.rstrip("\n") for each in self._texts)
        self._forms: dict[str, tuple[Form, ...]] = {}

    def holds(self, form: Form) -> bool:
        """True if the form stands in the text, to the letter."""
        return form.text.rstrip("\n") in self._lines

    def last_good(self, name: str, uid: str, generation: int) -> Form | None:
        """The form in which this object stands in the text; not one that its present generation is older than."""
        forms = (form for text in self._texts if uid in text for form in self._forms_in(text))
        fits = (form for form in forms if (form.name, form.uid) == (name, uid) and 0 < form.generation <= generation)
        return next(fits, None)

    def _forms_in(self, text: str) -> tuple[Form, ...]:
        """Read once, though a text may hold the uid of any object, say as a subject."""
        if text not in self._forms:
            self._forms[text] = _written_once(text)
        return self._forms[text]


def _written(text: str) -> tuple[Form, ...]:
    """The forms in a part of a limits text, each with the object that it comes from."""
    forms: list[Form] = []
    try:
        for _, tree in yamltext.read(text):
            metadata = tree.get("metadata") if isinstance(tree, dict) else None
            if isinstance(tree, dict) and isinstance(metadata, dict):
                uid, generation = metadata.get("uid"), metadata.get("generation")
                if isinstance(uid, str) and isinstance(generation, int):
                    forms.append(_form(tree, uid, generation))
    except (yamltext.Unreadable, InvalidDocument):
        return ()
    return tuple(forms)


_read_once: Final = Kept(_read)
_written_once: Final = Kept(_written)
