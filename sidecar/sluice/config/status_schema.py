"""The status of a limits object, as the operator writes it: the schema of that part of the CRD.

Nothing is required in it and every text and list is bounded: a status that the API server refused would be seen by
nobody, and one without bounds would let a hostile report fill etcd.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from sluice.core.keys import SCOPES
from sluice.core.limits import MAX_COUNT, Cap

Schema: TypeAlias = dict[str, Any]
"""A part of an OpenAPI v3 schema, as Kubernetes reads it."""

LONGEST_SUBJECT: Final = 64
"""Characters of a subject, or of a pattern of models, that are shown."""
MOST_HOTTEST: Final = 5
MOST_PRESSED: Final = 10


def _text(about: str, longest: int) -> Schema:
    return {"description": about, "type": "string", "maxLength": longest}


def _word(about: str, *words: str) -> Schema:
    return {"description": about, "type": "string", "enum": list(map(str, words))}


def _count(about: str) -> Schema:
    return {"description": about, "type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_COUNT}


def _object(about: str, properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    needed = {"required": list(required)} if required else {}
    return {"description": about, "type": "object", "properties": properties} | needed


def _list(about: str, item: Schema, most: int) -> Schema:
    return {
        "description": about,
        "type": "array",
        "maxItems": most,
        "x-kubernetes-list-type": "atomic",
        "items": item,
    }


_SCOPE: Final = _word("The kind of quota.", *SCOPES)
_SUBJECT: Final = _text(
    "Whose bucket it is. What a caller's header says is shown as sha256-… unless the object names it itself.",
    LONGEST_SUBJECT,
)
_MODELS: Final = _list("The models of its entry; absent for every model.", _text("A pattern.", 256), 64)
_CAP: Final = _word("The cap that it is nearest to.", *Cap)

_CONDITION: Final = _object(
    "One aspect of the object's state.",
    {
        "type": _text("What it is about: Accepted, Programmed, Ready, CommitsHealthy, StoreHealthy, …", 316),
        "status": _word("Whether it holds.", "True", "False", "Unknown"),
        "reason": _text("Why, in one word for programs.", 1024),
        "message": _text("Why, in a sentence for people.", 32768),
        "observedGeneration": _count("The generation of the object that it speaks of."),
        "lastTransitionTime": {
            "description": "When its status last changed.",
            "type": "string",
            "format": "date-time",
        },
    },
    ("type", "status", "lastTransitionTime", "reason", "message"),
)

_CONDITIONS: Final = {
    "description": "Whether the object is accepted, in force at every gate, and well.",
    "type": "array",
    "maxItems": 16,
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": _CONDITION,
}

_USAGE: Final = _object(
    "What the gates have counted. Absent until one of them has answered.",
    {
        "requestsPerMinute": _text("Calls of the fullest bucket in this minute, and its cap: 41/60.", 40),
        "tokensPerMinute": _text("How full the fullest bucket of tokens is in this minute: 52%.", 20),
        "inFlight": _count("Calls in flight."),
        "rejected": _count("Calls refused in the last 5 minutes."),
        "wouldReject": _count("Calls of the last 5 minutes that entries in Shadow mode would have refused."),
        "admitted": _count("Calls let through in the last 5 minutes."),
        "committedTokens": _count("Tokens that calls which ended in the last 5 minutes have used."),
        "estimatedCalls": _count("Calls of the last 5 minutes whose usage had to be guessed."),
        "estimateError": _text("How far estimates were from what was used in the last 5 minutes: 37%.", 20),
        "underestimated": _text("How many calls of the last 5 minutes used more than was estimated: 6%.", 20),
    },
)

_HOTTEST: Final = _object(
    "A bucket and the cap that it is nearest to.",
    {
        "scope": _SCOPE,
        "subject": _SUBJECT,
        "models": _MODELS,
        "cap": _CAP,
        "used": _count("What it has counted."),
        "limit": _count("The cap."),
        "percent": _count("How full it is."),
    },
)

_PRESSURE: Final = _object(
    "A bucket that is nearly full, or full.",
    {
        "scope": _SCOPE,
        "subject": _SUBJECT,
        "models": _MODELS,
        "cap": _CAP,
        "level": _word("High from 80 %, Full from 100 %; left below 70 %.", "High", "Full"),
    },
)

STATUS: Final = _object(
    "What the operator has made of the object, and what its gates report. Not yours to write.",
    {
        "observedGeneration": _count("The generation of the object that the status speaks of."),
        "conditions": _CONDITIONS,
        "sidecars": _text("Gates that run what is in force, of all gates: 3/3.", 32),
        "inForce": _object(
            "What is in force. Absent if nothing is.",
            {
                "generation": _count(
                    "The generation of the object that is in force: an older one while this one is bad."
                )
            },
        ),
        "usage": _USAGE,
        "hottest": _list("The fullest buckets, fullest first.", _HOTTEST, MOST_HOTTEST),
        "pressure": _list("The buckets at 80 % or more.", _PRESSURE, MOST_PRESSED),
        "lastRefusal": _object(
            "The last call that was refused.",
            {
                "scope": _SCOPE,
                "subject": _SUBJECT,
                "cap": _CAP,
                "reason": _text("Why.", 256),
            },
        ),
        "provider": _object(
            "How the provider has answered. Absent if it has refused nobody in the last 5 minutes.",
            {
                "throttled": _count("Calls of the last 5 minutes that it refused itself."),
                "overloaded": _count("Of these: because it had too much to do. Absent if there are none."),
                "spendCapped": _count("And because no more may be spent. Absent if there are none."),
                "lastStatus": _count("The HTTP status of the last of them."),
            },
        ),
    },
)
