"""Logs: one JSON object a line on standard error, with the request id, never with a secret.

Facts are keyword arguments. A fact named like a credential, a prompt or a body is hidden, and text that looks
like a credential is removed, in exceptions too.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from gateway.core.text import visible_json

OURS = "tollkeeper"  # the prefix of our loggers' names
HIDDEN = "[hidden]"
TEXT_CHARACTERS_MAX = 2_000
TRACE_CHARACTERS_MAX = 8_000

SECRET_NAME = re.compile(
    r"authorization|api[-_]?key|secret|password|pepper|credential|cookie|(^|_)token$|prompt|completion$|body|metadata",
    re.IGNORECASE,
)
SECRET_TEXT = (
    # Authorization values, keys by their usual prefixes, passwords in URLs, keys in queries.
    (re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:tka?|sk|pk|rk|ta|whsec)[_-][A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"\bAIza[A-Za-z0-9_-]{20,}"), HIDDEN),
    (re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@"), rf"\1:{HIDDEN}@"),
    (
        re.compile(
            r"((?:(?:x-[a-z]+-)?api[-_]?key|access_token|[?&]key)\s*[=:]\s*)[^\s&\"',;]+", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    # A link to a library's documentation does not help with this server.
    (re.compile(r"\s*(?:\n|\\n)?\(Background on this error at: [^\s)]+\)"), ""),
    # Details that PostgreSQL adds to an error quote rows; line ends may be escaped.
    (re.compile(r"(?:\n|\\n)(?:DETAIL|CONTEXT|HINT|QUERY|STATEMENT|WHERE):.*", re.DOTALL), ""),
)

# Attributes of every LogRecord; all others are facts given by `extra`.
STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Write all log records of the process to `stream` (standard error) as JSON lines.

    Records of libraries are written from level warning on, and below that only at `debug`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    ours = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(ours if ours <= logging.DEBUG else max(ours, logging.WARNING))
    logging.getLogger(OURS).setLevel(ours)


def logger(name: str) -> Callable[..., None]:
    """Return a function `log(event, **facts)`; a fact `level` ("warning", "error", …) sets the level."""
    target = logging.getLogger(name)

    def log(event: str, /, *, level: str = "info", **facts: object) -> None:
        number = logging.getLevelNamesMapping()[level.upper()]
        if target.isEnabledFor(number):
            target.log(number, event, extra={"facts": facts})

    return log


def redacted(text: str) -> str:
    """Return the text without parts that look like a credential."""
    for pattern, replacement in SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Render time, level, logger, event and facts of a record; facts that are no JSON become texts."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redacted(record.getMessage())[:TEXT_CHARACTERS_MAX],
            "process": record.process,
        }
        facts = record.__dict__.get("facts")
        extra = {name: value for name, value in record.__dict__.items() if name not in STANDARD}
        extra.pop("facts", None)
        for name, value in (extra | (facts if isinstance(facts, dict) else {})).items():
            line.setdefault(name, _clean_value(name, value))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            while isinstance(error, BaseExceptionGroup):  # the first of its errors says more
                error = error.exceptions[0]
            line["error"] = redacted(f"{type(error).__name__}: {error}")[:TEXT_CHARACTERS_MAX]
            trace = "".join(traceback.format_tb(error.__traceback__))
            line["trace"] = redacted(trace)[-TRACE_CHARACTERS_MAX:]
        return visible_json(msgspec.json.encode(line).decode())


def _clean_value(name: str, value: object) -> object:
    """Return a value without secrets, cut to its maximum, to be logged under a name."""
    if SECRET_NAME.search(name):
        return HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_clean_value("", item) for item in value[:100]]
    if isinstance(value, dict):
        return {str(key): _clean_value(str(key), item) for key, item in list(value.items())[:100]}
    return redacted(str(value))[:TEXT_CHARACTERS_MAX]
