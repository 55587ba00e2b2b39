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
    user, ours = address.username or "default", "gateway" if role == "serve" else "keeper"
    needed = rights.needed(role, clustered=bool(address.members), database=address.database)
    # Redis notes what it refuses: only who is likely to may do anything is asked for more than is needed.
    beyond: tuple[str, ...] = (rights.NOBODYS,) if user == "default" else ()
    if role == "serve":
        beyond = (rights.KEEPERS_ALONE, rights.NOBODYS)
    wire = Wire(address, time.monotonic, call_s=answer_max_s)
    try:
        await wire.open()
        lacking = await rights.refused(wire, *needed)
        if lacking.by_rights:
            return _lacks(user, ours, lacking.by_rights)
        if absent := [one for one in lacking.by_server if one not in rights.WITHOUT]:
            said = f"this server has not what a {ours} needs ({_few(absent)})"
            return False, _REDIS, f"{user}: {said}: {hints.redis('unknown command')}"
        return _may(user, ours, lacking.by_server, await _more(wire, beyond))
    except (TollkeeperError, OSError) as error:
        return False, _REDIS, f"{user}: {error}; {hints.redis(str(error))}"
    finally:
        await wire.close()


async def _more(wire: Wire, beyond: tuple[str, ...]) -> list[str]:
    """What may be done beyond what is needed, as far as each may be when the one before it may."""
    more: list[str] = []
    for each in beyond:
        if await rights.refused(wire, each):
            break
        more.append(each)
    return more


def _few(commands: list[str]) -> str:
    others = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return commands[0] + others


def _lacks(user: str, role: str, lacking: list[str]) -> Seen:
    said = f"{user} may not do what a {role} does ({_few(lacking)})"
    return False, _REDIS, f"{said}: use tollkeeper-{role} of deploy/users.acl"


def _may(user: str, role: str, without: list[str], more: list[str]) -> Seen:
    ours = f"tollkeeper-{role} of deploy/users.acl"
    missed = {rights.WITHOUT[one]: one.removesuffix(" OFF") for one in without}
    lacks = "".join(f"; this server has no {one}, {so}" for so, one in missed.items())
    if rights.NOBODYS in more:
        return True, _REDIS, f"{user} may do anything; {ours} may do what a {role} does{lacks}"
    if more:
        said = f"{user} may write who has which key and what it costs, as a keeper does"
        return False, _REDIS, f"{said}: use {ours}"
    return True, _REDIS, f"{user} may do what a {role} does{lacks}"


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
