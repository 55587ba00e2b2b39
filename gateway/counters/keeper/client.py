"""The keeper's way to Redis: how anything is asked and read, whatever it is about.

What verifies, flushes and looks after a server's partitions speaks over its one `RedisConnection`, so that
the run id it confirms is the run id of the connection it writes on. Questions about any organization go to
its server. Every method may raise CountersUnavailable.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar, cast

from gateway.core.accounts.holds import MovementRange
from gateway.core.text import batched
from gateway.core.wait import Wait, in_task
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.errors import CountersRefused, CountersUnavailable

# What nobody here can read, since another version has stored it: left where it is, counted, and told.
#
# It is never made a dead letter, never dropped, never written over: programs that know its layout deal with
# it. This only counts, up to a bound: what may be written goes by what was read, never by what is counted
# here.

Kind = Literal["partition", "entry", "hold", "settlement", "account"]
KINDS: tuple[Kind, ...] = ("partition", "entry", "hold", "settlement", "account")
# Names of each kind that are remembered; more of them are not counted.
NAMES_MAX = 10_000


# What reading fails with where nobody, or another version, stored it.
UNREADABLE = (ValueError, struct.error, OverflowError, IndexError, RecursionError)


class UnsupportedVersions:
    """By kind, what the last look at it could not read. `say` is told of the first of a kind."""

    def __init__(self, say: Callable[..., None] = lambda *_, **__: None) -> None:
        self._say = say
        self._found: dict[Kind, set[str]] = {kind: set() for kind in KINDS}

    @contextmanager
    def reading(self, kind: Kind, name: str) -> Iterator[None]:
        """A value read within may be another version's: then the rest of the block is left out."""
        try:
            yield
        except UNREADABLE as error:
            self.note(kind, name, str(error))
        else:
            self.forget(kind, [name])

    def note(self, kind: Kind, name: str, why: str) -> None:
        """Count it, once by its name."""
        names = self._found[kind]
        if not names:
            self._say("left alone, another version's", what=kind, name=name, why=why, level="error")
        if len(names) < NAMES_MAX:
            names.add(name)

    def forget(self, kind: Kind, names: Iterable[str]) -> None:
        """These can be read, or are gone."""
        if self._found[kind]:
            self._found[kind].difference_update(names)

    def keep(self, kind: Kind, names: Iterable[str], of: str = "") -> None:
        """Whatever begins so and is not among these can be read by now, or is gone."""
        kept = set(names)
        self._found[kind] -= {one for one in self._found[kind] if one.startswith(of) and one not in kept}

    def count(self, kind: Kind) -> int:
        """Return how much of a kind there is."""
        return len(self._found[kind])

    def figures(self) -> dict[str, object]:
        """Return how much of each kind there is, for metrics."""
        return {"left_alone": [[kind, len(names)] for kind, names in self._found.items()]}


BATCH_MAX = 256
# Commands that are sent before the first of them is answered.
TOGETHER_MAX = 1_000
# Where a command's key is, of those where it is not the first that is said.
KEY_AT = {b"XINFO": 2}
MOVED_MAX = 40_000
# Commands, and markers, that are kept as they were written or read last: some of each loop.
ASKED_MAX, MARKERS_MAX = 32, 256
# Codes of the scripts' answers.
APPLIED, APPLIED_BEFORE, UNVERIFIED, UNKNOWN_ACCOUNT, OUT_OF_RANGE = 1, 2, 0, -2, -3

S = TypeVar("S", bound=states.State)
_KINDS: dict[type[object], tuple[int, Callable[[int, int], str]]] = {
    states.TenantState: (packing.KIND_TENANT, keys.tenant_state),
    states.OrganizationState: (packing.KIND_ORGANIZATION, keys.organization_state),
}


class Client:
    """One server, or all. `moved` is what it had acknowledged of late: evidence, should Redis forget it.

    Keys that are of no partition are asked for over `everybodys`.

    `batch_max` states are asked for at once. What another version has stored is `left_alone`, and is not in
    what is answered.
    """

    def __init__(
        self,
        wires: RedisConnections,
        *,
        everybodys: RedisConnections | None = None,
        moved: deque[MovementRange] | None = None,
        left_alone: UnsupportedVersions | None = None,
        batch_max: int = BATCH_MAX,
        takes_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.left_alone = UnsupportedVersions() if left_alone is None else left_alone
        self.moved: deque[MovementRange] = deque(maxlen=MOVED_MAX) if moved is None else moved
        self._wires, self._everybodys = wires, wires if everybodys is None else everybodys
        self._batch_max = batch_max
        # The partitions that a newer version has, as of the last look at all markers.
        self.newer = frozenset[int]()
        # Whether every program that runs reads today's layout, which partitions have from then on.
        self.takes_up = takes_up

    @property
    def wire(self) -> RedisConnection:
        """The only server."""
        (wire,) = self._wires.wires
        return wire

    @property
    def whole(self) -> RedisConnection | None:
        """The only server, where one command may name keys of any partitions; None of a cluster."""
        wires = self._wires.wires
        return wires[0] if len(wires) == 1 and wires[0].is_one else None

    @property
    def run_id(self) -> bytes:
        """The only server's run id on this connection; empty while there is none."""
        return self.wire.run_id if self.wire.connected else b""

    @property
    def partitions(self) -> Sequence[int]:
        return self._wires.partitions

    def run_id_of(self, partition: int) -> bytes:
        """Return the run id of who has a partition, on this connection; empty while there is none."""
        wire = self._wires.of(partition)
        return wire.run_id if wire.connected else b""

    def send(self, *parts: bytes) -> Wait[Reply]:
        """Send one plain command on a key of a partition; its answer may be waited for."""
        return self._wires.of_key(parts[KEY_AT.get(parts[0], 1)]).send(encode(*parts))

    def send_script(self, verb: str, call: packing.Call) -> Wait[Reply]:
        """Return the same of a script."""
        return self._wires.of_key(call[0][0].encode()).send(encode_script(verb, *call))

    async def ask_everybodys(self, *parts: bytes) -> Reply:
        """Send one plain command on a key that any server may have."""
        return await in_task(self._everybodys.of_key(parts[1]).send(encode(*parts)))

    async def ask(self, *parts: bytes) -> Reply:
        """Send one plain command."""
        return await in_task(self.send(*parts))

    async def members(self, name: str) -> list[str]:
        """Return the members of a sorted set by their scores, but for what none of ours wrote."""
        found = await self.ask(b"ZRANGE", name.encode(), b"0", b"-1")
        there = found if isinstance(found, list) else []
        return [one.decode() for one in there if isinstance(one, bytes) and one.isascii()]

    async def run(self, verb: str, call: packing.Call) -> bytes:
        """Run one script whose answer is packed."""
        return cast("bytes", await in_task(self.send_script(verb, call)))

    async def ask_all(self, verb: bytes, key: Callable[[int], str], *rest: bytes) -> dict[int, Reply]:
        """Ask of each partition's key; None of one that is refused."""
        asked = list(self.partitions)
        answers = await self.ask_each((verb, key(one).encode(), *rest) for one in asked)
        return dict(zip(asked, answers, strict=True))

    async def ask_each(self, commands: Iterable[Sequence[bytes]]) -> list[Reply]:
        """Send plain commands together; their answers in order, None of one that is refused."""
        answers = await each([self.send(*command) for command in commands])
        return [None if isinstance(one, CountersRefused) else one for one in answers]

    async def run_all(self, verb: str, calls: Iterable[packing.Call], together: int) -> list[bytes]:
        """Run one script again and again, some `together`; its packed answers in order."""
        found: list[bytes] = []
        for some in batched(calls, together):
            waits = [self.send_script(verb, call) for call in some]
            found += [cast("bytes", await in_task(wait)) for wait in waits]
        return found

    async def run_each(self, verb: str, calls: Iterable[packing.Call]) -> list[bytes | CountersRefused]:
        """Return the same, with why one is refused in its place."""
        found: list[bytes | CountersRefused] = []
        for some in batched(calls, TOGETHER_MAX):
            found += cast(
                "list[bytes | CountersRefused]", await each([self.send_script(verb, call) for call in some])
            )
        return found

    async def ask_together(
        self, commands: Iterable[Sequence[bytes]], *, everybodys: bool = False
    ) -> list[Reply]:
        """Send plain commands, some at once; their answers in order. Of keys of `everybodys`, or of ours."""
        wires, found = self._everybodys if everybodys else self._wires, list[Reply]()
        for some in batched(commands, TOGETHER_MAX):
            waits = [wires.of_key(command[1]).send(encode(*command)) for command in some]
            found += [await in_task(wait) for wait in waits]
        return found

    async def marker(self, partition: int) -> bytes:
        """Return the partition's marker as it stands; empty where there is none."""
        raw = await self.ask(b"GET", keys.marker(partition).encode())
        return raw if isinstance(raw, bytes) else b""

    async def states(self, names: Sequence[str]) -> list[bytes | None]:
        """Raw states of one partition as they are stored, in order."""
        found: list[bytes | None] = []
        for start in range(0, len(names), self._batch_max):
            batch = names[start : start + self._batch_max]
            answer = await self.ask(b"MGET", *(name.encode() for name in batch))
            assert isinstance(answer, list)
            found += [one if isinstance(one, bytes) else None for one in answer]
        return found

    async def stored(self, kind: type[S], pairs: Iterable[tuple[int, int]]) -> dict[int, S | None]:
        """Accounts of (partition, id) pairs as they are stored, by id; None of one that is not there."""
        found: dict[int, S | None] = {}
        for partition, ids in _by_partition(pairs).items():
            names = [_KINDS[kind][1](partition, one) for one in ids]
            found |= self._unpacked(kind, ids, names, await self.states(names))
        return found

    async def peek(self, kind: type[S], pairs: Iterable[tuple[int, int]]) -> dict[int, S | None]:
        """Return the same as they stand now, a due reset included."""
        found: dict[int, S | None] = {}
        key = _KINDS[kind][1]
        for partition, ids in _by_partition(pairs).items():
            for start in range(0, len(ids), self._batch_max):
                batch = ids[start : start + self._batch_max]
                names = [key(partition, one) for one in batch]
                found |= self._unpacked(kind, batch, names, await self._peek(partition, kind, names))
        return found

    async def _peek(self, partition: int, kind: type[S], names: Sequence[str]) -> list[bytes | None]:
        """Raw states of one partition as they stand; as they are stored where nobody here can read them."""
        call = (keys.marker(partition), *names), (self.run_id_of(partition), b"%d" % _KINDS[kind][0])
        try:
            answer = await in_task(self.send_script("peek", call))
        except CountersRefused:
            raw = dict(zip(names, await self.states(names), strict=True))
            rest = [name for name, one in raw.items() if not one or is_readable(kind, one)]
            if len(rest) == len(names):
                raise
            told = await self._peek(partition, kind, rest) if rest else []
            return list((raw | dict(zip(rest, told, strict=True))).values())
        assert isinstance(answer, list)
        if answer and not isinstance(answer[0], bytes | None):
            raise CountersUnavailable
        return cast("list[bytes | None]", answer)

    def _unpacked(
        self, kind: type[S], ids: Sequence[int], names: Sequence[str], raw: Iterable[bytes | None]
    ) -> dict[int, S | None]:
        """States by id, but for those that another version has stored."""
        found: dict[int, S | None] = {}
        for id_, name, one in zip(ids, names, raw, strict=True):
            with self.left_alone.reading("account", name):
                found[id_] = states.unpack(kind, one) if one else None
        return found

    async def now_ms(self) -> int:
        """Redis' own clock, by the first server that answers."""
        wires = self._wires.wires
        wire = next((one for one in wires if one.available), wires[0] if wires else None)
        if wire is None:
            raise CountersUnavailable
        time = await in_task(wire.send(encode(b"TIME")))
        assert isinstance(time, list)
        seconds, micros = (int(cast("bytes", part)) for part in time)
        return seconds * 1000 + micros // 1000


def is_readable(kind: type[S], raw: bytes) -> bool:
    """Return whether this version can read a state."""
    try:
        states.unpack(kind, raw)
    except UNREADABLE:
        return False
    return True


async def each(waits: Iterable[Wait[Reply]]) -> list[Reply | CountersRefused]:
    """Answers in order, or why one is refused: a key of the wrong type troubles its own partition alone."""
    answers: list[Reply | CountersRefused] = []
    for wait in waits:
        try:
            answer: Reply = await in_task(wait)
            answers.append(answer)
        except CountersRefused as error:
            answers.append(error)
    return answers


def fields_of(answer: Reply) -> dict[bytes, Reply]:
    """Return what HGETALL or XINFO answers, by name; nothing where there is nothing."""
    flat = answer if isinstance(answer, list) else []
    return dict(zip(cast("list[bytes]", flat[::2]), flat[1::2], strict=True))


def entry_of(raw: Reply) -> tuple[bytes, bytes]:
    """An XRANGE entry (id, packed event); one without the field is an empty event, which nobody can read."""
    assert isinstance(raw, list)
    entry_id, fields = raw
    assert isinstance(entry_id, bytes)
    if isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], bytes):
        return entry_id, fields[1]
    return entry_id, b""


def entries_in(answer: Reply) -> list[tuple[bytes, bytes]]:
    """Return those of a stream, as it answers them; none where there is no stream."""
    return list(map(entry_of, answer)) if isinstance(answer, list) else []


def entries_behind(stream: str, after: bytes, count: int) -> tuple[bytes, ...]:
    """Return the command for up to `count` entries of a stream after an id; b"" is its start."""
    start = b"(" + after if after else b"-"
    return b"XRANGE", stream.encode(), start, b"+", b"COUNT", b"%d" % count


def _by_partition(pairs: Iterable[tuple[int, int]]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for partition, id_ in pairs:
        found.setdefault(partition, []).append(id_)
    return found


# The contents of a marker, by its bytes: most partitions have the same. A newer version's raises each time.
read_marker = lru_cache(MARKERS_MAX)(packing.read_marker)


# What loops ask of all partitions, again and again: in one question, where one may have keys of all slots.
#
# A cluster is asked of each, and so is a server that refuses the question: a key of another type troubles its
# own partition alone, and a user of an older `deploy/users.acl` may not ask for many streams.

# Entries (id, packed) of one stream, or why there are none.
Read = list[tuple[bytes, bytes]] | CountersRefused


async def markers_of(client: Client, partitions: Iterable[int]) -> dict[int, Reply]:
    """Return the markers of partitions as they stand; None of one that is not there or is of another type."""
    asked = list(partitions)
    if (whole := client.whole) is None or not asked:
        return dict(zip(asked, await client.ask_each(_each_marker(asked)), strict=True))
    found = await in_task(whole.send(_asking(b"MGET", *(keys.marker(one) for one in asked))))
    assert isinstance(found, list)
    return {one: raw if isinstance(raw, bytes) else None for one, raw in zip(asked, found, strict=True)}


async def entries_of(client: Client, after: Mapping[str, bytes], count: int) -> list[Read]:
    """Up to `count` entries of each stream behind an id, b"" being its start, in the order asked."""
    if (whole := client.whole) is not None and after:
        behind = (one or b"0" for one in after.values())
        with suppress(CountersRefused):
            asked = _asking(b"XREAD", b"COUNT", b"%d" % count, b"STREAMS", *after, *behind)
            answer = cast("list[list[Reply]] | None", await in_task(whole.send(asked)))
            found = {cast("bytes", name).decode(): entries for name, entries in answer or ()}
            return [entries_in(found.get(name)) for name in after]
    answers = await each([client.send(*entries_behind(name, one, count)) for name, one in after.items()])
    return [one if isinstance(one, CountersRefused) else entries_in(one) for one in answers]


async def are_any_there(client: Client, names: Sequence[str]) -> bool:
    """Return whether there is any of these keys; also where that is not known."""
    if (whole := client.whole) is not None and names:
        with suppress(CountersRefused):
            return await in_task(whole.send(_asking(b"EXISTS", *names))) != 0
    return bool(names)


async def with_late(client: Client) -> list[tuple[int, Read]]:
    """Return partitions with settlements in their late queue, the first of each, or why it does not say."""
    asked = list(client.partitions)
    found = await entries_of(client, {keys.late(one): b"" for one in asked}, 1)
    return [pair for pair in zip(asked, found, strict=True) if pair[1] != []]


@lru_cache(ASKED_MAX)
def _asking(*words: bytes | str) -> bytes:
    """Return a command that is given again and again while nothing happens, with the names of many keys."""
    return encode(*(word.encode() if isinstance(word, str) else word for word in words))


def _each_marker(partitions: Collection[int]) -> Iterable[tuple[bytes, bytes]]:
    return ((b"GET", keys.marker(one).encode()) for one in partitions)


# What a user of Redis must be able to do, and what only a keeper's may: asked without doing any of it.
#
# Commands are queued behind MULTI on a connection that is then closed; Redis refuses, as it queues it, what a
# user may not do. deploy/users.acl gives what is asked for here, and a test compares the two.

# What servers and services say of a command they do not have, or that nobody may give there.
_LACKED = ("unknown command", "unknown subcommand", "is not allowed", "not supported", "unsupported")

# A key nothing is ever kept in, of each kind that rights are given by.
OF_A_PARTITION, IDENTITY = "tk:{p0}:doctor", "tk:id:{p0}:doctor"

BOTH = (
    "PING", "INFO", "TIME", "FUNCTION LIST", "HELLO", "CLIENT TRACKING OFF",
    *(
        f"{verb} {OF_A_PARTITION} {rest}".rstrip()
        for verb, rest in (
            ("FCALL f 1", ""), ("GET", ""), ("SET", "0"), ("SETRANGE", "0 0"), ("DEL", ""), ("EXPIRE", "1"),
            ("MGET", ""), ("MSET", "0"), ("HEXISTS", "f"), ("HSET", "f 0"), ("HDEL", "f"), ("HINCRBY", "f 1"),
            ("XADD", "* f 0"), ("XDEL", "0-1"), ("XINFO STREAM", ""), ("XLEN", ""), ("XRANGE", "- +"),
            ("ZADD", "0 m"), ("ZCARD", ""), ("ZCOUNT", "0 0"), ("ZMSCORE", "m"), ("ZRANGE", "0 0"),
            ("ZREM", "m"), ("ZREMRANGEBYRANK", "0 0"), ("ZREMRANGEBYSCORE", "0 0"), ("ZSCORE", "m"),
        )
    ),
    "ZREM tk:workers:{p0} m", "ZREM tk:pulses:{p0} m", "ZREM tk:history:{p0} m", "ZREM tk:busy:doctor m",
    "SET tk:cooling 0", "SET tk:call-lessons 0", "ZREM tk:programs m", "XLEN tk:refused",
    f"GET {IDENTITY}", "GET tk:org:{p0}:doctor", "GET tk:catalogue", "GET tk:prices", "GET tk:verified:{p0}",
    "GET tk:promotion:{p0}", "GET tk:keepers",
)  # fmt: skip
OF_A_DATABASE = ("SELECT 0",)
OF_A_CLUSTER = ("CLUSTER INFO", "CLUSTER SLOTS", "ASKING")
KEEPER = (
    "FUNCTION LOAD text",
    *(
        f"{verb} {OF_A_PARTITION} {rest}".rstrip()
        for verb, rest in (
            ("TYPE", ""), ("HGETALL", ""), ("HMGET", "f"), ("XREVRANGE", "+ -"), ("EXISTS", ""),
            ("PERSIST", ""),
        )
    ),
    f"XREAD STREAMS {OF_A_PARTITION} 0",
    f"ZREM {IDENTITY} m", "ZREM tk:org:{p0}:doctor m", "ZREM tk:catalogue m", "ZREM tk:prices m",
    "ZREM tk:verified:{p0} m", "ZREM tk:promotion:{p0} m", "ZREM tk:keepers m",
)  # fmt: skip
# What doctor alone asks: whether the user `default` may give a command.
ASKS_OF_DEFAULT = b"ACL", b"DRYRUN", b"default"
# Commands that a server may lack, and the consequences.
WITHOUT = {
    "HELLO": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "CLIENT TRACKING OFF": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "ASKING": "so calls of a slot are refused while it moves key by key",
}
# What tells a keeper's user, and one who may do anything, from a gateway's. No service refuses the last.
KEEPERS_ALONE, NOBODYS = f"ZREM {IDENTITY} m", "DBSIZE"


def needed_rights(role: str, *, clustered: bool, database: int) -> tuple[str, ...]:
    """Return what a process of this role asks of one server."""
    of_it = OF_A_CLUSTER if clustered else ()
    return (
        *BOTH, *of_it, *(OF_A_DATABASE if database else ()), *(() if role == "serve" else KEEPER),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RefusedCommands:
    """Those of some commands that a user may not give, and those that its server does not have."""

    by_rights: list[str]
    by_server: list[str]

    def __bool__(self) -> bool:
        return bool(self.by_rights or self.by_server)


async def refused_rights(wire: RedisConnection, *commands: str) -> RefusedCommands:
    """Which of the commands are refused on this connection, and by whom; it must be closed afterwards."""
    asked = wire.send_together(encode(b"MULTI"), *(encode(*line.encode().split()) for line in commands))
    found = RefusedCommands([], [])
    for line, answer in zip(("MULTI", *commands), asked, strict=True):
        try:
            await in_task(answer)
        except CountersRefused as error:
            if "NOPERM" in error.message:
                found.by_rights.append(line)
            elif any(word in error.message for word in _LACKED):
                found.by_server.append(line)
    return found
