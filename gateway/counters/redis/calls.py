"""Calls of functions, encoded: calls that are sent together are one command.

A server without a cluster takes the calls of all partitions in one command, any other those of one partition.
Parts that are equal for all calls of a caller are encoded once (`CallTemplate`). `lua/lib/batch.lua` shows
how several calls share keys and get separate answers.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import hiredis

from gateway.core.joined import packed, said
from gateway.core.lru import LruCache, LruEntry, the_one
from gateway.core.model import BudgetAccount, Caller, HoldRequest, Service, Settlement
from gateway.core.wait import Wait
from gateway.counters.layouts import packing
from gateway.counters.layouts.accounts import service_flags, tiers_of
from gateway.counters.layouts.packing import (
    BYTES,
    NEED,
    PAID,
    RESERVE,
    SETTLEMENT,
    budgets_need,
    budgets_paid,
    pack_steps,
)
from gateway.counters.redis.script_errors import SCRIPT_ERRORS
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout, ScriptFailed, SlotMoving

# Bounds of one command: calls, bytes of arguments, and accounts, whose indexes are bytes. More accounts make
# each cost more in Redis: 64 calls of as many organizations take a tenth less time as two commands than as
# one.
CALLS_MAX: Final = 64
ARGUMENT_BYTES_MAX: Final = 262_144
ACCOUNTS_MAX: Final = 128
FIRST_PLACE: Final = 2


class AnotherType(CountersRefused):
    """The value of a key has another type than the command needs."""


# The errors by which scripts report a newer version's values: see lua/lib/state.lua.
NEWER_CODE: Final = "NEWERLAYOUT "
_KINDS: Final = {
    NEWER_CODE.strip(): NewerLayout, "WRONGTYPE": AnotherType, "ASK": SlotMoving, "TRYAGAIN": SlotMoving,
}  # fmt: skip

# Encoded numeric arguments, and encoded lengths of arguments.
_NUMBERS: Final = [b"$%d\r\n%d\r\n" % (len(b"%d" % number), number) for number in range(1_024)]
_HEADS: Final = [b"$%d\r\n" % size for size in range(1_024)]
# A map is the answer to HELLO 3 (RESP 3).
Reply = bytes | int | float | None | list["Reply"] | dict[bytes, "Reply"]


def bulk_head(size: int) -> bytes:
    """Return the encoded length (RESP) that precedes an argument of `size` bytes."""
    return _HEADS[size] if size < len(_HEADS) else b"$%d\r\n" % size


def bulks(*arguments: bytes) -> bytes:
    """Return arguments, encoded (RESP)."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


class VerbEncoding:
    """The calls of one function in one partition. In one write, groups of lower `rank` are sent first.

    `hold` is the encoded beginning of a call's last key, up to its id. An argument of `encode_single` bytes is a
    single call's, never the shape of several.
    """

    __slots__ = ("_openings", "alone", "function", "hold", "marker", "own", "rank", "shared_count", "verb")

    def __init__(self, verb: str, rank: int, shared: tuple[str, ...], hold: str, alone: int) -> None:
        """Encode the keys `shared` by all calls, the marker last, and `hold`, the beginning of the last key.

        A call's id of 36 characters follows it. Groups of lower `rank` are sent first. An argument of `encode_single`
        bytes marks a single call.
        """
        self.verb, self.rank, self.alone = verb, rank, alone
        self.hold = b"$%d\r\n%b" % (len(hold) + 36, hold.encode())
        self._openings: dict[tuple[int, int], bytes] = {}
        self.function = bulks(b"FCALL", library().functions[verb].encode())
        self.own = bulks(*[name.encode() for name in shared[:-1]])
        self.marker = bulks(shared[-1].encode())
        self.shared_count = len(shared)

    def head(self, keys: int, arguments: int) -> bytes:
        """Return the beginning of a command with this many keys and arguments."""
        count = _NUMBERS[keys] if keys < len(_NUMBERS) else bulks(b"%d" % keys)
        return said(b"*", 3 + keys + arguments, b"\r\n", self.function, count)

    def opening(self, accounts: int, arguments: int) -> bytes:
        """Return the beginning of a single call with this many accounts and arguments, cached."""
        counts = accounts, arguments
        if counts not in self._openings:
            head = self.head(self.shared_count + accounts + 1, arguments)  # the last key is the call's hold
            self._openings[counts] = head + self.own
        return self._openings[counts]


class CallTemplate:
    """The encoded parts that all calls of a caller share.

    A caller's own bytes are rarely in the processor's cache if many call. So they are `keys` and `accounts`
    alone; the other parts are shared between callers.
    """

    __slots__ = (
        "account_count",
        "accounts",
        "arguments",
        "count",
        "group",
        "keys",
        "opening",
        "shared_shape",
        "single_shape",
    )

    def __init__(
        self,
        group: VerbEncoding,
        accounts: tuple[str, ...],
        arguments: int,
        other: CallTemplate | None = None,
    ) -> None:
        """Encode the keys of `accounts`; reuse equal bytes of `other`, another template of the caller."""
        self.group, self.count, self.account_count = group, arguments, len(accounts)
        self.accounts = tuple([bulks(account.encode()) for account in accounts])
        self.keys = group.marker + b"".join(self.accounts)
        if other is not None and other.keys == self.keys:
            self.accounts, self.keys = other.accounts, other.keys
        self.opening = group.opening(len(accounts), arguments)
        self.arguments = _shape(arguments, len(accounts))
        self.single_shape = _shape(1, len(accounts), arguments)
        # The shape of one of several calls with this template; empty if keys repeat.
        self.shared_shape = (
            self.arguments + _places(len(accounts)) if len({*accounts}) == len(accounts) else b""
        )


@cache
def _shape(*counts: int) -> bytes:
    """Return numbers as bytes, one each: the part of a command's shape that counts keys and arguments."""
    return bytes(counts)


@cache
def _places(count: int) -> bytes:
    """Return the indexes of `count` different accounts, a byte each."""
    return bytes(range(FIRST_PLACE, FIRST_PLACE + count))


# A waiting call: its waiter, its template, the request id, its encoded arguments.
Call = tuple[Wait[Reply], CallTemplate, bytes, bytes]


class BatchWaiters:
    """The waiters of several calls in one command: each gets its own answer or error.

    The command has `parts`, one for each partition.
    """

    __slots__ = ("calls", "parts")

    def __init__(self, calls: list[Call], parts: int = 1) -> None:
        self.calls, self.parts = calls, parts

    def set(self, reply: Reply) -> None:
        if not isinstance(reply, list) or len(reply) != len(self.calls):
            self.fail(CountersRefused("Redis answered other calls than were asked."))
            return
        for call, one in zip(self.calls, cast("list[Any]", reply), strict=True):
            if type(one) is not bytes and isinstance(one, hiredis.ReplyError):
                call[0].fail(refused(str(one), call[1].group.verb))
            else:
                call[0].set(one)

    def fail(self, error: BaseException) -> None:
        for call in self.calls:
            call[0].fail(type(error)(*error.args))


class Hop:
    """A command that a server of a cluster refused, on its way to another one; `hops` counts the servers.

    When `timer` fires, the waiter gets CountersUnavailable. A later answer is still passed on, since a caller
    that gave up may need it. `ended` is called once.
    """

    __slots__ = ("_ended", "_wait", "done", "hops", "timer")

    def __init__(self, wait: Wait[Reply] | BatchWaiters, ended: Callable[[], None]) -> None:
        self.done = False
        self.hops = 0
        self.timer: TimerHandle | None = None
        self._wait, self._ended = wait, ended

    def set(self, reply: Reply) -> None:
        self._end()
        self._wait.set(reply)

    def fail(self, error: BaseException) -> None:
        self._end()
        self._wait.fail(error)

    def is_late(self) -> None:
        self.fail(CountersUnavailable("no primary took it in time"))

    def _end(self) -> None:
        if not self.done:
            self.done = True
            if self.timer is not None:
                self.timer.cancel()
            self._ended()


# A waiter for the answer to a command.
Waiting = Wait[Reply] | BatchWaiters | Hop


def refused(message: str, script: str = "") -> CountersRefused:
    """Return the exception for an error of Redis, by the code at the start of its message.

    An error of the verb `script`, empty for another command, is counted and logged here, with its file and
    line.
    """
    message = library().located(message) if script else message
    failed = SCRIPT_ERRORS.note(script, message)
    kind = _KINDS.get(message.partition(" ")[0], ScriptFailed if failed else CountersRefused)
    return kind(f"Redis refused: {message[:200]}")


def verb_in(command: bytes) -> str:
    """Return the verb that an encoded command calls; empty if it calls none."""
    parts = command.split(b"\r\n", 5)
    return _verbs().get(parts[4], "") if len(parts) == 6 and parts[2] == b"FCALL" else ""


def key_in(command: bytes) -> bytes:
    """Return the first key of an encoded command."""
    parts = command.split(b"\r\n", 9)
    at = 8 if parts[2] == b"FCALL" else 4
    return parts[at] if at < len(parts) else b""


@cache
def _verbs() -> dict[bytes, str]:
    return {name.encode(): verb for verb, name in library().functions.items()}


# A waiter, its encoded command, and the number of calls in it.
Command = tuple[Waiting, bytes, int]


def commands(calls: list[Call], *, spread: bool) -> list[Command]:
    """Return the commands for calls that are sent together: one for each function, then partition, in order.

    With `spread`, which no cluster allows, one command has the calls of several partitions.
    """
    groups, order = dict[VerbEncoding, list[Call]](), list[VerbEncoding]()
    for call in calls:
        group = call[1].group
        own = groups.get(group)
        if own is not None:
            own.append(call)
            continue
        # Inserted by rank, after groups of the same rank: there are few groups.
        groups[group], place = [call], len(order)
        while place and order[place - 1].rank > group.rank:
            place -= 1
        order.insert(place, group)
    found, batch, rank = list[Command](), CallBatch(), -1
    for group in order:
        if batch.calls and (group.rank != rank or not spread):
            found.append(batch.command())
            batch = CallBatch()
        own, taken, rank = groups[group], 0, group.rank
        while True:
            taken += batch.take(own, taken)
            if taken == len(own):
                break
            found.append(batch.command())
            batch = CallBatch()
    found.append(batch.command())
    return found


def encode_single(call: Call) -> Command:
    """Return the command of a single call."""
    wait, form, request_id, arguments = call
    return wait, b"".join((form.opening, form.keys, form.group.hold, request_id, b"\r\n", arguments)), 1


class CallBatch:
    """Collects calls of one function, part by part (partition by partition), for one command."""

    __slots__ = ("_accounts", "_arguments", "_keys", "_own", "_shape", "_size", "calls")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        # For each part: its own keys, its marker and accounts, its shape.
        self._own: list[bytes] = []
        self._keys: list[bytes] = []
        self._shape: list[bytes] = []
        self._size = self._accounts = self._arguments = 0

    def take(self, calls: list[Call], begin: int) -> int:
        """Add calls from index `begin` on while there is room; an empty batch takes one. Return how many."""
        if len(calls) - begin == 1:
            return self._take_one(calls[begin])
        first = calls[begin][1]
        if first.shared_shape and _are_alike(calls, begin):
            return self._take_alike(calls, begin)
        places, shape, taken, size, count = dict[bytes, int](), list[bytes](), 0, 0, 0
        accounts = dict[CallTemplate, bytes]()  # of templates seen before
        for _, form, _, arguments in calls[begin : begin + CALLS_MAX - len(self.calls)]:
            if (taken or self.calls) and self._is_full(
                size + len(arguments), len(places) + len(form.accounts)
            ):
                break
            size += len(arguments)
            count += form.count
            shape.append(form.arguments)
            if form not in accounts:
                where = [places.setdefault(account, FIRST_PLACE + len(places)) for account in form.accounts]
                accounts[form] = bytes(where)
            shape.append(accounts[form])
            taken += 1
        if taken == 1:
            return self._take_one(calls[begin])
        if taken:
            group = calls[begin][1].group
            self._own.append(group.own)
            self._keys += (group.marker, *places)
            self._shape.append(bytes((taken, len(places))))
            self._shape += shape
            self.calls += calls[begin : begin + taken]
            self._accounts += len(places)
            self._arguments += count
            self._size += size
        return taken

    def _take_alike(self, calls: list[Call], begin: int) -> int:
        """Add calls of one template while there is room; they have equal shapes, so one row is repeated."""
        form, taken, size = calls[begin][1], 0, 0
        for place in range(begin, min(len(calls), begin + CALLS_MAX - len(self.calls))):
            more = len(calls[place][3])
            if (taken or self.calls) and self._is_full(size + more, form.account_count):
                break
            size += more
            taken += 1
        if taken == 1:
            return self._take_one(calls[begin])
        if taken:
            self._own.append(form.group.own)
            self._keys.append(form.keys)
            self._shape.append(BYTES[taken] + BYTES[form.account_count] + form.shared_shape * taken)
            self.calls += calls[begin : begin + taken]
            self._accounts += form.account_count
            self._arguments += form.count * taken
            self._size += size
        return taken

    def _take_one(self, call: Call) -> int:
        _, form, _, arguments = call
        accounts, size = form.account_count, len(arguments)
        if self.calls and (len(self.calls) == CALLS_MAX or self._is_full(size, accounts)):
            return 0
        self._own.append(form.group.own)
        self._keys.append(form.keys)
        self._shape.append(form.single_shape)
        self.calls.append(call)
        self._accounts += accounts
        self._arguments += form.count
        self._size += size
        return 1

    def _is_full(self, size: int, accounts: int) -> bool:
        return self._size + size > ARGUMENT_BYTES_MAX or self._accounts + accounts > ACCOUNTS_MAX

    def command(self) -> Command:
        calls, parts = self.calls, len(self._own)
        if len(calls) == 1:
            return encode_single(calls[0])
        group = calls[0][1].group
        shape = b"".join((bytes((parts,)), *self._shape))
        if len(shape) == group.alone:
            shape += b"\0"
        keys = parts * group.shared_count + self._accounts + len(calls)
        row = [group.head(keys, 1 + self._arguments), *self._own, *self._keys]
        for _, form, request_id, _ in calls:
            row.append(form.group.hold)
            row.append(request_id)
            row.append(b"\r\n")
        row.append(bulk_head(len(shape)))
        row.append(shape)
        row.append(b"\r\n")
        row += [arguments for _, _, _, arguments in calls]
        return BatchWaiters(calls, parts), b"".join(row), len(calls)


def _are_alike(calls: list[Call], begin: int) -> bool:
    """Return whether all calls from index `begin` on have one template."""
    form, place = calls[begin][1], len(calls) - 1
    while place > begin and calls[place][1] is form:
        place -= 1
    return place == begin


# Decides which calls are sent at once, and which are collected while earlier writes are unanswered.
#
# If Redis is busy, more calls are collected, and each costs it less; otherwise none waits. A batch is sent
# with the next answer, or before a command of another kind, or once it fills one command. It waits a few
# milliseconds at most, so that a distant or stalled Redis delays no call by more. This part knows nothing of
# connections.

# While one write is answered, the next one is already at Redis, which never waits for this process.
FLIGHTS_MAX = 2
GATHER_S_MAX = 0.004


class CallBatcher:
    """The collected calls of one connection, and its unanswered writes.

    Commands are known by their number on the connection. `leave` sends the collected calls; none waits longer
    than `gather_s` seconds.
    """

    __slots__ = (
        "_bytes", "_flights", "_gather_s", "_leave", "_looked_at", "_looking", "_loop", "_turn", "calls",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, leave: Callable[[], None], gather_s: float = GATHER_S_MAX
    ) -> None:
        self.calls: list[Call] = []
        self._loop, self._leave, self._gather_s = loop, leave, gather_s
        self._bytes = 0
        # The number of the last call command of each unanswered write.
        self._flights: deque[int] = deque()
        # How often calls were taken: now, and at the last check whether they wait too long.
        self._turn = self._looked_at = 0
        self._looking: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._bytes += len(call[3])

    def is_due(self) -> bool:
        """Return whether to send the calls now; if not, `leave` is called within `gather_s`."""
        if (
            len(self._flights) < FLIGHTS_MAX
            or len(self.calls) >= CALLS_MAX
            or self._bytes >= ARGUMENT_BYTES_MAX
        ):
            return True
        if self._looking is None:
            self._look_again()
        return False

    def take(self) -> list[Call]:
        """Return and remove all collected calls: they are sent, or fail."""
        calls, self.calls = self.calls, []
        self._bytes = 0
        self._turn += 1
        return calls

    def note_sent(self, last: int) -> None:
        """Note a write of collected calls by the number of its last command on the connection; 0 for none."""
        if last:
            self._flights.append(last)

    def answered(self, last: int) -> bool:
        """Note that commands up to a number are answered; return whether to send the collected calls now."""
        flights = self._flights
        while flights and flights[0] <= last:
            flights.popleft()
        return len(self.calls) > 0 and self.is_due()

    def close(self) -> None:
        """Cancel the timer."""
        if self._looking is not None:
            self._looking.cancel()

    def _look_again(self) -> None:
        """Schedule the next check in half of `gather_s`; it sends calls that have waited since this one."""
        self._looked_at = self._turn
        self._looking = self._loop.call_later(self._gather_s / 2, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self.calls:
            return
        if self._looked_at == self._turn:
            self._leave()
        else:
            self._look_again()


# The encoded bytes that all calls of one caller share, cached: a call only adds the parts that change.
#
# A key may name any user, and each user has bytes of its own, about 1 KB. The cache keeps the latest callers,
# so that a key with many users does not displace another key that calls rarely.

TOMBSTONE_MS = 3_600_000
NO_ID = "0" * 36
# Settlements are sent before reservations.
RANKS = {"settle": 0, "reserve": 1}
# The encoded length of the packed argument, and the offset in a settlement from which the log stores it.
RESERVE_HEAD = b"$%d\r\n" % RESERVE.size
SETTLE_HEAD = b"$%d\r\n" % SETTLEMENT.size
_NEED_HEAD = b"$%d\r\n" % NEED.size
KEPT_AT: Final = len(SETTLE_HEAD) + packing.BATCH_BYTES
NO_BUDGETS: Final[tuple[str, ...]] = ()


# Bytes that frames share: of each organization in use, and of its budgets, some hundred bytes each.
TEXTS_MAX: Final = 4_096
# Measured bytes of a frame: a fixed part, and more for each account and each character of its user.
FRAMES_BYTES_MAX: Final = 64 * 1024 * 1024
FRAME_BYTES: Final = 1_792
ACCOUNT_BYTES: Final = 512
USER_COPIES: Final = 8


class Frames:
    """The frames of the latest callers, by key, user, service and budget accounts.

    Callers name their users, so the cache is bounded by bytes: it holds fewer of larger frames.
    """

    __slots__ = ("known",)

    def __init__(self, bytes_max: int = FRAMES_BYTES_MAX) -> None:
        self.known: LruCache[tuple[int, str, int, tuple[str, ...]], Frame] = LruCache(bytes_max)

    def __len__(self) -> int:
        return len(self.known)

    def frame_of(
        self, caller: Caller, user: str, service: Service, budgets: tuple[str, ...] = NO_BUDGETS
    ) -> Frame:
        """Return the cached frame (encoded parts) of a caller's calls; a new one for a new service object."""
        key = caller.key_id, user, service.id, budgets
        frame = self.known.find(key)
        if frame is None or frame.service is not service:
            frame = Frame(caller, user, service, budgets)
            self.known.put(key, frame, FRAME_BYTES + ACCOUNT_BYTES * len(budgets) + USER_COPIES * len(user))
        return frame


class Frame(LruEntry):
    """The encoded bytes of one caller's calls: their accounts, and the constant bytes around changing parts.

    `names` are the names of budget accounts, which follow the amounts that budgets count.
    """

    __slots__ = (
        "_defined",
        "_defined_of",
        "_reserve_end",
        "flags",
        "names",
        "reserve",
        "service",
        "settle",
        "settle_end",
        "settle_user",
        "who",
    )

    def __init__(
        self, caller: Caller, user: str, service: Service, budgets: tuple[str, ...] = NO_BUDGETS
    ) -> None:
        request = HoldRequest(caller, NO_ID, user, service, 0, 0)
        request.budgets = tuple(BudgetAccount(name, b"", False) for name in budgets)
        self.service = service
        self.flags = service_flags(request)
        keys, arguments = packing.reserve(b"0" * 40, 0, 0, request)
        self.reserve = _form("reserve", caller.partition, keys, len(arguments))
        # The last arguments are what budgets need, and their definitions.
        end = b"\r\n" + bulks(*arguments[1 : len(arguments) - len(budgets_need(request))])
        self._reserve_end = end if user else _shared(end)
        release = Settlement(caller, NO_ID, user, service, charge=False, budgets=budgets)
        self.who = packing.settle_who(release, TOMBSTONE_MS)
        keys, arguments = packing.settle(b"0" * 40, TOMBSTONE_MS, release, packing.MODE_RELEASE)
        self.settle = _form("settle", caller.partition, keys, len(arguments), self.reserve)
        # The last definitions of budget accounts: as a tuple, and encoded.
        self._defined_of: tuple[BudgetAccount, ...] = ()
        self._defined = b""
        # Attribution and metadata are between the user and the tiers; last come the amounts that budgets
        # count.
        named = b"\r\n" + bulks(arguments[1])
        self.settle_user = named if user else _shared(named)
        before, _, self.names = bulks(*budgets_paid(release)).partition(PAID.pack(0, 0, 0))
        self.settle_end = _shared(b"\r\n" + bulks(*tiers_of(release)) + before)

    def end_of(self, request: HoldRequest) -> bytes:
        """Return the encoded end of a `reserve` call: the amounts held on budgets, and their definitions."""
        accounts = request.budgets
        if not accounts:
            return self._reserve_end
        if accounts is not self._defined_of:
            self._defined_of = accounts
            self._defined = _shared(bulks(*[account.defined for account in accounts]))
        steps = pack_steps(request.steps) if request.steps else b""
        head = bulk_head(NEED.size + len(steps)) if steps else _NEED_HEAD
        return packed(
            self._reserve_end, head, request.money, request.money_most, request.money_least,
            request.budget_tokens, request.budget_tokens_most, request.budget_tokens_least, steps, b"\r\n",
            self._defined,
        )  # fmt: skip


def _shared(text: bytes) -> bytes:
    """Return one object for equal bytes, because callers of an organization have equal definitions."""
    return the_one(_texts, text, text, TEXTS_MAX)


_texts: Final[dict[bytes, bytes]] = {}


def _form(
    verb: str, partition: int, keys: tuple[str, ...], arguments: int, other: CallTemplate | None = None
) -> CallTemplate:
    shared = packing.SHARED[verb]
    group = _group(verb, partition, keys[:shared], keys[-1].removesuffix(NO_ID))
    return CallTemplate(group, keys[shared:-1], arguments, other)


@cache
def _group(verb: str, partition: int, shared: tuple[str, ...], hold: str) -> VerbEncoding:
    """Return the cached group of calls of a verb in a partition; `shared` and `hold` are keys of `VerbEncoding`."""
    return VerbEncoding(verb, RANKS[verb], shared, hold, packing.ALONE[verb])
