"""A server that speaks RESP as badly as a test wants: it greets properly, then says what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import hiredis

from gateway.counters.redis.keys import SHARD

RUN_ID = b"a" * 40
Answer = Callable[[list[bytes]], bytes | None]


class FakeRedis:
    """`chunks` are the reads of the last connection after its greeting; `connections` counts them.
    `mode` is what it says of itself, if anything.
    """

    def __init__(self, answer: Answer, mode: bytes) -> None:
        self.chunks: list[list[list[bytes]]] = []
        self.connections = 0
        self.url = ""
        self.mode = mode
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        while data := await reader.read(1 << 20):
            parser.feed(data)
            commands: list[list[bytes]] = []
            while (command := parser.gets()) is not False:
                commands.append(cast("list[bytes]", command))
            if not all(greeting(one) or one[0] in (b"FUNCTION", b"AUTH", b"SELECT") for one in commands):
                self.chunks.append(commands)
            for command in commands:
                answer = greeting(command, self.mode) or self._answer(command)
                if answer is None:
                    continue
                writer.write(answer)
        writer.close()


def greeting(command: list[bytes], mode: bytes = b"") -> bytes | None:
    if command[0] == b"INFO":
        said = b"redis_mode:" + mode + b"\r\n" if mode else b""
        return bulk(b"# Server\r\n" + said + b"run_id:" + RUN_ID + b"\r\n")
    if command[:2] == [b"FUNCTION", b"LIST"]:
        return b"*1\r\n" + bulk(command[3])
    return b"$-1\r\n" if command == [b"GET", SHARD] else None


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


@asynccontextmanager
async def fake_redis(answer: Answer, mode: bytes = b"") -> AsyncIterator[FakeRedis]:
    """Serve on a free port until the block ends."""
    fake = FakeRedis(answer, mode)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port: Any = server.sockets[0].getsockname()[1]
    fake.url = f"redis://127.0.0.1:{port}"
    try:
        yield fake
    finally:
        server.close()
