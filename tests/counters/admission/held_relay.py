"""A way to Redis whose answers come when they are let through, as many bytes as are let through."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit


class HeldRelay:
    """Passes on what is asked at once, and answers while `held` is False; else they wait in order.

    Made by `begin` inside a running loop; `url` leads here.
    """

    def __init__(self, to: str) -> None:
        place = urlsplit(to)
        self._host, self._port = place.hostname or "", place.port or 0
        self.held = False
        self.url = ""
        self._server: asyncio.Server | None = None
        self._waiting: list[tuple[asyncio.StreamWriter, bytearray]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def end(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)

    def hold(self) -> None:
        """Let nothing through from here on."""
        self.held = True

    def let_through(self, count: int | None = None) -> None:
        """So many of the bytes that wait; without a number all of them, and whatever follows."""
        self.held = count is not None
        for client, waiting in self._waiting:
            taken = bytes(waiting[:count])
            del waiting[:count]
            client.write(taken)

    def answers(self) -> None:
        """What waits before the first message that nobody asked for (a push of RESP 3)."""
        for client, waiting in self._waiting:
            until = waiting.find(b">2\r\n")
            client.write(bytes(waiting[: until if until >= 0 else None]))
            del waiting[: until if until >= 0 else None]

    def cut(self) -> None:
        """Every connection is lost, with what waits."""
        for client, waiting in self._waiting:
            waiting.clear()
            client.transport.abort()
        self._waiting.clear()

    async def _serve(self, asked: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, server = await asyncio.open_connection(self._host, self._port)
        waiting = bytearray()
        self._waiting.append((client, waiting))
        answering = asyncio.create_task(self._answer(answers, client, waiting))
        self._tasks.add(answering)
        with suppress(OSError):
            while data := await asked.read(65536):
                server.write(data)
        server.transport.abort()

    async def _answer(
        self, answers: asyncio.StreamReader, client: asyncio.StreamWriter, waiting: bytearray
    ) -> None:
        with suppress(OSError):
            while data := await answers.read(65536):
                if self.held or waiting:
                    waiting += data
                else:
                    client.write(data)
