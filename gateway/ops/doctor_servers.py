"""Whether Redis is fit for Tollkeeper: one server, or each primary of a cluster; and who may take over.

Part of the composition root. Of a cluster each primary is a subject of its own, by its place.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from gateway.core.calls.binding import Bindings
from gateway.core.shown_urls import without_password
from gateway.core.wait import in_task
from gateway.counters.admission.stored import services_of, version_standing
from gateway.counters.data_names import history
from gateway.counters.keeper.presence import Keeping, heard
from gateway.counters.redis import keys
from gateway.counters.redis.address import Address, parse_url
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.connecting import wires_to
from gateway.counters.redis.info import facts_of
from gateway.counters.redis.scripts import VERBS, library
from gateway.counters.redis.shards import Shards
from gateway.counters.redis.verified import ask_word
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersRefused, SettingError, TollkeeperError
from gateway.ops import doctor_redis, doctor_redis_replicas, doctor_users, hints
from gateway.ops.doctor_peppers import of_keeper
from gateway.ops.finding import Finding
from gateway.settings.settings import Settings

REDIS_VERSION_MIN = (7, 0)
ANSWER_MAX_S = 5.0
_LISTS = keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD


@dataclass(frozen=True, slots=True)
class _Server:
    """What one server said. `covers` is its cluster-require-full-coverage; empty where nobody may ask."""

    info: dict[str, str]
    confirmed: bytes
    named: bytes
    loaded: bool
    covers: str
    fsync: object
    certificate_end: float | None
    address: Address
    asked_at: float


async def examine_redis(settings: Settings, role: str) -> AsyncIterator[Finding]:
    """Look at what a process of this role needs of Redis."""
    shown = without_password(settings.redis_url)
    wires: Wires | None = None
    try:
        address = parse_url(settings.redis_url, settings.redis_files)
        wires = wires_to(address, lambda where: Wire(where, time.monotonic, call_s=ANSWER_MAX_S))
        await wires.open()
        if not await wires.connected_within(ANSWER_MAX_S):
            yield Finding(False, "redis", f"{shown}: {wires.trouble}; {hints.redis(wires.trouble)}")
        servers = {_name_of(wires, one): await _asked(one, address) for one in wires.wires if one.connected}
        lists = {name: await _read(wires, name.encode()) for name in _LISTS}
        keeping, may_ask = await _keeping(wires)
    except (TollkeeperError, OSError, TimeoutError) as error:
        why = str(error).rstrip(": ") or f"no answer within {ANSWER_MAX_S:g} s"
        yield Finding(False, "redis", f"{shown}: {why}; {hints.redis(why)}")
        return
    finally:
        if wires is not None:
            await wires.close()
    if isinstance(wires, Shards):
        yield _cluster(shown, wires)
    for subject, server in servers.items():
        for finding in _server(settings, subject, shown, server):
            yield finding
    for finding in await _replicas(address, wires, servers):
        yield finding
    ran_before = any(server.confirmed for server in servers.values())
    for finding in _missing(lists) if ran_before else ():
        yield finding
    for finding in of_keeper(settings, role, keeping, ran_before) if may_ask else ():
        yield finding
    for finding in _services(settings, lists[keys.CATALOGUE]) if role != "keeper" else ():
        yield finding
    for subject, server in servers.items():
        well, of, says = await doctor_users.of_redis(server.address, role, ANSWER_MAX_S)
        yield Finding(well, of if subject == "redis" else f"{of} at {subject.partition(' ')[2]}", says)


async def _read(wires: Wires, name: bytes) -> Reply | CountersRefused:
    """What is there, or why it cannot be read."""
    try:
        return await in_task(wires.of_key(name).send(encode(b"GET", name)))
    except CountersRefused as error:
        return error


def _missing(lists: Mapping[str, Reply | CountersRefused]) -> Iterator[Finding]:
    """Lists of everybody that are not there, or something else is, though a keeper has written them once."""
    lacking: dict[str, list[str]] = {}
    for name, raw in lists.items():
        if not isinstance(raw, bytes) or version_standing(raw) < 0:
            odd = "no list that can be read" if isinstance(raw, bytes) else "not there"
            lacking.setdefault(raw.message if isinstance(raw, CountersRefused) else odd, []).append(name)
    for why, names in lacking.items():
        said = f"{', '.join(names)}: {why.rstrip('.')}, so gateways that start refuse calls or know no prices"
        hint = "run tollkeeper keeper, which writes this again within seconds, or look at its log"
        yield Finding(False, "redis", f"{said}; {hint}")


async def _keeping(wires: Wires) -> tuple[Keeping | None, bool]:
    """What the keeper that spoke last says, and whether this user may know."""
    try:
        return await heard(wires), True
    except CountersRefused:  # users of an older deploy/users.acl; which right is lacking is said of the user
        return None, False


def _name_of(wires: Wires, wire: Wire) -> str:
    """What is said of a server is said of this."""
    if not isinstance(wires, Shards):
        return "redis"
    host, port = wires.place_of(wire)
    return f"redis {host}:{port}"


async def _asked(wire: Wire, address: Address) -> _Server:
    info, asked_at = await _info(wire), time.time()
    confirmed = await in_task(ask_word(wire))
    named = await in_task(wire.send(encode(b"GET", keys.history(wire.part.anchor).encode())))
    known = await in_task(wire.send(encode(b"FUNCTION", b"LIST", b"LIBRARYNAME", library().name.encode())))
    asks = _asks(address)
    covers = await _if_allowed(wire, "cluster-require-full-coverage") if asks and address.members else None
    fsync = await _if_allowed(wire, "appendfsync") if asks else None
    return _Server(
        info, _text(confirmed), _text(named), isinstance(known, list) and bool(known),
        _text(covers[1]).decode() if isinstance(covers, list) and len(covers) > 1 else "", fsync,
        wire.certificate_end, wire.address, asked_at,
    )  # fmt: skip


async def _replicas(address: Address, wires: Wires, servers: Mapping[str, _Server]) -> list[Finding]:
    """What is said of those who may take over, where somebody would have them do it."""
    if not (address.sentinels or address.members):
        return []
    found = [
        finding
        for subject, server in servers.items()
        for finding in doctor_redis_replicas.lacking(subject, server.info)
    ]
    if isinstance(wires, Shards):
        primaries = {one.place for one in wires.map.owned} | {wires.place_of(one) for one in wires.wires}
        places = [one for one in wires.map.members if one not in primaries]
    else:
        places = [one for server in servers.values() for one in doctor_redis_replicas.named(server.info)]
    return found + await doctor_redis_replicas.of(address, places, configured=_asks(address))


def _asks(address: Address) -> bool:
    """Whether a user may be asked for `CONFIG`. One of `users.acl` may not, and what a server refuses stands
    in its log of attacks.
    """
    return address.username in ("", "default")


async def _if_allowed(wire: Wire, name: str) -> Reply:
    """What a server is configured with; None where its user may not ask that."""
    with suppress(CountersRefused):
        return await in_task(wire.send(encode(*f"CONFIG GET {name}".encode().split())))
    return None


def _cluster(shown: str, shards: Shards) -> Finding:
    """Whether each partition has a primary."""
    lacking = [one for one in shards.partitions if not shards.of(one).part.partitions]
    there = f"{shown} is a cluster of {len(shards.wires)} primaries"
    if not lacking:
        return Finding(True, "redis", there)
    said = f"{there}, of which none has the slots of {len(lacking)} partitions"
    return Finding(False, "redis", f"{said}: give each slot to a primary (CLUSTER SHARDS)")


def _server(settings: Settings, subject: str, shown: str, server: _Server) -> Iterator[Finding]:
    info = server.info
    version = info.get("valkey_version") or info.get("redis_version", "0")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    name = "Valkey" if "valkey_version" in info else "Redis"
    what = shown if subject == "redis" else "it"
    yield Finding(
        numbers >= REDIS_VERSION_MIN, subject, f"{what} is {name} {version} (7.0 or newer is needed)"
    )
    if server.certificate_end is not None:
        until = f"{datetime.fromtimestamp(server.certificate_end, UTC):%Y-%m-%d}"
        yield Finding(True, subject, f"its certificate is valid until {until}")
    elif settings.redis_url.startswith(("redis://", "redis+")) and any(asdict(settings.redis_files).values()):
        said = "there is a TOLLKEEPER_REDIS_*_FILE for TLS, but nothing is encrypted"
        yield Finding(False, subject, f"{said}: TOLLKEEPER_REDIS_URL must begin with rediss")
    for well, of, says in doctor_redis.kept(info, server.fsync, server.asked_at):
        yield Finding(well, subject if of == "redis" else of, says)
    if server.covers:
        alone = server.covers == "no"
        hint = "CONFIG SET cluster-require-full-coverage no, or a primary that is away stops all of them"
        said = f"cluster-require-full-coverage is {server.covers}"
        yield Finding(alone, subject, said if alone else f"{said}: {hint}")
    elif server.address.members:
        said = "cluster-require-full-coverage is not told to this user: see that it is no"
        yield Finding(True, subject, said)
    loaded = "are loaded" if server.loaded else "cannot be loaded"
    yield Finding(server.loaded, subject, f"{len(VERBS)} scripts {loaded}")
    here = history(info.get("run_id", "").encode(), server.named)
    yield verification(subject, server.confirmed, here)


def _services(settings: Settings, catalogue: object) -> Iterator[Finding]:
    """Services whose calls are refused, for they go nowhere or could be had at another price."""
    services = services_of(catalogue)
    targets = {target.name: target for target in settings.upstreams}
    try:
        settings.table.check_services(services)
    except SettingError as error:
        yield Finding(False, "settings", error.message)
    bound = Bindings(settings.routes, targets, settings.services, services)
    for key, name in bound.unplaced():
        yield Finding(
            False, f"service {key}", f"its upstream {name} is not one of {', '.join(sorted(targets))}"
        )
    for one, other, name in bound.conflicts():
        said = f"shares paths of the upstream {name} with {other}, which has another price: both are refused"
        yield Finding(False, f"service {one}", f"{said}; give each paths of its own, such as /v1/sms/*")


def verification(subject: str, confirmed: bytes, here: bytes) -> Finding:
    """Whether a keeper has compared this very data with PostgreSQL; until then calls are refused."""
    if not confirmed:
        return Finding(True, subject, "no keeper has verified it yet; the first one that starts will")
    if confirmed == here:
        return Finding(True, subject, "a keeper has verified it since its last start")
    said = "not verified since its last start, or since its data was replaced, so calls are refused"
    return Finding(False, subject, f"{said}: run the keeper")


async def _info(wire: Wire) -> dict[str, str]:
    answer = await in_task(wire.send(encode(b"INFO")))
    return facts_of(answer)


def _text(answer: Reply) -> bytes:
    return answer if isinstance(answer, bytes) else b""
