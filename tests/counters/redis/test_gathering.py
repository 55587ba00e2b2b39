"""Calls that come while others are under way: gathered for a moment, in order, each answered once."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.wait import Wait, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.calls import (
    ARGUMENT_BYTES_MAX,
    CALLS_MAX,
    FLIGHTS_MAX,
    GATHER_S_MAX,
    CallBatcher,
    CallTemplate,
    Reply,
    VerbEncoding,
    bulks,
)
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from tests.counters.fake_redis import FakeRedis, bulk, fake_redis
from tests.waiting import eventually

PARTITIONS = (3, 7)
SETTLE, RESERVE = 0, 1
LONG_S = 600.0
VERBS = {SETTLE: "settle", RESERVE: "reserve"}


def form(rank: int, partition: int) -> CallTemplate:
    shared = (keys.deadlines(partition), keys.outbox(partition), keys.marker(partition))
    return CallTemplate(
        VerbEncoding(VERBS[rank], rank, shared, "h:", packing.ALONE[VERBS[rank]]), ("account",), 1
    )


FORMS = {(rank, partition): form(rank, partition) for rank in VERBS for partition in PARTITIONS}


def ids_of(command: list[bytes]) -> list[int]:
    """The calls that a command of a function is, by their holds: an argument may begin like one."""
    return [int(part[2:]) for part in command if part.startswith(b"h:") and part[2:].isdigit()]


def answer_of(command: list[bytes]) -> bytes:
    """Each call's number, as a function answers one call or many."""
    if command[0] != b"FCALL":
        return bulk(command[-1])
    answers = [bulk(b"%d" % one) for one in ids_of(command)]
    return answers[0] if len(answers) == 1 else b"*%d\r\n%b" % (len(answers), b"".join(answers))


@dataclass
class Server:
    """Answers when it is told to; all commands of all connections, by their writes."""

    fake: FakeRedis
    held: list[bytes]

    def answer(self, wire: RedisConnection, count: int) -> None:
        """Say the next answers, in one piece."""
        said, self.held[:count] = b"".join(self.held[:count]), []
        wire.data_received(said)

    @property
    def writes(self) -> list[list[list[bytes]]]:
        return self.fake.chunks


class Calls:
    """Sends numbered calls: their argument is the number of the write that they should leave in."""

    def __init__(self, wire: RedisConnection) -> None:
        self.wire = wire
        self.waits: dict[int, Wait[Reply]] = {}

    def send(self, rank: int = RESERVE, partition: int = 7, size: int = 8) -> int:
        number = len(self.waits)
        argument = bulks(struct.pack("<q", self.wire.batch) + b" " * (size - 8))
        self.waits[number] = self.wire.send_call(FORMS[rank, partition], b"%036d" % number, argument)
        return number


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    held: list[bytes] = []
    async with fake_redis(lambda command: held.append(answer_of(command))) as fake:
        yield Server(fake, held)


async def opened(
    server: Server, *, call_s: float = LONG_S, gather_s: float = GATHER_S_MAX
) -> RedisConnection:
    wire = RedisConnection(
        parse_url(server.fake.url), time.monotonic, call_s=call_s, stall_s=LONG_S, gather_s=gather_s
    )
    await wire.open()
    return wire


async def in_flight(server: Server, calls: Calls) -> list[int]:
    """As many writes of calls as there may be before calls are gathered."""
    sent = []
    for number in range(FLIGHTS_MAX):
        sent.append(calls.send())
        await eventually(partial(_holds, server, number + 1))
    return sent


def _holds(server: Server, count: int) -> bool:
    return len(server.held) == count


async def is_gathered(server: Server, calls: Calls) -> bool:
    """Whether one more call leaves no sooner than a command of another kind, which comes some ticks later."""
    number = calls.send()
    for _ in range(5):
        await asyncio.sleep(0)
    calls.wire.send(encode(b"PING"))
    await eventually(lambda: server.writes[-1][-1] == [b"PING"])
    return [ids_of(command) for command in server.writes[-1]] == [[number], []]


def called(server: Server) -> list[list[list[int]]]:
    """The calls of each write, by its commands."""
    found = [[ids_of(command) for command in write if command[0] == b"FCALL"] for write in server.writes]
    return [write for write in found if write]


# --- what leaves when -------------------------------------------------------------------


async def test_where_nothing_is_under_way_a_call_leaves_at_once(server: Server) -> None:
    wire = await opened(server)
    calls = Calls(wire)
    await in_flight(server, calls)
    assert called(server) == [[[number]] for number in range(FLIGHTS_MAX)]
    await wire.close()


async def test_what_comes_meanwhile_leaves_together_with_the_next_answer(server: Server) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    first, *_ = await in_flight(server, calls)
    later = []
    for _ in range(5):
        later.append(calls.send())
        await asyncio.sleep(0)
    server.answer(wire, 1)
    assert await in_task(calls.waits[first]) == b"%d" % first
    await eventually(lambda: len(called(server)) == FLIGHTS_MAX + 1)
    assert called(server)[-1] == [later]
    assert await is_gathered(server, calls)
    server.answer(wire, len(server.held))
    assert [await in_task(calls.waits[one]) for one in later] == [b"%d" % one for one in later]
    await wire.close()


async def test_without_an_answer_they_leave_after_a_moment(server: Server) -> None:
    wire = await opened(server)
    calls = Calls(wire)
    await in_flight(server, calls)
    later = [calls.send() for _ in range(3)]
    await eventually(lambda: called(server)[-1] == [later])
    await wire.close()


@pytest.mark.parametrize(("count", "size"), [(CALLS_MAX, 8), (2, ARGUMENT_BYTES_MAX)])
async def test_as_much_as_one_command_takes_waits_for_nothing(server: Server, count: int, size: int) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    await in_flight(server, calls)
    before = len(server.held)
    for _ in range(count):
        calls.send(size=size)
    await eventually(lambda: len(server.held) > before)
    assert await is_gathered(server, calls)
    await wire.close()


async def test_another_command_waits_for_nothing_and_what_came_before_leaves_before_it(
    server: Server,
) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    await in_flight(server, calls)
    before, _, after = calls.send(), wire.send(encode(b"PING")), calls.send()
    await eventually(lambda: len(server.held) == FLIGHTS_MAX + 3)
    [*_, write] = server.writes
    assert [ids_of(command) or command[0] for command in write] == [[before], b"PING", [after]]
    await wire.close()


async def test_commands_of_another_kind_hold_no_call_back(server: Server) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    for wanted in range(1, 2 * FLIGHTS_MAX):
        wire.send(encode(b"PING"))
        await eventually(partial(_holds, server, wanted))
    one = calls.send()
    await eventually(lambda: called(server) == [[[one]]])
    await wire.close()


# --- loss -------------------------------------------------------------------------------


async def test_what_is_gathered_when_the_connection_is_lost_fails_and_is_never_sent(server: Server) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    await in_flight(server, calls)
    calls.send()
    wire.data_received(b"?nonsense\r\n")
    for wait in calls.waits.values():
        with pytest.raises(CountersUnavailable):
            await in_task(wait)
    await eventually(lambda: wire.connected)
    server.held.clear()
    # The new connection owes nothing: its first calls are sent at once, and are timed from now.
    [one, *_] = await in_flight(server, calls)
    server.answer(wire, 1)
    assert await in_task(calls.waits[one]) == b"%d" % one
    assert [FLIGHTS_MAX] not in [call for write in called(server) for call in write]
    await wire.close()


async def test_what_is_gathered_when_it_is_closed_fails(server: Server) -> None:
    wire = await opened(server, gather_s=LONG_S)
    calls = Calls(wire)
    await in_flight(server, calls)
    last = calls.send()
    await wire.close()
    with pytest.raises(CountersUnavailable):
        await in_task(calls.waits[last])


async def test_before_a_server_that_stands_still_calls_end_in_their_time(server: Server) -> None:
    """Those that were gathered too: the breaker opens, and what was sent is not sent again."""
    wire = await opened(server, call_s=0.3)
    calls = Calls(wire)
    await in_flight(server, calls)
    for _ in range(20):
        calls.send()
        await asyncio.sleep(0)
    for wait in calls.waits.values():
        with pytest.raises(CountersUnavailable):
            await in_task(wait)
    assert (wire.connected, wire.available) == (True, False)
    assert calls.wire.send_call(FORMS[RESERVE, 7], b"%036d" % 99, bulks(b"")).done
    sent = [one for write in called(server) for command in write for one in command]
    assert sent == list(calls.waits)
    server.answer(wire, len(server.held))
    assert wire.available
    one = calls.send()
    await eventually(lambda: len(server.held) == 1)
    server.answer(wire, 1)
    assert await in_task(calls.waits[one]) == b"%d" % one
    await wire.close()


# --- whatever happens -------------------------------------------------------------------

Step = tuple[str, int, int]
# A call of a rank in a partition; another command; so many ticks; so many answers; the connection lost.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(sorted(VERBS)), st.sampled_from(PARTITIONS)),
        st.tuples(st.just("other"), st.just(1), st.just(0)),
        st.tuples(st.just("ticks"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("answers"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("a moment"), st.just(1), st.just(0)),
        st.tuples(st.just("cut"), st.just(1), st.just(0)),
    ),
    max_size=60,
)


class Line(asyncio.Transport):
    """What a wire writes to: commands as they come, by their writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[list[bytes]]] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        reader = hiredis.Reader()
        reader.feed(bytes(data))
        self.writes.append([])
        while (command := reader.gets()) is not False:
            self.writes[-1].append(command)

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


@given(steps=STEPS, spreads=st.booleans())
def test_each_call_is_sent_once_in_order_and_answered_once(steps: list[Step], spreads: bool) -> None:
    asyncio.run(_history(steps, spreads))


async def _history(steps: list[Step], spreads: bool) -> None:
    wire = RedisConnection(parse_url("redis://nowhere"), time.monotonic, call_s=1000, stall_s=1000)
    line, lines = _connected(wire, spreads), list[Line]()
    calls, sort, answered = Calls(wire), dict[int, tuple[int, int]](), dict[int, int]()
    said = 0
    for name, value, partition in steps:
        if name == "call":
            number = calls.send(value, partition)
            sort[number] = value, partition
            calls.waits[number].then(partial(_count, answered, number))
        elif name == "other":
            wire.send(encode(b"ECHO", b"other"))
        elif name == "ticks":
            for _ in range(value):
                await asyncio.sleep(0)
        elif name == "a moment":
            wire._gathering._look()
            wire._gathering._look()
        elif name == "answers":
            commands = [command for write in line.writes for command in write]
            wire.data_received(b"".join(map(answer_of, commands[said : said + value])))
            said = min(len(commands), said + value)
        else:
            lines.append(line)
            wire._drop()
            line, said = _connected(wire, spreads), 0
    await _end(wire, line, said)
    _check([*lines, line], calls, sort, answered)
    await wire.close()


def _connected(wire: RedisConnection, spreads: bool) -> Line:
    """A new connection, past its greeting."""
    line = Line()
    wire.connection_made(line)
    wire.connected = wire.available = True
    wire._spreads = spreads
    return line


def _count(answered: dict[int, int], number: int) -> None:
    answered[number] = answered.get(number, 0) + 1


async def _end(wire: RedisConnection, line: Line, said: int) -> None:
    """Answer until nobody waits."""
    while wire._waiting:
        wire._gathering._look()
        for _ in range(3):
            await asyncio.sleep(0)
        commands = [command for write in line.writes for command in write]
        wire.data_received(b"".join(map(answer_of, commands[said:])))
        said = len(commands)


def _check(
    lines: list[Line], calls: Calls, sort: dict[int, tuple[int, int]], answered: dict[int, int]
) -> None:
    assert answered == dict.fromkeys(calls.waits, 1)
    writes = [write for line in lines for write in line.writes]
    sent = [one for write in writes for command in write for one in ids_of(command)]
    assert len(sent) == len(set(sent))
    for number, wait in calls.waits.items():
        assert wait.done
        if wait._error is None:
            assert wait._value == b"%d" % number
            assert number in sent
        else:
            assert isinstance(wait._error, CountersUnavailable)
    for one in set(sort.values()):  # of a function, in a partition
        mine = [number for number in sent if sort[number] == one]
        assert mine == sorted(mine)
    numbers: list[int] = []
    for write in writes:
        # What comes between two other commands: settlements first; and all carry the number of their write.
        said = {struct.unpack("<q", part[:8])[0] for command in write for part in _arguments(command)}
        assert len(said) <= 1
        numbers += said
        ranks: list[list[int]] = [[]]
        for command in write:
            if command[0] == b"FCALL":
                ranks[-1] += [sort[one][0] for one in ids_of(command)]
            else:
                ranks.append([])
        assert all(part == sorted(part) for part in ranks)
    assert len(numbers) == len(set(numbers))


def _arguments(command: list[bytes]) -> list[bytes]:
    """Those of each call: the last of a command, one for each."""
    return command[-len(ids_of(command)) :] if command[0] == b"FCALL" else []


def test_nobody_looks_where_nothing_is_gathered() -> None:
    """A wire at rest has no timer of its own."""
    asyncio.run(_at_rest())


async def _at_rest() -> None:
    left: list[int] = []
    gathering = CallBatcher(asyncio.get_running_loop(), lambda: left.append(1))
    for number in range(FLIGHTS_MAX):
        gathering.note_sent(number + 1)
    gathering.add((Wait(), FORMS[RESERVE, 7], b"", b""))
    assert not gathering.is_due()
    gathering.take()
    gathering._look()
    assert gathering._looking is None
    assert not left
