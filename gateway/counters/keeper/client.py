"""The base of the keeper's access to Redis: sending commands and scripts, and reading states.

The loops that verify and flush a server's partitions use its one `RedisConnection`, so that the run id they
confirm is the run id of the connection that they write on. Queries about an organization go to the server of
its partition. Every method may raise CountersUnavailable.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeVar, cast

from gateway.core.accounts.holds import MovementRange
from gateway.core.text import batched
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.stored import decode_terms
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.errors import CountersRefused, CountersUnavailable

# Values that this version cannot read because another version stored them: left unchanged, counted, and
# logged.
#
# They are never made dead letters, dropped or overwritten, because a version that knows their layout handles
# them. The counts are bounded, and only for people: no write depends on them.

Kind = Literal["partition", "entry", "hold", "settlement", "account"]
KINDS: tuple[Kind, ...] = ("partition", "entry", "hold", "settlement", "account")
# Names of each kind that are remembered; further ones are not counted.
NAMES_MAX = 10_000


# Errors of reading a value that another version, or another program, has stored.
UNREADABLE = (ValueError, struct.error, OverflowError, IndexError, RecursionError)


class UnsupportedVersions:
    """Counts the values that this version cannot read, by kind. `say` logs the first of a kind."""

    def __init__(self, say: Callable[..., None] = lambda *_, **__: None) -> None:
        self._say = say
        self._found: dict[Kind, set[str]] = {kind: set() for kind in KINDS}

    @contextmanager
    def reading(self, kind: Kind, name: str) -> Iterator[None]:
        """Run a block that reads a value; if that is unreadable, count it and skip the rest of the block."""
        try:
            yield
        except UNREADABLE as error:
            self.note(kind, name, str(error))
        else:
            self.forget(kind, [name])

    def note(self, kind: Kind, name: str, why: str) -> None:
        """Count an unreadable value, once for its name."""
        names = self._found[kind]
        if not names:
            self._say("left alone, another version's", what=kind, name=name, why=why, level="error")
        if len(names) < NAMES_MAX:
            names.add(name)

    def forget(self, kind: Kind, names: Iterable[str]) -> None:
        """Remove these names from the count, because their values are readable or gone."""
        if self._found[kind]:
            self._found[kind].difference_update(names)

    def keep(self, kind: Kind, names: Iterable[str], of: str = "") -> None:
        """Remove names that begin with `of`, except `names`, from the count: they are readable or gone."""
        kept = set(names)
        self._found[kind] -= {name for name in self._found[kind] if name.startswith(of) and name not in kept}

    def names(self, kind: Kind) -> list[str]:
        """Return the names of unreadable values of a kind."""
        return sorted(self._found[kind])

    def count(self, kind: Kind) -> int:
        """Return the number of unreadable values of a kind."""
        return len(self._found[kind])

    def figures(self) -> dict[str, object]:
        """Return the number of unreadable values of each kind, for metrics."""
        return {"left_alone": [[kind, len(names)] for kind, names in self._found.items()]}


BATCH_MAX = 256
# Commands sent before the first answer is awaited.
TOGETHER_MAX = 1_000
# The index of the key in commands whose first argument is not the key.
KEY_AT = {b"XINFO": 2}
MOVED_MAX = 40_000
# Encoded commands, and decoded markers, that are cached: a few for each loop.
ASKED_MAX, MARKERS_MAX = 32, 256
# Codes in the scripts' answers.
APPLIED, APPLIED_BEFORE, UNVERIFIED, UNKNOWN_ACCOUNT, OUT_OF_RANGE = 1, 2, 0, -2, -3
# Applied, in place of the account of another row with the same id.
ANOTHERS = 3

S = TypeVar("S", bound=states.State)
_KINDS: dict[type[object], tuple[int, Callable[[int, int], str]]] = {
    states.TenantState: (packing.KIND_TENANT, keys.tenant_state),
    states.OrganizationState: (packing.KIND_ORGANIZATION, keys.organization_state),
}


class Client:
    """Commands to one server, or all. `moved` has the movements acknowledged lately: evidence if Redis loses
    them.

    Keys that belong to no partition are queried over `everybodys`. Up to `batch_max` states are read at once.
    Values of another version are counted in `left_alone`, and are missing in results.
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
        # The partitions that a newer version owns, as of the last look at all markers.
        self.newer = frozenset[int]()
        # Whether every running process reads today's layout, so that partitions may adopt it.
        self.takes_up = takes_up

    @property
    def wire(self) -> RedisConnection:
        """The connection to the only server."""
        (wire,) = self._wires.wires
        return wire

    @property
    def whole(self) -> RedisConnection | None:
        """The connection to the only server, where one command may have any keys; None for a cluster."""
        wires = self._wires.wires
        return wires[0] if len(wires) == 1 and wires[0].is_one else None

    @property
    def run_id(self) -> bytes:
        """The run id of the server that this connection leads to; b"" while not connected."""
        return self.wire.run_id if self.wire.connected else b""

    @property
    def partitions(self) -> Sequence[int]:
        return self._wires.partitions

    def run_id_of(self, partition: int) -> bytes:
        """Return the run id of the server that has a partition; b"" while not connected."""
        wire = self._wires.of(partition)
        return wire.run_id if wire.connected else b""

    def send(self, *parts: bytes) -> Wait[Reply]:
        """Send one plain command on a key of a partition; return its pending reply."""
        return self._wires.of_key(parts[KEY_AT.get(parts[0], 1)]).send(encode(*parts))

    def send_script(self, verb: str, call: packing.Call) -> Wait[Reply]:
        """Send one script call to the server of its first key; return its pending reply."""
        return self._wires.of_key(call[0][0].encode()).send(encode_script(verb, *call))

    async def ask_everybodys(self, *parts: bytes) -> Reply:
        """Send one plain command on a key that belongs to no partition; return the reply."""
        return await in_task(self._everybodys.of_key(parts[1]).send(encode(*parts)))

    async def ask(self, *parts: bytes) -> Reply:
        """Send one plain command; return the reply."""
        return await in_task(self.send(*parts))

    async def members(self, name: str) -> list[str]:
        """Return the members of a sorted set by score, except non-ASCII ones, which no version wrote."""
        raw = await self.ask(b"ZRANGE", name.encode(), b"0", b"-1")
        there = raw if isinstance(raw, list) else []
        return [member.decode() for member in there if isinstance(member, bytes) and member.isascii()]

    async def run(self, verb: str, call: packing.Call) -> bytes:
        """Run one script; return its packed answer."""
        return cast("bytes", await in_task(self.send_script(verb, call)))

    async def ask_all(self, verb: bytes, key: Callable[[int], str], *rest: bytes) -> dict[int, Reply]:
        """Send a command for each partition's key; return replies by partition, None for a refused one."""
        asked = list(self.partitions)
        answers = await self.ask_each((verb, key(item).encode(), *rest) for item in asked)
        return dict(zip(asked, answers, strict=True))

    async def ask_each(self, commands: Iterable[Sequence[bytes]]) -> list[Reply]:
        """Send plain commands together; return replies in order, None for a refused one."""
        answers = await await_each([self.send(*command) for command in commands])
        return [None if isinstance(answer, CountersRefused) else answer for answer in answers]

    async def run_all(self, verb: str, calls: Iterable[packing.Call], together: int) -> list[bytes]:
        """Run one script for each call, `together` at a time; return packed answers in order."""
        answers: list[bytes] = []
        for some in batched(calls, together):
            waits = [self.send_script(verb, call) for call in some]
            answers += [cast("bytes", await in_task(wait)) for wait in waits]
        return answers

    async def run_each(self, verb: str, calls: Iterable[packing.Call]) -> list[bytes | CountersRefused]:
        """Run one script for each call; return packed answers in order, or the error of a refused one."""
        answers: list[bytes | CountersRefused] = []
        for some in batched(calls, TOGETHER_MAX):
            answers += cast(
                "list[bytes | CountersRefused]",
                await await_each([self.send_script(verb, call) for call in some]),
            )
        return answers

    async def ask_together(
        self, commands: Iterable[Sequence[bytes]], *, everybodys: bool = False
    ) -> list[Reply]:
        """Send plain commands in batches; return replies in order. `everybodys` keys have no partition."""
        wires, replies = self._everybodys if everybodys else self._wires, list[Reply]()
        for some in batched(commands, TOGETHER_MAX):
            waits = [wires.of_key(command[1]).send(encode(*command)) for command in some]
            replies += [await in_task(wait) for wait in waits]
        return replies

    async def marker(self, partition: int) -> bytes:
        """Return the partition's stored marker; b"" if it has none."""
        raw = await self.ask(b"GET", keys.marker(partition).encode())
        return raw if isinstance(raw, bytes) else b""

    async def states(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the raw states of one partition's keys, in order; None for a missing one."""
        found: list[bytes | None] = []
        for start in range(0, len(names), self._batch_max):
            batch = names[start : start + self._batch_max]
            answer = await self.ask(b"MGET", *(name.encode() for name in batch))
            assert isinstance(answer, list)
            found += [state if isinstance(state, bytes) else None for state in answer]
        return found

    async def unreadable_states(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those accounts of one partition that this version cannot read, by key."""
        asked = list(names)
        pairs = zip(asked, await self.states(asked), strict=True)
        return {name: raw for name, raw in pairs if raw and not is_readable(name, raw)}

    async def stored(self, kind: type[S], pairs: Iterable[tuple[int, int]]) -> dict[int, S | None]:
        """Return stored accounts of (partition, id) pairs, by id; None for a missing one."""
        found: dict[int, S | None] = {}
        for partition, ids in _by_partition(pairs).items():
            names = [_KINDS[kind][1](partition, id_) for id_ in ids]
            found |= self._unpacked(kind, ids, names, await self.states(names))
        return found

    async def peek(self, kind: type[S], pairs: Iterable[tuple[int, int]]) -> dict[int, S | None]:
        """Return accounts of (partition, id) pairs as of now, with due resets applied, by id."""
        found: dict[int, S | None] = {}
        key = _KINDS[kind][1]
        for partition, ids in _by_partition(pairs).items():
            for start in range(0, len(ids), self._batch_max):
                batch = ids[start : start + self._batch_max]
                names = [key(partition, id_) for id_ in batch]
                found |= self._unpacked(kind, batch, names, await self._peek(partition, kind, names))
        return found

    async def _peek(self, partition: int, kind: type[S], names: Sequence[str]) -> list[bytes | None]:
        """Return raw states of one partition as of now; as stored, if this version cannot read them."""
        call = (keys.marker(partition), *names), (self.run_id_of(partition), b"%d" % _KINDS[kind][0])
        try:
            answer = await in_task(self.send_script("peek", call))
        except CountersRefused:
            raw = dict(zip(names, await self.states(names), strict=True))
            rest = [name for name, packed in raw.items() if not packed or is_readable(name, packed)]
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
        """Return states by id, without those that another version has stored."""
        found: dict[int, S | None] = {}
        for id_, name, packed in zip(ids, names, raw, strict=True):
            with self.left_alone.reading("account", name):
                found[id_] = states.unpack(kind, packed) if packed else None
        return found

    async def now_ms(self) -> int:
        """Return Redis' time of day in ms, from the first server that is available."""
        wires = self._wires.wires
        wire = next((wire for wire in wires if wire.available), wires[0] if wires else None)
        if wire is None:
            raise CountersUnavailable
        time = await in_task(wire.send(encode(b"TIME")))
        assert isinstance(time, list)
        seconds, micros = (int(cast("bytes", part)) for part in time)
        return seconds * 1000 + micros // 1000


# How this version reads the state of each kind of account, by the letter in its key.
_READERS: dict[str, Callable[[bytes], object]] = {
    "k": partial(states.unpack, states.KeyState), "u": partial(states.unpack, states.UserState),
    "t": partial(states.unpack, states.TenantState), "o": partial(states.unpack, states.OrganizationState),
    "a": partial(states.unpack, states.ActivationState), "b": states.unpack_windows,
}  # fmt: skip


def kind_in(name: str) -> str:
    """Return the letter of the kind of account in a key."""
    return name.split(":")[2]


def is_readable(name: str, raw: bytes) -> bool:
    """Return whether this version can read an account by its key, or an organization's terms."""
    read = decode_terms if name.startswith(keys.TERMS.decode()) else _READERS[kind_in(name)]
    try:
        read(raw)
    except UNREADABLE:
        return False
    return True


async def await_each(waits: Iterable[Wait[Reply]]) -> list[Reply | CountersRefused]:
    """Return replies in order, or the error of a refused one: a key of the wrong type affects only itself."""
    answers: list[Reply | CountersRefused] = []
    for wait in waits:
        try:
            answer: Reply = await in_task(wait)
            answers.append(answer)
        except CountersRefused as error:
            answers.append(error)
    return answers


def fields_of(answer: Reply) -> dict[bytes, Reply]:
    """Return the reply of HGETALL or XINFO by field name; {} if the key is missing."""
    flat = answer if isinstance(answer, list) else []
    return dict(zip(cast("list[bytes]", flat[::2]), flat[1::2], strict=True))


def entry_of(raw: Reply) -> tuple[bytes, bytes]:
    """Return the id and packed event of a stream entry; the event is b"" if it has other fields."""
    assert isinstance(raw, list)
    entry_id, fields = raw
    assert isinstance(entry_id, bytes)
    if isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], bytes):
        return entry_id, fields[1]
    return entry_id, b""


def entries_in(answer: Reply) -> list[tuple[bytes, bytes]]:
    """Return the entries in a stream's reply; [] if there is no stream."""
    return list(map(entry_of, answer)) if isinstance(answer, list) else []


def entries_behind(stream: str, after: bytes, count: int) -> tuple[bytes, ...]:
    """Return the command for up to `count` entries of a stream after an id; b"" is the start."""
    start = b"(" + after if after else b"-"
    return b"XRANGE", stream.encode(), start, b"+", b"COUNT", b"%d" % count


def _by_partition(pairs: Iterable[tuple[int, int]]) -> Mapping[int, list[int]]:
    ids_by_partition: dict[int, list[int]] = {}
    for partition, id_ in pairs:
        ids_by_partition.setdefault(partition, []).append(id_)
    return ids_by_partition


# Decodes a marker, cached by its bytes: most partitions have the same. A newer version's raises each time.
read_marker = lru_cache(MARKERS_MAX)(packing.read_marker)


# Frequent queries about all partitions: one command, if one server has all slots.
#
# A cluster gets one command for each partition, and so does a server that refuses the single command: a key
# of another type must affect only its own partition, and a user of an older `deploy/users.acl` may not read
# many streams.

# The entries (id, packed) of one stream, or the error of reading it.
Read = list[tuple[bytes, bytes]] | CountersRefused


async def markers_of(client: Client, partitions: Iterable[int]) -> dict[int, Reply]:
    """Return the stored markers by partition; None for a missing one or a key of another type."""
    asked = list(partitions)
    if (whole := client.whole) is None or not asked:
        return dict(zip(asked, await client.ask_each(_each_marker(asked)), strict=True))
    raws = await in_task(whole.send(_asking(b"MGET", *(keys.marker(partition) for partition in asked))))
    assert isinstance(raws, list)
    return {
        partition: raw if isinstance(raw, bytes) else None for partition, raw in zip(asked, raws, strict=True)
    }


async def entries_of(client: Client, after: Mapping[str, bytes], count: int) -> list[Read]:
    """Return up to `count` entries of each stream after an id (b"": the start), in the order of `after`."""
    if (whole := client.whole) is not None and after:
        behind = (position or b"0" for position in after.values())
        with suppress(CountersRefused):
            asked = _asking(b"XREAD", b"COUNT", b"%d" % count, b"STREAMS", *after, *behind)
            answer = cast("list[list[Reply]] | None", await in_task(whole.send(asked)))
            entries_by_name = {cast("bytes", name).decode(): entries for name, entries in answer or ()}
            return [entries_in(entries_by_name.get(name)) for name in after]
    answers = await await_each(
        [client.send(*entries_behind(name, position, count)) for name, position in after.items()]
    )
    return [answer if isinstance(answer, CountersRefused) else entries_in(answer) for answer in answers]


async def are_any_there(client: Client, names: Sequence[str]) -> bool:
    """Return whether any of these keys exists; also True if that is unknown."""
    if (whole := client.whole) is not None and names:
        with suppress(CountersRefused):
            return await in_task(whole.send(_asking(b"EXISTS", *names))) != 0
    return bool(names)


async def with_late(client: Client) -> list[tuple[int, Read]]:
    """Return partitions with a late queue that is not empty; with its first entry, or the read error."""
    asked = list(client.partitions)
    entries = await entries_of(client, {keys.late(partition): b"" for partition in asked}, 1)
    return [pair for pair in zip(asked, entries, strict=True) if pair[1] != []]


@lru_cache(ASKED_MAX)
def _asking(*words: bytes | str) -> bytes:
    """Return an encoded command, cached because idle loops repeat it with the names of many keys."""
    return encode(*(word.encode() if isinstance(word, str) else word for word in words))


def _each_marker(partitions: Collection[int]) -> Iterable[tuple[bytes, bytes]]:
    return ((b"GET", keys.marker(partition).encode()) for partition in partitions)


# The rights that a user of Redis needs, and those of a keeper: checked without running any command.
#
# Commands are queued after MULTI on a connection that is then closed; Redis refuses a command without the
# right to it when it is queued. deploy/users.acl gives these rights, and a test compares the two.

# Errors of servers and services about a command that they lack or forbid.
_LACKED = ("unknown command", "unknown subcommand", "is not allowed", "not supported", "unsupported")

# Keys that are never written, one of each kind that rights are given by.
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
    "FUNCTION LOAD text", "SCAN 0",
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
# Sent by doctor alone: whether the user `default` may run a command.
ASKS_OF_DEFAULT = b"ACL", b"DRYRUN", b"default"
# Commands that a server may lack, and the consequences.
WITHOUT = {
    "HELLO": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "CLIENT TRACKING OFF": "so nothing is told that changes: who calls is looked up again after 0.8 s",
    "ASKING": "so calls of a slot are refused while it moves key by key",
}
# A command that only a keeper's user may run, and one that no user needs. No service refuses the latter.
KEEPERS_ALONE, NOBODYS = f"ZREM {IDENTITY} m", "DBSIZE"


def needed_rights(role: str, *, clustered: bool, database: int) -> tuple[str, ...]:
    """Return the commands that a process of this role (`serve` or a keeper) sends to one server."""
    of_it = OF_A_CLUSTER if clustered else ()
    return (
        *BOTH, *of_it, *(OF_A_DATABASE if database else ()), *(() if role == "serve" else KEEPER),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RefusedCommands:
    """Commands refused for lack of rights, and commands that the server does not have."""

    by_rights: list[str]
    by_server: list[str]

    def __bool__(self) -> bool:
        return bool(self.by_rights or self.by_server)


async def refused_rights(wire: RedisConnection, *commands: str) -> RefusedCommands:
    """Return which commands are refused on this connection, and why; it must be closed afterwards."""
    asked = wire.send_together(encode(b"MULTI"), *(encode(*line.encode().split()) for line in commands))
    refused_commands = RefusedCommands([], [])
    for line, answer in zip(("MULTI", *commands), asked, strict=True):
        try:
            await in_task(answer)
        except CountersRefused as error:
            if "NOPERM" in error.message:
                refused_commands.by_rights.append(line)
            elif any(word in error.message for word in _LACKED):
                refused_commands.by_server.append(line)
    return refused_commands
