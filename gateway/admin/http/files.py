"""Files that are answered piece by piece: so many at once, and none that breaks off
looks whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from gateway.admin.http.guard import DEADLINE
from gateway.admin.http.places import Places, Room
from gateway.core.accounts.administration import Actor

CSV = "text/csv; charset=utf-8"
# Of all kinds together. Each has a connection to PostgreSQL for as long as its reader takes.
ROOM = Room(staff_max=4, own_max=1, others_max=3, waiting_max=4)


class Files:
    """Answers the files of a port; `piece_s` bounds how long a reader may take for a piece."""

    def __init__(self, piece_s: float, room: Room = ROOM) -> None:
        self._piece_s = piece_s
        self._places = Places(room)

    async def answer(
        self, request: web.Request, actor: Actor, name: str, media: str, pieces: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Send the pieces as they come; what is wrong before the first one is a refusal as any other."""
        async with self._places.of(actor.organization_id), aclosing(pieces):
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


_FILES = web.AppKey("files", Files)


def files_of(app: web.Application, piece_s: float) -> Files:
    """The files of a port, which have one room together."""
    if _FILES not in app:
        app[_FILES] = Files(piece_s)
    return app[_FILES]


def headers_of(name: str, media: str) -> dict[str, str]:
    """The fields of an answer that is a file."""
    return {"Content-Type": media, "Content-Disposition": f'attachment; filename="{name}"'}
