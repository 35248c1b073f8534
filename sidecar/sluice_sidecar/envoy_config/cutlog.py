"""The access log that tells the gate of calls that were cut: by the client, by the provider, by a timeout.

It tells of calls whose provider could not be reached besides, so that the gate can say so in its log; and of streams
that were not asked for their usage, how much was said in them.

The usage stream cannot tell such an ending from a clean one: both just close it, some time after the call's end.
Other whole calls are not logged, and cost nothing here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.access_loggers.grpc import v3 as grpc
from envoy_data_plane.envoy.type.matcher import v3 as matcher

from sluice_sidecar.envoy_config.messages import packed
from sluice_sidecar.envoy_config.upstreams import gate_service
from sluice_sidecar.protos import SAID, STREAM_NAMESPACE

CUT: Final = (
    *("DC", "DR", "DPE"),  # the client: gone, reset, broken protocol
    *("UC", "UR", "UPE", "LR"),  # the provider: gone, reset, broken protocol; or Envoy reset it
    *("SI", "UT", "DT"),  # silence for too long, or a time limit
    "OM",  # Envoy is short of memory
)
"""The response flags of a cut call. Not among them: refused by the gate (`RL`)."""


UNREACHED: Final = ("UH", "NC", "UF")
"""The provider has no address, or takes no connection."""


def cut_log() -> accesslog.AccessLog:
    """Each call that was cut, had nowhere to go, or was counted as it streamed: told to the gate at once."""
    flagged = accesslog.AccessLogFilter(response_flag_filter=accesslog.ResponseFlagFilter(flags=[*CUT, *UNREACHED]))
    return accesslog.AccessLog(
        name="sluice.cut_calls",
        filter=accesslog.AccessLogFilter(or_filter=accesslog.OrFilter(filters=[flagged, _counted()])),
        typed_config=packed(
            grpc.HttpGrpcAccessLogConfig(
                common_config=grpc.CommonGrpcAccessLogConfig(
                    log_name="cut_calls",
                    grpc_service=gate_service(),
                    transport_api_version=core.ApiVersion.V3,
                    buffer_flush_interval=timedelta(seconds=1),
                    buffer_size_bytes=0,  # each at once
                ),
                additional_response_headers_to_log=["content-type"],  # what its bytes stand for
            )
        ),
    )


def _counted() -> accesslog.AccessLogFilter:
    """Calls of which `unasked.lua` has counted what was said."""
    said = matcher.MetadataMatcher(
        filter=STREAM_NAMESPACE,
        path=[matcher.MetadataMatcherPathSegment(key=SAID)],
        value=matcher.ValueMatcher(present_match=True),
    )
    return accesslog.AccessLogFilter(
        metadata_filter=accesslog.MetadataFilter(matcher=said, match_if_key_not_found=False)
    )
