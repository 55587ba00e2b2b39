"""An upstream that speaks WebSockets, to be scripted by a test."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha1
from typing import Any

from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from tests.http.stage import WITHIN_S


class LiveUpstream:
    """One socket of it: `opened` is the head that asked for it, `heard` what came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: bytes) -> None:
        self.reader, self.writer, self.opened = reader, writer, opened
        self.heard: list[dict[str, Any]] = []
        self._frames = Connection(ConnectionType.SERVER)
        self._text = ""

    async def receive(self) -> dict[str, Any]:
        """The next message; `ConnectionError` at the end."""
        while True:
            for event in self._frames.events():
                if isinstance(event, CloseConnection):
                    raise ConnectionError
                if isinstance(event, TextMessage | BytesMessage):
                    self._text += str(event.data)
                    if event.message_finished:
                        said, self._text = json.loads(self._text), ""
                        self.heard.append(said)
                        return dict(said)
            data = await asyncio.wait_for(self.reader.read(65536), WITHIN_S)
            if not data:
                raise ConnectionError
            self._frames.receive_data(data)

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a type."""
        while (said := await self.receive()).get("type") != kind:
            pass
        return said

    async def send(self, *events: dict[str, Any]) -> None:
        """Send messages."""
        for one in events:
            self.writer.write(self._frames.send(TextMessage(data=json.dumps(one))))
        await self.writer.drain()

    async def close(self, code: int = 1000, why: str = "") -> None:
        """Close it politely."""
        self.writer.write(self._frames.send(CloseConnection(code=code, reason=why)))
        await self.writer.drain()


Script = Callable[[LiveUpstream], Awaitable[None]]


def playing(
    script: Script, sockets: list[LiveUpstream]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """The handler of an upstream that opens sockets, notes them, and plays a script on each."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
        lines = dict(line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
        key = next(value for name, value in lines.items() if name.lower() == b"sec-websocket-key")
        assert fields[b"upgrade"] == b"websocket"
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # RFC 6455
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-accept: %b\r\n\r\n" % accept
        )
        socket = LiveUpstream(reader, writer, head)
        sockets.append(socket)
        await script(socket)

    return handler
