"""Files that are answered piece by piece: so many at once, and none that breaks off looks whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from gateway.admin.http.guard import DEADLINE
from gateway.errors import Overloaded

CSV = "text/csv; charset=utf-8"
# Of one kind of files. Each has a connection to PostgreSQL for as long as its reader takes.
FILES_MAX = 4


class Files:
    """Answers files of one kind; `piece_s` bounds how long its reader may take for a piece."""

    def __init__(self, piece_s: float) -> None:
        self._piece_s = piece_s
        self._free = asyncio.Semaphore(FILES_MAX)

    async def answer(
        self, request: web.Request, name: str, media: str, pieces: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Send the pieces as they come; what is wrong before the first one is a refusal as any other."""
        if self._free.locked():
            raise Overloaded(f"{FILES_MAX} of these are being read already: try again in a while.")
        async with self._free, aclosing(pieces):
            first = await anext(pieces)
            response = web.StreamResponse(headers=headers_of(name, media))
            await response.prepare(request)
            whole = False
            try:
                await response.write(first)
                async for piece in pieces:
                    await response.write(piece)
                    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + self._piece_s)
                await response.write_eof()
                whole = True
            finally:
                # A file that breaks off must not look whole.
                if not whole and request.transport is not None:
                    request.transport.abort()
            return response


def headers_of(name: str, media: str) -> dict[str, str]:
    """The fields of an answer that is a file."""
    return {"Content-Type": media, "Content-Disposition": f'attachment; filename="{name}"'}
