"""Who asks at the admin port, by a bearer token, and how many of their requests are answered at once.

Tokens are compared in constant time.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from aiohttp import web

from gateway.admin import credentials
from gateway.admin.http.server import HELD, IDENTIFIED
from gateway.admin.http.work_slots import WorkSlots
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import ADMIN, READONLY, Actor
from gateway.core.accounts.hourly_budget import METER, HourlyUse, Hours
from gateway.core.failures import Failures
from gateway.core.issuers import Person
from gateway.errors import (
    Unauthorized,
)

PLACES = web.AppKey("places", WorkSlots)
HOURS = web.AppKey("hours", Hours)
# The client's address, if one of our gateways has forwarded the request.
SENDER = web.RequestKey("sender", str)
# First path segments of answers of any size, and the endings of files. Reports of vendors' Admin APIs are at
# /v1.
COSTLY = frozenset({"usage", "reports", "receivables", "spend", "configuration", "v1"})
COSTLY_FILES = (".csv", ".parquet", ".pdf", ".xml")
# A replay of budgets reads as many calls as its caller names.
COSTLY_QUESTIONS = ("/budgets/replay",)
_NAMED = re.compile(
    rf"{credentials.ADMIN_TOKEN}[{credentials.ALPHABET}]{{{credentials.RANDOM_CHARS}}}", re.ASCII
)
BEARER = re.compile(r"(?i:bearer) +([!-~]{1,512})", re.ASCII)


async def admit(ports: AdminPorts, request: web.Request) -> AdminPorts:
    """Return the ports limited to the rights of the caller, whom the `Authorization` header identifies."""
    return ports.of(await identify(ports, request))


async def identify(ports: AdminPorts, request: web.Request) -> Actor:
    """Return the actor of the request's `Authorization` header; raise `Unauthorized` if it is invalid."""
    return await identify_by(ports, request, request.headers.getall("Authorization", []))


async def identify_by(ports: AdminPorts, request: web.Request, sent: Sequence[str]) -> Actor:
    """Return the actor of the `sent` credentials, which must be one `Bearer` token."""
    match = BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        nobody = Unauthorized()
        nobody.failure = "malformed" if sent else "missing"
        raise nobody
    actor = (await known_token(ports, match[1]))[0]
    await take_place(request, actor.organization_id)
    return actor


async def take_place(request: web.Request, organization_id: int | None) -> None:
    """Mark a request as identified, and acquire a work slot of its organization until it is answered.

    Each organization has slots, and staff have separate ones, so nobody waits for another's requests.
    Expensive requests also count against the organization's hourly budget.
    """
    request[IDENTIFIED] = True
    counts = organization_id is not None and costs_much(request)
    hour = request.app[HOURS].of(organization_id) if organization_id is not None and counts else None
    await request[HELD].enter_async_context(request.app[PLACES].of(organization_id))
    if hour is not None:
        request[HELD].enter_context(_counted(hour))


def costs_much(request: web.Request) -> bool:
    """Return whether the caller decides how much work a request is: report, file or configuration."""
    route = request.match_info.route.resource
    path = "" if route is None else route.canonical.removeprefix("/admin/v1")
    return not COSTLY.isdisjoint(path.split("/")[1:2]) or path.endswith(COSTLY_FILES + COSTLY_QUESTIONS)


@contextmanager
def _counted(hour: HourlyUse) -> Iterator[None]:
    meter, began = METER.get(), time.monotonic()
    if meter is not None:
        meter.hour = hour
    try:
        yield
    finally:
        hour.work_s += time.monotonic() - began


async def slow_down(failures: Failures, request: web.Request, reason: str) -> None:
    """Count a wrong credential; after many, delay the answer to this sender."""
    delay_s = failures.count(sent_from(request), reason)
    if delay_s:
        failures.delayed += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            failures.delayed -= 1


def sent_from(request: web.Request) -> str:
    """Return the address of the sender; "" if it is unknown."""
    return request.get(SENDER) or request.remote or ""


async def known_token(ports: AdminPorts, token: str) -> tuple[Actor, str]:
    """Return the actor of a token, and the token's stored digest; raise `Unauthorized` if there is none."""
    first, *earlier = ports.peppers.digests(token)
    actor = _built_in(ports, first)
    if actor is not None:
        return actor, first
    if not _NAMED.fullmatch(token):
        raise Unauthorized
    for digest in (first, *earlier):
        actor = await ports.store.staff_token(digest)
        if actor is not None:
            return actor, digest
    raise Unauthorized


async def known_key(ports: AdminPorts, key: str) -> tuple[Actor, str]:
    """Return the actor of an API key, and the key's stored digest; raise `Unauthorized` if there is none."""
    for digest in ports.peppers.digests(key):
        actor = await ports.store.key_holder(digest)
        if actor is not None:
            return actor, digest
    raise Unauthorized


async def known_person(ports: AdminPorts, person: Person) -> tuple[Actor, str] | None:
    """Return the actor and the admin token's digest of a person signed in by a provider; else None.

    A person may be known by several subjects. If the token of one has ended, those of later ones are not
    used.
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
    """Return the actor of the token or key with this digest; raise `Unauthorized` if it is invalid."""
    actor = _built_in(ports, digest) or await ports.store.staff_token(digest)
    actor = actor or await ports.store.key_holder(digest)
    if actor is None:
        raise Unauthorized
    return actor


def _built_in(ports: AdminPorts, digest: str) -> Actor | None:
    """Return the actor of a token that settings name; None for another one."""
    # Digests have one length and hide the tokens': comparing them leaks neither.
    actor = None
    for role, token in ((ADMIN, ports.built_in.admin), (READONLY, ports.built_in.readonly)):
        if token and hmac.compare_digest(digest, ports.peppers.digest(token)) and actor is None:
            actor = Actor(f"builtin:{role}", role)
    return actor
