"""Who is asking, and may they: bearer tokens, compared in constant time."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from aiohttp import web

from gateway.admin import credentials
from gateway.admin.http.places import Places
from gateway.admin.http.server import HELD, IDENTIFIED
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.resource import Answered
from gateway.core.accounts.administration import Actor
from gateway.core.accounts.hours import METER, Hour, Hours
from gateway.core.accounts.roles import ADMIN, READONLY, refused_read, refused_write
from gateway.core.failures import Failures
from gateway.core.issuers.sign_in import Person
from gateway.errors import Forbidden, ReadOnly, Unauthorized

PLACES = web.AppKey("places", Places)
HOURS = web.AppKey("hours", Hours)
# What an address begins with that answers what may be of any size; and what one ends with that is a file.
COSTLY = frozenset({"usage", "reports", "receivables", "spend", "configuration"})
COSTLY_FILES = (".csv", ".parquet", ".pdf", ".xml")
_NAMED = re.compile(
    rf"{credentials.ADMIN_TOKEN}[{credentials.ALPHABET}]{{{credentials.RANDOM_CHARS}}}", re.ASCII
)
_BEARER = re.compile(r"(?i:bearer) +([!-~]{1,512})", re.ASCII)


async def admit(ports: AdminPorts, request: web.Request) -> AdminPorts:
    """The ports as the caller may use them, known by its `Authorization` header."""
    return ports.of(await identify(ports, request))


async def identify(ports: AdminPorts, request: web.Request) -> Actor:
    """Name the caller by its `Authorization` header; `Unauthorized` if it is nobody."""
    sent = request.headers.getall("Authorization", [])
    match = _BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        nobody = Unauthorized()
        nobody.failure = "malformed" if sent else "missing"
        raise nobody
    actor = await actor_of_token(ports, match[1])
    await take_place(request, actor.organization_id)
    return actor


async def take_place(request: web.Request, organization_id: int | None) -> None:
    """Note that a request is somebody's, and have it one of their places until it is answered.

    There are some for each organization, and apart from all of these for staff: whatever some ask, nobody
    else waits behind it. What costs much counts for the organization's hour, too.
    """
    request[IDENTIFIED] = True
    counts = organization_id is not None and costs_much(request)
    hour = request.app[HOURS].of(organization_id) if organization_id is not None and counts else None
    await request[HELD].enter_async_context(request.app[PLACES].of(organization_id))
    if hour is not None:
        request[HELD].enter_context(_counted(hour))


def costs_much(request: web.Request) -> bool:
    """Whether who asks decides how much there is to do: for a report, a file, a document, a configuration."""
    route = request.match_info.route.resource
    path = "" if route is None else route.canonical.removeprefix("/admin/v1")
    return not COSTLY.isdisjoint(path.split("/")[1:2]) or path.endswith(COSTLY_FILES)


@contextmanager
def _counted(hour: Hour) -> Iterator[None]:
    meter, began = METER.get(), time.monotonic()
    if meter is not None:
        meter.hour = hour
    try:
        yield
    finally:
        hour.work_s += time.monotonic() - began


async def slow_down(failures: Failures, request: web.Request, reason: str) -> None:
    """Count a wrong credential; whoever sends many waits for each answer."""
    delay_s = failures.count(request.remote or "", reason)
    if delay_s:
        failures.delayed += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            failures.delayed -= 1


async def actor_of_token(ports: AdminPorts, token: str) -> Actor:
    """Name who holds a token; `Unauthorized` if nobody does."""
    return (await known_token(ports, token))[0]


async def known_token(ports: AdminPorts, token: str) -> tuple[Actor, str]:
    """Name who holds a token, and by which of its digests; `Unauthorized` if nobody does."""
    first, *earlier = ports.peppers.digests(token)
    actor = _built_in(ports, first)
    if actor is not None:
        return actor, first
    for digest in (first, *earlier) if _NAMED.fullmatch(token) else ():
        actor = await ports.store.staff_token(digest)
        if actor is not None:
            return actor, digest
    raise Unauthorized


async def known_person(ports: AdminPorts, person: Person) -> tuple[Actor, str] | None:
    """Name whose role a person has, and by which digest; None where no admin token stands for them.

    Where that of their first subject has ended, the next one's does not stand for them.
    """
    for known_as in person.known_as:
        digests = ports.peppers.digests(known_as)
        for digest in digests:
            actor = await ports.store.staff_token(digest)
            if actor is not None:
                return replace(actor, person=person.who), digest
        for digest in digests:
            if await ports.store.has_ended_token(digest):
                return None
    return None


async def actor_of_digest(ports: AdminPorts, digest: str) -> Actor:
    """Name who holds the token of this digest; `Unauthorized` once nobody does any more."""
    actor = _built_in(ports, digest) or await ports.store.staff_token(digest)
    if actor is None:
        raise Unauthorized
    return actor


def require_read(actor: Actor, answered: Answered) -> None:
    """Refuse a caller whose role may not read something, or not of all organizations."""
    refused = refused_read(actor, answered.name, answered.access)
    if refused is not None:
        raise Forbidden(refused)


def require_write(actor: Actor, answered: Answered, verb: str, sent: Collection[str] = ()) -> None:
    """Refuse a caller whose role may not do something, or not with these fields."""
    refused = refused_write(actor, answered.name, answered.access, verb, sent)
    if refused is not None:
        raise ReadOnly(refused) if actor.role == READONLY else Forbidden(refused)


def may_write(actor: Actor, answered: Answered, verb: str) -> bool:
    """Whether a caller may do something with some fields."""
    return refused_write(actor, answered.name, answered.access, verb) is None


def _built_in(ports: AdminPorts, digest: str) -> Actor | None:
    # Digests have one length and hide the tokens': comparing them leaks neither.
    found = None
    for role, token in ((ADMIN, ports.built_in.admin), (READONLY, ports.built_in.readonly)):
        if token and hmac.compare_digest(digest, ports.peppers.digest(token)) and found is None:
            found = Actor(f"builtin:{role}", role)
    return found
