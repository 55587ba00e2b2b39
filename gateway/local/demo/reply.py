"""How an answer of the demo upstream leaves: whole, in pieces, compressed, or broken off as asked."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.local.demo.request import Asked
from gateway.local.demo.turn import Turn


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: a whole body, or pieces of a stream. `turn` is the call it answers, if it is one."""

    body: bytes | Iterable[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    turn: Turn | None = None


async def send(asked: Asked, body: bytes | Iterable[bytes], writer: asyncio.StreamWriter) -> bool:
    """Send the body, or as much of it as is asked for; whether that was all."""
    cut_at = asked.number("x-demo-cut")
    bytes_left = asked.number("x-demo-cut-bytes")
    pause_s = asked.seconds("x-demo-pause-s")
    if isinstance(body, bytes):
        if asked.method != "HEAD":
            writer.write(body if bytes_left is None else body[:bytes_left])
        await writer.drain()
        return cut_at is None and (bytes_left is None or bytes_left >= len(body))
    if cut_at == 0:
        await writer.drain()
        return False
    for number, piece in enumerate(body, 1):
        if bytes_left is not None and bytes_left < len(piece):
            writer.write(b"%x\r\n%b" % (len(piece), piece[:bytes_left]))
            await writer.drain()
            return False
        bytes_left = None if bytes_left is None else bytes_left - len(piece)
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        if number == cut_at:
            return False
        if pause_s:
            await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def zipped(body: bytes | Iterable[bytes]) -> bytes | Iterator[bytes]:
    """The body compressed, a stream piece by piece."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    if isinstance(body, bytes):
        return packer.compress(body) + packer.flush()

    def pieces() -> Iterator[bytes]:
        for piece in body:
            yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield packer.flush()

    return pieces()
