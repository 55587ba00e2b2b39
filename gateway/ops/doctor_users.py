"""Whether the users of Redis and PostgreSQL may do what a process does, or more than that.

Part of the composition root. What is lacking is wrong; what is beyond is only said, since one user for
everything is well enough where one person runs everything.
"""

from __future__ import annotations

import time

from gateway.counters.keeper import rights
from gateway.counters.redis.address import Address
from gateway.counters.redis.wire import Wire
from gateway.errors import TollkeeperError
from gateway.ops import hints

# Whether it is well, what was looked at, and what is said of it.
Seen = tuple[bool, str, str]

_REDIS, _POSTGRESQL, _OWNER = "redis user", "postgresql user", "postgresql owner"
_GUIDE = "(deploy/README.md, PostgreSQL)"


async def of_redis(address: Address, role: str, answer_max_s: float) -> Seen:
    """Whether the user of an address may do what a process of this role does, and is not the other's."""
    user = address.username or "default"
    wire = Wire(address, time.monotonic, call_s=answer_max_s)
    try:
        await wire.open()
        if role == "serve":
            beyond: tuple[str, ...] = (rights.KEEPERS_ALONE, rights.NOBODYS)
            return _seen(user, "gateway", *await _asked(wire, rights.BOTH, beyond))
        # Redis notes what it refuses: only who is likely to may do anything is asked for more than is needed.
        beyond = (rights.NOBODYS,) if user == "default" else ()
        return _seen(user, "keeper", *await _asked(wire, rights.BOTH + rights.KEEPER, beyond))
    except (TollkeeperError, OSError) as error:
        return False, _REDIS, f"{user}: {error}; {hints.redis(str(error))}"
    finally:
        await wire.close()


async def _asked(wire: Wire, needed: tuple[str, ...], beyond: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What is lacking, and what may be done beyond it, as far as each may be when the one before it may."""
    lacking, more = await rights.refused(wire, *needed), []
    for each in beyond if not lacking else ():
        if await rights.refused(wire, each):
            break
        more.append(each)
    return lacking, more


def _seen(user: str, role: str, lacking: list[str], more: list[str]) -> Seen:
    ours = f"tollkeeper-{role} of deploy/users.acl"
    if lacking:
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        said = f"{user} may not do what a {role} does ({lacking[0]}{others})"
        return False, _REDIS, f"{said}: use {ours}"
    if rights.NOBODYS in more:
        return True, _REDIS, f"{user} may do anything; {ours} may do what a {role} does"
    if more:
        said = f"{user} may write who has which key and what it costs, as a keeper does"
        return False, _REDIS, f"{said}: use {ours}"
    return True, _REDIS, f"{user} may do what a {role} does"


def of_postgresql(url: str, owner_url: str) -> list[Seen]:
    """Whether a keeper's user may do what a keeper does, and the owner, if it is another, owns the tables."""
    from persistence.schema.roles import privileges  # noqa: PLC0415  # heavy to load

    seen: list[Seen] = []
    try:
        found = privileges(url)
    except TollkeeperError as error:
        return [(False, _POSTGRESQL, f"{error}; {hints.postgresql(str(error))}")]
    if found.lacking:
        seen.append((False, _POSTGRESQL, found.complaint()))
    elif found.beyond:
        needs = f"a keeper needs no more than to be in {found.writer} {_GUIDE}"
        seen.append((True, _POSTGRESQL, f"{found.user} {' and '.join(found.beyond)}; {needs}"))
    else:
        seen.append((True, _POSTGRESQL, f"{found.user} may do what a keeper does, and no more"))
    if owner_url == url:
        return seen
    try:
        owner = privileges(owner_url)
    except TollkeeperError as error:
        return [*seen, (False, _OWNER, f"{error}; look at TOLLKEEPER_DATABASE_OWNER_URL")]
    if owner.owns:
        return [*seen, (True, _OWNER, f"{owner.user} owns the tables")]
    said = f"{owner.user} does not own the tables: TOLLKEEPER_DATABASE_OWNER_URL must be of who migrates"
    return [*seen, (False, _OWNER, said)]
