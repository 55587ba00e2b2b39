"""Calls of a function as they go over the wire: those that leave together are one call of it.

A server that is no cluster takes those of all partitions together, any other each partition's. What is the
same for every call of a caller is made once (`Form`). How many calls share their keys and are answered each
for itself is in `lua/lib/calls.lua`. Pure.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import hiredis

from gateway.core.wait import Wait
from gateway.counters.redis.scripts import library
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout

# What is one call: so many calls, bytes of arguments, and accounts, whose places are bytes. Of more accounts
# each costs Redis more: 64 calls of as many organizations take a tenth less as two calls than as one.
CALLS_MAX: Final = 64
ARGUMENT_BYTES_MAX: Final = 262_144
ACCOUNTS_MAX: Final = 128
FIRST_PLACE: Final = 2


class AnotherType(CountersRefused):
    """What stands under the key that was asked about is of another type."""


# What scripts answer of what a newer version has stored: see lua/lib/state.lua.
NEWER_CODE: Final = "NEWERLAYOUT "
_KINDS: Final = {NEWER_CODE.strip(): NewerLayout, "WRONGTYPE": AnotherType}

# A map is what a server says of itself where it is asked for RESP 3.
Reply = bytes | int | float | None | list["Reply"] | dict[bytes, "Reply"]


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
        """What a command begins with that has so many keys and arguments."""
        return b"*%d\r\n%b%b" % (3 + keys + arguments, self.function, bulks(b"%d" % keys))

    def opening(self, accounts: int, arguments: int) -> bytes:
        """What a call by itself begins with that has so many accounts and arguments: one text for all."""
        counts = accounts, arguments
        if counts not in self._openings:
            head = self.head(self.shared_count + accounts + 1, arguments)
            self._openings[counts] = head + self.own
        return self._openings[counts]


class Form:
    """What all calls of a caller have of their command. What others have as well is one text for all: what
    is a caller's own is far from the processor where many call, so that is `keys` and `accounts` alone.
    """

    __slots__ = ("account_count", "accounts", "arguments", "count", "group", "keys", "lone", "opening")

    def __init__(
        self, group: Group, accounts: tuple[str, ...], arguments: int, other: Form | None = None
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


@cache
def _shape(*counts: int) -> bytes:
    """What the shape of a command says of a call, or of a part of one call."""
    return bytes(counts)


# Who waits, of which form, the request's id, its arguments as they go over the wire.
Call = tuple[Wait[Reply], Form, bytes, bytes]


class Each:
    """Those who wait for an answer of many: each gets his own, or why his call was refused. `calls` are of so
    many `parts`, each a partition's.
    """

    __slots__ = ("calls", "parts")

    def __init__(self, calls: list[Call], parts: int = 1) -> None:
        self.calls, self.parts = calls, parts

    def set(self, reply: Reply) -> None:
        """Deliver all answers."""
        if not isinstance(reply, list) or len(reply) != len(self.calls):
            self.fail(CountersRefused("Redis answered other calls than were asked."))
            return
        for call, one in zip(self.calls, cast("list[Any]", reply), strict=True):
            if type(one) is not bytes and isinstance(one, hiredis.ReplyError):
                call[0].fail(refused(str(one)))
            else:
                call[0].set(one)

    def fail(self, error: BaseException) -> None:
        """Deliver a failure to each."""
        for call in self.calls:
            call[0].fail(type(error)(*error.args))


class Hop:
    """A command that a server of a cluster did not take, and that goes on to another one; `hops` counts them.

    Who waits is told that nobody answered, when `timer` says so, and of what is answered later all the same:
    he may have given up, and want to know. `ended` is told once.
    """

    __slots__ = ("_ended", "_wait", "done", "hops", "timer")

    def __init__(self, wait: Wait[Reply] | Each, ended: Callable[[], None]) -> None:
        self.done = False
        self.hops = 0
        self.timer: TimerHandle | None = None
        self._wait, self._ended = wait, ended

    def set(self, reply: Reply) -> None:
        """Deliver the answer."""
        self._end()
        self._wait.set(reply)

    def fail(self, error: BaseException) -> None:
        """Deliver a failure."""
        self._end()
        self._wait.fail(error)

    def is_late(self) -> None:
        """Its time is over."""
        self.fail(CountersUnavailable("no primary took it in time"))

    def _end(self) -> None:
        if not self.done:
            self.done = True
            if self.timer is not None:
                self.timer.cancel()
            self._ended()


# Whoever waits for the answer to a command.
Waiting = Wait[Reply] | Each | Hop


def refused(message: str) -> CountersRefused:
    """What a call is told that Redis answered with an error: by its code, the word it begins with."""
    kind = _KINDS.get(message.partition(" ")[0], CountersRefused)
    return kind(f"Redis refused: {message[:200]}")


# Who waits for a command, it, and how many calls it is.
Command = tuple[Waiting, bytes, int]


def commands(calls: list[Call], *, spread: bool) -> list[Command]:
    """What calls are that leave together: by function, then by partition, in the order of the calls. Those of
    several partitions are one command where they may be `spread`.
    """
    groups: dict[Group, list[Call]] = {}
    for call in calls:
        group = call[1].group
        if group in groups:
            groups[group].append(call)
        else:
            groups[group] = [call]
    found, batch, rank = list[Command](), Batch(), -1
    for group in sorted(groups, key=lambda one: one.rank):
        if batch.calls and (group.rank != rank or not spread):
            found.append(batch.command())
            batch = Batch()
        own, taken, rank = groups[group], 0, group.rank
        while True:
            taken += batch.take(own, taken)
            if taken == len(own):
                break
            found.append(batch.command())
            batch = Batch()
    found.append(batch.command())
    return found


def alone(call: Call) -> Command:
    """What one call is by itself."""
    wait, form, request_id, arguments = call
    return wait, b"".join((form.opening, form.keys, form.group.hold, request_id, b"\r\n", arguments)), 1


class Batch:
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
        places, shape, taken, size, count = dict[bytes, int](), list[bytes](), 0, 0, 0
        accounts = dict[Form, bytes]()  # of those that came before
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
        """The command of what was taken."""
        calls, parts = self.calls, len(self._own)
        if len(calls) == 1:
            return alone(calls[0])
        group = calls[0][1].group
        shape = b"".join((bytes((parts,)), *self._shape))
        if len(shape) == group.alone:
            shape += b"\0"
        keys = parts * group.shared_count + self._accounts + len(calls)
        said = [group.head(keys, 1 + self._arguments), *self._own, *self._keys]
        for _, form, request_id, _ in calls:
            said.append(form.group.hold)
            said.append(request_id)
            said.append(b"\r\n")
        said.append(bulks(shape))
        said += [arguments for _, _, _, arguments in calls]
        return Each(calls, parts), b"".join(said), len(calls)
