"""The CRD on a real API server: what it accepts the gate accepts, and the other way round.

Each invalid document says in its second line what kubectl answers: the field and the message, or that it accepts the
document and why. Left out are documents that never reach an API server as they are: what kubectl's own reading of YAML
decides (`yaml-*`), a text with no object in it, and one that holds what only the API server may write.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.documents import documents
from helpers.envoy import ROOT
from helpers.kube.client import CRDS, LIMITS, ApiError, Client
from helpers.kube.control_plane import ControlPlane
from helpers.program import eventually
from sluice.config.document import from_manifest, parse, to_manifest
from sluice.config.entries import CALL_HEADERS, MAX_ENTRIES, MAX_PAIRS, SECRET_HEADERS
from sluice.config.types import ProviderLimits
from sluice.core.keys import SCOPES, Scope
from sluice.core.limits import CAPS_BY_LENGTH, Cap
from sluice.errors import InvalidDocument
from sluice.schema.yamltext import MAX_BYTES, write

DOCUMENTS = Path(__file__).parents[1] / "data" / "documents"
VALID = [path for path in sorted((DOCUMENTS / "valid").glob("*.yaml")) if path.stem not in {"empty", "kubectl-get"}]
INVALID = [path for path in sorted((DOCUMENTS / "invalid").glob("*.yaml")) if not path.stem.startswith("yaml-")]
ACCEPTED = "accepts it"
STRICTLY = {"dryRun": "All", "fieldValidation": "Strict"}

CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Ready",
    "message": "In force at every gate.",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-02T03:04:05Z",
}
BUCKET = {"scope": "User", "subject": "alice", "models": ["gpt-5*"], "cap": "requestsPerMinute"}
STATUS = {
    "observedGeneration": 1,
    "conditions": [CONDITION],
    "sidecars": "3/3",
    "inForce": {"generation": 1},
    "usage": {
        "requestsPerMinute": "41/60",
        "tokensPerMinute": "52%",
        "inFlight": 3,
        "rejected": 12,
        "wouldReject": 0,
        "admitted": 120,
        "committedTokens": 1000,
        "estimatedCalls": 4,
        "estimateError": "37%",
        "underestimated": "6%",
    },
    "hottest": [{**BUCKET, "used": 41, "limit": 60, "percent": 68}],
    "pressure": [{**BUCKET, "level": "High"}],
    "lastRefusal": {"scope": "User", "subject": "", "cap": "maxConcurrent", "reason": "MaxConcurrent"},
    "provider": {"throttled": 3, "lastStatus": 429},
}


def manifest(*entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ProviderLimits",
        "metadata": {"name": "openai"},
        "spec": {"provider": "openai", **({"limits": list(entries)} if entries else {}), **spec},
    }


def entry(**fields: Any) -> dict[str, Any]:
    return {"scope": "User", "subject": {"header": "x-user-id"}, "requestsPerMinute": 60, **fields}


def read(tree: dict[str, Any]) -> ProviderLimits | InvalidDocument:
    """What the parser makes of an object."""
    try:
        return from_manifest(tree, "the API server")
    except InvalidDocument as error:
        return error


async def stored(admin: Client, tree: dict[str, Any]) -> dict[str, Any] | ApiError:
    """What the API server would make of an object."""
    try:
        return await admin.create(LIMITS, tree, **STRICTLY)
    except ApiError as error:
        return error


def lies_along(one: str, other: str) -> bool:
    """True if one path is the other, or leads to it; an empty one leads anywhere."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and (not short or long[len(short) : len(short) + 1] in {"", ".", "["})


async def test_the_crd_is_established_and_structural(admin: Client) -> None:
    conditions = (await admin.get(CRDS, "providerlimits.sluice.dev"))["status"]["conditions"]

    assert {each["type"]: each["status"] for each in conditions} == {"Established": "True", "NamesAccepted": "True"}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_what_the_gate_accepts_kubectl_accepts(path: Path, control_plane: ControlPlane) -> None:
    printed = control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-o", "yaml", "-f", str(path))

    documents = parse(path.read_text(), path.name)
    assert parse(printed, "kubectl") == documents


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_what_the_gate_refuses_kubectl_refuses_for_the_same_field(path: Path, control_plane: ControlPlane) -> None:
    ours, theirs = path.read_text().splitlines()[:2]
    field = ours.removeprefix("# expect: ").partition(": ")[0]
    named, _, message = theirs.removeprefix("# kubectl: ").partition(": ")

    done = control_plane.try_kubectl("create", "--dry-run=server", "--validate=strict", "-f", str(path))

    if named == ACCEPTED:
        assert done.returncode == 0, done.stderr
        return
    complaint = done.stderr.replace(f'unknown field "{named}"', f"{named}: unknown field")
    assert re.search(f"{re.escape(named)}(: .*)?{re.escape(message)}", complaint), complaint
    assert lies_along(named, field)


def test_forty_rules_and_more_are_compared() -> None:
    assert len(INVALID) > 40
    # Words that kubectl reads as numbers or truth values, and the gate does not guess at.
    assert {path.stem for path in INVALID if f"# kubectl: {ACCEPTED}" in path.read_text()} == {
        "cap-hexadecimal",
        "cap-octal",
        "cap-octal-of-old",
        "cap-scientific",
        "cap-with-underscores",
        "subject-api-key-on",
    }


PLAIN = [
    "",
    "*",
    "a",
    "a,b",
    "é\u20ac\U0001f600",
    "a\n",
    "\x7f",
    " ",
    "User",
    "Org",
    "Shadow",
    "openai",
    "acme",
    "OpenAI",
]
DURATIONS = ["0s", "0h0m", "5m", "300000ms", "5m0s1ms", "99999h99999h99999h99999h", "1m1m1m1m1m", "1s\n", "01s", "1.5s"]
ADDRESSES = [
    "http://a",
    "http://a:65535",
    "http://a:65536",
    "https://a/",
    "x" * 257,
    "x-user-id",
    "X-User-Id",
    "Cookie",
]
WORDS = st.sampled_from([*PLAIN, *DURATIONS, *ADDRESSES])
VALUES = st.one_of(
    WORDS,
    st.sampled_from(
        [True, False, 0, 1, -1, 1.5, 2**53 - 1, 2**53, 2**63, 10**30, [], {}, [[]], [""], ["*"], ["a", "a"]]
    ),
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """A document, sound or with something changed, left out, added or taken from elsewhere in it."""
    tree = json.loads(json.dumps(to_manifest(draw(documents()))))
    spec = tree["spec"]
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(places(spec) or [(spec, "provider")]))
        match draw(st.sampled_from(["change", "leave out", "add", "copy", "repeat"])):
            case "change":
                container[key] = draw(VALUES)
            case "leave out":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(["maxwait", "header", "apiKey", *Cap]))] = draw(VALUES)
            case "copy":
                other, place = draw(st.sampled_from(places(spec)))
                container[key] = json.loads(json.dumps(other[place]))
            case _ if isinstance(container, list):
                container.append(json.loads(json.dumps(container[key])))
            case _:
                pass
    return dict(tree)


SOURCES = {"User": {"header": "x"}, "Org": {"constant": "x"}, "Project": {"apiKey": True}}
OTHER_SOURCES = [
    {"header": "X"},
    {"header": "Cookie"},
    {"header": "HOST"},
    {"env": "x"},
    {},
    {"env": "x", "header": "x"},
]
WORD_LISTS = st.lists(st.sampled_from("*0123"), min_size=1, max_size=2, unique=True)
# A field of an entry and what becomes of it; None leaves it out.
SLIPS = st.one_of(
    st.tuples(st.just("scope"), st.sampled_from(list(SOURCES))),
    st.tuples(st.just("subject"), st.sampled_from([*SOURCES.values(), *OTHER_SOURCES, None])),
    st.tuples(
        st.just("match"), st.one_of(st.none(), st.fixed_dictionaries({"subjects": WORD_LISTS, "models": WORD_LISTS}))
    ),
    st.tuples(st.just("maxWait"), st.sampled_from(["0h0ms", "5m", "5m1ms", None])),
    st.tuples(st.sampled_from([str(cap) for cap in Cap]), st.sampled_from([0, 4, 6, None])),
)


@st.composite
def near_misses(draw: st.DrawFn) -> dict[str, Any]:
    """A sound document in which a field or two were changed to what may break a rule that crosses fields."""
    entries = []
    for number in range(draw(st.integers(1, 3))):
        scope = draw(st.sampled_from(list(SOURCES)))
        caps = draw(st.lists(st.sampled_from([str(cap) for cap in Cap]), min_size=1, max_size=3))
        match = {"subjects": [f"{number}"], "models": ["0", "1"]}
        entries.append(
            {"scope": scope, "subject": SOURCES[scope], "match": match, **dict.fromkeys(caps, 5), "maxWait": "1ms"}
        )
    for field, value in draw(st.lists(SLIPS, min_size=1, max_size=2)):
        entries[draw(st.integers(0, len(entries) - 1))][field] = value
    entries = [{field: value for field, value in each.items() if value is not None} for each in entries]
    own = {"api": "OpenAI", "upstream": "http://llm"}
    left_out = draw(st.sampled_from([None, None, None, *own]))
    provider = draw(st.sampled_from(["openai", "acme"]))
    return manifest(*entries, provider=provider, **{name: value for name, value in own.items() if name != left_out})


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.one_of(near_misses(), near_misses(), manifests()))
async def test_the_api_server_and_the_gate_agree_on_any_document(admin: Client, tree: dict[str, Any]) -> None:
    ours, theirs = read(tree), await stored(admin, tree)

    assert isinstance(ours, InvalidDocument) == isinstance(theirs, ApiError), f"gate: {ours}\nAPI server: {theirs}"
    if not isinstance(theirs, ApiError):
        assert read(theirs) == ours


@pytest.mark.parametrize(
    ("field", "text", "sound"),
    [
        ("constant", "\U0001f600" * 256, True),
        ("constant", "\U0001f600" * 257, False),
        ("constant", "\u0085", False),
        ("constant", "\u2028\u00a0", True),
        ("header", "X" * 128, True),
        ("header", "X-Api-Key", False),
        ("env", "_", True),
    ],
)
async def test_the_bounds_of_a_subject_are_the_same(admin: Client, field: str, text: str, sound: bool) -> None:
    tree = manifest(entry(subject={field: text}))

    assert isinstance(read(tree), ProviderLimits) is sound
    assert isinstance(await stored(admin, tree), dict) is sound


@pytest.mark.parametrize("name", ["a" * 253, "a" * 254, "a" * 100, "a..b", "a.-b", "-a", "1", "a_b"])
async def test_the_names_of_documents_are_those_of_kubernetes(admin: Client, name: str) -> None:
    tree = manifest() | {"metadata": {"name": name}}

    assert isinstance(read(tree), ProviderLimits) == isinstance(await stored(admin, tree), dict)


async def test_a_whole_number_that_is_written_as_a_fraction_comes_back_whole(admin: Client) -> None:
    answer = await stored(admin, manifest(estimation={"defaultOutputTokens": 60.0}))

    assert isinstance(answer, dict)
    assert read(answer) == read(manifest(estimation={"defaultOutputTokens": 60}))


async def test_a_field_that_is_null_is_dropped_by_the_api_server_before_the_gate_sees_it(admin: Client) -> None:
    tree = manifest(entry(requestsPerHour=None, maxWait=None, match=None), failurePolicy=None)
    answer = await stored(admin, tree)

    assert isinstance(read(tree), InvalidDocument)
    assert isinstance(answer, dict)
    assert read(answer) == read(manifest(entry()))


async def test_defaults_are_filled_in_where_people_look(admin: Client) -> None:
    spec = (await admin.create(LIMITS, manifest(entry())))["spec"]

    assert (spec["failurePolicy"], spec["sharing"], spec["estimation"]) == (
        "Allow",
        "Exact",
        {"charsPerToken": 4, "defaultOutputTokens": 256, "quantile": 90},
    )
    assert spec["limits"] == [entry(maxWait="0s", mode="Enforce", failurePolicy="LocalShare")]


async def test_the_provider_of_an_object_stays_what_it_was(admin: Client) -> None:
    await admin.create(LIMITS, manifest())

    with pytest.raises(ApiError, match=r"spec\.provider: .*cannot be changed: make another object"):
        await admin.patch(LIMITS, "openai", {"spec": {"provider": "gemini"}})
    assert (await admin.patch(LIMITS, "openai", {"spec": {"failurePolicy": "Deny"}}))["metadata"]["generation"] == 2


def largest(*, alike: bool) -> dict[str, Any]:
    """Every list full. The entries differ by their models only, or by their subjects and their models."""
    everybody = [f"{number:060}" for number in range(MAX_ENTRIES)]
    return manifest(
        *(
            entry(
                subject={"header": "X" * 128},
                match={
                    "subjects": everybody if alike else [*(f"{number}-{word}" for word in everybody[1:]), "all"],
                    "models": [f"{number}-{word}" for word in everybody[: MAX_PAIRS // MAX_ENTRIES]],
                },
                **dict.fromkeys(map(str, Cap), 2**53 - 1),
                maxWait="5m",
            )
            for number in range(MAX_ENTRIES)
        ),
        api="OpenAI",
        upstream="https://llm.example",
    )


@pytest.mark.parametrize("alike", [False, True])
async def test_the_largest_document_is_within_what_the_rules_may_cost(admin: Client, alike: bool) -> None:
    tree = largest(alike=alike)
    made = await admin.create(LIMITS, tree, fieldValidation="Strict")

    assert MAX_BYTES // 4 < len(write([tree])) < MAX_BYTES
    assert isinstance(read(made), ProviderLimits)
    assert read(made) == read(tree)


@pytest.mark.parametrize("number", range(1, 8))
async def test_two_entries_alike_are_found_wherever_they_stand(admin: Client, number: int) -> None:
    entries = [entry(match={"subjects": [f"user-{index}"]}) for index in range(8)]
    entries[number] = entry(match={"subjects": ["somebody", "user-0"]})
    answer = await stored(admin, manifest(*entries))

    assert isinstance(answer, ApiError)
    assert "spec.limits: Invalid value: two entries of a scope are for the same calls" in answer.message


@pytest.mark.parametrize("caps", CAPS_BY_LENGTH, ids=["requests", "tokens", "input", "output"])
@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (0, 2)])
async def test_caps_out_of_order_are_found_in_every_pair(
    admin: Client, caps: dict[int, Cap], pair: tuple[int, int]
) -> None:
    shorter, longer = (str(list(caps.values())[place]) for place in pair)
    answer = await stored(admin, manifest({"scope": "Org", "subject": {"apiKey": True}, shorter: 2, longer: 1}))

    assert isinstance(answer, ApiError)
    assert f"spec.limits[0].{shorter}: Invalid value: can never be reached: {longer} is below it" in answer.message


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_without_a_source_is_found_in_every_scope(admin: Client, scope: Scope) -> None:
    answer = await stored(admin, manifest({"scope": str(scope), "maxConcurrent": 1}))

    assert isinstance(answer, ApiError)
    assert f"spec.limits: Invalid value: no entry says where the {scope} is read" in answer.message


@pytest.mark.parametrize("header", SECRET_HEADERS + CALL_HEADERS)
async def test_no_header_that_names_no_subject_is_missed(admin: Client, header: str) -> None:
    answer = await stored(admin, manifest(entry(subject={"header": header.title()})))

    assert isinstance(answer, ApiError)
    assert f"spec.limits[0].subject.header: Invalid value: {header.title()} " in answer.message


async def test_a_status_is_written_apart_from_the_rest(admin: Client) -> None:
    made = await admin.create(LIMITS, manifest() | {"status": STATUS})
    await admin.patch(LIMITS, "openai", {"status": STATUS, "spec": {"failurePolicy": "Deny"}}, part="/status")
    await admin.patch(LIMITS, "openai", {"status": {"sidecars": "0/0"}})
    found = await admin.get(LIMITS, "openai")

    assert "status" not in made
    assert found["status"] == STATUS
    assert found["spec"] == made["spec"]
    assert found["metadata"]["generation"] == 1


async def test_a_status_has_one_condition_of_a_type(admin: Client) -> None:
    await admin.create(LIMITS, manifest())

    with pytest.raises(ApiError, match=r"status\.conditions\[1\]: Duplicate value"):
        await admin.patch(LIMITS, "openai", {"status": {"conditions": [CONDITION, CONDITION]}}, part="/status")


async def test_kubectl_shows_the_columns(admin: Client, control_plane: ControlPlane) -> None:
    await admin.create(LIMITS, manifest())
    await admin.patch(LIMITS, "openai", {"status": STATUS}, part="/status")

    head, line = control_plane.kubectl("get", "plim", "-n", admin.namespace).splitlines()
    wide, _ = control_plane.kubectl("get", "plim", "-n", admin.namespace, "-o", "wide").splitlines()

    assert head.split() == ["NAME", "PROVIDER", "READY", "SIDECARS", "RPM", "TPM", "IN-FLIGHT", "REJECTED", "AGE"]
    assert line.split()[:-1] == ["openai", "openai", "True", "3/3", "41/60", "52%", "3", "12"]
    assert wide.split()[9:] == ["WOULD-REJECT", "IN-FORCE", "FAILURE-POLICY", "UPSTREAM", "REASON"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("plim", "What may be called at one LLM provider"),
        ("plim.spec.limits.maxWait", "Allowed: a duration from 0s to 5m"),
        ("plim.spec.limits.subject", "One source holds for all entries of a scope"),
        ("plim.status.usage.rejected", "Calls refused in the last 5 minutes."),
    ],
)
async def test_kubectl_explains_every_level(path: str, expected: str, control_plane: ControlPlane) -> None:
    assert expected in " ".join((await explained(control_plane, path)).split())


async def explained(plane: ControlPlane, path: str) -> str:
    """What `kubectl explain` prints, which knows a new kind a second after the API server serves it."""

    async def is_known() -> bool:
        return plane.try_kubectl("explain", path).returncode == 0

    await eventually(is_known)
    return plane.kubectl("explain", path)


def documented(command: str) -> list[list[str]]:
    """The lines that docs/operator.md shows under a command, in what stands as a terminal."""
    _, _, after = (ROOT / "docs/operator.md").read_text().partition(f"$ {command}\n")
    return words(after.partition("```")[0])


def words(printed: str) -> list[list[str]]:
    """By lines. How far apart they stand is left to the terminal."""
    return [line.split() for line in printed.strip().splitlines()]


async def test_the_documentation_shows_what_kubectl_prints(
    admin: Client, control_plane: ControlPlane, tmp_path: Path
) -> None:
    await admin.create(LIMITS, manifest())
    bad = tmp_path / "bad.yaml"
    bad.write_text(write([manifest(entry(requestsPerDay=1)) | {"metadata": {"name": "bad"}}]))
    refused = control_plane.try_kubectl("apply", "-n", admin.namespace, "-f", str(bad)).stderr

    for command in ("kubectl get providerlimits", "kubectl get providerlimits -o wide"):
        assert documented(command)[0] == words(control_plane.kubectl(*command.split()[1:], "-n", admin.namespace))[0]
    assert documented("kubectl explain providerlimits.spec.limits") == words(
        await explained(control_plane, "providerlimits.spec.limits")
    )
    assert documented("kubectl apply -f bad.yaml") == words(refused)


async def test_the_gate_reads_what_kubectl_prints(admin: Client, control_plane: ControlPlane, tmp_path: Path) -> None:
    await admin.create(LIMITS, manifest(entry(maxWait="10s")))
    await admin.patch(LIMITS, "openai", {"status": STATUS}, part="/status")
    file = tmp_path / "limits.yaml"
    file.write_text(control_plane.kubectl("get", "plim", "-n", admin.namespace, "-o", "yaml"))

    check = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sluice_sidecar", "check", "-f", str(file), stderr=subprocess.PIPE
    )
    _, complaint = await check.communicate()

    assert (check.returncode, complaint) == (0, b"")
    assert parse(file.read_text(), "kubectl") == (read(manifest(entry(maxWait="10s"))),)
