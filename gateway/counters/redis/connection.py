"""One pipelined connection to Redis for one gateway worker.

Everything asked for in one tick of the event loop leaves in one write, and answers come back in order.
Calls of scripts may wait for a moment while others are under way (`calls.py`); those of one function
are one command then, where nothing else is asked for in between (`calls.py`): those of all partitions,
where the connection's server says that it is no cluster; else each partition's. A call waits a bounded
time, by the time its loop is awake: an answer that came while it stood still was not late. Once the oldest
has waited that long the breaker opens: calls fail at once until answers come again. A connection that
stalls longer, or whose sentinels name another meanwhile, is closed and opened again; while there is none,
calls fail at once too. It knows RESP and nothing of limits or ledgers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count, takewhile
from secrets import randbits
from typing import cast

import hiredis

from gateway.core.credentials import end_of
from gateway.core.wait import LOOKS_MIN, Awake, AwakeTimeout, Wait, in_task
from gateway.counters.redis.address import (
    WHY,
    Address,
    Ask,
    RedisRoute,
    Server,
    greet,
    refuse_evicting,
    why_evicts,
    why_not,
)
from gateway.counters.redis.calls import (
    GATHER_S_MAX,
    BatchWaiters,
    CallBatcher,
    CallTemplate,
    Reply,
    Waiting,
    alone,
    commands,
    refused,
)
from gateway.counters.redis.keys import WHOLE
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, StartError

# Changes of keys that Redis tells on the connection they were asked for on.
#
# They come as pushes of RESP 3 (https://valkey.io/topics/client-side-caching/, broadcasting mode), in the
# same read as the answer to what is asked after a change, at the latest.

# The name that is told where anything may have changed.
ANYTHING = b""
# Of all wires of a process: no time of one has the number of another's.
_times = count(1)


class InvalidationListener:
    """Of one wire: `listeners` are told the name of each key that changed and begins like one of `prefixes`,
    and ANYTHING where nobody knows what changed.

    `since` numbers the time from which they were told all of them; 0 while they are not.
    """

    __slots__ = ("listeners", "prefixes", "since")

    def __init__(self, prefixes: Sequence[bytes]) -> None:
        self.listeners: list[Callable[[bytes], None]] = []
        self.prefixes = prefixes
        self.since = 0

    async def begin(self, ask: Ask) -> None:
        """Ask for it on a new connection; a proxy may refuse, and a server whose user lacks the right."""
        if not self.prefixes:
            return
        wanted = [part for prefix in self.prefixes for part in (b"PREFIX", prefix)]
        try:
            await ask(b"HELLO", b"3")
            await ask(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *wanted)
        except CountersRefused:
            return
        self.since = next(_times)
        self._tell(ANYTHING)

    def again(self) -> None:
        """Messages heard until now say nothing of the present data."""
        if self.since:
            self.since = next(_times)
            self._tell(ANYTHING)

    def end(self) -> None:
        """The connection is lost."""
        self.since = 0

    def told(self, push: list[object]) -> None:
        """Pass the names on; where there are none, everything changed."""
        if push[0] != b"invalidate":
            return
        if not isinstance(push[1], list):
            self.again()
        else:
            for name in push[1]:
                self._tell(name)

    def _tell(self, name: bytes) -> None:
        for changed in self.listeners:
            changed(name)


CALL_S = 1.0
STALL_S = 3.0
PENDING_MAX = 20_000
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 1.0
# Where sentinels say whom to connect to: they name another primary long before who was it comes back.
NAMED_BACKOFF_S_MAX = 0.25
# How often waits are looked at while there are any; a server that is given long is looked at no more often
# than is enough to see what sentinels say.
SWEEP_S, SWEEP_S_MAX, SWEEPS_A_CALL = 0.05, 0.5, 20
# Until there is a connection, and then for each answer before it is used: who answers slowly is not given up.
CONNECT_S_MAX = 2.0
# Who waits for an answer, the command, how many calls it is, and how long it has waited.
Asked = tuple[Waiting, bytes, int, float]
Redirected = Callable[["RedisConnection", Asked, str], bool]
# Where the numbers of a wire's writes begin: they stay below 2^53.
BATCH_BITS = 52


def encode(*parts: bytes) -> bytes:
    """Return a RESP command."""
    chunks = [b"*%d\r\n" % len(parts)]
    chunks += [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(chunks)


def encode_script(verb: str, keys: tuple[str, ...], arguments: tuple[bytes, ...]) -> bytes:
    """FCALL of a verb's function as a RESP command."""
    return encode(*script_parts(verb, keys, arguments))


def script_parts(verb: str, keys: tuple[str, ...], arguments: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """FCALL of a verb's function, by its parts."""
    names = [key.encode() for key in keys]
    return b"FCALL", library().functions[verb].encode(), b"%d" % len(keys), *names, *arguments


class RedisConnection(asyncio.Protocol):
    """The connection. `run_id` and `certificate_end` are of the last connect, `evicts` says why its server
    would delete counters, empty where it would not; with `refuses_eviction` it is not used then, and asked
    again later. `trouble` is why the last attempt failed, empty once it did not. `run_id` is the process, or
    what `identify`, asked before a connection is used, makes of it: which history of the data this is.
    `refusal` is by which code of `info.WHY` it refused something last, and when.

    `available` is False while calls fail at once: no connection, or its breaker is open.
    `batch` is the number of the write that the next command leaves in, like that of no other wire's.
    `asked_at` is when the first command of the last write was asked for, `answered_at` of the last answers;
    what changed before `heard_at` was told, for a command that was asked for then is answered.
    `used` counts what was asked for but for `upkeep`, by which nobody is served.
    `hearing` is told of changes of the keys whose names begin like one of `hears`.
    `closed`: for good. `part` is what its server has of all partitions: all of them, where it is no cluster.
    In one, `redirected` is asked whether it takes what was answered with an error, and how long that waited.
    """

    def __init__(
        self,
        address: Address,
        clock: Callable[[], float],
        *,
        call_s: float = CALL_S,
        stall_s: float = STALL_S,
        connect_s: float = CONNECT_S_MAX,
        gather_s: float = GATHER_S_MAX,
        hears: Sequence[bytes] = (),
        refuses_eviction: bool = False,
        loads: bool = True,
    ) -> None:
        self.run_id = b""
        self.part = WHOLE
        self.redirected: Redirected | None = None
        self.identify: Callable[[Server, Ask], Awaitable[bytes]] | None = None
        self.batch = 1 + randbits(BATCH_BITS)
        self.asked_at = self.answered_at = self.heard_at = clock()
        self.used = 0
        self.connected = self.available = False
        self.evicts, self._refuses_eviction, self._loads = "", refuses_eviction, loads
        self.certificate_end: float | None = None
        self.trouble = ""
        self.refusal = "", 0.0
        self.hearing = InvalidationListener(hears)
        self.address, self._clock, self._call_s = address, clock, call_s
        self._stall_s, self._connect_s = max(stall_s, call_s), connect_s
        self._awake = Awake(self.asked_at, max(SWEEP_S, call_s / LOOKS_MIN))
        self._sweep_s = min(max(call_s / SWEEPS_A_CALL, SWEEP_S), SWEEP_S_MAX)
        self._waits_from = self.asked_at
        self._loop = asyncio.get_running_loop()
        self._way = RedisRoute(self._loop)
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        # Who waits for each answer, the command, since when, and for how many calls.
        self._pending: deque[tuple[Waiting, bytes, float, int]] = deque()
        self._waiting = 0
        self._out: list[bytes] = []
        self._gathering = CallBatcher(self._loop, self._schedule, gather_s)
        # How many commands ever waited; of those that leave next, which is the last one of calls.
        self._asked = self._last_of_calls = 0
        # The last command of one write whose answers are waited for, and when its first was asked for.
        self._proof, self._proof_from = 0, self.asked_at
        self._begun = self._scheduled = self.closed = self._spreads = False
        self._loading: Wait[Reply] | None = None
        self._opened = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect once, or raise CountersUnavailable; later losses are mended in the background."""
        try:
            await self._connect()
        except (OSError, CountersUnavailable) as error:
            self._reconnect()
            raise CountersUnavailable(f"Redis does not answer: {why_not(error)}") from error

    def start(self) -> None:
        """Connect in the background, trying until closed."""
        self._reconnect()

    async def connected_within(self, seconds: float) -> bool:
        """Wait, bounded, for the connection that `start` makes; whether there is one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), seconds)
        return self.connected

    def refuse_eviction(self) -> None:
        """Raise StartError where this Redis would throw counters away when its memory is full."""
        if self.evicts:
            raise StartError(self.evicts)

    async def close(self) -> None:
        self.closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._way.close()
        self._gathering.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._transport is not None:
            self._transport.close()

    def send(self, command: bytes, *, at_once: bool = False, upkeep: bool = False) -> Wait[Reply]:
        """Queue a command for this tick's write; `at_once`, with the breaker open too. Fails, never hangs."""
        wait: Wait[Reply] = Wait()
        if not upkeep:
            self.used += 1
        if self._takes(at_once):
            self._queue(wait, command)
        else:
            wait.fail(CountersUnavailable())
        return wait

    def send_call(
        self, form: CallTemplate, request_id: bytes, arguments: bytes, *, at_once: bool = False
    ) -> Wait[Reply]:
        """The same of a call, which may leave a moment later with others; settlements before reservations."""
        wait: Wait[Reply] = Wait()
        self.used += 1
        if self._takes(at_once):
            if not self._begun:
                self._begin()
            self._waiting += 1
            self._gathering.add((wait, form, request_id, arguments))
            if not self._scheduled and self._gathering.is_due():
                self._schedule()
        else:
            wait.fail(CountersUnavailable())
        return wait

    def send_together(self, *commands: bytes) -> list[Wait[Reply]]:
        """Queue commands for this very server, nothing between them; all of them, or CountersUnavailable."""
        if not self.available or self._waiting + len(commands) > PENDING_MAX:
            raise CountersUnavailable
        waits: list[Wait[Reply]] = [Wait() for _ in commands]
        for wait, command in zip(waits, commands, strict=True):
            self._queue(wait, command)
            self._pending[-1] = (wait, b"", self._waits_from, 1)
        return waits

    def take_over(self, wait: Waiting, command: bytes, calls: int, *, asking: bool = False) -> bool:
        """Send what another connection was answered MOVED or ASK; False while it cannot be sent."""
        if not self._takes(False):
            return False
        if asking:
            self._queue(Wait(), encode(b"ASKING"))
        self._queue(wait, command, calls)
        return True

    def of(self, partition: int) -> RedisConnection:  # one server has them all
        return self

    def of_key(self, name: bytes) -> RedisConnection:  # the same
        return self

    @property
    def wires(self) -> list[RedisConnection]:
        return [self]

    @property
    def partitions(self) -> Sequence[int]:
        return self.part.partitions

    @property
    def is_one(self) -> bool:
        """Whether its server says that it is no cluster, so that one command may have keys of any slots."""
        return self._spreads

    @property
    def away(self) -> int:
        return 0 if self.available else len(self.partitions)

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Have the name of each key told that changed, beside those who hear it already."""
        self.hearing.listeners.append(changed)

    # --- asyncio.Protocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with an empty reader and nobody waiting."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing
        self._reader = hiredis.Reader()
        self._spreads = False
        self._fail_pending()

    def data_received(self, data: bytes) -> None:
        """Answer calls in the order they were sent."""
        reader, pending = self._reader, self._pending
        self.answered_at = self._clock()
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    self.hearing.told(reply)
                    continue
                wait, command, since, calls = pending.popleft()
                if pending is self._pending:
                    self._waiting -= calls
                if type(reply) is not bytes and isinstance(reply, hiredis.ReplyError):
                    self._refused(wait, command, calls, since, str(reply))
                else:
                    wait.set(reply)
        except (hiredis.ProtocolError, IndexError):
            self._drop()
        if not self.available and self.connected:
            # A call that has waited in vain is the probe: once all of it is answered, calls may wait again.
            self.available = not pending or self._awake.at(self.answered_at) - pending[0][2] <= self._call_s
        answered = self._asked - len(self._pending)
        if 0 < self._proof <= answered:
            self.heard_at, self._proof = self._proof_from, 0
        if self._gathering.answered(answered):
            self._schedule()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits and connect again."""
        self._transport = None
        self.connected = self.available = False
        self.hearing.end()
        self._fail_pending()
        if not self.closed:
            self._reconnect()

    # --- the rest -----------------------------------------------------------------------

    def _takes(self, at_once: bool) -> bool:
        return (self.available or (at_once and self.connected)) and self._waiting < PENDING_MAX

    def _queue(self, wait: Waiting, command: bytes, calls: int = 1) -> None:
        if not self._begun:
            self._begin()
        self._schedule()
        if self._gathering.calls:  # what was asked for before is asked for before
            self._leave_together()
        self._waiting += calls
        self._leave(wait, command, calls)

    def _begin(self) -> None:
        self._begun = True
        self.asked_at = self._clock()
        if self._sweeper is None:
            self._awake.advance(self.asked_at)
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)
        self._waits_from = self._awake.at(self.asked_at)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _leave_together(self) -> None:
        calls = self._gathering.take()
        if len(calls) == 1:
            wait, command, count = alone(calls[0])
            self._leave(wait, command, count)
        else:
            for wait, command, count in commands(calls, spread=self._spreads):
                self._leave(wait, command, count)
        self._last_of_calls = self._asked

    def _leave(self, wait: Waiting, command: bytes, calls: int) -> None:
        self._asked += 1
        self._pending.append((wait, command, self._waits_from, calls))
        self._out.append(command)

    def _flush(self) -> None:
        self._begun = self._scheduled = False
        self.batch += 1
        if self._gathering.calls:
            self._leave_together()
        self._gathering.left(self._last_of_calls)
        self._last_of_calls = 0
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
            if not self._proof:
                self._proof, self._proof_from = self._asked, self.asked_at
        self._out.clear()

    def _refused(self, wait: Waiting, command: bytes, calls: int, since: float, message: str) -> None:
        if (code := message.partition(" ")[0]) in WHY:
            self.refusal = code, self.answered_at
        if self._loads and command and message.startswith("ERR Function not found"):
            # Bring the library to a server that lost it, and ask once more; never again without a command
            if self._loading is None or self._loading.done:
                self._loading = Wait()
                self._queue(self._loading, encode(b"FUNCTION", b"LOAD", b"REPLACE", library().text.encode()))
            self._queue(wait, command, calls)
            self._pending[-1] = (wait, b"", self._waits_from, calls)
        elif isinstance(wait, BatchWaiters) and wait.parts > 1 and message.startswith("CROSSSLOT"):
            self._spreads = False  # a cluster, whatever it said: nothing of it was done
            for apart in commands(wait.calls, spread=False):
                self._queue(*apart)
        elif self.connected and message.startswith(("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN")):
            self._drop()
            wait.fail(CountersUnavailable())
        else:
            asked = wait, command, calls, self._awake.at(self.answered_at) - since
            if self.redirected is None or not self.redirected(self, asked, message):
                wait.fail(refused(message))

    def _sweep(self) -> None:
        """Fail what waited too long and open the breaker; close a connection that stalls.

        Where nothing waits, the next command starts the sweeps again.
        """
        now = self._awake.advance(self._clock())
        waited = now - self._pending[0][2] if self._pending else 0.0
        if waited > self._stall_s or self._way.leads_elsewhere(waited):
            self._drop()
        elif waited > self._call_s and self.connected:  # each question of a greeting has its own time
            self.available = False
            # A receiver may send again at once: its message is taken out first.
            for wait, *_ in list(takewhile(lambda one: now - one[2] > self._call_s, self._pending)):
                wait.fail(CountersUnavailable())
        self._sweeper = None
        if (self._pending or self._begun) and not self.closed:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)

    def _drop(self) -> None:
        self.connected = self.available = False
        self.hearing.end()
        if self._transport is not None:
            self._transport.abort()
        self._fail_pending()

    def _fail_pending(self) -> None:
        waiting, self._pending = self._pending, deque()
        calls = self._gathering.take()
        self._waiting, self._last_of_calls, self._begun, self._proof = 0, 0, False, 0
        self._out.clear()
        for wait, *_ in waiting:
            wait.fail(CountersUnavailable())
        for one in calls:
            one[0].fail(CountersUnavailable())

    def _reconnect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        pause, most = BACKOFF_S_MIN, NAMED_BACKOFF_S_MAX if self.address.sentinels else BACKOFF_S_MAX
        while not self.closed and not self.connected:
            try:
                await self._connect()
                return
            except Exception as error:  # noqa: BLE001  # whatever fails, it is tried again
                self.trouble = why_not(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, most)

    async def _connect(self) -> None:
        async with AwakeTimeout(self._connect_s):
            await self._way.reach(self.address, lambda: self)
        self.certificate_end = end_of(self._transport) if self._transport else None
        try:
            server = await greet(self.address, self._ask, loads=self._loads)
            self.evicts, self._spreads = why_evicts(server.eviction), server.is_one
            if self._refuses_eviction:
                refuse_evicting(server)
            self.run_id = await self.identify(server, self._ask) if self.identify else server.run_id
            await self.hearing.begin(self._ask)
        except BaseException:
            self._drop()
            raise
        self.connected = self.available = True
        self.trouble = ""
        self._opened.set()

    async def _ask(self, *parts: bytes) -> Reply:
        wait: Wait[Reply] = Wait()
        self._queue(wait, encode(*parts))
        async with AwakeTimeout(self._connect_s):
            return await in_task(wait)
