"""The providers that Sluice knows by name, as data: which API they speak and where they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Api(StrEnum):
    """The dialect of an LLM API: where usage stands, how an error looks. The value is the word of the document."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"
    GEMINI = "Gemini"


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a provider before anybody configures it."""

    provider: str
    api: Api
    upstream: str
    """Scheme and host, and a port where it is not the scheme's own; never a path."""


PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        profile.provider: profile
        for profile in (
            Profile("openai", Api.OPENAI, "https://api.openai.com"),
            Profile("anthropic", Api.ANTHROPIC, "https://api.anthropic.com"),
            Profile("gemini", Api.GEMINI, "https://generativelanguage.googleapis.com"),
        )
    }
)
"""The built-in profiles by name. A limits document may name any other provider if it gives `api` and `upstream`."""
