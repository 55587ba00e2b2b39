"""The client and the upstream of a bench: one process, told on standard input what to call.

Each line says `ports` of gateways, how many calls to make from which number on, among how many keys and
users they go in turn. What is answered is how many were served, and how many of each other status there were.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from typing import cast

import uvloop

from tests.bench.deployment import key_of
from tests.bench.load import ANSWER, Traffic, chat

CONNECTIONS = 16
ANSWERED_S_MAX = 120.0
SERVED = b"HTTP/1.1 200"
USER = b"user-00000"


class Messages(asyncio.Protocol):
    """A connection on which whole messages come, each with a Content-Length."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        """Take what came, message by message."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(self._received) < end + 4 + length:
                return
            first = bytes(self._received[: len(SERVED)])
            del self._received[: end + 4 + length]
            self.whole(first)

    def whole(self, first: bytes) -> None:
        """Act on one message, of which this is the beginning."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send."""
        assert self._transport is not None
        self._transport.write(data)


class Upstream(Messages):
    """Answers every call alike."""

    said = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n{ANSWER}"
    ).encode()

    def whole(self, first: bytes) -> None:
        """Answer."""
        self.write(self.said)


class Calls:
    """Calls that are to be made, and what became of them."""

    def __init__(self, first: int, count: int, of_keys: int, users: int) -> None:
        self._next, self._end, self._keys, self._users = first, first + count, of_keys, users
        self.served, self.lines = 0, 0
        self.others: Counter[str] = Counter()
        self.done = asyncio.get_running_loop().create_future()
        head, self._body = chat("127.0.0.1", Traffic((key_of(0),), users and 1))
        self._parts = head.split(key_of(0).encode())

    def take(self) -> bytes | None:
        """The next call; none where there is none."""
        number = self._next
        if number >= self._end:
            return None
        self._next += 1
        rest = self._parts[1]
        if self._users:
            rest = rest.replace(USER, b"user-%07d" % (1 + number % self._users))
        return self._parts[0] + key_of(number % self._keys).encode() + rest + self._body

    def ended(self, first: bytes) -> None:
        """Note the end of one by the beginning of its answer."""
        if first == SERVED:
            self.served += 1
        else:
            self.others[first[-3:].decode("ascii", "replace") or "no answer"] += 1

    def closed(self) -> None:
        """Note that a connection is closed: the last one ends it all."""
        self.lines -= 1
        if not self.lines and not self.done.done():
            self.done.set_result(None)


class Caller(Messages):
    """Makes one call after another."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls, self._asked = calls, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._calls.lines += 1
        self._ask()

    def whole(self, first: bytes) -> None:
        """Note the answer, and go on."""
        self._asked = False
        self._calls.ended(first)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        """A call that has no answer was not served."""
        if self._asked:
            self._calls.ended(b"")
        self._calls.closed()

    def _ask(self) -> None:
        message = self._calls.take()
        if message is None:
            assert self._transport is not None
            self._transport.close()
            return
        self._asked = True
        self.write(message)


async def make(ports: list[int], calls: Calls) -> None:
    """Make them over a few connections to each gateway."""
    loop = asyncio.get_running_loop()
    for number in range(max(CONNECTIONS, len(ports))):
        await loop.create_connection(lambda: Caller(calls), "127.0.0.1", ports[number % len(ports)])
    async with asyncio.timeout(ANSWERED_S_MAX):
        await calls.done


async def serve() -> None:
    """Be the upstream, and call what is asked for."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wish = json.loads(line)
        calls = Calls(wish["first"], wish["count"], wish["keys"], wish["users"])
        with suppress(OSError, TimeoutError):
            await make(wish["ports"], calls)
        print(json.dumps({"served": calls.served, "others": calls.others}), flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
