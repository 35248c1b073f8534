"""Every profile by name: the built-in ones, and those of a folder of one's own.

A profile that is `like` another says only what differs: objects are put together field by field, lists are replaced
whole, and APIs are put together by name, new ones first, so that their paths are tried before the older ones'. So does
an API that is `like` one of another provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, Final

from sluice.errors import InvalidDocument, Problem
from sluice.schema.declare import Constraint, Mistake, is_sound, mistakes, nearest
from sluice.schema.yamltext import Tree, Unreadable, read
from sluice.usage.profiles import declaration
from sluice.usage.profiles.building import built
from sluice.usage.profiles.profile import Api, Profile

_SUFFIX: Final = ".yaml"

BASES: Final[Mapping[Api, str]] = {
    Api.OPENAI: "openai",
    Api.ANTHROPIC: "anthropic",
    Api.GEMINI: "gemini",
    Api.BEDROCK: "bedrock",
    Api.COHERE: "cohere",
    Api.OLLAMA: "ollama",
}
"""The built-in profile that any other provider of that family is taken to be like."""
_ITS_OWN: Final = ("title", "upstream", "sources")
"""What a profile never has from another provider's."""

WITHOUT_ADDRESS: Final = ("azure", "bedrock", "llamacpp", "ollama", "sglang", "vertex", "vllm")
"""Built-in providers that each customer reaches at an address of their own."""


class Catalog:
    """Profiles by name. Immutable; built-in ones are read when they are first asked for."""

    def __init__(
        self, own: Mapping[str, Mapping[str, Tree]] | None = None, files: Mapping[str, str] | None = None
    ) -> None:
        self._own = dict(own or {})
        self._files = dict(files or {})

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> Catalog:
        """The built-in profiles and those of the files given, which replace the built-in one of their provider.

        Raises `InvalidDocument` with every mistake.
        """
        own: dict[str, Mapping[str, Tree]] = {}
        files: dict[str, str] = {}
        problems: list[Problem] = []
        for source, text in texts.items():
            tree, found = _read(text, source)
            problems += found
            provider = str(tree.get("provider", ""))
            if provider in files:
                message = f"is {provider} in {files[provider]} too: a provider has one profile; keep one of the files"
                problems.append(Problem(source, "", "provider", message))
            elif provider:
                own[provider], files[provider] = tree, source
        if problems:
            raise InvalidDocument(problems)
        return cls({provider: _spelt_out(tree) for provider, tree in own.items()}, files)

    @property
    def names(self) -> tuple[str, ...]:
        """Every provider that has a profile."""
        return tuple(sorted({*built_in_names(), *self._own}))

    @property
    def files(self) -> Mapping[str, str]:
        """The files of one's own, by the provider that they are of."""
        return dict(self._files)

    def profile(self, provider: str, api: Api | None = None, overrides: Mapping[str, Tree] | None = None) -> Profile:
        """The profile of a provider, with what a document says in its place.

        A provider that has none, or a built-in one of another family than `api`, is taken to be like the base of that
        family; a file of one's own holds whatever the family. Raises `KeyError` for a provider that has none where no
        `api` is given.
        """
        tree = self._tree(provider, api)
        return built(_over(tree, _spelt_out({**(overrides or {}), "provider": provider})))

    def tree(self, provider: str) -> dict[str, Tree]:
        """The profile of a provider as a file that is like no other. Raises `KeyError` for one that has none."""
        tree = self._tree(provider, None)
        return {name: tree[name] for name in declaration.PROFILE.fields if name in tree and name != "like"}

    def _tree(self, provider: str, api: Api | None) -> dict[str, Tree]:
        if provider in self._own:
            return _whole(self._own[provider])
        if provider in built_in_names() and api in (None, built_in(provider)["api"]):
            return built_in(provider)
        if api is None:
            raise KeyError(provider)
        base = built_in(BASES[api])
        return {name: base[name] for name in ("api", "apis", "word")}  # how a stranger counts is not known


@cache
def built_in_names() -> tuple[str, ...]:
    """The providers with a built-in profile."""
    files = (entry.name for entry in resources.files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


@cache
def built_in(name: str) -> dict[str, Tree]:
    """The tree of a built-in profile, with all of what it is like."""
    text = resources.files(__package__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    tree, problems = _read(text, name + _SUFFIX)
    if problems:
        raise InvalidDocument(problems)
    return _whole(_spelt_out(tree))


def _whole(tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """A profile's tree, with all of what it is like."""
    like = str(tree.get("like", ""))
    base = built_in(like) if like else {}
    if like != tree["provider"]:
        base = {name: value for name, value in base.items() if name not in _ITS_OWN}
    return _over(base, tree)


def _spelt_out(tree: Mapping[str, Any]) -> dict[str, Tree]:
    """The tree, with what each of its APIs has from one of another provider."""
    whole = dict(tree)
    if "apis" in tree:
        whole["apis"] = [_api_spelt_out(**api) for api in tree["apis"]]
    return whole


def _api_spelt_out(like: str = "", **api: Tree) -> dict[str, Tree]:
    return _over(_shared(like), api) if like else api


def _shared(name: str) -> dict[str, Tree]:
    provider, _, api = name.partition("/")
    apis: Any = built_in(provider)["apis"]
    return next(each for each in apis if each["name"] == api)


def _read(text: str, source: str) -> tuple[Mapping[str, Tree], list[Problem]]:
    """What a file says, and every mistake in it; of a file with mistakes no more than a sound name of its provider."""
    try:
        trees = [document.tree for document in read(text)]
    except Unreadable as error:
        return {}, [Problem(source, "", "", str(error))]
    if len(trees) != 1:
        return {}, [Problem(source, "", "", f"holds {len(trees)} documents: a profile's file has one")]
    tree: Any = trees[0]
    problems = [Problem(source, "", m.field, m.message) for m in mistakes(_FILE, tree)]
    if not problems:
        return tree, []
    provider = tree.get("provider") if isinstance(tree, dict) else None
    return ({"provider": provider} if is_sound(declaration.PROVIDER, provider) else {}), problems


def _loose_ends(tree: dict[str, Tree]) -> Iterator[Mistake]:
    """What a tree lacks to be a profile, whatever else is wrong with it."""
    known = ", ".join(built_in_names())
    # A field that seems to be missing may be misspelt, and one mistake is said once.
    given = {name if name in _FIELDS else nearest(name, _FIELDS) for name in tree}
    if "like" in given:
        like = tree.get("like")
        if is_sound(declaration.PROVIDER, like) and like not in built_in_names():
            yield Mistake("like", f"{like} is not a built-in profile ({known}){_meant(str(like))}")
        return
    for name in ("api", "apis"):
        if name not in given or (name == "apis" and tree.get(name) == []):
            yield Mistake(name, f"is required: the profile is like no other; or give it `like` ({known})")


def _meant(like: str) -> str:
    meant = nearest(like, built_in_names())
    return f"; did you mean {meant}?" if meant else ""


_FIELDS: Final = tuple(declaration.PROFILE.fields)
_FILE: Final = replace(
    declaration.PROFILE, constraints=(Constraint("A profile is like another, or says its own APIs.", _loose_ends, ()),)
)


def _over(base: Mapping[str, Tree], tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """`tree` where it says something, `base` elsewhere."""
    whole = dict(base)
    for name, value in tree.items():
        below: Any = base.get(name)
        if name == "apis" and isinstance(below, list) and isinstance(value, list):
            whole[name] = _apis_over(below, value)
        elif isinstance(below, dict) and isinstance(value, dict):
            whole[name] = _over(below, value)
        else:
            whole[name] = value
    return whole


def _apis_over(base: list[Any], apis: list[Any]) -> list[Tree]:
    known = {api["name"]: api for api in base}
    new = [api for api in apis if api["name"] not in known]
    changed = {api["name"]: api for api in apis}
    return [*new, *(_over(api, changed.get(api["name"], {})) for api in base)]


BUILT_IN: Final = Catalog()
"""The built-in profiles alone."""
