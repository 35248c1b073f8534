"""The end of a call: `envoy.service.ext_proc.v3.ExternalProcessor`, one plain object a stream.

Theory of operation
    Envoy opens one stream a call, in observability mode: it tells, and waits for nothing. The stream IS the permit. Its
    first message brings the lease that admission gave, and the permit is claimed with it. Then come the response's
    headers, perhaps its body, and its trailers with the usage that Envoy has read. However the stream closes, the
    call is settled and the slot freed, once.

    Usage is taken from the first of these that tells it: the response's headers (those that are read of every provider,
    and those of the profile), Envoy's own reading
    (`envoy.ai.token_usage`), the body (only where Envoy is told to send it).

    A call that was cut (its client left, the provider broke off) closes its stream like any other, a moment later and
    without a word. That it was cut comes by another way, Envoy's access log of cut calls, and comes first: `feed_log`.
    The log also tells how much was said in a stream that was not asked for its usage, as Envoy has counted it. Such a
    stream ends there, cut or not. A usage that Envoy has read all the same, and tells after its log, still replaces it.

    The log also tells how many bytes of the answer had gone by. Those that were not read here, or not yet, are all that
    is known of its output; without them, whoever hangs up just before the usage would pay for the input alone.

    What the provider says of its own limits, in the headers or in the body of a refusal, is told to the engine as soon
    as it is there. Where Envoy has tried more than once (ours never does), the attempts that failed are charged too: as
    what they are, calls that failed.

    A stream without a live lease (a refused call, one that nothing limits) is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from sluice.core.buckets import Charge
from sluice.core.permits import Permit, Settled
from sluice.core.words import RefusedAs
from sluice.usage.headers import USAGE_HEADERS, usage_from_headers
from sluice.usage.learning import Lesson
from sluice.usage.profiles.profile import FailedRequests, UsageFields
from sluice.usage.readers import UsageReader, is_stream, reader_for
from sluice.usage.settlement import FIRST_REFUNDED_STATUS, Settlement, settle
from sluice.usage.tokens import MAX_USED, Usage
from sluice.usage.unread import unread_output
from sluice_sidecar import clock
from sluice_sidecar.gate import Gate
from sluice_sidecar.outages import Outages
from sluice_sidecar.protos import (
    COMPLETE,
    USAGE_NAMESPACE,
    ProcessingRequest,
    StreamAccessLogsMessage,
    TokenUsage,
    attempts_in,
    is_envoys_own,
    lease_in,
    refusal_in,
    said_in,
)
from sluice_sidecar.rls import CallFacts

OnUntold: TypeAlias = Callable[[str], None]
"""Told the provider of a call that was answered whole, and did not tell the usage that it should. It must not raise."""
OnRefused: TypeAlias = Callable[[str, int, RefusedAs], None]
"""Told of an admitted call that its provider refused: the provider, the status, and why. It must not raise."""
MOST_ATTEMPTS: Final = 100
"""More are not charged: no Envoy tries so often."""

_NEVER_ENVOYS: Final = frozenset({429, 529})
"""Statuses by which a provider refuses, and with which Envoy answers no admitted call by itself."""


ANSWERED: Final = range(200, FIRST_REFUNDED_STATUS)
MEDIA: Final = ("audio/", "image/", "video/")


class WatchedCalls:
    """The calls whose streams are open, by lease. Belongs to one event loop."""

    def __init__(
        self,
        gate: Gate,
        headers: UsageFields = USAGE_HEADERS,
        on_refused: Sequence[OnRefused] = (),
        on_untold: Sequence[OnUntold] = (),
        wall: Callable[[], int] = clock.wall_now,
    ) -> None:
        self.gate = gate
        self.headers = headers
        self.on_refused = on_refused
        self.on_untold = on_untold
        self.wall = wall
        self._outages = Outages(gate)
        self.streams: dict[str, CallStream] = {}

    def open(self) -> CallStream:
        """The object for a stream that Envoy has opened."""
        return CallStream(self)

    def feed_log(self, message: StreamAccessLogsMessage) -> None:
        """Take a message of Envoy's access log of cut calls (`envoy.service.accesslog.v3.AccessLogService`)."""
        for entry in message.http_logs.log_entry:
            self._outages.see(entry.common_properties)
            lease = lease_in(entry.common_properties.metadata)
            if lease:
                stream = self.streams.get(lease) or self.open()
                stream.see_attempts(entry.common_properties.upstream_request_attempt_count)
                said = said_in(entry.common_properties.metadata)
                status, sent = entry.response.response_code.value, entry.response.response_body_bytes
                if said is not None and not entry.common_properties.response_flags.ByteSize():
                    stream.whole(lease, status, said)
                else:
                    stream.cut(lease, status, sent, said, entry.response.response_headers.get("content-type", ""))


class CallStream:
    """Watches one call. Feed it every message, and `close` it when the stream is over, however it ended."""

    __slots__ = ("_attempts", "_calls", "_cut", "_ended", "_facts", "_is_media", "_is_stream", "_late", "_permit",
                 "_read", "_reader", "_said", "_sees_body", "_sent", "_status", "_usage_of_envoy",
                 "_usage_of_headers")  # fmt: skip

    def __init__(self, calls: WatchedCalls) -> None:
        self._calls = calls
        self._permit: Permit | None = None
        self._facts: CallFacts | None = None
        self._status: int | None = None
        self._attempts = 1
        self._usage_of_headers: Usage | None = None
        self._usage_of_envoy: Usage | None = None
        self._reader: UsageReader | None = None
        self._sees_body = False
        self._ended = False
        self._cut = False
        self._sent = 0
        self._read = 0
        self._is_stream = False
        self._is_media = False  # sound and pictures have no place for usage
        self._said: int | None = None
        self._late: Permit | None = None

    def feed(self, message: ProcessingRequest) -> bool:
        """Take one message. True if nothing more is of interest, and the stream may be ended."""
        if self._permit is None and not self._claim(lease_in(message.metadata_context)):
            self._see_late(message)
            return True
        kind = message.WhichOneof("request")
        if kind == "response_headers":
            self._see_headers(message.response_headers, message)
        elif kind == "response_body":
            self._see_body(message.response_body)
        elif kind == "response_trailers":
            self._ended = True
        self._see_envoys_usage(message.metadata_context.typed_filter_metadata)
        if self._ended:
            self.close()
        return self._ended

    def see_attempts(self, attempts: int) -> None:
        """Envoy has sent the call to its provider that often."""
        self._attempts = min(max(self._attempts, attempts), MOST_ATTEMPTS)

    def whole(self, lease: str, status: int, said: int) -> None:
        """A stream has come to its end, answered with this status; `said` are the bytes of text counted in it."""
        if self._permit is not None or self._claim(lease):
            self._status, self._said, self._late = self._status or status, said, self._permit
            self.close()

    def cut(self, lease: str, status: int, sent: int, said: int | None = None, content_type: str = "") -> None:
        """The call was cut: it ends now.

        `status` is the one its client was answered with, 0 if there was none; `sent` are the bytes of the answer's
        body that had gone by, of this type, and `said` the bytes of text in them, where Envoy has counted them.
        """
        if self._permit is not None or self._claim(lease):
            self._cut, self._sent, self._said = True, sent, said
            # The answer's headers may still be under way here: the log is told at once.
            self._is_stream = self._is_stream or is_stream(content_type)
            if self._status is None and status in _NEVER_ENVOYS:
                self._hear(status, {}, "")
            # The stream may still be about to tell of an answer that Envoy made up, for a provider out of reach.
            self._status = self._status or status or None
            self.close()

    def close(self) -> None:
        """The stream is over: settle the call and free its slots. Later closes change nothing."""
        permit, self._permit = self._permit, None
        if permit is None or self._facts is None:
            return
        self._calls.streams.pop(permit.lease, None)
        now = self._calls.gate.clock()
        try:
            self._settle(permit, self._facts, now)
        finally:
            permit.release(now)
            self._calls.gate.rearm()
        whole = self._status in ANSWERED and not self._cut
        if whole and self._facts.tells_usage and not self._is_media and permit.settled is Settled.ESTIMATED:
            for tell in self._calls.on_untold:
                tell(permit.call.applied[0].key.provider)

    def _settle(self, permit: Permit, facts: CallFacts, now: int) -> None:
        (settlement, usage), failed = self._settlement(facts), self._attempts - 1
        charge = settlement.charge
        if failed:
            self._calls.gate.engine.repeated(permit, failed, now)
            if facts.scale.failed_requests is FailedRequests.COUNTED:
                charge = (permit.charge if charge is None else charge).plus(permit.charge.times(failed))
        if charge is None or not permit.commit_tokens(charge, now, settlement.settled):
            return
        if settlement.settled is Settled.COMMITTED and settlement.charge is not None and usage is not None:
            self._learn(facts, settlement.charge, usage)

    def _learn(self, facts: CallFacts, charge: Charge, usage: Usage) -> None:
        """What the call has shown: its input as far as it counts, and its output."""
        counted = None if usage.input_tokens is None else facts.scale.fresh_input(charge)
        if counted is not None or usage.output_tokens is not None:
            size = 0 if facts.asked.blob_size else facts.asked.size  # a token of a picture says nothing of text
            self._calls.gate.learn(facts.kind, Lesson(size, facts.asked.output_cap, counted, usage.output_tokens))

    def _settlement(self, facts: CallFacts) -> tuple[Settlement, Usage | None]:
        """What the call is charged, and the usage that was told."""
        # Where the body is watched, its end is seen. Where it is not, a stream that just closes belongs to a whole
        # answer that told no usage, or to an Envoy that died; cuts are told.
        complete = self._ended or not (self._cut or self._sees_body)
        usage, seen = self._usage_of_headers or self._usage_of_envoy, 0
        if self._sees_body and self._reader is not None:
            usage, seen = usage or self._reader.finish(), self._reader.seen_output
            # A stream that was not asked for its usage: all that is to be known of its output was seen.
            complete = complete and not (usage is None and seen and self._is_stream)
        elif self._said is not None:
            seen = self._said
            complete = complete and not (usage is None and seen)
        if self._sent > self._read and self._said is None:
            unread, event_bytes = self._sent - self._read, facts.shape.response.event_bytes
            seen += unread_output(unread, event_bytes, facts.estimate, is_stream=self._is_stream)
        settlement = settle(self._status, usage, facts.estimate, complete=complete, seen_output=seen, scale=facts.scale)
        return settlement, usage

    def _see_late(self, message: ProcessingRequest) -> None:
        """Envoy's reading of a stream that its log has ended."""
        self._see_envoys_usage(message.metadata_context.typed_filter_metadata)
        if self._late is None or self._facts is None or self._usage_of_envoy is None:
            return
        settlement, _ = self._settlement(self._facts)
        if settlement.charge is not None and settlement.settled is Settled.COMMITTED:
            self._late.commit_tokens(settlement.charge, self._calls.gate.clock(), settlement.settled)

    def _claim(self, lease: str) -> bool:
        permit = self._calls.gate.engine.claim(lease, self._calls.gate.clock()) if lease else None
        if permit is None or not isinstance(permit.call.detail, CallFacts):
            return False
        self._permit, self._facts = permit, permit.call.detail
        self._calls.streams[lease] = self
        return True

    def _see_headers(self, headers: Any, message: ProcessingRequest) -> None:
        # Older Envoys send `value`; the present one leaves it empty.
        values = {header.key: header.raw_value or header.value.encode() for header in headers.headers.headers}
        status = values.get(":status", b"")
        self._status = int(status) if len(status) == 3 and status.isdigit() else None
        # An error is the end of the matter: what follows only explains it.
        self._ended = headers.end_of_stream or (self._status or 0) >= FIRST_REFUNDED_STATUS
        self.see_attempts(attempts_in(message))
        if self._status is not None and not is_envoys_own(message):
            self._hear(self._status, values, refusal_in(message.metadata_context))
        if self._facts is None:
            return
        response = self._facts.shape.response
        told = values.items()
        self._usage_of_headers = usage_from_headers(told, self._calls.headers) or usage_from_headers(
            told, response.headers
        )
        if self._usage_of_headers is None:
            content_type = values.get("content-type", b"").decode("latin-1")
            self._is_stream = is_stream(content_type)
            self._is_media = content_type.lower().startswith(MEDIA)
            self._reader = reader_for(response, content_type, values.get("content-encoding", b"").decode("latin-1"))

    def _hear(self, status: int, headers: Mapping[str, bytes], body: str) -> None:
        """What the provider itself says of its limits."""
        permit, facts, calls = self._permit, self._facts, self._calls
        if permit is None or facts is None:
            return
        said = facts.dialect.feedback(status, headers, body, calls.wall())
        calls.gate.hear(permit, said)
        if said.refused_as is not None:
            for tell in calls.on_refused:
                tell(permit.call.applied[0].key.provider, status, said.refused_as)

    def _see_body(self, body: Any) -> None:
        self._sees_body = True
        if self._reader is not None and not self._reader.stopped:
            self._read += len(body.body)
            self._reader.feed(body.body)
        if body.end_of_stream:
            self._ended = True

    def _see_envoys_usage(self, metadata: Any) -> None:
        """What Envoy's `ai_protocol_manager` has read, once it speaks."""
        if USAGE_NAMESPACE not in metadata:
            return
        self._usage_of_envoy = usage_told(TokenUsage.FromString(metadata[USAGE_NAMESPACE].value))


def usage_told(told: Any) -> Usage:
    """Envoy's `TokenUsage` as ours: the input includes both sides of a cache, the output what nobody sees of it.

    Envoy believes larger counts than anybody uses: one that the gate's own readers would not believe makes it partial.
    """
    read, hidden = told.input_token_details, told.output_token_details
    usage = Usage(
        _count(told, "input_tokens"),
        _count(told, "output_tokens"),
        _count(told, "provider_total_tokens"),
        told.extraction_status != COMPLETE,
        _count(read, "cached_tokens"),
        _count(read, "cache_creation_tokens"),
        _count(hidden, "reasoning_tokens"),
    )
    unbelieved = [name for name, count in usage._asdict().items() if isinstance(count, int) and count > MAX_USED]
    return usage._replace(partial=True, **dict.fromkeys(unbelieved)) if unbelieved else usage


def _count(message: Any, name: str) -> int | None:
    return int(getattr(message, name).value) if message.HasField(name) else None
