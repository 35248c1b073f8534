"""A namespace, from its objects to what is written: who wins, what is in force, what is said, and what is not done."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.namespace import Namespace, entry, limits_object
from sluice.config.document import parse
from sluice.config.merge import merge
from sluice.config.render import ENVOY, LIMITS, NO_LIMITS, content_hash
from sluice_operator.planning.plan import AnnotatePod, ApplyConfigMap, DeleteConfigMap, EmitEvent


def in_force(namespace: Namespace) -> dict[str, int | None]:
    """Return what gates would run: the cap of the first entry of each document, read as they read it."""
    configuration = merge(parse(namespace.text, ""))
    return {each.name: each.limits[0].limits.requests_per_minute for each in configuration.documents}


def reasons(made: Any) -> list[tuple[str, str, str]]:
    return [(event.name, event.kind, event.reason) for event in made.events]


def test_an_object_becomes_a_config_map_a_status_and_an_event() -> None:
    namespace = Namespace(limits_object("openai", entry()))

    made = namespace.round()

    assert namespace.text == (
        "apiVersion: sluice.dev/v1alpha1\n"
        "kind: ProviderLimits\n"
        "metadata:\n"
        "  name: openai\n"
        "  uid: uid-of-openai\n"
        "  generation: 1\n"
        "spec:\n"
        "  provider: openai\n"
        "  api: OpenAI\n"
        "  upstream: https://api.openai.com\n"
        "  failurePolicy: Allow\n"
        "  streamUsage: Estimate\n"
        "  sharing: Exact\n"
        "  estimation:\n"
        "    charsPerToken: 4\n"
        "    defaultOutputTokens: 256\n"
        "    quantile: 90\n"
        "  limits:\n"
        "  - scope: User\n"
        "    subject:\n"
        "      header: x-user-id\n"
        "    requestsPerMinute: 60\n"
        "    maxWait: 0s\n"
        "    mode: Enforce\n"
        "    failurePolicy: LocalShare\n"
    )
    assert made.writes == (
        ApplyConfigMap(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": "sluice-limits",
                    "labels": {"app.kubernetes.io/managed-by": "sluice-operator"},
                    "annotations": {
                        "sluice.dev/content-hash": content_hash(namespace.text),
                        "sluice.dev/generation": "1",
                    },
                    "ownerReferences": [
                        {
                            "apiVersion": "sluice.dev/v1alpha1",
                            "kind": "ProviderLimits",
                            "name": "openai",
                            "uid": "uid-of-openai",
                        }
                    ],
                },
                "data": {"limits.yaml": namespace.text},
            },
            "",
        ),
    )
    assert made.statuses[0].status["inForce"] == {"generation": 1}
    assert namespace.verdict("openai") == ("True", "Accepted")
    assert reasons(made) == [("openai", "Normal", "Accepted"), ("openai", "Warning", "NoGates")]
    assert made.rendered == (content_hash(namespace.text), {"uid-of-openai": 1})


def test_a_plan_that_was_carried_out_plans_nothing_more_even_for_an_operator_that_remembers_nothing() -> None:
    namespace = Namespace(
        limits_object("good", entry()),
        limits_object("bad", {"scope": "User"}, provider="anthropic"),
        limits_object("rival", entry(), created=5),
        gates=["gate-a", "gate-b"],
        bootstrap="{}",
    )
    namespace.round()
    namespace.answer("gate-a")
    namespace.round()
    namespace.restart()

    made = namespace.plan()

    assert (made.writes, made.statuses, made.events) == ((), (), ())


def test_objects_stand_in_the_text_by_name_whatever_their_order() -> None:
    objects = [limits_object(name, entry(), provider=name, api="OpenAI", upstream="http://llm") for name in "cab"]
    namespace = Namespace(*objects)
    namespace.round()
    text = namespace.text
    other = Namespace(*reversed(objects))
    other.round()

    assert list(in_force(namespace)) == ["a", "b", "c"]
    assert other.text == text


def test_the_generation_of_the_text_counts_its_changes() -> None:
    namespace = Namespace(limits_object("openai", entry(60)))
    namespace.round()
    namespace.edit("openai", {"provider": "openai", "limits": [entry(61)]})

    (write,) = namespace.round().writes

    assert isinstance(write, ApplyConfigMap)
    assert write.manifest["metadata"]["annotations"]["sluice.dev/generation"] == "2"


def test_a_bad_object_keeps_its_last_good_form_and_stops_nobody() -> None:
    namespace = Namespace(limits_object("bad", entry(60)), limits_object("good", entry(5), provider="anthropic"))
    namespace.round()
    namespace.edit("bad", {"provider": "openai", "limits": [entry(60, maxWait="6 minutes", requestPerHour=4)]})
    namespace.edit("good", {"provider": "anthropic", "limits": [entry(6)]})

    made = namespace.round()

    assert in_force(namespace) == {"bad": 60, "good": 6}
    assert namespace.verdict("bad") == ("False", "Invalid")
    assert namespace.condition("bad", "Accepted")["message"] == (
        "The limits have mistakes: spec.limits[0].requestPerHour: unknown field; did you mean requestsPerHour?; "
        "spec.limits[0].maxWait: must be a duration from 0s to 5m, such as 500ms, 10s or 1m30s, not "
        '"6 minutes". Generation 1 stays in force.'
    )
    assert namespace.objects["bad"]["status"]["inForce"] == {"generation": 1}
    assert namespace.verdict("bad", "Ready") == ("False", "Invalid")
    assert reasons(made) == [("bad", "Warning", "Invalid")]


def test_the_last_good_form_outlives_a_restart_and_goes_with_its_object() -> None:
    namespace = Namespace(limits_object("bad", entry(60)), limits_object("good", entry(5), provider="anthropic"))
    namespace.round()
    namespace.edit("bad", None)
    namespace.restart()
    namespace.round()
    assert in_force(namespace) == {"bad": 60, "good": 5}

    namespace.objects["bad"] = limits_object("bad")
    namespace.objects["bad"]["metadata"]["uid"] = "another"
    namespace.objects["bad"]["spec"] = None
    namespace.round()

    assert in_force(namespace) == {"good": 5}
    assert namespace.condition("bad", "Accepted")["message"].endswith("Nothing of it is in force.")


def test_of_two_that_claim_the_same_the_older_wins_and_the_other_names_it() -> None:
    namespace = Namespace(limits_object("a-younger", entry(1), created=9), limits_object("older", entry(2), created=1))
    namespace.round()

    assert in_force(namespace) == {"older": 2}
    assert namespace.verdict("a-younger") == ("False", "Conflicted")
    assert namespace.condition("a-younger", "Accepted")["message"] == (
        "The limits contradict an older object: spec.limits[0]: is for the same calls as spec.limits[0] of "
        "ProviderLimits/older: keep one of them. Nothing of it is in force."
    )
    assert "inForce" not in namespace.objects["a-younger"]["status"]


def test_of_two_of_the_same_age_the_first_by_name_wins() -> None:
    namespace = Namespace(limits_object("b", entry(2)), limits_object("a", entry(1)))
    namespace.round()

    assert in_force(namespace) == {"a": 1}


@pytest.mark.parametrize("end", ["deleted", "ending", "changed"])
def test_the_other_takes_over_once_the_winner_is_gone(end: str) -> None:
    namespace = Namespace(limits_object("older", entry(2)), limits_object("younger", entry(1), created=9))
    namespace.round()
    if end == "deleted":
        del namespace.objects["older"]
    elif end == "ending":
        namespace.objects["older"]["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    else:
        namespace.edit("older", {"provider": "openai", "limits": [entry(2, match={"subjects": ["alice"]})]})

    made = namespace.round()

    assert in_force(namespace) == {"younger": 1} | ({"older": 2} if end == "changed" else {})
    assert namespace.verdict("younger") == ("True", "Accepted")
    assert reasons(made) == [
        ("younger", "Normal", "Accepted"),
        ("younger", "Warning", "NoGates"),
    ]


def test_an_older_object_that_comes_to_claim_the_same_puts_the_younger_one_out_of_force() -> None:
    namespace = Namespace(
        limits_object("older", entry(2, match={"subjects": ["alice"]})), limits_object("younger", entry(1), created=9)
    )
    namespace.round()
    namespace.edit("older", {"provider": "openai", "limits": [entry(2)]})

    namespace.round()

    assert in_force(namespace) == {"older": 2}
    assert namespace.verdict("younger") == ("False", "Conflicted")


def test_a_last_good_form_that_has_come_into_conflict_is_not_kept() -> None:
    namespace = Namespace(limits_object("older", entry(2)), limits_object("younger", entry(1), provider="anthropic"))
    namespace.round()
    namespace.edit("younger", None)
    namespace.edit("older", {"provider": "anthropic", "limits": [entry(2)]})

    namespace.round()

    assert in_force(namespace) == {"older": 2}
    assert namespace.verdict("younger") == ("False", "Invalid")


def test_what_does_not_fit_is_the_youngest() -> None:
    patterns = [f"{number:04}{'x' * 240}" for number in range(64)]
    large = [entry(number + 1, match={"subjects": patterns, "models": [str(number)]}) for number in range(24)]
    objects = [limits_object(f"o{number}", *large, created=number) for number in range(4)]
    for number, each in enumerate(objects):
        each["spec"] |= {"provider": f"p{number}", "api": "OpenAI", "upstream": "http://llm"}
    namespace = Namespace(*reversed(objects))
    namespace.round()

    assert list(in_force(namespace)) == ["o0", "o1"]
    assert [namespace.verdict(f"o{number}")[1] for number in range(4)] == ["Accepted", "Accepted", "NoRoom", "NoRoom"]
    assert len(namespace.text.encode()) <= 1_000_000


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "rubbish",
        "---\n" * 9,
        "a: {",
        "[" * 100,
        "metadata: [uid-of-bad]",
        "metadata: {uid: uid-of-bad, generation: x}",
    ],
)
def test_a_text_that_somebody_edited_is_replaced(rubbish: str) -> None:
    namespace = Namespace(limits_object("good", entry()), limits_object("bad"))
    namespace.edit("bad", {"limits": 5})
    namespace.round()
    text = namespace.text
    namespace.config_maps[LIMITS]["data"]["limits.yaml"] = rubbish

    made = namespace.round()

    assert [type(write) for write in made.writes] == [ApplyConfigMap]
    assert namespace.text == text


@pytest.mark.parametrize("field", ["labels", "annotations", "ownerReferences"])
def test_what_somebody_took_from_a_config_map_is_put_back(field: str) -> None:
    namespace = Namespace(limits_object("good", entry()), bootstrap="{}")
    namespace.round()
    for config_map in namespace.config_maps.values():
        del config_map["metadata"][field]

    assert [
        write.manifest["metadata"]["name"] for write in namespace.round().writes if isinstance(write, ApplyConfigMap)
    ] == [
        LIMITS,
        ENVOY,
    ]
    assert namespace.plan().writes == ()


def test_what_others_add_to_a_config_map_is_left_alone() -> None:
    namespace = Namespace(limits_object("good", entry()))
    namespace.round()
    metadata = namespace.config_maps[LIMITS]["metadata"]
    metadata["labels"]["team"] = "a"
    metadata["annotations"]["note"] = "b"
    metadata["ownerReferences"].append({"apiVersion": "v1", "kind": "Secret", "name": "c", "uid": "d"})

    assert namespace.plan().writes == ()


def test_without_objects_gates_get_a_text_that_limits_nothing() -> None:
    namespace = Namespace(gates=["gate-a"])
    namespace.round()

    assert namespace.text == NO_LIMITS
    assert merge(parse(namespace.text, "")).documents == ()


def test_with_the_last_object_and_the_last_gate_the_config_maps_go() -> None:
    namespace = Namespace(limits_object("good", entry()), gates=["gate-a"], bootstrap="{}")
    namespace.round()
    del namespace.objects["good"]
    namespace.round()
    assert namespace.config_maps.keys() == {LIMITS, ENVOY}
    del namespace.gates["gate-a"]

    made = namespace.round()

    assert [type(write) for write in made.writes] == [DeleteConfigMap, DeleteConfigMap]
    assert namespace.config_maps == {}


def test_a_config_map_of_somebody_else_is_not_deleted() -> None:
    namespace = Namespace()
    namespace.config_maps[LIMITS] = {"metadata": {"name": LIMITS, "uid": "u", "resourceVersion": "1"}, "data": {}}

    assert namespace.plan().writes == ()


def test_every_pod_is_told_of_a_new_text_after_it_is_written() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a", "gate-b"])

    made = namespace.round()

    value = content_hash(namespace.text)[:16]
    assert made.writes[1:] == (
        AnnotatePod("gate-a", "uid-of-gate-a", value),
        AnnotatePod("gate-b", "uid-of-gate-b", value),
    )
    assert namespace.plan().writes == ()


def test_a_status_is_not_written_sooner_than_its_interval_and_its_events_wait_with_it() -> None:
    namespace = Namespace(limits_object("openai", entry()))
    namespace.apply(namespace.plan())
    namespace.edit("openai", None)
    namespace.now += 4.9
    early = namespace.plan()
    namespace.now += 0.1
    due = namespace.plan()

    assert (early.statuses, early.events) == ((), ())
    assert [each.name for each in due.statuses] == ["openai"]
    assert reasons(due) == [("openai", "Warning", "Invalid")]


def test_a_clock_that_was_set_back_holds_no_status_up() -> None:
    namespace = Namespace(limits_object("openai", entry()))
    namespace.apply(namespace.plan())
    namespace.edit("openai", None)
    namespace.now -= 3600

    assert [each.name for each in namespace.plan().statuses] == ["openai"]


def test_programmed_says_which_gates_are_behind_and_why() -> None:
    namespace = Namespace(limits_object("openai", entry(1)), gates=["gate-a", "gate-b", "gate-c", "gate-d"])
    namespace.round()
    namespace.answer("gate-b")
    namespace.answer("gate-d", problems=1)
    namespace.edit("openai", {"provider": "openai", "limits": [entry(2)]})
    namespace.round()
    namespace.answer("gate-a")
    namespace.silence("gate-c")
    namespace.round()

    assert namespace.objects["openai"]["status"]["sidecars"] == "1/4"
    assert namespace.verdict("openai", "Programmed") == ("False", "Pending")
    assert namespace.condition("openai", "Programmed")["message"] == (
        "1 of 4 gates run generation 2. No answer from gate-c (timed out after 2 s): is its admin port open to the "
        "operator? Mistakes in the limits files of gate-d: see its log. Not yet at gate-b."
    )
    assert namespace.verdict("openai", "Ready") == ("False", "Pending")


def test_programmed_names_three_pods_and_counts_the_others() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=[f"gate-{number:02}" for number in range(12)])
    for pod in namespace.gates:
        namespace.silence(pod, "x" * 9000)
    namespace.round()
    message = namespace.condition("openai", "Programmed")["message"]

    assert "gate-02" in message
    assert "gate-03" not in message
    assert "and 9 more" in message
    assert len(message.encode()) <= 1024


def test_every_gate_that_runs_it_makes_an_object_ready() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()
    namespace.answer("gate-a")

    made = namespace.round()

    assert namespace.objects["openai"]["status"]["sidecars"] == "1/1"
    assert namespace.verdict("openai", "Programmed") == ("True", "Programmed")
    assert namespace.verdict("openai", "Ready") == ("True", "Ready")
    assert made.events == (
        EmitEvent("openai", "uid-of-openai", "Normal", "Programmed", "1 of 1 gate runs generation 1."),
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_a_change_of_one_object_leaves_the_status_of_the_others_alone(restarted: bool) -> None:
    namespace = Namespace(
        limits_object("changes", entry(1)), limits_object("stays", entry(1), provider="anthropic"), gates=["gate-a"]
    )
    namespace.round()
    namespace.answer("gate-a")
    namespace.round()
    if restarted:
        namespace.restart()
    namespace.edit("changes", {"provider": "openai", "limits": [entry(2)]})

    told = [each.name for _ in range(2) for each in namespace.round().statuses]

    assert told == ["changes"]
    assert namespace.verdict("stays", "Programmed") == ("True", "Programmed")
    assert namespace.verdict("changes", "Programmed") == ("False", "Pending")


def test_a_gate_that_runs_an_edited_text_runs_nothing_of_ours() -> None:
    namespace = Namespace(limits_object("openai", entry(60)), gates=["gate-a"])
    namespace.round()
    data = namespace.config_maps[LIMITS]["data"]
    data["limits.yaml"] = data["limits.yaml"].replace("60", "600")
    namespace.answer("gate-a")
    namespace.restart()
    namespace.round()

    assert namespace.verdict("openai", "Programmed") == ("False", "Pending")


def test_the_time_of_a_transition_is_kept_until_the_status_of_the_condition_changes() -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()
    namespace.silence("gate-a", "refused the connection")
    namespace.round()
    namespace.answer("gate-a")
    namespace.round()

    times = {each["type"]: each["lastTransitionTime"] for each in namespace.objects["openai"]["status"]["conditions"]}

    assert times["Accepted"] == "2027-01-15T08:00:00Z"
    assert times["Programmed"] == "2027-01-15T08:00:12Z"


def test_conditions_and_fields_of_others_in_a_status_are_no_change() -> None:
    namespace = Namespace(limits_object("openai", entry()))
    namespace.round()
    status = namespace.objects["openai"]["status"]
    status["conditions"].insert(0, {"type": "Audited", "status": "True"})
    status["ours"] = "no"

    assert namespace.plan().statuses == ()


@pytest.mark.parametrize(
    "status", ["x", 5, [], {"conditions": 5}, {"conditions": [5, {}]}, {"pressure": [[]]}, {"pressure": 7}]
)
def test_a_status_of_any_shape_is_replaced(status: Any) -> None:
    namespace = Namespace(limits_object("openai", entry()), gates=["gate-a"])
    namespace.round()
    namespace.objects["openai"]["status"] = status
    namespace.answer("gate-a")

    namespace.round()

    assert namespace.verdict("openai") == ("True", "Accepted")


def test_a_message_is_bounded_however_many_mistakes_there_are() -> None:
    namespace = Namespace(limits_object("bad", *({"🙂" * 99: number} for number in range(60))))
    namespace.round()
    message = namespace.condition("bad", "Accepted")["message"]

    assert message.endswith("Nothing of it is in force.")
    assert len(message.encode()) <= 1024


def test_a_spec_that_nests_without_end_is_a_mistake_of_its_object() -> None:
    deep: Any = 0
    for _ in range(5000):
        deep = {"a": deep}
    namespace = Namespace(limits_object("good", entry()), limits_object("deep"))
    namespace.objects["deep"]["spec"] = deep
    namespace.round()

    assert namespace.verdict("deep") == ("False", "Invalid")
    assert in_force(namespace) == {"good": 60}


def test_text_that_no_gate_could_read_is_a_mistake_of_its_object() -> None:
    namespace = Namespace(limits_object("good", entry()), limits_object("bad", entry(match={"subjects": ["\ud800"]})))
    namespace.round()

    assert namespace.verdict("bad") == ("False", "Invalid")
    assert in_force(namespace) == {"good": 60}


def test_a_config_map_that_somebody_made_immutable_is_made_anew() -> None:
    namespace = Namespace(limits_object("openai", entry(1)))
    namespace.round()
    namespace.config_maps[LIMITS]["immutable"] = True
    assert namespace.plan().writes == ()
    namespace.edit("openai", {"provider": "openai", "limits": [entry(2)]})

    writes = [type(write) for _ in range(3) for write in namespace.round().writes]

    assert writes == [DeleteConfigMap, ApplyConfigMap]
    assert in_force(namespace) == {"openai": 2}
