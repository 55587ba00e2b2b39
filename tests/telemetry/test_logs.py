"""Logs: one JSON object a line, with the facts, without a secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.core.text import hidden_in
from gateway.telemetry import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("info", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger(logs.OURS).setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_facts_become_fields(stream: io.StringIO) -> None:
    logs.logger("tollkeeper.test")("it happened", request_id="r-1", status=200, route=None)
    (line,) = lines(stream)
    assert line["event"] == "it happened"
    assert line["request_id"] == "r-1"
    assert line["status"] == 200
    assert line["route"] is None
    assert line["level"] == "info"
    assert line["time"].endswith("+00:00")


def test_levels_are_kept_and_below_the_bar_nothing_is_written(stream: io.StringIO) -> None:
    log = logs.logger("tollkeeper.test")
    log("quiet", level="debug")
    log("loud", level="error")
    assert [(line["event"], line["level"]) for line in lines(stream)] == [("loud", "error")]


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "api_key", "x-api-key", "admin_token", "key_pepper", "password", "cookie", "prompt",
        "body", "metadata",
    ],
)  # fmt: skip
def test_facts_named_like_secrets_are_hidden(stream: io.StringIO, name: str) -> None:
    logs.logger("tollkeeper.test")("x", **{name: "hush"})
    logs.logger("tollkeeper.test")("x", headers={name: "hush"})
    assert "hush" not in stream.getvalue()


@pytest.mark.parametrize("name", ["tokens", "tokens_used", "keys", "completions", "status"])
def test_counts_are_not_secrets(stream: io.StringIO, name: str) -> None:
    logs.logger("tollkeeper.test")("x", **{name: 7})
    assert lines(stream)[0][name] == 7


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hush-hush", "got Basic aHVzaA==hush", "key tk_hushhush1 is unknown",
        "token tka_hushhush1 is unknown", "signed with whsec_hushhush1", "key sk-hush-0123456789",
        "redis://:hush@127.0.0.1:6379/0", "postgresql://me:hush@db/x", "GET /v1/models?key=hush&x=1",
        "x-api-key: hush",
    ],
)  # fmt: skip
def test_credentials_inside_texts_are_cut_out(stream: io.StringIO, text: str) -> None:
    log = logs.logger("tollkeeper.test")
    log(text)
    log("x", error=text, many=[text], deep={"a": {"b": text}})
    assert "hush" not in stream.getvalue().lower()


@pytest.mark.parametrize("gathered", [False, True])
def test_exceptions_are_one_line_too_and_redacted(stream: io.StringIO, *, gathered: bool) -> None:
    async def fail() -> None:
        raise ValueError("no connection to redis://:hush@host/0")

    async def gather() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    try:
        asyncio.run(gather() if gathered else fail())
    except (ValueError, ExceptionGroup):
        logging.getLogger("test").exception("it failed")
    (line,) = lines(stream)
    assert line["error"].startswith("ValueError: no connection")
    assert "test_logs.py" in line["trace"]
    assert "hush" not in stream.getvalue()


def test_new_lines_and_odd_values_cannot_forge_a_line(stream: io.StringIO) -> None:
    logs.logger("tollkeeper.test")("a\nb", fact="c\n{}", odd=object(), raw=b"\xff")
    assert len(lines(stream)) == 1


def test_what_nobody_sees_is_escaped(stream: io.StringIO) -> None:
    logs.logger("tollkeeper.test")("x", path="/a\u202eb\x9b2J\u200b")
    assert hidden_in(stream.getvalue()) == ""
    assert lines(stream)[0]["path"] == "/a\u202eb\x9b2J\u200b"


def test_long_texts_are_cut(stream: io.StringIO) -> None:
    logs.logger("tollkeeper.test")("x", fact="y " * 10_000)
    assert len(stream.getvalue()) < 3_000


@pytest.mark.parametrize(
    ("level", "shown"),
    [("info", ["ours", "broken"]), ("warning", ["broken"]), ("debug", ["inside", "ours", "broken"])],
)
def test_what_libraries_do_inside_is_shown_at_debug_alone(
    stream: io.StringIO, level: str, shown: list[str]
) -> None:
    logs.configure(level, stream)
    logging.getLogger("alembic.runtime.migration").info("inside")
    logs.logger("tollkeeper.keeper")("ours")
    logging.getLogger("alembic.runtime.migration").warning("broken")
    assert [line["event"] for line in lines(stream)] == shown


def test_a_page_of_a_library_is_no_advice(stream: io.StringIO) -> None:
    error = "(psycopg.OperationalError) refused\n(Background on this error at: https://sqlalche.me/e/20/e3q8)"
    logs.logger("tollkeeper.test")("loop failed", error=error, shown=repr(error))
    (said,) = lines(stream)
    assert said["error"] == "(psycopg.OperationalError) refused"
    assert "Background" not in said["shown"]
