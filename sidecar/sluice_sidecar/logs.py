"""The log: one line an event, UTC, as text or as JSON, on standard error.

What callers send and providers answer never gets here: no key, no header value, no body.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime

from sluice_sidecar.settings import LogFormat


def set_up(style: LogFormat) -> None:
    """Send every logger's lines to standard error in that format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style is LogFormat.JSON else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO sluice_sidecar.app: message`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return utc(record.created)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and error where there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def utc(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 writes them, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whereabouts(error: BaseException) -> str:
    """The kind of an error and the lines it came through, without its message: that may quote what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
