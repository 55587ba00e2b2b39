"""One pipelined connection to Redis for one gateway worker.

All commands of one step of the event loop are sent in one write, and answers come back in order. Script calls
may be held back for a moment while others are unanswered (`calls.py`); those of one function are then one
command, if no other command comes in between: for all partitions if the server says that it is no cluster,
otherwise for one.

A call waits a bounded time, which counts only while the event loop runs: an answer that came while it stood
still was not late. Once the oldest call has waited that long, the circuit breaker opens, and calls fail at
once until answers arrive again. A connection that stalls longer, or whose sentinels name another primary, is
closed and opened again; calls fail at once meanwhile. This module knows RESP, and nothing of limits or
ledgers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count, takewhile
from secrets import randbits
from typing import cast

import hiredis

from gateway.core.certificates import end_of
from gateway.core.wait import LOOKS_MIN, Awake, AwakeTimeout, Wait, in_task
from gateway.counters.redis.address import (
    SILENT,
    WHY,
    Address,
    Ask,
    RedisRoute,
    Server,
    greet,
    in_words,
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
    commands,
    encode_single,
    refused,
    verb_in,
)
from gateway.counters.redis.keys import WHOLE
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, StartError

# Changes of keys, which Redis reports on the connection that requested them.
#
# They are pushes of RESP 3 (https://valkey.io/topics/client-side-caching/, broadcasting mode), and arrive at
# the latest in the same read as the answer to a command that was sent after the change.

# The name reported if any key may have changed.
ANYTHING = b""
# Shared by all connections of a process, so that no two periods have the same number.
_times = count(1)


class InvalidationListener:
    """The changes reported on one connection: `listeners` are called with each changed key's name.

    Only keys that begin with one of `prefixes` are reported. ANYTHING is reported if unknown keys changed.
    `since` is the number of the period in which all changes were reported; 0 while they are not.
    """

    __slots__ = ("listeners", "prefixes", "since")

    def __init__(self, prefixes: Sequence[bytes]) -> None:
        self.listeners: list[Callable[[bytes], None]] = []
        self.prefixes = prefixes
        self.since = 0

    async def begin(self, ask: Ask) -> None:
        """Request reports of changed keys (CLIENT TRACKING) on a new connection.

        Without reports, if a proxy or a missing right refuses them, no cached value is valid.
        """
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
        """Begin another period of reports: earlier ones say nothing about data that was exchanged."""
        if self.since:
            self.since = next(_times)
            self._tell(ANYTHING)

    def end(self) -> None:
        """End the period of reports, because the connection is lost."""
        self.since = 0

    def pass_on(self, push: list[object]) -> None:
        """Pass the names of changed keys in a push message to the listeners.

        A message without names means that all keys may have changed: begin another period.
        """
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
# The shorter maximum with sentinels: they name another primary long before the former one is back.
NAMED_BACKOFF_S_MAX = 0.25
# The interval for checking waiting calls, at least as often as sentinels need it, and that many times within
# the longest wait of a call.
SWEEP_S, SWEEP_S_MAX, SWEEPS_A_CALL = 0.05, 0.5, 20
# The time to connect, and then for each answer of the greeting: a slow server is not given up.
CONNECT_S_MAX = 2.0
# The waiter of a command, the command, its number of calls, and how long it has waited.
Asked = tuple[Waiting, bytes, int, float]
Redirected = Callable[["RedisConnection", Asked, str], bool]
# The range of the first number of a connection's writes: they stay below 2^53.
BATCH_BITS = 52


def encode(*parts: bytes) -> bytes:
    """Return an encoded RESP command."""
    chunks = [b"*%d\r\n" % len(parts)]
    chunks += [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(chunks)


def encode_script(verb: str, keys: tuple[str, ...], arguments: tuple[bytes, ...]) -> bytes:
    """Return an encoded RESP command that calls a verb's function (FCALL)."""
    return encode(*script_parts(verb, keys, arguments))


def script_parts(verb: str, keys: tuple[str, ...], arguments: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the parts of a command that calls a verb's function (FCALL)."""
    names = [key.encode() for key in keys]
    return b"FCALL", library().functions[verb].encode(), b"%d" % len(keys), *names, *arguments


class RedisConnection(asyncio.Protocol):
    """The connection to one server.

    - `run_id` is the server's run id at the last connect, or what `identify`, called before the connection is
      used, made of it: the name of the data's history.
    - `evicts` says why the server may delete counters (empty: it does not). With `refuses_eviction` such a
      server is not used, and is tried again later.
    - `cause` is the error of the last attempt to connect; `missing` adds the server's name to it while calls
      fail at once. `refusal` is the last code of `WHY` in an error, and its time.
    - `available` is False while calls fail at once: not connected, or the circuit breaker is open. `closed`
      is for good.
    - `batch` is the number of the write with the next command; numbers of other connections differ.
    - `asked_at` is when the first command of the last write was queued, `answered_at` the time of the last
      answers. Changes before `heard_at` were reported, because a command queued then is answered.
    - `used` counts commands except `upkeep`, which serves no caller.
    - `hearing` reports changes of keys that begin with one of `hears`.
    - `loads` is whether it may write what all programs need, such as the scripts.
    - `part` are the partitions of the server: all of them without a cluster. In a cluster, `redirected` is
      called with each command that got an error, and returns whether it takes it over.
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
        self.evicts, self._refuses_eviction, self.loads = "", refuses_eviction, loads
        self.certificate_end: float | None = None
        self.cause = ""
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
        # For each awaited answer: its waiter, the command, since when it waits, and its number of calls.
        self._pending: deque[tuple[Waiting, bytes, float, int]] = deque()
        self._waiting = 0
        self._out: list[bytes] = []
        self._gathering = CallBatcher(self._loop, self._schedule, gather_s)
        # The number of commands ever sent; and the number of the last call command in the next write.
        self._asked = self._last_of_calls = 0
        # The last command of a write whose answer is awaited, and when the first of that write was queued.
        self._proof, self._proof_from = 0, self.asked_at
        self._begun = self._scheduled = self.closed = self._spreads = False
        self._loading: Wait[Reply] | None = None
        self._opened = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect once, or raise CountersUnavailable; later losses are repaired in the background."""
        try:
            await self._connect()
        except (OSError, CountersUnavailable) as error:
            self._reconnect()
            raise CountersUnavailable(f"Redis does not answer: {why_not(error)}") from error

    def start(self) -> None:
        """Connect in the background, retrying until closed."""
        self._reconnect()

    async def connected_within(self, seconds: float) -> bool:
        """Wait up to a number of seconds for the connection that `start` makes; return whether it exists."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), seconds)
        return self.connected

    def refuse_eviction(self) -> None:
        """Raise StartError if this Redis would delete counters when its memory is full."""
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
        """Queue a command for the next write; with `at_once` even if the circuit breaker is open.

        `upkeep` commands serve no caller, and do not count as use of the connection. The waiter gets
        CountersUnavailable immediately if the command cannot be queued.
        """
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
        """Queue a script call, which may wait a moment for others; settlements go before reservations."""
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

    def send_together(self, *commands: bytes, at_once: bool = False) -> list[Wait[Reply]]:
        """Queue commands for this server without others in between: all, or raise CountersUnavailable.

        None is sent on to another server. With `at_once` they are queued before the connection is available.
        """
        if not (self.available or at_once) or self._waiting + len(commands) > PENDING_MAX:
            raise CountersUnavailable
        waits: list[Wait[Reply]] = [Wait() for _ in commands]
        for wait, command in zip(waits, commands, strict=True):
            self._queue(wait, command)
            self._pending[-1] = (wait, b"", self._waits_from, 1)
        return waits

    def take_over(self, wait: Waiting, command: bytes, calls: int, *, asking: bool = False) -> bool:
        """Queue a command that another server redirected (MOVED, ASK); False if none can be queued.

        `calls` is the number of calls in it; with `asking`, ASKING precedes it.
        """
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
        """Whether the server has all data, and is no cluster: one command may have any keys."""
        return self._spreads and self.part == WHOLE

    @property
    def away(self) -> int:
        return 0 if self.available else len(self.partitions)

    @property
    def server(self) -> str:
        """The server's name: host and port, or the path of its socket."""
        return self._way.name_of(self.address)

    @property
    def servers(self) -> Sequence[str]:
        return [self.server]

    @property
    def missing(self) -> Mapping[str, str]:
        return {} if self.available else {self.server: self.cause or SILENT}

    @property
    def trouble(self) -> str:
        return in_words(self.missing.items())

    @property
    def moving(self) -> dict[int, int]:  # one server moves none
        return {}

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Add a listener: `changed` is called with the name of each changed key."""
        self.hearing.listeners.append(changed)

    # --- asyncio.Protocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reset the reader, and fail commands of the former connection."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class
        self._reader = hiredis.Reader()
        self._spreads = False
        self._fail_pending()

    def data_received(self, data: bytes) -> None:
        """Pass answers to the waiters, in the order of the commands."""
        reader, pending = self._reader, self._pending
        self.answered_at = self._clock()
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    self.hearing.pass_on(reply)
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
            # A late call is the probe: once its answer is read, calls may wait again.
            self.available = not pending or self._awake.at(self.answered_at) - pending[0][2] <= self._call_s
        answered = self._asked - len(self._pending)
        if 0 < self._proof <= answered:
            self.heard_at, self._proof = self._proof_from, 0
        if self._gathering.answered(answered):
            self._schedule()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all waiting commands and reconnect."""
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
        if self._gathering.calls:  # earlier calls are sent before this command
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
            wait, command, count = encode_single(calls[0])
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
        self._gathering.note_sent(self._last_of_calls)
        self._last_of_calls = 0
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
            if not self._proof:
                self._proof, self._proof_from = self._asked, self.asked_at
        self._out.clear()

    def _refused(self, wait: Waiting, command: bytes, calls: int, since: float, message: str) -> None:
        if (code := message.partition(" ")[0]) in WHY:
            self.refusal = code, self.answered_at
        if self.loads and command and message.startswith("ERR Function not found"):
            # The server lost the library: load it and send the command once more, the second time without a
            # retry
            if self._loading is None or self._loading.done:
                self._loading = Wait()
                self._queue(self._loading, encode(b"FUNCTION", b"LOAD", b"REPLACE", library().text.encode()))
            self._queue(wait, command, calls)
            self._pending[-1] = (wait, b"", self._waits_from, calls)
        elif isinstance(wait, BatchWaiters) and wait.parts > 1 and message.startswith("CROSSSLOT"):
            self._spreads = False  # it is a cluster after all, and has run nothing of the command
            for apart in commands(wait.calls, spread=False):
                self._queue(*apart)
        elif self.connected and message.startswith(("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN")):
            self._drop()
            wait.fail(CountersUnavailable())
        else:
            asked = wait, command, calls, self._awake.at(self.answered_at) - since
            if self.redirected is None or not self.redirected(self, asked, message):
                wait.fail(refused(message, verb_in(command)))

    def _sweep(self) -> None:
        """Fail commands that waited too long and open the circuit breaker; close a stalled connection.

        If no command waits, the next one restarts the sweeps.
        """
        now = self._awake.advance(self._clock())
        waited = now - self._pending[0][2] if self._pending else 0.0
        if waited > self._stall_s or self._way.leads_elsewhere(waited):
            self._drop()
        elif waited > self._call_s and self.connected:  # each command of a greeting has its own time limit
            self.available = False
            # A waiter may send again at once, so the list is built first.
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
        for call in calls:
            call[0].fail(CountersUnavailable())

    def _reconnect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        pause, most = BACKOFF_S_MIN, NAMED_BACKOFF_S_MAX if self.address.sentinels else BACKOFF_S_MAX
        while not self.closed and not self.connected:
            try:
                await self._connect()
                return
            except Exception as error:  # noqa: BLE001  # after any error it tries again
                self.cause = SILENT if isinstance(error, TimeoutError) else why_not(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, most)

    async def _connect(self) -> None:
        async with AwakeTimeout(self._connect_s):
            await self._way.reach(self.address, lambda: self)
        self.certificate_end = end_of(self._transport) if self._transport else None
        try:
            server = await greet(self.address, self._ask, loads=self.loads)
            self.evicts, self._spreads = why_evicts(server.eviction), server.is_one
            if self._refuses_eviction:
                refuse_evicting(server)
            self.run_id = await self.identify(server, self._ask) if self.identify else server.run_id
            await self.hearing.begin(self._ask)
        except BaseException:
            self._drop()
            raise
        self.connected = self.available = True
        self.cause = ""
        self._opened.set()

    async def _ask(self, *parts: bytes) -> Reply:
        wait: Wait[Reply] = Wait()
        self._queue(wait, encode(*parts))
        async with AwakeTimeout(self._connect_s):
            return await in_task(wait)
