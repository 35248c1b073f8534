"""Which gates run which form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sluice_operator.planning.forms import Form
from sluice_operator.planning.state import Gate

_SILENT: Final = frozenset[str]()


class Running:
    """What the gates said that they run. Gates that run the same files are looked at as one: most often all of them."""

    def __init__(self, gates: Iterable[Gate], texts: Mapping[str, Mapping[str, int]]) -> None:
        """`texts` is what is in each limits text, by its content hash: uid -> generation."""
        self._texts = texts
        self._alike: dict[frozenset[str], list[Gate]] = {}
        for gate in gates:
            self._alike.setdefault(gate.report.files if gate.report else _SILENT, []).append(gate)

    def behind(self, form: Form) -> list[Gate]:
        """The gates that do not run the form, or do not say so."""
        return [gate for files, gates in self._alike.items() if not self._holds(files, form) for gate in gates]

    def _holds(self, files: frozenset[str], form: Form) -> bool:
        return any(self._texts.get(file, {}).get(form.uid) == form.generation for file in files)
