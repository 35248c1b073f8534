"""The CustomResourceDefinition, from the declaration: what the API server accepts is what the parser accepts.

Where they differ, and why:

- The parser reads the words of a YAML text; the API server sees what kubectl has made of them (`1e3` is 1000 to it).
- A field that is null is a mistake to the parser. The API server drops it, and stores the default where there is one.
- 60.0 in JSON is a mistake to the parser. The API server takes it where no rule looks at it, and gives 60 back.
- `metadata` is Kubernetes' own, and `generateName` makes a name that a text cannot leave to anybody.
- An unknown field is a mistake to the parser. The API server refuses it under strict validation, which is what kubectl
  asks for; else it drops it.
- What is immutable cannot be seen in one text.
- The size of an object is bounded by etcd, that of a text by the parser.

The rules use comprehensions with two variables, which Kubernetes has since 1.33.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sluice.config.declaration import API_VERSION, DOCUMENT, KIND
from sluice.config.status_schema import STATUS, Schema
from sluice.schema.declare import (
    AlwaysTrue,
    Anything,
    Duration,
    Field,
    Integer,
    Object,
    Rule,
    Sequence,
    Text,
    Truth,
    Type,
    Word,
    with_defaults,
)
from sluice.schema.durations import PATTERN, format_duration
from sluice.schema.yamltext import Tree, write

GROUP, VERSION = API_VERSION.split("/")
PLURAL: Final = "providerlimits"
SHORT_NAME: Final = "plim"

HEAD: Final = "# Written by `make generate` from sluice.config.declaration: change it there.\n"

_ABOUT: Final = "What may be called at one LLM provider, by whom and how often: one limits document of Sluice."
# GEP-2257: four parts of five digits and two letters.
_LONGEST_DURATION: Final = 28

# Name, type, path, and the priority: 0 is always shown, 1 with `-o wide`.
_COLUMNS: Final = (
    ("Provider", "string", ".spec.provider", 0),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Sidecars", "string", ".status.sidecars", 0),
    ("RPM", "string", ".status.usage.requestsPerMinute", 0),
    ("TPM", "string", ".status.usage.tokensPerMinute", 0),
    ("In-Flight", "integer", ".status.usage.inFlight", 0),
    ("Rejected", "integer", ".status.usage.rejected", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Would-Reject", "integer", ".status.usage.wouldReject", 1),
    ("In-Force", "integer", ".status.inForce.generation", 1),
    ("Failure-Policy", "string", ".spec.failurePolicy", 1),
    ("Upstream", "string", ".spec.upstream", 1),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as plain mappings and lists."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": PLURAL,
                "shortNames": [SHORT_NAME],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def crd_text() -> str:
    """The CustomResourceDefinition as the file `crds/providerlimits.yaml` has it."""
    return HEAD + write([crd()])


def _column(name: str, kind: str, path: str, priority: int) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})


def _root() -> Schema:
    fields = DOCUMENT.fields
    head = {name: {"description": fields[name].about, "type": "string"} for name in ("apiVersion", "kind")}
    return {
        "description": _ABOUT,
        "type": "object",
        "required": ["spec"],
        "properties": {
            **head,
            # The rest of it is Kubernetes' own, and so are the rules for names.
            "metadata": {"type": "object"},
            "spec": _property(fields["spec"]),
            "status": STATUS,
        },
    }


def _property(field: Field) -> Schema:
    schema: Schema = {"description": _description(field)} | _schema(field.type)
    default = _plain(with_defaults(field.type, field.default))
    if default not in (None, {}, []):
        schema["default"] = default
    if field.immutable:
        fixed = {"rule": "self == oldSelf", "message": "cannot be changed: make another object"}
        schema["x-kubernetes-validations"] = [fixed, *schema.get("x-kubernetes-validations", [])]
    return schema


def _description(field: Field) -> str:
    """What `kubectl explain` says: also what a pattern means, since it shows the pattern and nothing else."""
    allowed = f" Allowed: {field.type.allowed}." if isinstance(field.type, Text | Duration) else ""
    return field.about.replace("`", "") + allowed


def _plain(tree: Tree) -> Tree:
    """A default as YAML writes it: a text that is a member of an enumeration is a text."""
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return str(tree) if isinstance(tree, str) else tree


def _schema(declared: Type) -> Schema:
    match declared:
        case Anything():
            return {"x-kubernetes-preserve-unknown-fields": True}
        case Text():
            return _text(declared.pattern, declared.longest, declared.allowed)
        case Word():
            return {"type": "string", "enum": list(map(str, declared.words))}
        case AlwaysTrue():
            return {"type": "boolean", "enum": [True]}
        case Truth():
            return {"type": "boolean"}
        case Integer():
            return {"type": "integer", "format": "int64", "minimum": declared.least, "maximum": declared.most}
        case Duration():
            return _duration(declared)
        case Sequence():
            return _list(declared)
        case Object():
            return _object(declared)


def _text(pattern: str, longest: int, allowed: str, further: str = "") -> Schema:
    """The pattern is there twice: for programs, and as a rule that says in words what is allowed."""
    whole = f"^({pattern})$"
    rule = f"self.matches({_quoted(whole)}){further}"
    return {
        "type": "string",
        "maxLength": longest,
        "pattern": whole,
        "x-kubernetes-validations": [{"rule": rule, "message": f"must be {allowed}"}],
    }


def _duration(declared: Duration) -> Schema:
    short_enough = f" && duration(self) <= duration('{format_duration(declared.most)}')"
    return _text(PATTERN, _LONGEST_DURATION, declared.allowed, short_enough)


def _list(declared: Sequence) -> Schema:
    bounds = {"minItems": declared.least} if declared.least else {}
    kind = "set" if declared.distinct else "atomic"
    return {
        "type": "array",
        **bounds,
        "maxItems": declared.most,
        "x-kubernetes-list-type": kind,
        "items": _schema(declared.item),
    }


def _object(declared: Object) -> Schema:
    required = [name for name, field in declared.fields.items() if field.required]
    rules = [_validation(rule) for constraint in declared.constraints for rule in constraint.rules]
    if declared.exactly_one:
        given = ", ".join(f"has(self.{name})" for name in declared.fields)
        message = f"must have exactly one of {', '.join(declared.fields)}"
        rules.insert(0, {"rule": f"[{given}].exists_one(given, given)", "message": message})
    return {
        "type": "object",
        **({"required": required} if required else {}),
        "properties": {str(name): _property(field) for name, field in declared.fields.items()},
        **({"x-kubernetes-validations": rules} if rules else {}),
    }


def _validation(rule: Rule) -> Schema:
    parts = re.split(r"\{(self\.\w+)\}", rule.message)
    if len(parts) == 1:
        message = {"message": rule.message}
    else:
        # Sentences and fields take turns.
        terms = (part if index % 2 else _quoted(part) for index, part in enumerate(parts))
        message = {"messageExpression": " + ".join(term for term in terms if term != '""')}
    return {
        "rule": rule.holds,
        **message,
        **({"fieldPath": f".{rule.field}"} if rule.field else {}),
        **({"reason": "FieldValueRequired"} if rule.missing else {}),
    }


def _quoted(sentence: str) -> str:
    """A sentence as a literal of CEL."""
    return '"' + sentence.replace("\\", "\\\\").replace('"', '\\"') + '"'
