"""Checks whether Redis is fit for Tollkeeper: one server, or each primary of a cluster, and their replicas.

Part of the composition root. Each primary of a cluster is a subject of its own, named by its address.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from gateway.core.calls.binding import Bindings
from gateway.core.credentials import Peppers, peppers_of
from gateway.core.network import without_password
from gateway.core.processes import Program, name_programs
from gateway.core.times import zones_edition
from gateway.core.wait import in_task
from gateway.counters.admission.empty_accounts import StoredEmptyAccount, read_empty_accounts
from gateway.counters.admission.stored import services_of, version_standing
from gateway.counters.history_guard import ask_word, history, moving_partitions
from gateway.counters.keeper import client
from gateway.counters.keeper.presence import PRESENCE_KEPT_S, KeeperInfo, heard
from gateway.counters.keeper.program_registry import read_programs
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.keeper.unstored_rows import UnstoredRows, read_unstored
from gateway.counters.redis import keys
from gateway.counters.redis.address import (
    WHY,
    Address,
    ask_apart,
    facts_of,
    files_failing,
    parse_url,
    why_refused,
)
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import WHY_MOVING, FixedShards, RedisConnections, Shards, wires_to
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.counters.redis.keys import SLOT_OF_PARTITION
from gateway.counters.redis.scripts import VERBS, library
from gateway.errors import CountersRefused, CountersUnavailable, SettingError, TollkeeperError
from gateway.http.upstream.pool import accounts_of
from gateway.ops import hints
from gateway.settings.settings import Settings

# Findings on how Redis stores its data, from its own figures: well or not, subject, message.

# Above this share of its memory limit, Redis will be full before long.
MEMORY_SHARE_MAX = 0.95
# The largest tolerated difference of two clocks.
CLOCK_OFF_S_MAX = 10.0

# Whether it is well (None: unknown), the subject, and the message.
Found = tuple[bool | None, str, str]


def durability_findings(info: Mapping[str, str], fsync: object, now: float | None = None) -> Iterator[Found]:
    """Yield findings on `INFO`, and on the answer to `CONFIG GET appendfsync`, if the user may run that.

    `now` is our Unix time when the answer came; with None, clocks are not compared.
    """
    yield from _refuses(info)
    yield _policy(info.get("maxmemory_policy", "unknown"))
    yield _file(info.get("aof_enabled") == "1", int(info.get("connected_slaves") or 0))
    yield from _fsync(info, fsync)
    yield from _memory(info)
    yield from _clock(info, now)


def replica_durability(info: Mapping[str, str], fsync: object) -> Iterator[Found]:
    """Yield findings on a replica, judged as the primary that it becomes in a failover."""
    yield _policy(info.get("maxmemory_policy", "unknown"))
    if info.get("aof_enabled") == "1":
        yield _file(on=True, replicas=0)
    else:
        message = "append-only file is off: when it has taken over, what it is told is in no file"
        hint = "CONFIG SET appendonly yes, or see that another replica follows it then"
        yield True, "redis", f"{message}. {hint}"
    yield from _fsync(info, fsync)
    yield from _memory(info)


def _refuses(info: Mapping[str, str]) -> Iterator[Found]:
    """Yield findings on whether Redis accepts calls, and can write its files."""
    code = why_refused(info)
    if code and code != "OOM":  # `_memory` reports on memory
        hint = "see *Redis refuses* in docs/operate/redis.md"
        yield False, "redis", f"it refuses calls with {code}: {WHY[code]}; {hint}"
    elif files_failing(info):
        hint = "see whether its disk is full, and its log. It may refuse calls until that is mended"
        yield False, "redis", f"its last snapshot failed (rdb_last_bgsave_status): {hint}"


def _fsync(info: Mapping[str, str], fsync: object) -> Iterator[Found]:
    """Yield the finding on whether the append-only file, if any, is synced soon enough."""
    if info.get("aof_enabled") != "1":
        return
    values = list(fsync.values()) if isinstance(fsync, Mapping) else fsync
    if not isinstance(values, list) or not values or not isinstance(values[-1], bytes):
        asks = "ask an administrator for CONFIG GET appendfsync, and see that it is everysec or always"
        yield None, "redis", f"appendfsync is not told to this user: {asks}"
    elif values[-1] == b"no":
        hint = "CONFIG SET appendfsync everysec, and in its configuration"
        lost = "a power cut loses half a minute of acknowledged writes"
        yield False, "redis", f"appendfsync is no: {lost}: {hint}"
    else:
        yield True, "redis", f"appendfsync is {values[-1].decode()}"


def _file(on: bool, replicas: int) -> Found:
    """Return the finding on durability: an append-only file is `on`, or there are `replicas` of the data."""
    if on:
        return True, "redis", "append-only file is on"
    if replicas:
        message = f"append-only file is off, replicas that follow: {replicas}"
        hint = "Let a replica take over before it starts again, for it starts empty"
        return True, "redis", f"{message}. {hint}"
    hint = "CONFIG SET appendonly yes, and in its configuration, or let a replica follow"
    return False, "redis", f"append-only file is off: {hint}"


def _policy(policy: str) -> Found:
    """Return the finding on the maxmemory-policy: Redis must not delete counters when its memory is full."""
    if policy == "noeviction":
        return True, "redis", "maxmemory-policy is noeviction"
    if policy == "unknown":
        return None, "redis", "this server does not tell its maxmemory-policy: see that it is noeviction"
    hint = "CONFIG SET maxmemory-policy noeviction, and in its configuration"
    return False, "redis", f"maxmemory-policy is {policy}, which deletes counters: {hint}"


def _memory(info: Mapping[str, str]) -> Iterator[Found]:
    """Yield the finding on the memory limit, if any: at the limit Redis refuses new calls."""
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if not most and not (info.get("maxmemory") and "maxmemory_policy" in info):
        yield None, "redis", "this server does not tell its maxmemory: see that its machine has more"
    if not most and info.get("maxmemory") and "maxmemory_policy" in info:
        hint = "CONFIG SET maxmemory, below the memory of its machine, and in its configuration"
        yield False, "redis", f"maxmemory is 0, so the system ends it where its memory is full: {hint}"
    if most:
        share = f"{used / most:.0%}" if used <= most else _size(used)
        said, well = f"{share} of its maxmemory of {_size(most)} is used", used < MEMORY_SHARE_MAX * most
        full = f"it refuses calls with OOM: {WHY['OOM']}: {said}"
        near = full if why_refused(info) == "OOM" else f"{said}: when it is full, calls are refused"
        yield well, "redis", said if well else f"{near}. Raise maxmemory"


_SIZES = (1024**2, "MiB"), (1024, "KiB"), (1, "B")


def _size(count: int) -> str:
    unit, name = next((size for size in _SIZES if count >= size[0]), _SIZES[-1])
    return f"{count // unit} {name}"


def _clock(info: Mapping[str, str], now: float | None) -> Iterator[Found]:
    """Yield the finding on the server's clock, which dates charges, while ours dates refusals."""
    told = info.get("server_time_usec", "")
    if now is None:
        return
    if not told.isdecimal():
        yield None, "clock", "this server does not tell its time (server_time_usec): see that it has ours"
        return
    yield clock_against("Redis", int(told) / 1e6, now)


def clock_against(name: str, theirs: float, ours: float) -> Found:
    off = ours - theirs
    if abs(off) < CLOCK_OFF_S_MAX:
        return True, "clock", f"this machine's clock agrees with that of {name}"
    message = (
        f"this machine's clock is {abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} that of {name}"
    )
    return False, "clock", f"{message}: see that both follow a time server (timedatectl, chronyc tracking)"


PASSED, FAILED, UNKNOWN = True, False, None


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: `well` is `PASSED` or `FAILED`, or `UNKNOWN` if it could not be made."""

    well: bool | None
    subject: str
    says: str


# How replicas of Redis store their data: each may become the primary in a failover.
#
# Each is queried on a connection of its own. A replica that cannot be reached is only reported, since a
# service may not expose its replicas.

Place = tuple[str, int]

# The most replicas that are queried; CLUSTER SLOTS gives no more members than are asked for slots.
REPLICAS_MAX = 128
_ALONE = "no replica follows it, so while it is away nobody takes over: let one follow, configured as it is"


@dataclass(frozen=True, slots=True)
class _ReplicaStatus:
    """A replica's answers about itself, or the error of asking."""

    info: Mapping[str, str]
    fsync: object
    trouble: str = ""


def named_replica(info: Mapping[str, str]) -> list[Place]:
    """Return the addresses of the replicas in a primary's `INFO`, as the replicas announce them."""
    places = list[Place]()
    for name, value in info.items():
        if name.startswith("slave") and name[5:].isdigit():
            said = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            if said.get("ip") and said.get("port", "").isdigit():
                places.append((said["ip"], int(said["port"])))
    return places


async def redis_replica_findings(
    address: Address, places: Sequence[Place], *, configured: bool
) -> list[Finding]:
    """Return findings on the Redis replicas at `places`, at most `REPLICAS_MAX` of them.

    `configured` is whether the user may run `CONFIG`.
    """
    asked = places[:REPLICAS_MAX]
    said = await asyncio.gather(*(_replica_findings(address, each, configured=configured) for each in asked))
    return [finding for place, each in zip(asked, said, strict=True) for finding in _findings(place, each)]


async def _replica_findings(address: Address, place: Place, *, configured: bool) -> _ReplicaStatus:
    who = address.now()
    login, fsync = (who.username, who.password), None
    try:
        (info,) = await ask_apart(address, place, login, ("INFO",))
        if configured:
            with suppress(CountersUnavailable):
                (fsync,) = await ask_apart(address, place, login, ("CONFIG", "GET", "appendfsync"))
    except CountersUnavailable as error:
        return _ReplicaStatus({}, None, str(error))
    return _ReplicaStatus(facts_of(info), fsync)


def _findings(place: Place, said: _ReplicaStatus) -> Iterator[Finding]:
    subject = f"redis replica {place[0]}:{place[1]}"
    if said.trouble:
        yield Finding(
            UNKNOWN, subject, f"could not be looked at, so look at its configuration: {said.trouble}"
        )
        return
    for well, _, says in replica_durability(said.info, said.fsync):
        yield Finding(well, subject, says)


# Checks whether a keeper runs, and whether all processes use the same pepper for credentials.

_KEEPER, _PEPPER, _ROWS, _ZONES = "keeper", "pepper", "rows", "time zones"
_ZONES_DIFFER = "their days and months may end at other times; replace the older ones, or give all the same TOLLKEEPER_TIME_ZONES"
_UNREADABLE = (
    "start the keeper of a newer version if there was one, else tollkeeper counters rebuild ORG for each organization"
    " that tollkeeper reconcile names (docs/operate/alerts.md, TollkeeperLeftAlone)"
)
_NAMES = "TOLLKEEPER_KEY_PEPPER, or TOLLKEEPER_EARLIER_KEY_PEPPERS"


# A row that waits longer is behind: rows are stored some tenths of a second after their calls.
ROWS_AGE_S_MAX = 10.0


def of_rows(
    role: str,
    heard: KeeperInfo | None,
    rows: Mapping[str, tuple[int, float]],
    unstored: UnstoredRows | None,
) -> Iterator[Finding]:
    """Yield findings on rows that wait in Redis: by server how many, and for how many seconds the oldest.

    `unstored` is why a keeper stores none; `heard` is the last keeper's report, None if none is running.
    """
    if unstored is not None and any(count for count, _ in rows.values()):
        hint = hints.postgresql_hint(unstored.why, unstored.code) if "PostgreSQL" in unstored.why else ""
        hint = hint or hints.redis_hint(unstored.why)
        yield Finding(FAILED, _ROWS, f"{unstored}; {hint}")
    for server, (count, age_s) in rows.items():
        where = f" at {server.partition(' ')[2]}" if server != "redis" else ""
        if age_s < ROWS_AGE_S_MAX:
            yield Finding(PASSED, _ROWS, f"{count:,} wait{where}, none for long")
            continue
        message = f"{count:,} wait{where}, the oldest for {age_s:,.0f} s"
        if heard is None and role == _KEEPER:
            yield Finding(PASSED, _ROWS, f"{message}: the keeper that starts here stores them")
        else:
            yield Finding(FAILED, _ROWS, f"{message}; {hints.ROWS}")


def compare_zones(programs: Iterable[Program], here: str) -> Iterator[Finding]:
    """Yield a finding if programs read other editions of the time zones than others, or than `here` is read."""
    others = defaultdict[str, list[Program]](list)
    for program in programs:
        if program.time_zones != here:
            others[program.time_zones or "that of their machine"].append(program)
    if others:
        places = "; ".join(
            f"{edition} at {name_programs(group)}" for edition, group in sorted(others.items())
        )
        yield Finding(UNKNOWN, _ZONES, f"{here} here, {places}: {_ZONES_DIFFER}")


_UNHEARD = Finding(
    UNKNOWN, _KEEPER, "whether one runs is not told to this user: give it what deploy/users.acl says"
)


def of_keeper(settings: Settings, role: str, heard: KeeperInfo | None, ran_before: bool) -> Iterator[Finding]:
    """Yield findings on the newest keeper's report `heard`; None if no keeper is running.

    `ran_before` is whether a keeper has ever verified this Redis.
    """
    if heard is None:
        if not ran_before:
            return
        message = f"none was there in the last {PRESENCE_KEPT_S} s"
        if role == _KEEPER:
            yield Finding(PASSED, _KEEPER, f"{message}: the one that starts here will be")
            return
        why = "so use becomes no rows, and no change is in force"
        yield Finding(FAILED, _KEEPER, f"{message}, {why}: run tollkeeper keeper, or look at its log")
        return
    yield Finding(PASSED, _KEEPER, f"one of version {heard.version} is there")
    if heard.unreadable:
        message = f"accounts in Redis that it cannot read, whose calls are refused: {heard.unreadable}"
        yield Finding(FAILED, _KEEPER, f"{message}; {_UNREADABLE}")
    if not settings.key_pepper:
        return
    ours, theirs = peppers_of(settings).ids, heard.peppers[0]
    if theirs in ours:
        yield Finding(PASSED, _PEPPER, f"{ours[0]}; the keeper's, {theirs}, is taken")
    else:
        message = f"it is {ours[0]}, and the keeper has {theirs}: keys that are made there are unknown here"
        yield Finding(FAILED, _PEPPER, f"{message}; put the keeper's into {_NAMES}")


def of_credentials(url: str, peppers: Peppers) -> Iterator[Finding]:
    """Yield findings on the peppers (secrets for hashing) that credentials in PostgreSQL need.

    Each of them must be among the configured `peppers`.
    """
    from persistence.schema.pepper_use import in_use  # heavy to load

    try:
        found = in_use(url)
    except TollkeeperError as error:
        yield Finding(FAILED, _PEPPER, f"{error}; {_hint(error)}")
        return
    current, *earlier = peppers.ids
    for one in found:
        if one.pepper in earlier:
            yield Finding(PASSED, _PEPPER, f"the earlier {one.pepper} is needed for {one}")
        elif one.pepper not in {None, current}:
            message = f"of {one.pepper}, which is not taken: {one}"
            yield Finding(FAILED, _PEPPER, f"{message}: put it into {_NAMES}")
    used = {one.pepper for one in found}
    if None not in used:
        for unused in (each for each in earlier if each not in used):
            yield Finding(PASSED, _PEPPER, f"nothing is of the earlier {unused} any more: it can go")


# Checks whether the users of Redis and PostgreSQL have the rights that a process needs, or more.
#
# A missing right is a fault. Further rights are only reported, since one user for everything is good enough
# if one person runs everything.

# Whether it is well, the subject, and the message.
Seen = tuple[bool, str, str]

_REDIS, _POSTGRESQL, _OWNER = "redis user", "postgresql user", "postgresql owner"
_GUIDE = "(docs/operate/postgresql.md)"


async def redis_user_findings(address: Address, role: str, answer_max_s: float) -> Seen:
    """Return the finding on the Redis user of an address.

    The user must have all rights that this role needs, and none that only the other role needs.
    """
    user, ours = address.username or "default", "gateway" if role == "serve" else "keeper"
    needed = client.needed_rights(role, clustered=bool(address.members), database=address.database)
    # Redis logs what it refuses, so only a user that may be all-powerful is checked for more than it needs.
    beyond: tuple[str, ...] = (client.NOBODYS,) if user == "default" else ()
    if role == "serve":
        beyond = (client.KEEPERS_ALONE, client.NOBODYS)
    wire = _wire(address, answer_max_s)
    try:
        await wire.open()
        lacking = await client.refused_rights(wire, *needed)
        if lacking.by_rights:
            message = f"{user} may not do what a {ours} does ({_few(lacking.by_rights)})"
            return False, _REDIS, f"{message}: use tollkeeper-{ours} of deploy/users.acl"
        if absent := [one for one in lacking.by_server if one not in client.WITHOUT]:
            message = f"this server has not what a {ours} needs ({_few(absent)})"
            return False, _REDIS, f"{user}: {message}: {hints.redis_hint('unknown command')}"
        return _may(user, ours, lacking.by_server, await _accepted_rights(wire, beyond))
    except (TollkeeperError, OSError) as error:
        return False, _REDIS, f"{user}: {_reason(error)}; {hints.redis_hint(str(error))}"
    finally:
        await wire.close()


def _reason(error: Exception) -> str:
    return str(error).rstrip(":. ")


async def _accepted_rights(wire: RedisConnection, beyond: tuple[str, ...]) -> list[str]:
    """Return the commands that the user of a connection may run, up to the first refused one."""
    more: list[str] = []
    for each in beyond:
        if await client.refused_rights(wire, each):
            break
        more.append(each)
    return more


def _few(commands: list[str]) -> str:
    others = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return commands[0] + others


def _may(user: str, role: str, without: list[str], more: list[str]) -> Seen:
    """Return the finding about what a user of Redis may do, and more than it needs."""
    ours = f"tollkeeper-{role} of deploy/users.acl"
    missed = {client.WITHOUT[one]: one.removesuffix(" OFF") for one in without}
    lacks = "".join(f"; this server has no {one}, {so}" for so, one in missed.items())
    if client.NOBODYS in more:
        return True, _REDIS, f"{user} may do anything; {ours} may do what a {role} does{lacks}"
    if more:
        message = f"{user} may write who has which key and what it costs, as a keeper does"
        return False, _REDIS, f"{message}: use {ours}"
    return True, _REDIS, f"{user} may do what a {role} does{lacks}"


def _hint(error: TollkeeperError) -> str:
    return hints.postgresql_hint(str(error), getattr(error, "sqlstate", ""))


def postgresql_user_findings(url: str, owner_url: str) -> list[Seen]:
    """Return findings on whether the keeper's user has its rights, and a separate owner owns the tables."""
    from persistence.schema.privileges import privileges  # heavy to load

    seen: list[Seen] = []
    try:
        found = privileges(url)
    except TollkeeperError as error:
        return [(False, _POSTGRESQL, f"{error}; {_hint(error)}")]
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
        hint = _hint(error).replace(hints.DATABASE_URL, "TOLLKEEPER_DATABASE_OWNER_URL")
        return [*seen, (False, _OWNER, f"{error}; {hint}")]
    if owner.owns:
        return [*seen, (True, _OWNER, f"{owner.user} owns the tables")]
    message = f"{owner.user} does not own the tables: TOLLKEEPER_DATABASE_OWNER_URL must be of who migrates"
    return [*seen, (False, _OWNER, message)]


REDIS_VERSION_MIN = (7, 0)
ANSWER_MAX_S = 5.0
_BRING = (
    "no call finds them. CLUSTER SETSLOT IMPORTING here, with the id of that primary, and then"
    " redis-cli --cluster fix bring them there"
)
_LISTS = keys.CATALOGUE, keys.PRICES, keys.PRICES_HEAD


@dataclass(frozen=True, slots=True)
class _Server:
    """The answers of one server. `covers` is its cluster-require-full-coverage; empty if unknown."""

    info: dict[str, str]
    confirmed: bytes
    named: bytes
    loaded: bool
    covers: str
    fsync: object
    certificate_end: float | None
    address: Address
    asked_at: float
    # Why it would not load its append-only file completely; empty if it would.
    forgets: str
    # The slots that it gives away key by key; and how many keys it has of slots of other primaries.
    moving: list[int]
    strays: dict[int, int]


def _wire(address: Address, call_s: float = ANSWER_MAX_S) -> RedisConnection:
    """Return a connection that writes nothing, not even the scripts."""
    return RedisConnection(address, time.monotonic, call_s=call_s, loads=False)


async def examine_redis(settings: Settings, role: str) -> AsyncIterator[Finding]:
    """Yield findings on what a process of this role needs of Redis."""
    shown = without_password(settings.redis_url)
    wires: RedisConnections | None = None
    trouble = ""
    try:
        address = parse_url(settings.redis_url, settings.redis_files)
        wires = wires_to(address, _wire)
        await wires.open()
        if not await wires.connected_within(ANSWER_MAX_S):
            trouble = wires.trouble
            yield Finding(FAILED, "redis", f"{shown}: {trouble}; {hints.redis_hint(trouble)}")
        connected = {_name_of(wires, wire): wire for wire in wires.wires if wire.connected}
        servers = {name: await _ask_server(one, address) for name, one in connected.items()}
        lists = {name: await _read(wires, name.encode()) for name in _LISTS}
        of_keepers = await _examine_keepers(settings, role, wires, connected, servers)
        empty = await read_empty_accounts(wires)
    except (TollkeeperError, OSError, TimeoutError) as error:
        # An outage names no server, and one was named above.
        if not trouble or str(error) != CountersUnavailable().told:
            why = _reason(error) or f"no answer within {ANSWER_MAX_S:g} s"
            yield Finding(FAILED, "redis", f"{shown}: {why}; {hints.redis_hint(why)}")
        return
    finally:
        if wires is not None:
            await wires.close()
    if isinstance(wires, Shards):
        yield _examine_cluster(shown, wires)
    for subject, server in servers.items():
        for finding in _server(settings, role, subject, shown, server):
            yield finding
    for finding in (*_slots(servers), *await _replicas(address, wires, servers)):
        yield finding
    ran_before = any(server.confirmed for server in servers.values())
    of_lists = _missing(lists) if ran_before else ()
    of_services = _services(settings, lists[keys.CATALOGUE]) if role != "keeper" else ()
    for finding in (*_examine_accounts(settings, role, empty), *of_lists, *of_keepers, *of_services):
        yield finding
    for subject, server in servers.items():
        well, about, says = await redis_user_findings(server.address, role, ANSWER_MAX_S)
        yield Finding(well, about if subject == "redis" else f"{about} at {subject.partition(' ')[2]}", says)


def _examine_accounts(
    settings: Settings, role: str, empty: Mapping[str, StoredEmptyAccount]
) -> Iterator[Finding]:
    """Yield a finding on each account of an upstream that is out of money or quota.

    One whose credential no gateway here has any more is only named; a keeper does not know credentials.
    """
    pepper = settings.key_pepper.encode()
    current = {account for target in settings.upstreams for account in accounts_of(target, pepper)}
    for digest, account in sorted(empty.items(), key=lambda item: (item[1].upstream, item[1].since_ms)):
        is_current = role == "keeper" or digest.partition(".")[0] in current
        since = f"{datetime.fromtimestamp(account.since_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
        verb, what = (
            ("is", "pay for it; it is asked once a minute") if is_current else ("was", "its key was changed")
        )
        why = f"an account {verb} out of money or quota, as it has said with {account.status} since {since}"
        yield Finding(False if is_current else None, f"upstream {account.upstream}", f"{why}: {what}")


async def _read(wires: RedisConnections, name: bytes) -> Reply | CountersRefused:
    """Return the value of a key, or the error of reading it."""
    try:
        return await in_task(wires.of_key(name).send(encode(b"GET", name)))
    except CountersRefused as error:
        return error


def _missing(lists: Mapping[str, Reply | CountersRefused]) -> Iterator[Finding]:
    """Yield findings on global lists in Redis that are missing or unreadable, from the replies by name."""
    lacking: dict[str, list[str]] = {}
    for name, raw in lists.items():
        if not isinstance(raw, bytes) or version_standing(raw) < 0:
            odd = "no list that can be read" if isinstance(raw, bytes) else "not there"
            lacking.setdefault(raw.message if isinstance(raw, CountersRefused) else odd, []).append(name)
    for why, names in lacking.items():
        message = (
            f"{', '.join(names)}: {why.rstrip('.')}, so gateways that start refuse calls or know no prices"
        )
        hint = "run tollkeeper keeper, which writes this again within seconds, or look at its log"
        yield Finding(FAILED, "redis", f"{message}; {hint}")


async def _examine_keepers(
    settings: Settings,
    role: str,
    wires: RedisConnections,
    connected: Mapping[str, RedisConnection],
    servers: Mapping[str, _Server],
) -> list[Finding]:
    """Return findings on the keepers, and, for one of them, on the rows that wait at connected servers."""
    try:
        keeping = await heard(wires)
    except CountersRefused:  # a user of an older deploy/users.acl: the user's finding names the right
        return [_UNHEARD]
    ran_before = any(server.confirmed for server in servers.values())
    findings = [*of_keeper(settings, role, keeping, ran_before)]
    with suppress(CountersRefused):
        programs = [report.program for report in await read_programs(wires)]
        findings += compare_zones(programs, zones_edition())
    if role == "serve":
        return findings
    rows: dict[str, tuple[int, float]] = {}
    with suppress(CountersRefused):  # a user who is no keeper's, which the user's finding names
        for name, wire in connected.items():
            count, oldest_ms = await AccountHeads(wire).depth()
            now = servers[name].info.get("server_time_usec", "")
            now_s = int(now) / 1e6 if now.isdecimal() else servers[name].asked_at
            rows[name] = count, max(0.0, now_s - oldest_ms / 1_000) if oldest_ms else 0.0
        findings += of_rows(role, keeping, rows, await read_unstored(wires))
    return findings


def _name_of(wires: RedisConnections, wire: RedisConnection) -> str:
    if not isinstance(wires, Shards):
        return "redis"
    host, port = wires.place_of(wire)
    return f"redis {host}:{port}"


async def _ask_server(wire: RedisConnection, address: Address) -> _Server:
    """Return what a server of Redis tells about itself, without what its user may not read."""
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
        wire.certificate_end, wire.address, asked_at, await _forgets(wire, info),
        sorted(SLOT_OF_PARTITION[p] for p in await moving_partitions(wire)) if address.members else [],
        await _strays(wire) if asks and address.members else {},
    )  # fmt: skip


async def _strays(wire: RedisConnection) -> dict[int, int]:
    """Return how many keys a server has of slots that are another primary's, by slot."""
    slots = {slot for p, slot in enumerate(SLOT_OF_PARTITION) if p not in wire.part.partitions}
    asked = {slot: wire.send(encode(b"CLUSTER", b"COUNTKEYSINSLOT", b"%d" % slot)) for slot in slots}
    with suppress(CountersRefused):
        counts = {slot: await in_task(wait) for slot, wait in asked.items()}
        return {slot: count for slot, count in counts.items() if isinstance(count, int) and count}
    return {}


# A server loads its append-only file as the user `default`. Before this version of Valkey, and in Redis up to
# 8.2.3 at least, a transaction is skipped if that user may not run its commands.
LOADS_ALL_MIN = (9, 1, 2)
DEFAULTS_LINE = "user default off ~* &* +@all"
_LOADED = {
    "MSET": "0", "SETRANGE": "0 0", "DEL": "", "PEXPIREAT": "1", "HSET": "f 0", "HDEL": "f", "HINCRBY": "f 1",
    "XADD": "0-1 f 0", "XDEL": "0-1", "ZADD": "0 m", "ZREM": "m",
}  # fmt: skip


async def _forgets(wire: RedisConnection, info: Mapping[str, str]) -> str:
    """Return why a server would not load its append-only file completely; "" if it would, or has none."""
    name, _, numbers = _release(info)
    if info.get("aof_enabled") != "1" or (name == "Valkey" and numbers >= LOADS_ALL_MIN):
        return ""
    lines = [f"{verb} {client.OF_A_PARTITION} {rest}".encode().split() for verb, rest in _LOADED.items()]
    try:
        answers = [await in_task(wire.send(encode(*client.ASKS_OF_DEFAULT, *line))) for line in lines]
    except CountersRefused as error:
        return (
            "the user default loads the append-only file, and what it may do there could not be asked by"
            f" ACL DRYRUN ({error.message.rstrip('.')}): give this user +acl|dryrun, as deploy/users.acl does"
        )
    if lacking := [verb for verb, answer in zip(_LOADED, answers, strict=True) if answer != b"OK"]:
        return (
            f"the user default, who loads the append-only file, may not do what is in it ({_few(lacking)}):"
            " this version forgets what scripts wrote at each restart."
            f' Write "{DEFAULTS_LINE}" into its file of users'
        )
    return ""


async def _replicas(
    address: Address, wires: RedisConnections, servers: Mapping[str, _Server]
) -> list[Finding]:
    """Return findings on the replicas of these servers, if sentinels or a cluster may promote a replica."""
    if not (address.sentinels or address.members):
        return []
    found = [
        Finding(PASSED, subject, _ALONE)
        for subject, server in servers.items()
        if server.info.get("connected_slaves") == "0"
    ]
    if isinstance(wires, Shards):
        primaries = {one.place for one in wires.map.owned} | {wires.place_of(wire) for wire in wires.wires}
        places = [member for member in wires.map.members if member not in primaries]
    else:
        places = [one for server in servers.values() for one in named_replica(server.info)]
    return found + await redis_replica_findings(address, places, configured=_asks(address))


def _asks(address: Address) -> bool:
    """Return whether the doctor may send `CONFIG` to Redis: only as the default user.

    Users of `users.acl` have no right to it, and Redis logs refusals as attacks.
    """
    return address.username in ("", "default")


async def _if_allowed(wire: RedisConnection, name: str) -> Reply:
    """Return the reply about a configuration value; None if the user may not read it."""
    with suppress(CountersRefused):
        return await in_task(wire.send(encode(*f"CONFIG GET {name}".encode().split())))
    return None


def _examine_cluster(shown: str, shards: Shards) -> Finding:
    """Return the finding on whether each partition has a server."""
    lacking = [partition for partition in shards.partitions if not shards.of(partition).part.partitions]
    count = len(shards.wires)
    shared = isinstance(shards, FixedShards)
    there = f"{shown} is {f'{count} servers' if shared else f'a cluster of {count} primaries'}"
    if not lacking:
        return Finding(PASSED, "redis", there)
    message = f"{there}, none with the slots of {len(lacking)} partitions"
    return Finding(FAILED, "redis", f"{message}: give each slot to a primary (CLUSTER SHARDS)")


def _slots(servers: Mapping[str, _Server]) -> Iterator[Finding]:
    """Yield findings on slots that are moved key by key, and on keys that a move has left behind."""
    for subject, server in servers.items():
        for slot in server.moving:
            yield Finding(FAILED, subject, f"slot {slot}: {WHY_MOVING}")
    moving = {slot for server in servers.values() for slot in server.moving}
    for subject, server in servers.items():
        for slot in server.strays.keys() - moving:
            strays = f"it has {server.strays[slot]} keys of slot {slot}, which is another primary's"
            yield Finding(FAILED, subject, f"{strays}: {_BRING}")


def _server(settings: Settings, role: str, subject: str, shown: str, server: _Server) -> Iterator[Finding]:
    """Yield the findings about one server of Redis: version, TLS, durability, scripts, history."""
    info = server.info
    name, version, numbers = _release(info)
    what = shown if subject == "redis" else "it"
    yield Finding(
        numbers >= REDIS_VERSION_MIN, subject, f"{what} is {name} {version} (7.0 or newer is needed)"
    )
    if server.certificate_end is not None:
        until = f"{datetime.fromtimestamp(server.certificate_end, UTC):%Y-%m-%d}"
        yield Finding(PASSED, subject, f"its certificate is valid until {until}")
    elif settings.redis_url.startswith(("redis://", "redis+")) and any(asdict(settings.redis_files).values()):
        message = "there is a TOLLKEEPER_REDIS_*_FILE for TLS, but nothing is encrypted"
        yield Finding(FAILED, subject, f"{message}: TOLLKEEPER_REDIS_URL must begin with rediss")
    for well, about, says in durability_findings(info, server.fsync, server.asked_at):
        yield Finding(well, subject if about == "redis" else about, says)
    if server.forgets:
        yield Finding(FAILED, subject, server.forgets)
    if server.covers:
        alone = server.covers == "no"
        hint = "CONFIG SET cluster-require-full-coverage no, or a primary that is away stops all of them"
        message = f"cluster-require-full-coverage is {server.covers}"
        yield Finding(alone, subject, message if alone else f"{message}: {hint}")
    elif server.address.members:
        message = "cluster-require-full-coverage is not told to this user: see that it is no"
        yield Finding(UNKNOWN, subject, message)
    if server.loaded or role == "serve":
        loaded = "are loaded" if server.loaded else "are not loaded: start a keeper first, it brings them"
        yield Finding(server.loaded, subject, f"{len(VERBS)} scripts {loaded}")
    else:
        yield Finding(PASSED, subject, f"{len(VERBS)} scripts are not loaded yet: the keeper brings them")
    here = history(info.get("run_id", "").encode(), server.named)
    yield verification(subject, server.confirmed, here)


def _release(info: Mapping[str, str]) -> tuple[str, str, tuple[int, ...]]:
    """Return a server's product name, its version, and the version's numbers."""
    version = info.get("valkey_version") or info.get("redis_version", "0")
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    return "Valkey" if "valkey_version" in info else "Redis", version, numbers


def _services(settings: Settings, catalogue: object) -> Iterator[Finding]:
    """Yield findings on services whose calls are refused: without an upstream, or with two prices."""
    services = services_of(catalogue)
    targets = {target.name: target for target in settings.upstreams}
    try:
        settings.table.check_services(services)
    except SettingError as error:
        yield Finding(FAILED, "settings", error.message)
    bound = Bindings(settings.routes, targets, settings.services, services)
    for key, name in bound.unplaced():
        yield Finding(
            FAILED, f"service {key}", f"its upstream {name} is not one of {', '.join(sorted(targets))}"
        )
    for one, other, name in bound.conflicts():
        message = (
            f"shares paths of the upstream {name} with {other}, which has another price: both are refused"
        )
        yield Finding(FAILED, f"service {one}", f"{message}; give each paths of its own, such as /v1/sms/*")


def verification(subject: str, confirmed: bytes, here: bytes) -> Finding:
    """Return the finding on whether a keeper has compared the counters with PostgreSQL since Redis started.

    `confirmed` is the id that the keeper has stored, and `here` that of the server now.
    """
    if not confirmed:
        return Finding(PASSED, subject, "no keeper has verified it yet; the first one that starts will")
    if confirmed == here:
        return Finding(PASSED, subject, "a keeper has verified it since its last start")
    message = "not verified since its last start, or since its data was replaced, so calls are refused"
    return Finding(FAILED, subject, f"{message}: run the keeper")


async def _info(wire: RedisConnection) -> dict[str, str]:
    answer = await in_task(wire.send(encode(b"INFO")))
    return facts_of(answer)


def _text(answer: Reply) -> bytes:
    return answer if isinstance(answer, bytes) else b""
