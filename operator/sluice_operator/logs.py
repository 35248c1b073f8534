"""The log: one line an event, UTC, as text or as JSON, on standard error.

What objects, gates and callers say never gets here: no spec, no header value, no body.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Final

from sluice_operator import clock
from sluice_operator.settings import LogFormat

AGAIN: Final = 60.0
"""Seconds after which a complaint that still holds is made again."""


def set_up(style: LogFormat, level: int) -> None:
    """Send every logger's lines to standard error in that format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style is LogFormat.JSON else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf complains of each attempt of each call, with objects in it; what is amiss is said here, once, in a sentence.
    for name in ("kopf", "asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING if level <= logging.DEBUG else logging.CRITICAL)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO sluice_operator.lead: message`."""

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


class Complaint:
    """Something that may be wrong for long: said when it begins, when it changes, each minute, and when it is over."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._text = ""
        self._said = 0.0

    def raised(self, text: str) -> None:
        now = clock.now()
        if text != self._text or now - self._said >= AGAIN:
            self._logger.warning("%s", text)
            self._text, self._said = text, now

    def settled(self) -> None:
        if self._text:
            self._logger.info("over: %s", self._text)
            self._text = ""


def utc(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 writes them, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whereabouts(error: BaseException) -> str:
    """The kind of an error and the lines it came through, without its message: that may quote an object."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
