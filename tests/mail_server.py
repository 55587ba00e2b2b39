"""A small mail server: takes what it is sent, under TLS where it is asked for it, and notes everything."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class FakeMailServer:
    """What it offers and refuses (by how a command begins), and what it was sent."""

    context: ssl.SSLContext | None = None
    offers: tuple[str, ...] = ("STARTTLS", "AUTH PLAIN LOGIN")
    # Sent in plain behind the answer to STARTTLS.
    injected: bytes = b""
    refuses: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    tls: bool = False
    port: int = 0

    @asynccontextmanager
    async def listening(self, *, tls: bool = False) -> AsyncIterator[FakeMailServer]:
        """Listen on its port, else on a free one."""
        encrypted = self.context if tls else None
        server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, ssl=encrypted)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            self.said.append(line)
            command = line.partition(" ")[0].upper()
            refusal = next((said for start, said in self.refuses.items() if line.startswith(start)), None)
            if refusal is not None:
                writer.write(f"{refusal}\r\n".encode())
            elif command == "STARTTLS":
                writer.write(b"220 go ahead\r\n" + self.injected)
                await writer.drain()
                assert self.context is not None
                await writer.start_tls(self.context)
                self.tls = True
            elif command == "DATA":
                writer.write(b"354 go on\r\n")
                self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
                writer.write(b"250 taken\r\n")
            elif command == "QUIT":
                break
            else:
                writer.write(self._answer(command, line))
        writer.close()

    def _answer(self, command: str, line: str) -> bytes:
        if command == "EHLO":
            return "".join(
                f"250{'-' if at < len(self.offers) else ' '}{each}\r\n"
                for at, each in enumerate(("hello", *self.offers))
            ).encode()
        if line.startswith("AUTH PLAIN"):
            return b"235 known\r\n"
        if command == "AUTH" or line == base64.b64encode(b"user").decode():
            return b"334 \r\n"
        if line == base64.b64encode(b"p@ss").decode():
            return b"235 known\r\n"
        return b"250 fine\r\n"
