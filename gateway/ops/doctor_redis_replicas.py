"""How replicas of Redis keep what they are told: each may be who is asked after a fail-over.

Part of the composition root. Each is asked on a connection of its own; who cannot be asked is only said,
since a service may keep its replicas to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gateway.counters.redis.address import Address
from gateway.counters.redis.asking import ask_apart
from gateway.counters.redis.info import facts_of
from gateway.errors import CountersUnavailable
from gateway.ops import doctor_redis
from gateway.ops.finding import Finding

Place = tuple[str, int]

# So many replicas are asked; CLUSTER SLOTS names no more members than are asked for slots.
REPLICAS_MAX = 128
_ALONE = "no replica follows it, so while it is away nobody takes over: let one follow, configured as it is"


@dataclass(frozen=True, slots=True)
class _Said:
    """What a replica says of itself, or why it does not."""

    info: Mapping[str, str]
    fsync: object
    trouble: str = ""


def lacking(subject: str, info: Mapping[str, str]) -> Iterator[Finding]:
    """Of a primary that may be replaced: whether there is anybody to do so."""
    if info.get("connected_slaves") == "0":
        yield Finding(True, subject, _ALONE)


def named(info: Mapping[str, str]) -> list[Place]:
    """The replicas that a primary's `INFO` names, by the addresses that they announce."""
    found = list[Place]()
    for name, value in info.items():
        if name.startswith("slave") and name[5:].isdigit():
            said = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            if said.get("ip") and said.get("port", "").isdigit():
                found.append((said["ip"], int(said["port"])))
    return found


async def of(address: Address, places: Sequence[Place], *, configured: bool) -> list[Finding]:
    """What is said of the replicas there; `configured` where their user may be asked for `CONFIG`."""
    asked = places[:REPLICAS_MAX]
    said = await asyncio.gather(*(_asked(address, each, configured=configured) for each in asked))
    return [one for place, each in zip(asked, said, strict=True) for one in _findings(place, each)]


async def _asked(address: Address, place: Place, *, configured: bool) -> _Said:
    who = address.now()
    login, fsync = (who.username, who.password), None
    try:
        (info,) = await ask_apart(address, place, login, ("INFO",))
        if configured:
            with suppress(CountersUnavailable):
                (fsync,) = await ask_apart(address, place, login, ("CONFIG", "GET", "appendfsync"))
    except CountersUnavailable as error:
        return _Said({}, None, str(error))
    return _Said(facts_of(info), fsync)


def _findings(place: Place, said: _Said) -> Iterator[Finding]:
    subject = f"redis replica {place[0]}:{place[1]}"
    if said.trouble:
        yield Finding(True, subject, f"could not be looked at, so look at its configuration: {said.trouble}")
        return
    for well, _, says in doctor_redis.kept_by_replica(said.info, said.fsync):
        yield Finding(well, subject, says)
