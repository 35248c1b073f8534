"""Whatever happens in a namespace: plans converge, write nothing twice, and give gates only what they can read."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from helpers.namespace import Manifest, Namespace, entry, limits_object
from sluice.config.document import from_manifest, parse
from sluice.config.merge import Claims, merge
from sluice.config.render import LIMITS
from sluice.config.types import ProviderLimits
from sluice.core.keys import SCOPES, BucketKey
from sluice.core.limits import Cap
from sluice.errors import InvalidDocument
from sluice_operator.planning.reports import BucketReport, Recent, Store, Use

NAMES = st.sampled_from(["a", "b", "c", "d"])
PODS = st.sampled_from(["gate-a", "gate-b", "gate-c"])


def limits_of(match: Manifest, requests: int) -> Manifest:
    """Return an entry; those with the same match are rivals."""
    return entry(requests, "User", **match)


MATCHES: list[Manifest] = [{}, {"match": {"subjects": ["alice"]}}, {"match": {"models": ["gpt-5*"]}}]
SOUND = st.fixed_dictionaries(
    {
        "provider": st.sampled_from(["openai", "openai", "anthropic"]),
        "failurePolicy": st.sampled_from(["Allow", "Allow", "Allow", "Deny"]),
        "limits": st.lists(st.sampled_from(MATCHES), max_size=2, unique_by=str)
        .flatmap(
            lambda matches: st.tuples(*(st.builds(limits_of, st.just(match), st.integers(1, 3)) for match in matches))
        )
        .map(list),
    }
)
BAD = st.one_of(
    st.none(),
    st.sampled_from(
        [{}, {"provider": "acme"}, {"provider": "openai", "limits": [{}]}, {"provider": "openai", "lim": 1}]
    ),
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
SPECS = st.integers(0, 3).flatmap(lambda number: SOUND if number else BAD)
AGES = st.integers(0, 2)
COUNTS = st.sampled_from([0, 1, 40, 50, 59, 60, 90])
BUCKETS = st.builds(
    lambda provider, scope, subject, used: BucketReport(
        BucketKey(provider, scope, subject), used % 3, {Cap.REQUESTS_PER_MINUTE: Use(used, 60)}, None
    ),
    st.sampled_from(["openai", "anthropic", "other"]),
    st.sampled_from(SCOPES),
    st.sampled_from(["alice", "bob", ""]),
    COUNTS,
)
RECENT = st.dictionaries(
    st.sampled_from(["openai", "anthropic"]), st.builds(Recent, committed=COUNTS, estimated=COUNTS, throttled=COUNTS)
)
STORES = st.builds(
    Store,
    healthy=st.booleans(),
    kind=st.sampled_from(["memory", "redis"]),
    address=st.sampled_from(["redis://a", "redis://b"]),
    mode=st.sampled_from(["Shared", "Local"]),
)


def sound_form(manifest: Manifest) -> ProviderLimits | None:
    try:
        return from_manifest(manifest, "")
    except InvalidDocument:
        return None


def age(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"]["creationTimestamp"], manifest["metadata"]["name"]


class Plans(RuleBasedStateMachine):
    """Edits, gates and restarts in any order."""

    @initialize(specs=st.tuples(SPECS, SPECS, SPECS), ages=st.tuples(AGES, AGES, AGES))
    def start(self, specs: tuple[Any, ...], ages: tuple[int, ...]) -> None:
        self.namespace = Namespace(gates=["gate-a"], bootstrap="{}")
        self.created = 0
        for name, spec, age in zip("cba", specs, ages, strict=True):
            self.create(name, spec, age)

    @rule(name=NAMES, spec=SPECS, age=AGES)
    def create(self, name: str, spec: Any, age: int) -> None:
        if name not in self.namespace.objects:
            self.created += 1
            made = limits_object(name, created=age)
            made["spec"] = spec
            made["metadata"]["uid"] += f"-{self.created}"
            self.namespace.objects[name] = made

    @rule(name=NAMES, spec=SPECS)
    def edit(self, name: str, spec: Any) -> None:
        if name in self.namespace.objects:
            self.namespace.edit(name, spec)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.namespace.objects.pop(name, None)

    @rule(pod=PODS)
    def start_gate(self, pod: str) -> None:
        self.namespace.add_gate(pod)

    @rule(pod=PODS)
    def stop_gate(self, pod: str) -> None:
        self.namespace.gates.pop(pod, None)

    @rule(pod=PODS, buckets=st.lists(BUCKETS, max_size=4), recent=RECENT, store=STORES)
    def gate_answers(self, pod: str, **fields: Any) -> None:
        if pod in self.namespace.gates and LIMITS in self.namespace.config_maps:
            self.namespace.answer(pod, **fields)

    @rule(pod=PODS)
    def gate_is_silent(self, pod: str) -> None:
        if pod in self.namespace.gates:
            self.namespace.silence(pod)

    @rule(rubbish=st.text() | st.sampled_from(["a: [", "---\n---\n", "metadata: {uid: 1}"]))
    def somebody_edits_the_text(self, rubbish: str) -> None:
        if LIMITS in self.namespace.config_maps:
            self.namespace.config_maps[LIMITS]["data"]["limits.yaml"] = rubbish

    @rule()
    def restart(self) -> None:
        self.namespace.restart()

    @rule()
    def plan_early(self) -> None:
        self.namespace.apply(self.namespace.plan())
        self.namespace.now += 1
        self.gates_can_read_what_is_written()

    @rule()
    def settle(self) -> None:
        self.namespace.now += 6
        self.namespace.round()
        made = self.namespace.plan()
        assert (made.writes, made.statuses, made.events) == ((), (), ())
        self.gates_can_read_what_is_written()
        self.the_status_says_what_is_in_force()

    def teardown(self) -> None:
        self.settle()

    def gates_can_read_what_is_written(self) -> None:
        needed = bool(self.namespace.objects or self.namespace.gates)
        assert (LIMITS in self.namespace.config_maps) == needed
        self.in_force = {each.name: each for each in merge(parse(self.namespace.text, "")).documents} if needed else {}

    def the_status_says_what_is_in_force(self) -> None:
        """Say who wins in the simplest way, and compare."""
        claims = Claims()
        for each in sorted(self.namespace.objects.values(), key=age):
            name, form = each["metadata"]["name"], sound_form(each)
            accepted = form is not None and not list(claims.against(form))
            assert self.namespace.verdict(name)[0] == str(accepted)
            assert ("inForce" in each["status"]) == (name in self.in_force)
            if accepted:
                assert self.in_force[name] == form
                assert each["status"]["inForce"] == {"generation": each["metadata"]["generation"]}
            if name in self.in_force:
                claims.add(self.in_force[name])
        assert self.in_force.keys() <= self.namespace.objects.keys()


Plans.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
test_plans = Plans.TestCase
