"""The two formats of the log, which are the same of both programs."""

from __future__ import annotations

import json
import logging
from types import ModuleType

import pytest

from sluice_operator import logs as operator_logs
from sluice_sidecar import logs as sidecar_logs

pytestmark = pytest.mark.parametrize("logs", [sidecar_logs, operator_logs], ids=["sidecar", "operator"])


def record(message: str, *arguments: object) -> logging.LogRecord:
    made = logging.LogRecord("sluice.test", logging.WARNING, __file__, 1, message, arguments, None)
    made.created = 1769860800.25
    return made


def test_text_is_a_line_in_utc(logs: ModuleType) -> None:
    assert logs.TextLines().format(record("%d calls", 3)) == "2026-01-31T12:00:00.250Z WARNING sluice.test: 3 calls"


def test_json_is_a_line_whatever_the_message_holds(logs: ModuleType) -> None:
    line = logs.JsonLines().format(record("two\nlines, a %s", '"quote"'))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "warning",
        "logger": "sluice.test",
        "message": 'two\nlines, a "quote"',
    }


def test_json_holds_the_traceback_of_an_error(logs: ModuleType) -> None:
    failed = record("failed")
    try:
        int("why")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)

    assert json.loads(logs.JsonLines().format(failed))["error"].endswith(
        "ValueError: invalid literal for int() with base 10: 'why'"
    )


def test_where_an_error_was_is_told_without_what_it_says(logs: ModuleType) -> None:
    with pytest.raises(ValueError, match="secret") as failed:
        int("secret")

    told = logs.whereabouts(failed.value)
    assert told.startswith("ValueError at test_where_an_error_was_is_told_without_what_it_says:")
    assert "secret" not in told
