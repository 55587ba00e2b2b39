"""Calls of a function as they go over the wire: those that leave together are one call of it.

A server that is no cluster takes those of all partitions together, any other each partition's. The parts
equal for every call of a caller are made once (`CallTemplate`). How many calls share their keys and are
answered each for itself is in `lua/lib/calls.lua`. Pure.
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
)
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout

# The bounds of one call: so many calls, bytes of arguments, and accounts, whose places are bytes. Of more
# accounts each costs Redis more: 64 calls of as many organizations take a tenth less as two calls than as
# one.
CALLS_MAX: Final = 64
ARGUMENT_BYTES_MAX: Final = 262_144
ACCOUNTS_MAX: Final = 128
FIRST_PLACE: Final = 2


class AnotherType(CountersRefused):
    """The value under the key that was asked about is of another type."""


# Scripts' answers about a newer version's values: see lua/lib/state.lua.
NEWER_CODE: Final = "NEWERLAYOUT "
_KINDS: Final = {NEWER_CODE.strip(): NewerLayout, "WRONGTYPE": AnotherType}

# Numbers that are an argument each, as they go over the wire; and how an argument of so many bytes begins.
_NUMBERS: Final = [b"$%d\r\n%d\r\n" % (len(b"%d" % number), number) for number in range(1_024)]
_HEADS: Final = [b"$%d\r\n" % size for size in range(1_024)]
# A map is what a server says of itself where it is asked for RESP 3.
Reply = bytes | int | float | None | list["Reply"] | dict[bytes, "Reply"]


def bulk_head(size: int) -> bytes:
    """Return what an argument of so many bytes begins with on the wire."""
    return _HEADS[size] if size < len(_HEADS) else b"$%d\r\n" % size


def bulks(*arguments: bytes) -> bytes:
    """Arguments as they go over the wire."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(one), one) for one in arguments])


class Group:
    """One function in one partition. `rank` is the function's: in one write the lower leaves first. An
    argument of `alone` bytes is that of one call, and no shape of many. `hold` is the last key of a call, but
    for the id it ends with.
    """

    __slots__ = ("_openings", "alone", "function", "hold", "marker", "own", "rank", "shared_count")

    def __init__(self, verb: str, rank: int, shared: tuple[str, ...], hold: str, alone: int) -> None:
        """`shared` are the keys of all its calls; the last is the marker. `hold` ends with an id of 36."""
        self.rank, self.alone = rank, alone
        self.hold = b"$%d\r\n%b" % (len(hold) + 36, hold.encode())
        self._openings: dict[tuple[int, int], bytes] = {}
        self.function = bulks(b"FCALL", library().functions[verb].encode())
        self.own = bulks(*[one.encode() for one in shared[:-1]])
        self.marker = bulks(shared[-1].encode())
        self.shared_count = len(shared)

    def head(self, keys: int, arguments: int) -> bytes:
        """Return what a command begins with that has so many keys and arguments."""
        count = _NUMBERS[keys] if keys < len(_NUMBERS) else bulks(b"%d" % keys)
        return said(b"*", 3 + keys + arguments, b"\r\n", self.function, count)

    def opening(self, accounts: int, arguments: int) -> bytes:
        """What a call by itself begins with that has so many accounts and arguments: one text for all."""
        counts = accounts, arguments
        if counts not in self._openings:
            head = self.head(self.shared_count + accounts + 1, arguments)
            self._openings[counts] = head + self.own
        return self._openings[counts]


class CallTemplate:
    """What all calls of a caller have of their command. What others have as well is one text for all: what
    is a caller's own is far from the processor where many call, so that is `keys` and `accounts` alone.
    """

    __slots__ = ("account_count", "accounts", "arguments", "count", "group", "keys", "lone", "opening", "row")

    def __init__(
        self, group: Group, accounts: tuple[str, ...], arguments: int, other: CallTemplate | None = None
    ) -> None:
        """What the `other` function of the caller has of the same accounts is its as well."""
        self.group, self.count, self.account_count = group, arguments, len(accounts)
        self.accounts = tuple([bulks(one.encode()) for one in accounts])
        self.keys = group.marker + b"".join(self.accounts)
        if other is not None and other.keys == self.keys:
            self.accounts, self.keys = other.accounts, other.keys
        self.opening = group.opening(len(accounts), arguments)
        self.arguments = _shape(arguments, len(accounts))
        self.lone = _shape(1, len(accounts), arguments)
        # What the shape says of each of several calls that are all of this form; none where keys are alike.
        self.row = self.arguments + _places(len(accounts)) if len({*accounts}) == len(accounts) else b""


@cache
def _shape(*counts: int) -> bytes:
    """Return what the shape of a command says of a call, or of a part of one call."""
    return bytes(counts)


@cache
def _places(count: int) -> bytes:
    """Return the places of the accounts of a form, each its own: a byte each."""
    return bytes(range(FIRST_PLACE, FIRST_PLACE + count))


# A waiting call: its form, the request's id, its arguments as they go over the wire.
Call = tuple[Wait[Reply], CallTemplate, bytes, bytes]


class BatchWaiters:
    """Those who wait for an answer of many: each gets his own, or why his call was refused. `calls` are of so
    many `parts`, each a partition's.
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
                call[0].fail(refused(str(one)))
            else:
                call[0].set(one)

    def fail(self, error: BaseException) -> None:
        for call in self.calls:
            call[0].fail(type(error)(*error.args))


class Hop:
    """A command that a server of a cluster did not take, and that goes on to another one; `hops` counts them.

    A call is told that nobody answered, when `timer` says so, and of a later answer all the same: it may
    have given up, and want to know. `ended` is told once.
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


def refused(message: str) -> CountersRefused:
    """Return what a call is told that Redis answered with an error: by its code, the word it begins with."""
    kind = _KINDS.get(message.partition(" ")[0], CountersRefused)
    return kind(f"Redis refused: {message[:200]}")


# Who waits for a command, it, and how many calls it is.
Command = tuple[Waiting, bytes, int]


def commands(calls: list[Call], *, spread: bool) -> list[Command]:
    """What calls are that leave together: by function, then by partition, in the order of the calls. Those of
    several partitions are one command where they may be `spread`.
    """
    groups, order = dict[Group, list[Call]](), list[Group]()
    for call in calls:
        group = call[1].group
        own = groups.get(group)
        if own is not None:
            own.append(call)
            continue
        # Sorted as they come, behind those of the same rank: there are few groups.
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


def alone(call: Call) -> Command:
    """Return what one call is by itself."""
    wait, form, request_id, arguments = call
    return wait, b"".join((form.opening, form.keys, form.group.hold, request_id, b"\r\n", arguments)), 1


class CallBatch:
    """Calls of one function on their way into one command, part by part."""

    __slots__ = ("_accounts", "_arguments", "_keys", "_own", "_shape", "_size", "calls")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        # Of each part: its own keys, its marker and accounts, what the shape says of it.
        self._own: list[bytes] = []
        self._keys: list[bytes] = []
        self._shape: list[bytes] = []
        self._size = self._accounts = self._arguments = 0

    def take(self, calls: list[Call], begin: int) -> int:
        """Take of a part's calls, from `begin` on, as many as there is room for; the first always has."""
        if len(calls) - begin == 1:
            return self._take_one(calls[begin])
        first = calls[begin][1]
        if first.row and _are_alike(calls, begin):
            return self._take_alike(calls, begin)
        places, shape, taken, size, count = dict[bytes, int](), list[bytes](), 0, 0, 0
        accounts = dict[CallTemplate, bytes]()  # of those that came before
        for _, form, _, arguments in calls[begin : begin + CALLS_MAX - len(self.calls)]:
            if (taken or self.calls) and self._is_full(
                size + len(arguments), len(places) + len(form.accounts)
            ):
                break
            size += len(arguments)
            count += form.count
            shape.append(form.arguments)
            if form not in accounts:
                where = [places.setdefault(one, FIRST_PLACE + len(places)) for one in form.accounts]
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
        """Take calls of one form, as many as there is room for: their shape is one row, repeated."""
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
            self._shape.append(BYTES[taken] + BYTES[form.account_count] + form.row * taken)
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
        self._shape.append(form.lone)
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
            return alone(calls[0])
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
    """Return whether all calls from there on are of one form."""
    form, place = calls[begin][1], len(calls) - 1
    while place > begin and calls[place][1] is form:
        place -= 1
    return place == begin


# Which calls leave at once, and which are gathered: those that come while writes before them are unanswered.
#
# Where Redis is busy, more come together that way, and each costs it less; where it is not, nothing waits.
# The batch leaves with the next answer, or command of another kind, once it is as much as one command takes,
# and after a short time in any case: a Redis that is far away or stands still delays a call by no more than
# that. It knows nothing of connections.

# While one write is answered, the next one lies before Redis already: it does not wait for this process.
FLIGHTS_MAX = 2
GATHER_S_MAX = 0.004


class CallBatcher:
    """The calls of one wire that have not left, and which of its writes are not answered.

    Commands are known by their number, of all that the wire ever asked. `leave` has the calls leave; none
    waits longer than `gather_s`.
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
        # Of each write that is not answered: its last command of calls.
        self._flights: deque[int] = deque()
        # How often calls were taken, also when somebody looked last whether they wait too long.
        self._turn = self._looked_at = 0
        self._looking: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._bytes += len(call[3])

    def is_due(self) -> bool:
        """Return whether the calls leave now; if not, they will within `gather_s`."""
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
        """Return all that were gathered: they leave, or fail."""
        calls, self.calls = self.calls, []
        self._bytes = 0
        self._turn += 1
        return calls

    def left(self, last: int) -> None:
        """A write has left whose last command of calls is this one; 0 where it had none."""
        if last:
            self._flights.append(last)

    def answered(self, last: int) -> bool:
        """Return all commands up to this one are answered. Whether there are calls that leave now."""
        flights = self._flights
        while flights and flights[0] <= last:
            flights.popleft()
        return len(self.calls) > 0 and self.is_due()

    def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    def _look_again(self) -> None:
        """Twice within the time that calls may wait: those that were there at one look leave at the next."""
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


# The wire bytes that all calls of one caller share, made once: the hot path fills in what changes.
#
# A key may name any user, and each has bytes of its own: about 1 KB, kept for the callers that came last,
# so that a key with many users does not push out another's that comes now and then.

TOMBSTONE_MS = 3_600_000
NO_ID = "0" * 36
# Returns leave before reservations.
RANKS = {"settle": 0, "reserve": 1}
# How the packed argument begins on the wire, and where in a settlement's begins what the log keeps.
RESERVE_HEAD = b"$%d\r\n" % RESERVE.size
SETTLE_HEAD = b"$%d\r\n" % SETTLEMENT.size
_NEED_HEAD = b"$%d\r\n" % NEED.size
KEPT_AT: Final = len(SETTLE_HEAD) + packing.BATCH_BYTES
NO_BUDGETS: Final[tuple[str, ...]] = ()


# Texts that frames share: of each organization in use, and of its budgets. Each has some hundred bytes.
TEXTS_MAX: Final = 4_096
# A frame takes so many bytes, and more for each account and each character of its user (measured).
FRAMES_BYTES_MAX: Final = 64 * 1024 * 1024
FRAME_BYTES: Final = 1_792
ACCOUNT_BYTES: Final = 512
USER_COPIES: Final = 8


class Frames:
    """The frames of the last callers, by key, user, service and the budget accounts they take from.

    Callers say who they are, so what there may be is bounded by size: there are fewer of larger ones.
    """

    __slots__ = ("known",)

    def __init__(self, bytes_max: int = FRAMES_BYTES_MAX) -> None:
        self.known: LruCache[tuple[int, str, int, tuple[str, ...]], Frame] = LruCache(bytes_max)

    def __len__(self) -> int:
        return len(self.known)

    def frame_of(
        self, caller: Caller, user: str, service: Service, budgets: tuple[str, ...] = NO_BUDGETS
    ) -> Frame:
        """Return the frame of these calls: a service that was resolved again has another one."""
        key = caller.key_id, user, service.id, budgets
        frame = self.known.find(key)
        if frame is None or frame.service is not service:
            frame = Frame(caller, user, service, budgets)
            self.known.put(key, frame, FRAME_BYTES + ACCOUNT_BYTES * len(budgets) + USER_COPIES * len(user))
        return frame


class Frame(LruEntry):
    """The wire bytes of one caller's calls: their accounts, and the constant bytes around the changing ones.

    `names` are those of budgets' accounts, behind the counts of their windows.
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
        # What budgets need, and their definitions, are the last arguments.
        end = b"\r\n" + bulks(*arguments[1 : len(arguments) - len(budgets_need(request))])
        self._reserve_end = end if user else _shared(end)
        release = Settlement(caller, NO_ID, user, service, charge=False, budgets=budgets)
        self.who = packing.settle_who(release, TOMBSTONE_MS)
        keys, arguments = packing.settle(b"0" * 40, TOMBSTONE_MS, release, packing.MODE_RELEASE)
        self.settle = _form("settle", caller.partition, keys, len(arguments), self.reserve)
        # The last definitions of budgets' accounts: in one tuple, and on the wire.
        self._defined_of: tuple[BudgetAccount, ...] = ()
        self._defined = b""
        # Attribution and metadata stand between the user and the tiers; last is what budgets count.
        named = b"\r\n" + bulks(arguments[1])
        self.settle_user = named if user else _shared(named)
        before, _, self.names = bulks(*budgets_paid(release)).partition(PAID.pack(0, 0, 0))
        self.settle_end = _shared(b"\r\n" + bulks(*tiers_of(release)) + before)

    def end_of(self, request: HoldRequest) -> bytes:
        """Return the bytes behind the changing part: last the held amounts and the accounts."""
        accounts = request.budgets
        if not accounts:
            return self._reserve_end
        if accounts is not self._defined_of:
            self._defined_of, self._defined = accounts, _shared(bulks(*[one.defined for one in accounts]))
        return packed(
            self._reserve_end, _NEED_HEAD, request.money, request.money_most, request.money_least,
            request.raw_tokens, request.raw_most, request.raw_least, b"\r\n", self._defined,
        )  # fmt: skip


def _shared(text: bytes) -> bytes:
    """The one text of these bytes: callers of one organization have the same definitions, one by one, and
    all callers without a user the same ends.
    """
    return the_one(_texts, text, text, TEXTS_MAX)


_texts: Final[dict[bytes, bytes]] = {}


def _form(
    verb: str, partition: int, keys: tuple[str, ...], arguments: int, other: CallTemplate | None = None
) -> CallTemplate:
    shared = packing.SHARED[verb]
    group = _group(verb, partition, keys[:shared], keys[-1].removesuffix(NO_ID))
    return CallTemplate(group, keys[shared:-1], arguments, other)


@cache
def _group(verb: str, partition: int, shared: tuple[str, ...], hold: str) -> Group:
    """Return one of each verb and partition."""
    return Group(verb, RANKS[verb], shared, hold, packing.ALONE[verb])
