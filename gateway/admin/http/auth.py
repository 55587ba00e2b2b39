"""Who is asking, and may they: bearer tokens, compared in constant time."""

from __future__ import annotations

import asyncio
import hmac
import re

from aiohttp import web

from gateway.admin import credentials
from gateway.admin.http.server import IDENTIFIED
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Actor
from gateway.core.failures import Failures
from gateway.errors import Forbidden, Unauthorized

ADMIN = "admin"
READONLY = "readonly"

_NAMED = re.compile(
    rf"{credentials.ADMIN_TOKEN}[{credentials.ALPHABET}]{{{credentials.RANDOM_CHARS}}}", re.ASCII
)
_BEARER = re.compile(r"(?i:bearer) +([!-~]{1,512})", re.ASCII)


async def identify(ports: AdminPorts, request: web.Request) -> Actor:
    """Name the caller by its `Authorization` header; `Unauthorized` if it is nobody."""
    sent = request.headers.getall("Authorization", [])
    match = _BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        nobody = Unauthorized()
        nobody.failure = "malformed" if sent else "missing"
        raise nobody
    actor = await actor_of_token(ports, match[1])
    request[IDENTIFIED] = True
    return actor


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
    digest = ports.digest(token)
    actor = _built_in(ports, digest)
    if actor is None and _NAMED.fullmatch(token):
        return await actor_of_digest(ports, digest)
    if actor is None:
        raise Unauthorized
    return actor


async def actor_of_digest(ports: AdminPorts, digest: str) -> Actor:
    """Name who holds the token of this digest; `Unauthorized` once nobody does any more."""
    actor = _built_in(ports, digest) or await ports.store.staff_token(digest)
    if actor is None:
        raise Unauthorized
    return actor


def require_write(actor: Actor) -> None:
    """Refuse a caller who may only read."""
    if actor.role != ADMIN:
        raise Forbidden


def _built_in(ports: AdminPorts, digest: str) -> Actor | None:
    # Digests have one length and hide the tokens': comparing them leaks neither.
    found = None
    for role, token in ((ADMIN, ports.admin_token), (READONLY, ports.readonly_token)):
        if token and hmac.compare_digest(digest, ports.digest(token)) and found is None:
            found = Actor(f"builtin:{role}", role)
    return found
