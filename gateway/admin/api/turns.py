"""Who may work with a whole configuration at a time: everybody has a share of their own, and it is bounded.

What one organization's people send never takes the turns of others, least of all those of staff. Whoever
hangs up has their work ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aiohttp import web

from gateway.admin.configuration.objects import OBJECTS_MAX
from gateway.admin.http.body import VALUES_MAX
from gateway.admin.http.places import Places, Room
from gateway.core.accounts.administration import Actor
from gateway.core.accounts.roles import READONLY
from gateway.errors import UnsupportedEncoding

T = TypeVar("T")

# How often it is looked whether whoever asked is there still.
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Share:
    """How many at once, how much each may send (bytes, values in them, objects), and how long it may take."""

    at_once_max: int
    bytes_max: int
    values_max: int
    work_s_max: float
    objects_max: int


STAFF = Share(2, 16 * 1024 * 1024, 12 * VALUES_MAX, 300.0, OBJECTS_MAX)
# Less than staff wait who touch something of the same organization.
ORGANIZATION = Share(1, 4 * 1024 * 1024, 3 * VALUES_MAX, 45.0, 5_000)
# Of who may only plan.
READER = replace(ORGANIZATION, objects_max=1_000)
# Of all organizations together: who work, each with a connection of the Admin API's, and who are there,
# those whose bodies are still coming with them.
ORGANIZATIONS_AT_ONCE_MAX = 2
ORGANIZATIONS_THERE_MAX = 16


def share_of(actor: Actor) -> Share:
    """What a caller has."""
    if actor.organization_id is None:
        return STAFF
    return READER if actor.role == READONLY else ORGANIZATION


class Turns:
    """Turns that are taken, by organization."""

    def __init__(self) -> None:
        self._there = Places(Room(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_THERE_MAX))
        self._working = Places(Room(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_AT_ONCE_MAX))

    @asynccontextmanager
    async def taken(self, actor: Actor) -> AsyncIterator[Share]:
        """Have one of the caller's own; `Overloaded` where all of these are taken."""
        async with self._there.of(actor.organization_id):
            yield share_of(actor)

    def working(self, actor: Actor) -> AbstractAsyncContextManager[None]:
        """Have a place to work in, once all is read; `Overloaded` where other organizations have them."""
        return self._working.of(actor.organization_id)


async def read_within(request: web.Request, share: Share) -> bytes:
    """What was sent, as it came: more than other requests may send, within the caller's share."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    if (request.content_length or 0) > share.bytes_max:
        raise web.HTTPRequestEntityTooLarge(share.bytes_max, request.content_length or 0)
    read = bytearray()
    async for piece in request.content.iter_any():
        read += piece
        if len(read) > share.bytes_max:
            raise web.HTTPRequestEntityTooLarge(share.bytes_max, len(read))
    return bytes(read)


async def while_asked(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something that changes nothing, until it is done or whoever asked is gone."""
    doing = asyncio.ensure_future(work)
    try:
        while not doing.done():
            await asyncio.wait({doing}, timeout=LOOK_S)
            if request.transport is None or request.transport.is_closing():
                break
    finally:
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})
    if doing.cancelled():
        raise ConnectionResetError
    return doing.result()
