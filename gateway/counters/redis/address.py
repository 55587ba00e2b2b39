"""The address of Redis: its URL, TLS, sentinels, and the first commands on a connection."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast
from urllib.parse import SplitResult, parse_qsl, unquote

import hiredis

from gateway.core.certificates import TlsFiles
from gateway.core.model import PARTITIONS
from gateway.core.wait import AwakeTimeout
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.keys import SHARD, Place, marker, shard_map
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, SettingError
from gateway.files import Seen, UrlFile, require_regular, split_servers, stat_files

# TLS to Redis: certificate files are read again when they change.
#
# Open connections are unchanged; new ones use the present contents. A file that cannot be used changes
# nothing, and is logged once.

_log = logging.getLogger("tollkeeper.redis")


class RedisTls:
    """The TLS context of connections to Redis; `SettingError` if a file cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._paths = files, (files.authority, files.certificate, files.key)
        self._seen = stat_files(self._paths)
        self._context = _make_context(files)
        self._why = ""

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection, from the files' present contents."""
        found = stat_files(self._paths)
        if found != self._seen:
            self._renew(found)
        return self._context

    def _renew(self, seen: Seen) -> None:
        try:
            self._context = _make_context(self._files)
        except SettingError as error:  # tried again with the next connection: rights may change
            if error.message != self._why:
                _log.error("TLS to Redis is kept as it was", extra={"why": error.message})
            self._why = error.message
            return
        self._seen, self._why = seen, ""
        _log.info("files of TLS to Redis read again")


def _make_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that verifies certificate and host name; the authority can be configured."""
    try:
        require_regular(files.authority)
        context = ssl.create_default_context(cafile=files.authority or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{_PREFIX}CA_FILE={files.authority!r} cannot be used: {_why(error)}") from error
    if files.certificate:
        try:
            require_regular(files.certificate, files.key)
            context.load_cert_chain(files.certificate, files.key or None, password="")
        except (OSError, ssl.SSLError) as error:
            shown = f"{_PREFIX}CERT_FILE={files.certificate!r} and {_PREFIX}KEY_FILE={files.key!r}"
            raise SettingError(f"{shown} cannot be used: {_why(error)}") from error
    return context


def _why(error: OSError) -> str:
    return "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else str(error.strerror)


DEFAULT_PORT, SENTINEL_PORT = 6379, 26379
PLACES_MAX = 16
# The cause where a server neither refuses nor answers.
SILENT = "does not answer in time"
# The message for a connection that ended before any answer.
NO_REDIS = "what answers there is no Redis, or closed the connection"
_PREFIX = "TOLLKEEPER_REDIS_"
# Hosts and ports of a URL, as `split_servers` returns them.
Servers = tuple[tuple[str, int | None], ...]
# The parameters allowed in the query of a URL, by the end of its scheme.
_QUERIES = {"unix": ("db",), "+sentinel": ("username", "password")}


@dataclass(frozen=True, slots=True)
class Address:
    """The address of Redis and our login; `parse_url` explains the URL.

    With `sentinels`, these name the host: the primary called `primary_name`. With `members` it is one of the
    members of a cluster. With `shards` it is one of these servers, each with a part of the data.
    """

    host: str
    port: int
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: RedisTls | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    primary_name: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    members: tuple[tuple[str, int], ...] = ()
    shards: tuple[tuple[str, int], ...] = ()
    file: UrlFile | None = field(default=None, repr=False, compare=False)

    def now(self) -> Address:
        """Return the same address with the login that the URL's file has now."""
        if self.file is None:
            return self
        user, password, sentinel_user, sentinel_password = _logins(split_servers(self.file.url())[0])
        return replace(
            self, username=user, password=password,
            sentinel_username=sentinel_user, sentinel_password=sentinel_password,
        )  # fmt: skip


def parse_url(
    url: str | UrlFile,
    files: TlsFiles = TlsFiles(),  # noqa: B008  # it cannot change
) -> Address:
    """Return the address of a URL; SettingError if the URL is invalid, or a file cannot be used.

    `redis://user:password@host:port/database`, `rediss://…` with TLS, `unix:///path?db=0`,
    `redis+sentinel://user:password@host:port,host:port/primary/database` (`rediss+sentinel://`), whose query
    may have the sentinels' own `username` and `password`,
    `redis+cluster://user:password@host:port,host:port` (`rediss+cluster://`) with some members of a cluster,
    or `redis+shards://user:password@host:port,host:port/database` (`rediss+shards://`) with all servers that
    share the data, in their order.
    """
    if isinstance(url, UrlFile):
        return replace(parse_url(url.url(), files), file=url)
    try:
        parts, servers = split_servers(url)
    except ValueError as error:
        raise SettingError(f"{_PREFIX}URL cannot be read: {error}") from error
    # SettingError for parts that would be ignored: the writer means something by them, such as a database
    known = next((names for kind, names in _QUERIES.items() if parts.scheme.endswith(kind)), ())
    said = parse_qsl(parts.query, keep_blank_values=True)
    if parts.fragment or (parts.query and not said) or not {name for name, _ in said} <= {*known}:
        what = f"no other query than {' and '.join(known)}" if known else "no query"
        raise SettingError(f"{_PREFIX}URL must have {what}, and no fragment (# is written as %23)")
    lists = {"cluster": _by_members, "sentinel": _by_sentinels, "shards": _by_shards}
    first, _, kind = parts.scheme.partition("+")
    if kind in lists and first in ("redis", "rediss"):
        return lists[kind](parts, servers, RedisTls(files) if first == "rediss" else None)
    user, password, *_ = _logins(parts)
    host, port = servers[0] if len(servers) == 1 else ("", None)
    if parts.scheme == "unix":
        database = dict(parse_qsl(parts.query)).get("db", "0")
        if parts.path in ("", "/") or host or not database.isdecimal():
            raise SettingError(f"{_PREFIX}URL must be unix:///path or unix:///path?db=0, the path a socket's")
        return Address("", 0, parts.path, int(database), user, password)
    if parts.scheme not in ("redis", "rediss") or not host:
        raise SettingError(
            f"{_PREFIX}URL must be redis://, rediss://, redis+sentinel://, redis+cluster://, redis+shards://"
            " or unix:// and name a host"
        )
    database = parts.path.strip("/") or "0"
    if not database.isdigit():
        raise SettingError(f"{_PREFIX}URL must end in a database number or nothing")
    tls = RedisTls(files) if parts.scheme == "rediss" else None
    return Address(host, port or DEFAULT_PORT, "", int(database), user, password, tls)


def _logins(parts: SplitResult) -> tuple[str, str, str, str]:
    """Return user and password of the servers, then those of the sentinels."""
    theirs = dict(parse_qsl(parts.query)) if "sentinel" in parts.scheme else {}
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return user, password, theirs.get("username", ""), theirs.get("password", "")


def _by_members(parts: SplitResult, servers: Servers, tls: RedisTls | None) -> Address:
    members = _places(servers, DEFAULT_PORT, f"1 to {PLACES_MAX} members of a cluster")
    if parts.path.strip("/") not in ("", "0") or parts.query:
        raise SettingError(f"{_PREFIX}URL must end behind the members: a cluster has one database alone")
    return Address("", 0, "", 0, *_logins(parts)[:2], tls, members=members)


def _by_shards(parts: SplitResult, servers: Servers, tls: RedisTls | None) -> Address:
    shards = _places(servers, DEFAULT_PORT, f"2 to {PLACES_MAX} different servers")
    database = parts.path.strip("/") or "0"
    if len({*shards}) < max(2, len(shards)) or not database.isdigit():
        raise SettingError(
            f"{_PREFIX}URL must name 2 to {PLACES_MAX} different servers as host:port,host:port, and end in a"
            " database number or nothing"
        )
    return Address("", 0, "", int(database), *_logins(parts)[:2], tls, shards=shards)


def _places(servers: Servers, port: int, wanted: str) -> tuple[tuple[str, int], ...]:
    """Return the hosts and ports of a URL that lists several servers.

    `port` is the default; SettingError, which describes the servers as `wanted`, if the list is invalid.
    """
    places = tuple((host, port if own_port is None else own_port) for host, own_port in servers)
    if not places or not all(host and at for host, at in places) or len(places) > PLACES_MAX:
        raise SettingError(f"{_PREFIX}URL must name {wanted} as host:port,host:port")
    return places


def _by_sentinels(parts: SplitResult, servers: Servers, tls: RedisTls | None) -> Address:
    """Return the address of the primary that the URL's sentinels know; they tell its host later."""
    sentinels = _places(servers, SENTINEL_PORT, f"1 to {PLACES_MAX} sentinels")
    name, _, database = parts.path.strip("/").partition("/")
    if not name or not (database or "0").isdigit():
        raise SettingError(f"{_PREFIX}URL must end in the primary's name, and a database number or nothing")
    user, password, sentinel_user, sentinel_password = _logins(parts)
    return Address(
        "", 0, database=int(database or "0"), username=user, password=password, tls=tls, sentinels=sentinels,
        primary_name=unquote(name), sentinel_username=sentinel_user, sentinel_password=sentinel_password,
    )  # fmt: skip


def in_words(reasons: Iterable[tuple[str, str]]) -> str:
    """Return a sentence about `reasons`, each a server's name and a cause; servers of one cause together."""
    causes: dict[str, list[str]] = {}
    for server, cause in reasons:
        causes.setdefault(cause, []).append(server)
    return "; ".join(f"{', '.join(servers)}: {cause}" for cause, servers in causes.items())


def why_not(error: Exception) -> str:
    """Return why there is no connection, as a message that an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return NO_REDIS
    if isinstance(error, CountersUnavailable) and error.message == CountersUnavailable().message:
        return NO_REDIS
    return str(error) or type(error).__name__


# Queries on short connections of their own: to sentinels, and to members of a cluster.

ANSWER_S_MAX = 0.5
# After this time without an answer the next one is queried too, and the first answer counts.
NEXT_S = 0.05
READ_BYTES = 65_536

T = TypeVar("T")


async def first_known(
    places: Iterable[Place], ask: Callable[[Place], Coroutine[Any, Any, T | None]]
) -> T | None:
    """Return the first result of `ask` that is not None, trying places in order; None if there is none."""
    left, asked = iter(places), set[asyncio.Task[T | None]]()
    try:
        while True:
            place = next(left, None)
            if place is not None:
                asked.add(asyncio.create_task(ask(place)))
            elif not asked:
                return None
            next_s = None if place is None else NEXT_S
            done, asked = await asyncio.wait(asked, timeout=next_s, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                if (found := one.result()) is not None:
                    return found
    finally:
        for one in asked:
            one.cancel()


async def ask_apart(
    address: Address, place: Place, login: tuple[str, str], *commands: Sequence[str]
) -> list[Reply]:
    """Return the answers of the server at `place`; `login` is a user's name and password.

    TLS is that of `address`. CountersUnavailable if the server refuses, or does not answer within
    `ANSWER_S_MAX`.
    """
    user, password = login
    asked = [*([("AUTH", *([user] if user else []), password)] if password else []), *commands]
    try:
        async with AwakeTimeout(ANSWER_S_MAX):
            answers = await _answers(address, place, asked)
    except (OSError, TimeoutError, UnicodeError, hiredis.ProtocolError) as error:
        raise CountersUnavailable(f"{place[0]}:{place[1]} does not answer: {why_not(error)}") from error
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            raise CountersUnavailable(f"{place[0]}:{place[1]} refused: {str(answer)[:200]}")
    return cast("list[Reply]", answers[len(asked) - len(commands) :])


async def _answers(address: Address, place: Place, asked: Sequence[Sequence[str]]) -> list[object]:
    host, port = place
    tls, name = (address.tls.context(), host) if address.tls else (None, None)
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    parser, answers = hiredis.Reader(), list[object]()
    try:
        # hiredis' types allow only a single word.
        writer.write(b"".join(hiredis.pack_command(cast("tuple[str]", tuple(command))) for command in asked))
        while len(answers) < len(asked):
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionError(NO_REDIS)
            parser.feed(data)
            while (answer := parser.gets()) is not False:
                answers.append(answer)
        return answers
    finally:
        writer.close()


# Where a connection goes: to its address, or to the primary that sentinels name, queried for each connection.

# A server without an answer for this long may hang: sentinels are asked at this interval for the primary.
NAMED_LOOK_S = 0.5


class RedisRoute:
    """Connects to an address; with sentinels, notices that they name another primary meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._address = Address("", 0)
        self._place, self._elsewhere = ("", 0), False
        self._asking: asyncio.Task[None] | None = None

    async def reach(self, address: Address, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect a protocol, with TLS or without; OSError or CountersUnavailable if that fails."""
        self.close()
        self._address = address
        if address.path:
            await self._loop.create_unix_connection(protocol, address.path)
            return
        self._place = await primary(address) if address.sentinels else (address.host, address.port)
        host, port = self._place
        tls, name = (address.tls.context(), host) if address.tls else (None, None)
        try:
            await self._loop.create_connection(protocol, host, port, ssl=tls, server_hostname=name)
        except UnicodeError as error:
            raise CountersUnavailable(f"{host[:80]} is no name of a host: {error}") from error

    def name_of(self, address: Address) -> str:
        """Return the name of the server at an address: with sentinels, of the primary they named last."""
        host, port = (address.host, address.port) if address.host else self._place
        return f"{host}:{port}" if host else address.path or address.primary_name

    def leads_elsewhere(self, waited_s: float) -> bool:
        """Return whether sentinels name another primary, while a server has not answered for `waited_s`."""
        if not self._address.sentinels or waited_s < NAMED_LOOK_S:
            self.close()
            return False
        if self._asking is None or self._asking.done():
            self._asking = self._loop.create_task(self._look())
        return self._elsewhere

    def close(self) -> None:
        self._elsewhere = False
        if self._asking is not None:
            self._asking.cancel()

    async def _look(self) -> None:
        with suppress(CountersUnavailable):
            self._elsewhere = await primary(self._address) != self._place
        await asyncio.sleep(NAMED_LOOK_S)


async def primary(address: Address) -> Place:
    """Return host and port of the primary, from the first sentinel that knows it.

    CountersUnavailable if no sentinel answers in time or knows the primary's name; if none answered, the
    message contains a sentinel's error.
    """
    who, faults = address.now(), list[CountersUnavailable]()
    login = who.sentinel_username, who.sentinel_password
    question = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.primary_name

    async def named_by(sentinel: Place) -> Place | None:
        try:
            match await ask_apart(address, sentinel, login, question):
                case [[bytes() as where, bytes() as number]]:
                    return where.decode(), int(number)
        except CountersUnavailable as error:
            faults.append(error)
        return None

    if found := await first_known(address.sentinels, named_by):
        return found
    unknown = f"no sentinel knows a primary named {address.primary_name}"
    if len(faults) < len(address.sentinels):
        raise CountersUnavailable(unknown)
    raise CountersUnavailable(f"{unknown}: {faults[-1]}") from faults[-1]


# The first commands on a connection to Redis, and what the server reports of itself.

# Sends one command, given by its parts, and waits for its answer.
Ask = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Server:
    """A server's report of itself. `run_id` names the process; `eviction` is its maxmemory-policy.

    `promoted` names the replication history that it left when it was promoted (empty: never). `is_one`: it is
    no cluster, so one call may have keys of any slots.
    """

    run_id: bytes
    promoted: bytes
    eviction: str
    is_one: bool


def why_evicts(policy: str) -> str:
    """Return why a server with this maxmemory-policy must not be used; "" if it deletes nothing."""
    if policy in ("", "noeviction"):
        return ""
    return f"Redis has maxmemory-policy {policy}, which deletes counters: set it to noeviction"


def refuse_evicting(server: Server) -> None:
    """Raise CountersUnavailable if a server may delete counters."""
    if why := why_evicts(server.eviction):
        raise CountersUnavailable(why)


async def greet(address: Address, ask: Ask, *, loads: bool = True) -> Server:
    """Authenticate, select the database, load the library; CountersUnavailable if the server is unsuitable.

    Without `loads` the library is only looked up, and nothing is written.
    """
    login = address.now()
    if login.password:
        user = [login.username.encode()] if login.username else []
        await ask(b"AUTH", *user, login.password.encode())
    if address.database:
        await ask(b"SELECT", b"%d" % address.database)
    # All at once: on a busy machine each round trip takes time.
    server, replication, memory, loaded, part = await asyncio.gather(
        ask(b"INFO", b"server"),
        ask(b"INFO", b"replication"),
        ask(b"INFO", b"memory"),
        ask(b"FUNCTION", b"LIST", b"LIBRARYNAME", library().name.encode()),
        _part(address, ask),
    )
    run_id = read_info_field(server, b"run_id")
    if not run_id:
        raise CountersUnavailable("Redis does not say its run_id")
    named = {
        "the sentinels name": address.sentinels,
        "the cluster names": address.members,
        "the URL names": address.shards,
    }
    who = next((who for who, servers in named.items() if servers), None)
    if who and not is_primary(replication):
        raise CountersUnavailable(f"{who} a primary that is not one (yet)")
    policy = read_info_field(memory, b"maxmemory_policy")
    behind, offset = (
        read_info_field(replication, name) for name in (b"master_replid2", b"second_repl_offset")
    )
    promoted = b"" if offset in (b"", b"-1") else behind + b":" + offset
    # A full server refuses to load, but has what was loaded before.
    if loads and not loaded:
        await ask(b"FUNCTION", b"LOAD", b"REPLACE", library().text.encode())
    mode = read_info_field(server, b"redis_mode") or read_info_field(server, b"server_mode")
    is_one = mode == b"standalone"
    if address.shards and not is_one:
        raise CountersUnavailable("it is no standalone server: name members of a cluster by redis+cluster://")
    if is_one:
        _check_part(address, part, claims=loads)
    return Server(run_id, promoted, policy.decode(), is_one)


async def _part(address: Address, ask: Ask) -> bytes | None:
    """Return the note of a server; None without one, also for a user who may read nothing of a partition."""
    if address.members:  # those of a cluster have none
        return None
    with suppress(CountersRefused):
        return cast("bytes | None", await ask(b"GET", SHARD))
    return None


def _own_part(shards: Sequence[Place], place: Place) -> bytes:
    """Return the note of a server that has its part, such as `2/3`."""
    return b"%d/%d" % (shards.index(place) + 1, len(shards))


def _check_part(address: Address, found: bytes | None, *, claims: bool) -> None:
    """Verify the note that a server was `found` to have; one that only looks (not `claims`) needs none.

    CountersUnavailable if the server has another part.
    """
    own = _own_part(address.shards, (address.host, address.port)) if address.shards else None
    if found == own or (found is None and not claims):
        return
    if found is None:
        raise CountersUnavailable("it has no part of the data yet, until all servers of the URL are there")
    raise CountersUnavailable(_other_part(found, own))


def _other_part(found: bytes, own: bytes | None) -> str:
    wanted = f"part {own.decode()}" if own else "all of it"
    return (
        f"it has part {found.decode()} of the data, and the URL asks it for {wanted}: name its servers as"
        " before, by redis+shards://"
    )


async def note_parts(address: Address, *, claims: bool) -> None:
    """Verify that servers have the parts of the data that `address` gives them; with `claims` note the
    parts of new ones.

    Nothing is noted unless all servers answer. CountersUnavailable if one has another part, or data of
    others: programs whose URLs differ would count one organization in two places. So would a server that the
    URL has by two names.
    """
    shards, login = address.shards, address.now()
    own = {place: _own_part(shards, place) for place in shards}
    select = [("SELECT", str(address.database))] if address.database else []
    names: dict[bytes, str] = {}

    async def ask(place: Place, *commands: Sequence[str]) -> list[Reply]:
        who = login.username, login.password
        return (await ask_apart(address, place, who, *select, *commands))[len(select) :]

    async def part_at(place: Place) -> bytes | None:
        """Return the note of a server, empty if it has none and may have one; None if it does not answer."""
        others = {*range(PARTITIONS)}.difference(shard_map(shards).partitions_of(place))
        try:
            note, others_there = ("GET", SHARD.decode()), ("MGET", *map(marker, others))
            info, found, markers = await ask(place, ("INFO", "server"), note, others_there)
        except CountersUnavailable:
            return None
        name = f"{place[0]}:{place[1]}"
        if (same := names.setdefault(read_info_field(info, b"run_id"), name)) != name:
            raise CountersUnavailable(f"{' and '.join(sorted((same, name)))} are one server: name it once")
        if found is None and isinstance(markers, list) and any(markers):
            why = "it has data of other parts: begin with servers that are empty"
            raise CountersUnavailable(f"{place[0]}:{place[1]}: {why}")
        return found if isinstance(found, bytes) else b""

    parts = dict(zip(shards, await asyncio.gather(*map(part_at, shards)), strict=True))
    for place, part in parts.items():
        if part and part != own[place]:
            raise CountersUnavailable(f"{place[0]}:{place[1]}: {_other_part(part, own[place])}")
    if claims and None not in parts.values():
        for place in (place for place, part in parts.items() if not part):
            await ask(place, ("SET", SHARD.decode(), own[place].decode(), "NX"))


def is_primary(replication: object) -> bool:
    """Return whether `INFO replication` is a primary's; some services refuse ROLE, which says the same."""
    return read_info_field(replication, b"role") == b"master"


def read_info_field(info: object, name: bytes) -> bytes:
    """Return the value of a field of INFO; b"" if it is missing."""
    if not isinstance(info, bytes):
        return b""
    return info.partition(name + b":")[2].partition(b"\r")[0]


# Reads INFO of a Redis server, and whether it accepts calls.

# Error codes of a server that refuses commands, and their causes.
WHY = {
    "OOM": "its memory is full",
    "MISCONF": "it cannot write its file",
    "READONLY": "it is a replica",
    "LOADING": "it still reads its file",
    "MASTERDOWN": "it is a replica without its primary",
    "NOREPLICAS": "too few replicas follow it",
}


def facts_of(answer: object) -> dict[str, str]:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def why_refused(facts: Mapping[str, str]) -> str:
    """Return the error code with which a server refuses calls now; "" if it accepts them."""
    if facts.get("loading") == "1":
        return "LOADING"
    if facts.get("role") == "slave":
        return "READONLY"
    if "append_only" in files_failing(facts):
        return "MISCONF"
    names = ("used_memory", "mem_not_counted_for_evict", "maxmemory")
    used, aside, most = (int(facts.get(name) or 0) for name in names)
    return "OOM" if 0 < most <= used - aside else ""


def files_failing(facts: Mapping[str, str]) -> list[str]:
    """Return which files the server could not write at its last try; it may refuse writes for that."""
    aof = facts.get("aof_enabled") == "1" and facts.get("aof_last_write_status") == "err"
    return ["append_only"] * aof + ["snapshot"] * (facts.get("rdb_last_bgsave_status") == "err")


def replica_lags(facts: Mapping[str, str]) -> list[int]:
    """Return the seconds since each replica last reported to this primary."""
    lags = []
    for name, value in facts.items():
        if name.startswith("slave") and name[5:].isdigit():
            fields = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            lags += [int(fields["lag"])] if fields.get("lag", "").isdigit() else []
    return lags


def refusal_in(text: str) -> str:
    """Return the error code, one of `WHY`, in a server's error message; "" if it has none."""
    return next((word for word in text.split() if word in WHY), "")
