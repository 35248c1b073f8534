"""Admission: `envoy.service.ratelimit.v3.RateLimitService`, as a plain object that any transport can serve.

The descriptor that Sluice's Envoy sends (domain and order are free, a missing fact is a missing entry):

    provider            the name in the limits document; without it nothing limits the call
    user, org, project  the subject of that scope, as Envoy saw it (a header's value, or the caller's key)
    account             the caller's key, where it is none of these: whose quota it is at the provider
    api                 the name of the API in the provider's profile
    model, bytes, blob_bytes, max_output_tokens (or max_tokens, max_completion_tokens), n, stream, stream_usage
                        what the request says of itself

It becomes one call and, if admitted, a permit. A descriptor with a `hits_addend`, or with an entry `unit` of
`requests` or `tokens`, comes from some other client: it is counted and holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sluice.config.types import StreamUsage, SubjectKind
from sluice.core.buckets import Demand
from sluice.core.decisions import Refusal
from sluice.core.keys import BucketKey, Scope
from sluice.core.limits import CAPS_BY_LENGTH, DAY, HOUR, MINUTE, SECOND, Cap
from sluice.core.permits import Call, Permit
from sluice.core.rules import Applied
from sluice.core.windows import NEVER
from sluice.errors import SluiceError
from sluice.usage.counting import FREE, Scale
from sluice.usage.estimate import Asked, Estimate, asked, estimate
from sluice.usage.learning import Kind, least_cap
from sluice.usage.profiles import Api, Shape
from sluice.usage.profiles.profile import EstimationMode
from sluice.usage.word import Dialect
from sluice_sidecar import answers
from sluice_sidecar.gate import Gate
from sluice_sidecar.identity import ACCOUNT_ENTRY, account, subject
from sluice_sidecar.protos import RateLimitRequest, RateLimitResponse

MOST_DESCRIPTORS: Final = 64
MOST_ENTRIES: Final = 64
LONGEST_MODEL: Final = 256
"""Characters; a longer name is cut, which can only move the call to a more general limit."""

ON: Final = ("true", "1")
"""How a switch says yes: `stream_usage` has the value of the body's own switch."""
ESTIMATE: Final = StreamUsage.ESTIMATE

_UINT32: Final = 2**32 - 1
_OK: Final = RateLimitResponse.OK
_OVER_LIMIT: Final = RateLimitResponse.OVER_LIMIT
_UNITS: Final = {
    MINUTE: RateLimitResponse.RateLimit.MINUTE,
    HOUR: RateLimitResponse.RateLimit.HOUR,
    DAY: RateLimitResponse.RateLimit.DAY,
}
_UNIT_OF_CAP: Final = {caps[length]: unit for length, unit in _UNITS.items() for caps in CAPS_BY_LENGTH}
"""A cap on calls at a time has no unit."""


class InvalidRequest(SluiceError):
    """A request that cannot be understood: the transport answers INVALID_ARGUMENT."""


class CallFacts(NamedTuple):
    """What the gate remembers of an admitted call until it ends."""

    shape: Shape
    """The API that it calls."""
    asked: Asked
    estimate: Estimate
    scale: Scale
    """How its provider counts its tokens."""
    kind: Kind
    """Which calls are like it."""
    dialect: Dialect
    """How its provider speaks of its own limits."""
    tells_usage: bool = True
    """True if its answer should tell its usage: it names a model, and is no stream that nobody asks for it."""


class RateLimitService:
    """Decides. One instance serves every connection of its loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def should_rate_limit(self, request: RateLimitRequest, patience: int = NEVER) -> RateLimitResponse:
        """Admit or refuse; `patience` is how many nanoseconds the client will wait for the answer.

        What is admitted under several descriptors is admitted under all or none, and does not queue: whoever waited
        for one while it holds another could wait for somebody who does the same the other way round.
        Raises `InvalidRequest`.
        """
        descriptors = request.descriptors
        if not descriptors:
            raise InvalidRequest("the request has no descriptor: send at least one, with an entry `provider`")
        if len(descriptors) > MOST_DESCRIPTORS:
            raise InvalidRequest(f"the request has {len(descriptors)} descriptors: at most {MOST_DESCRIPTORS}")
        if len(descriptors) > 1:
            patience = 0
        permits: list[Permit] = []
        try:
            for descriptor in descriptors:
                hits = (
                    descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or None
                )
                call = self._call(_facts(descriptor.entries), hits, patience)
                outcome = await self._gate.acquire(call)
                if isinstance(outcome, Refusal):
                    self._withdraw(permits)
                    return _refused(self._api(outcome), outcome, len(permits), len(descriptors))
                permits.append(outcome)
            return self._admitted(permits)
        except BaseException:
            self._withdraw(permits)
            raise

    def _admitted(self, permits: Iterable[Permit]) -> RateLimitResponse:
        response = RateLimitResponse(overall_code=_OK)
        lease = ""
        now = self._gate.clock()
        for permit in permits:
            _describe(response.statuses.add(code=_OK), permit, now)
            if not isinstance(permit.call.detail, CallFacts):
                permit.commit_tokens(permit.charge, now)
                permit.release(now)
            elif permit.lease and lease:
                raise InvalidRequest("the request asks for two calls: give all its descriptors but one a hits_addend")
            elif permit.lease:
                lease = permit.lease
                response.dynamic_metadata.fields["lease"].string_value = lease
        return response

    def _withdraw(self, permits: Iterable[Permit]) -> None:
        for permit in permits:
            self._gate.engine.withdraw(permit, self._gate.clock())

    def _api(self, refusal: Refusal) -> Api:
        policy = self._gate.policies.get(refusal.key.provider)
        return Api.OPENAI if policy is None else policy.provider.profile.api

    def _call(self, facts: dict[str, str], hits: int | None, patience: int) -> Call:
        provider = facts.get("provider", "")
        policy = self._gate.policies.get(provider)
        if policy is None:
            return Call((), Demand(0, 0, 0))
        subjects = dict(policy.fixed)
        key = account(facts[ACCOUNT_ENTRY]) if ACCOUNT_ENTRY in facts else ""
        for entry, scope, source in policy.told:
            if entry in facts:
                subjects[scope] = subject(source, facts[entry])
                if source.kind is SubjectKind.API_KEY:
                    key = subjects[scope]
        model = facts.get("model", "")[:LONGEST_MODEL]
        applied = self._gate.engine.rules.match(provider, subjects, model)
        unit = facts.get("unit")
        if hits is not None or unit is not None:
            return Call(applied, _counted(1 if hits is None else hits, unit), patience)
        profile = policy.provider.profile
        shape = profile.shape(facts.get("api", ""))
        scale = FREE if shape.free else policy.scale(model)
        request = asked(facts, brings_output=shape.request.brings_output and not shape.free)
        kind = Kind(provider, model, tuple([rule for _, _, rule in applied]), least_cap(request.output_cap))
        estimation = policy.provider.estimation
        expected = estimate(
            request,
            estimation,
            self._gate.learner.experience(kind) if estimation.mode is EstimationMode.LEARNED else None,
            scale,
            **_smallest_caps(applied),
        )
        demand = Demand(1, 1, *scale.reservation(expected.input_tokens, expected.output_tokens))
        tells_usage = (
            bool(model)
            and not shape.free
            and not (_is_unasked(facts, shape) and policy.provider.stream_usage is ESTIMATE)
        )
        known = CallFacts(shape, request, expected, scale, kind, policy.dialect, tells_usage)
        return Call(applied, demand, patience, known, BucketKey(provider, Scope.PROVIDER, key, model))


def _smallest_caps(applied: Iterable[Applied]) -> dict[str, int | None]:
    """The smallest caps that a call meets, as `estimate` takes them."""
    tokens = input_tokens = output_tokens = NEVER
    for _, limits, _ in applied:
        if limits.smallest_token_cap is not None and limits.smallest_token_cap < tokens:
            tokens = limits.smallest_token_cap
        if limits.smallest_input_cap is not None and limits.smallest_input_cap < input_tokens:
            input_tokens = limits.smallest_input_cap
        if limits.smallest_output_cap is not None and limits.smallest_output_cap < output_tokens:
            output_tokens = limits.smallest_output_cap
    return {
        "smallest_cap": None if tokens == NEVER else tokens,
        "smallest_input_cap": None if input_tokens == NEVER else input_tokens,
        "smallest_output_cap": None if output_tokens == NEVER else output_tokens,
    }


def _is_unasked(facts: dict[str, str], shape: Shape) -> bool:
    """True for a stream that tells its usage only if it is asked, and is not asked by its caller."""
    return bool(shape.request.stream_usage) and facts.get("stream") in ON and facts.get("stream_usage") not in ON


def _facts(entries: Iterable[Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for entry in entries:
        key, value = entry.key, entry.value  # each look makes the text anew
        if value and key not in facts:
            facts[key] = value
            if len(facts) > MOST_ENTRIES:
                raise InvalidRequest(f"a descriptor has more than {MOST_ENTRIES} entries")
    return facts


def _counted(hits: int, unit: str | None) -> Demand:
    """What a client asks for that counts by itself: no slot, for it will not say when it is done."""
    if unit == "tokens":
        return Demand(0, 0, hits)
    if unit in ("requests", None):
        return Demand(0, hits, 0)
    raise InvalidRequest("the entry `unit` of a descriptor is neither `requests` nor `tokens`")


def _describe(status: Any, permit: Permit, now: int) -> None:
    """Fill a status with the enforced cap that has the smallest share left: the one to watch."""
    least, tightest = 2.0, None
    counted = None if permit.counted is None else iter(permit.counted)
    for bucket in permit.buckets:
        for window in bucket.windows + bucket.parts:
            first, second = (window.first, window.second) if counted is None else (next(counted, 0), next(counted, 0))
            if bucket.is_shadow:
                continue
            cap, used = window.first_limit, first
            if cap != NEVER and (share := (cap - used) / (cap or 1)) < least:
                least, tightest = share, (bucket, window, 0, cap, used)
            cap, used = window.second_limit, second
            if cap != NEVER and (share := (cap - used) / (cap or 1)) < least:
                least, tightest = share, (bucket, window, 1, cap, used)
    if tightest is None:
        return
    bucket, window, at, cap, used = tightest
    limit = status.current_limit
    limit.name = f"{bucket.key.scope}/{window.caps[at]}"
    limit.requests_per_unit, limit.unit = min(cap, _UINT32), _UNITS[window.length]
    status.limit_remaining = min(max(0, cap - used), _UINT32)
    _fill(status.duration_until_reset, max(0, window.empty_at - now))


def _fill(duration: Any, nanoseconds: int) -> None:
    """Whole seconds, rounded up: Envoy's `x-ratelimit-reset` would round down, and a retry then come too early."""
    duration.seconds = -(-nanoseconds // SECOND)


def _refused(api: Api, refusal: Refusal, at: int, of: int) -> RateLimitResponse:
    """The answer of a request whose descriptor `at`, of so many, was refused."""
    response = RateLimitResponse(overall_code=_OVER_LIMIT, raw_body=answers.body(api, refusal))
    for index in range(of):
        status = response.statuses.add(code=_OVER_LIMIT if index == at else _OK)
        if index == at:
            limit = status.current_limit
            limit.name = f"{refusal.key.scope}/{refusal.cap}"
            limit.requests_per_unit = min(refusal.limit, _UINT32)
            if isinstance(refusal.cap, Cap):
                limit.unit = _UNIT_OF_CAP.get(refusal.cap, RateLimitResponse.RateLimit.UNKNOWN)
            status.limit_remaining = min(max(0, refusal.limit - refusal.used), _UINT32)
            seconds = answers.retry_after_seconds(refusal)
            _fill(status.duration_until_reset, refusal.retry_after or (seconds or 0) * SECOND)
    for name, value in answers.headers(refusal):
        response.response_headers_to_add.add(key=name, value=value)
    return response
