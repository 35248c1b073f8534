"""The two formats of the log."""

from __future__ import annotations

import json
import logging

from sluice_sidecar.logs import JsonLines, TextLines


def record(message: str, *arguments: object) -> logging.LogRecord:
    made = logging.LogRecord("sluice.test", logging.WARNING, __file__, 1, message, arguments, None)
    made.created = 1769860800.25
    return made


def test_text_is_a_line_in_utc() -> None:
    assert TextLines().format(record("%d calls", 3)) == "2026-01-31T12:00:00.250Z WARNING sluice.test: 3 calls"


def test_json_is_a_line_whatever_the_message_holds() -> None:
    line = JsonLines().format(record("two\nlines, a %s", '"quote"'))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "warning",
        "logger": "sluice.test",
        "message": 'two\nlines, a "quote"',
    }


def test_json_holds_the_traceback_of_an_error() -> None:
    failed = record("failed")
    try:
        int("why")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)

    assert json.loads(JsonLines().format(failed))["error"].endswith(
        "ValueError: invalid literal for int() with base 10: 'why'"
    )
