"""The keeper's way to Redis: how anything is asked and read, whatever it is about.

What verifies, flushes and looks after a server's partitions speaks over its one `Wire`, so that the run id it
confirms is the run id of the connection it writes on. What is of any organization goes to whoever has it.
Every method may raise CountersUnavailable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from gateway.core.accounts.losses import Movement
from gateway.core.batched import batched
from gateway.core.wait import Wait, in_task
from gateway.counters.keeper.left_alone import UNREADABLE, LeftAlone
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode, encode_script
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersRefused, CountersUnavailable

BATCH_MAX = 256
# Commands that are sent before the first of them is answered.
TOGETHER_MAX = 1_000
# Where a command's key is, of those where it is not the first that is said.
KEY_AT = {b"XINFO": 2}
MOVED_MAX = 40_000
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
        wires: Wires,
        *,
        everybodys: Wires | None = None,
        moved: deque[Movement] | None = None,
        left_alone: LeftAlone | None = None,
        batch_max: int = BATCH_MAX,
        takes_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.left_alone = LeftAlone() if left_alone is None else left_alone
        self.moved: deque[Movement] = deque(maxlen=MOVED_MAX) if moved is None else moved
        self._wires, self._everybodys = wires, wires if everybodys is None else everybodys
        self._batch_max = batch_max
        # The partitions that a newer version has, as of the last look at all markers.
        self.newer = frozenset[int]()
        # Whether every program that runs reads today's layout, which partitions have from then on.
        self.takes_up = takes_up

    @property
    def wire(self) -> Wire:
        """The only server."""
        (wire,) = self._wires.wires
        return wire

    @property
    def run_id(self) -> bytes:
        """The only server's run id on this connection; empty while there is none."""
        return self.wire.run_id if self.wire.connected else b""

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that are asked for."""
        return self._wires.partitions

    def run_id_of(self, partition: int) -> bytes:
        """The run id of who has a partition, on this connection; empty while there is none."""
        wire = self._wires.of(partition)
        return wire.run_id if wire.connected else b""

    def send(self, *parts: bytes) -> Wait[Reply]:
        """Send one plain command on a key of a partition; its answer is waited for by whoever likes to."""
        return self._wires.of_key(parts[KEY_AT.get(parts[0], 1)]).send(encode(*parts))

    def send_script(self, verb: str, call: packing.Call) -> Wait[Reply]:
        """The same of a script."""
        return self._wires.of_key(call[0][0].encode()).send(encode_script(verb, *call))

    async def ask_everybodys(self, *parts: bytes) -> Reply:
        """Send one plain command on a key that any server may have."""
        return await in_task(self._everybodys.of_key(parts[1]).send(encode(*parts)))

    async def ask(self, *parts: bytes) -> Reply:
        """Send one plain command."""
        return await in_task(self.send(*parts))

    async def members(self, name: str) -> list[str]:
        """The members of a sorted set by their scores, but for what none of ours wrote."""
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
        """The same, with why one is refused in its place."""
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
        """The partition's marker as it stands; empty where there is none."""
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
        """The same as they stand now, a due reset included."""
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
    """Whether this version can read a state."""
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
    """What HGETALL or XINFO answers, by name; nothing where there is nothing."""
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
    """Those of a stream, as it answers them; none where there is no stream."""
    return list(map(entry_of, answer)) if isinstance(answer, list) else []


def entries_behind(stream: str, after: bytes, count: int) -> tuple[bytes, ...]:
    """The command for up to `count` entries of a stream after an id; b"" is its start."""
    start = b"(" + after if after else b"-"
    return b"XRANGE", stream.encode(), start, b"+", b"COUNT", b"%d" % count


def _by_partition(pairs: Iterable[tuple[int, int]]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for partition, id_ in pairs:
        found.setdefault(partition, []).append(id_)
    return found
