"""Files that are answered piece by piece: whole, or seen to be broken off."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin.http.guard import CSV, Files, guard
from gateway.admin.http.server import Answers
from gateway.core.accounts.administration import Actor
from gateway.core.credentials import Failures
from gateway.errors import Unprocessable


async def _pieces(count: int, *, ends: str) -> AsyncGenerator[bytes, None]:
    if ends == "refused":
        raise Unprocessable("Not so.")
    for _ in range(count):
        yield b"piece\r\n"
    if ends == "broken":
        raise RuntimeError("broken off")


def _application(ends: str) -> web.Application:
    files = Files(30.0)

    async def file(request: web.Request) -> web.StreamResponse:
        return await files.answer(request, Actor("a", "admin"), "some.csv", CSV, _pieces(3, ends=ends))

    guarded = guard(request_timeout_s=30.0, failures=Failures(lambda: 0.0), answers=Answers())
    app = web.Application(middlewares=[guarded])
    app.router.add_get("/some.csv", file)
    return app


async def test_pieces_are_one_file() -> None:
    async with TestClient(TestServer(_application("whole"))) as client, client.get("/some.csv") as answer:
        assert (answer.status, await answer.read()) == (200, b"piece\r\n" * 3)
        assert answer.headers["Content-Type"] == CSV
        assert answer.headers["Content-Disposition"] == 'attachment; filename="some.csv"'


async def test_what_is_wrong_before_the_first_piece_is_a_refusal() -> None:
    async with TestClient(TestServer(_application("refused"))) as client, client.get("/some.csv") as answer:
        assert answer.status == 422


async def test_a_file_that_breaks_off_does_not_look_whole() -> None:
    async with TestClient(TestServer(_application("broken"))) as client:
        with pytest.raises(ClientError):
            async with client.get("/some.csv") as answer:
                await answer.read()
