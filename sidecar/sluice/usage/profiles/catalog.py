"""Every profile by name: the built-in ones, and those of a folder of one's own.

A profile that is `like` another says only what differs: objects are put together field by field, lists are replaced
whole, and APIs are put together by name, new ones first, so that their paths are tried before the older ones'. So does
an API that is `like` one of another provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from sluice.errors import InvalidDocument, Problem
from sluice.schema.declare import mistakes
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

    def __init__(self, own: Mapping[str, Mapping[str, Tree]] | None = None) -> None:
        self._own = dict(own or {})

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> Catalog:
        """The built-in profiles and those of the files given, which replace the built-in one of their provider.

        Raises `InvalidDocument` with every mistake.
        """
        own: dict[str, Mapping[str, Tree]] = {}
        problems: list[Problem] = []
        for source, text in texts.items():
            tree, found = _read(text, source)
            problems += found
            if not found:
                own[str(tree["provider"])] = tree
        if problems:
            raise InvalidDocument(problems)
        return cls(own)

    @property
    def names(self) -> tuple[str, ...]:
        """Every provider that has a profile."""
        return tuple(sorted({*built_in_names(), *self._own}))

    def profile(self, provider: str, api: Api | None = None, overrides: Mapping[str, Tree] | None = None) -> Profile:
        """The profile of a provider, with what a document says in its place.

        A provider that has none, or one of another family than `api`, is taken to be like the base of that family.
        Raises `KeyError` for a provider that has none where no `api` is given.
        """
        tree = self._tree(provider, api)
        return built(_over(tree, _spelt_out({**(overrides or {}), "provider": provider})))

    def tree(self, provider: str) -> dict[str, Tree]:
        """The profile of a provider as a file that is like no other. Raises `KeyError` for one that has none."""
        tree = self._tree(provider, None)
        return {name: tree[name] for name in declaration.PROFILE.fields if name in tree and name != "like"}

    def _tree(self, provider: str, api: Api | None) -> dict[str, Tree]:
        tree: dict[str, Tree] | None = None
        if provider in self._own:
            tree = _whole(self._own[provider])
        elif provider in built_in_names():
            tree = built_in(provider)
        if tree is not None and api in (None, tree["api"]):
            return tree
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
    return _whole(tree)


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
    try:
        trees = [document.tree for document in read(text)]
    except Unreadable as error:
        return {}, [Problem(source, "", "", str(error))]
    if len(trees) != 1:
        return {}, [Problem(source, "", "", f"holds {len(trees)} documents: a profile's file has one")]
    tree: Any = trees[0]
    problems = [Problem(source, "", m.field, m.message) for m in mistakes(declaration.PROFILE, tree)]
    problems = problems or [Problem(source, "", *mistake) for mistake in _loose_ends(tree)]
    return ({} if problems else _spelt_out(tree)), problems


def _loose_ends(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a sound tree lacks to be a profile."""
    known = ", ".join(built_in_names())
    if "like" in tree:
        if tree["like"] not in built_in_names():
            yield "like", f"{tree['like']} is not a built-in profile ({known})"
        return
    for name in ("api", "apis"):
        if not tree.get(name):
            yield name, f"is required: the profile is like no other; or give it `like` ({known})"


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
