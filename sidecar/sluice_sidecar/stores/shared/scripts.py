"""The scripts that run on the server: each is one decision, or one change, made in one step by the server's clock."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final, NamedTuple

_FOLDER: Final = files(__package__) / "scripts"


class Script(NamedTuple):
    """A script, and the name by which a server that knows it runs it."""

    text: str
    sha: str


class Scripts:
    """All of them. `clock` is the Lua that tells the time; tests set one of their own."""

    def __init__(self, clock: str | None = None) -> None:
        self._clock = clock or _read("clock")
        self.acquire = self._script("acquire")
        self.beat = self._script("beat")
        self.leave = self._script("leave")
        self.mend = self._script("mend")
        self.peek = self._script("peek")
        self.settle = self._script("settle")

    def _script(self, name: str) -> Script:
        text = "\n".join([self._clock, _read("windows"), _read("queues"), _read(name)])
        return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
