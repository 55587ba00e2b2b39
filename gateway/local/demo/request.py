"""One request to the demo upstream, read from a socket: enough HTTP/1.1 for a demonstration."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

BODY_BYTES_MAX = 64 * 1024 * 1024
DELAY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    raw_headers: list[tuple[str, str]]
    content: bytes

    @property
    def path(self) -> str:
        """The decoded path."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's parameters."""
        return parse_qs(self.target.partition("?")[2])

    def json(self) -> dict[str, Any]:
        """The body as an object; empty for anything else."""
        try:
            found = json.loads(self.content)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def number(self, name: str) -> int | None:
        """A whole number a request asks for, None where it asks for none."""
        value = self.headers.get(name, "")
        return int(value) if value.isdecimal() else None

    def seconds(self, name: str) -> float:
        """A pause a request asks for."""
        try:
            return min(max(float(self.headers.get(name, "0")), 0.0), DELAY_MAX_S)
        except ValueError:
            return 0.0


async def read(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    """The request that begins with this head; None for what cannot be one."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        return None
    raw = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    headers = {name.lower(): value for name, value in raw}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        content = await _chunked(reader)
    else:
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            return None
        content = await reader.readexactly(length)
    return Asked(words[0], words[1], headers, raw, content)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while size := int((await reader.readline()).split(b";")[0], 16):
        total += size
        if total > BODY_BYTES_MAX:
            raise OSError("body too large")
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)
