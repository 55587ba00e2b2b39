"""The limits of configuration uploads: each organization, and staff, have slots of their own.

Uploads of one organization never use the slots of others or of staff. Work is cancelled when its client
disconnects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.admin.configuration.objects import OBJECTS_MAX
from gateway.admin.http.bodies import VALUES_MAX
from gateway.admin.http.work_slots import ConcurrencyLimits, WorkSlots
from gateway.core.accounts.administration import (
    READONLY,
    Actor,
)
from gateway.errors import (
    UnsupportedEncoding,
)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits of configuration uploads: concurrent ones, bytes, JSON values, objects, and seconds of work."""

    at_once_max: int
    bytes_max: int
    values_max: int
    work_s_max: float
    objects_max: int


STAFF = UploadLimits(2, 16 * 1024 * 1024, 12 * VALUES_MAX, 300.0, OBJECTS_MAX)
# Shorter than the time staff wait for a lock on the same organization.
ORGANIZATION = UploadLimits(1, 4 * 1024 * 1024, 3 * VALUES_MAX, 45.0, 5_000)
# For callers who may only plan.
READER = replace(ORGANIZATION, objects_max=1_000)
# Maxima of all organizations together: uploads being processed, each with a database connection, and all
# uploads, including those still being received.
ORGANIZATIONS_AT_ONCE_MAX = 2
ORGANIZATIONS_THERE_MAX = 16


def share_of(actor: Actor) -> UploadLimits:
    if actor.organization_id is None:
        return STAFF
    return READER if actor.role == READONLY else ORGANIZATION


class UploadSlots:
    """The slots for uploads of configurations, by organization."""

    def __init__(self) -> None:
        self._arriving = WorkSlots(
            ConcurrencyLimits(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_THERE_MAX)
        )
        self._working = WorkSlots(
            ConcurrencyLimits(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_AT_ONCE_MAX)
        )

    @asynccontextmanager
    async def acquire(self, actor: Actor) -> AsyncIterator[UploadLimits]:
        """Acquire an upload slot for the context and yield its limits; raise `Overloaded` if none is free."""
        async with self._arriving.of(actor.organization_id):
            yield share_of(actor)

    def working(self, actor: Actor) -> AbstractAsyncContextManager[None]:
        """Acquire a slot for processing; raise `Overloaded` if other organizations use all of them."""
        return self._working.of(actor.organization_id)


async def read_within(request: web.Request, share: UploadLimits) -> bytes:
    """Return the raw body, which may be as large as the caller's upload limits allow."""
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
