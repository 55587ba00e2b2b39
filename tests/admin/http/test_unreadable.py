"""Whoever sends the admin port what is no HTTP fills no log, and what was sent stands in none."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadStatusLine

from gateway.admin.http.server import TOLD_EACH_S, Unreadable, listen
from gateway.telemetry.logs import JsonLines

GARBAGE = (
    b"\x16\x03\x01 hush hush\r\n\r\n",
    b"GET /hush HTTP/1.1\r\nhush hush\r\n\r\n",
    b"GET /hush HTTP/9.hush\r\n\r\n",
    b"GET /" + b"hush" * 10_000 + b" HTTP/1.1\r\n\r\n",
)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the log says, as it is written."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(JsonLines().format(record))

    root, handler = logging.getLogger(), Keep()
    root.addHandler(handler)
    yield found
    root.removeHandler(handler)


async def sent(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_what_is_no_http_is_told_once_and_not_what_it_was(lines: list[str]) -> None:
    port = await listen(web.Application(), "127.0.0.1", 0)
    try:
        for _ in range(3):
            for raw in GARBAGE:
                assert b" 400 " in (await sent(port.port, raw)).split(b"\r\n")[0]
    finally:
        await port.stop()
    (line,) = (json.loads(one) for one in lines if "admin" in one)
    assert line["event"] == "what came to the admin port is no HTTP"
    assert line["level"] == "warning"
    assert not any("hush" in one for one in lines)


async def test_what_a_handler_did_wrong_is_told_as_before(lines: list[str]) -> None:
    async def broken(_: web.Request) -> web.Response:
        raise RuntimeError("the handler broke")

    app = web.Application()
    app.router.add_get("/", broken)
    port = await listen(app, "127.0.0.1", 0)
    try:
        for _ in range(2):
            assert b" 500 " in await sent(
                port.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
    finally:
        await port.stop()
    assert len([one for one in lines if "the handler broke" in one]) == 2


def test_each_while_it_is_told_how_many_there_were() -> None:
    now = 100.0
    told = Unreadable(lambda: now)

    def passed() -> int | None:
        error = BadStatusLine("hush")
        record = logging.LogRecord("x", logging.ERROR, "", 0, "hush", (), (BadStatusLine, error, None))
        if not told.filter(record):
            return None
        facts = record.__dict__["facts"]
        assert "hush" not in f"{record.getMessage()} {facts}"
        return int(facts["requests"])

    assert [passed() for _ in range(4)] == [1, None, None, None]
    now += TOLD_EACH_S
    assert [passed(), passed()] == [4, None]
