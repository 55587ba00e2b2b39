"""Counts the bytes that a worker buffers for slow connections: incomplete bodies, and unread answers.

Bytes that may be refused are acquired (`acquire`), others are only counted (`add`). While a worker, an
organization or a key has used up its share, new calls are refused, and begun calls go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.core.shares import FairShares
from gateway.core.wait import OVER, Wait, Waiter
from gateway.errors import Overloaded, Refusal

# Maximum of batch files that a worker reads at a time, in total and for an organization.
FILES_MAX, FILES_EACH_MAX = 64, 16


class BatchFiles:
    """The batch files that a worker reads: their number and arrived bytes, by organization.

    They are counted apart from other buffers, so that no other call is refused because of a file.
    """

    __slots__ = ("_bytes", "_count")

    def __init__(self) -> None:
        self._bytes, self._count = FairShares(), FairShares(FILES_MAX, FILES_EACH_MAX)

    def renew(self, largest: int) -> None:
        """Limit the memory for files of batches to two of the `largest` size, an organization's to one."""
        self._bytes.bound(2 * largest, largest)

    @contextmanager
    def reading(self, caller: Caller) -> Iterator[Callable[[int], None]]:
        """Reserve memory for a batch's input file in this context; raise `Overloaded` if there is no room.

        Yield a function to call with the size in bytes of each part that arrives. It may raise `Overloaded`,
        too.
        """
        organization_id, sizes = caller.organization_id, list[int]()

        def arrive(size: int) -> None:
            if not self._bytes.acquire(organization_id, size):
                raise Overloaded("The gateway reads other batches of this caller.", retry_after_s=1)
            sizes.append(size)

        if not self._count.acquire(organization_id):
            raise Overloaded("The gateway reads other batches of this caller.", retry_after_s=1)
        try:
            yield arrive
        finally:
            self._count.release(organization_id)
            if sizes:
                self._bytes.release(organization_id, sum(sizes))


class Buffers:
    """Counts of buffered bytes: of a worker, of each organization, and of each key.

    `pressed` is True while a call may have to be refused, so that usual calls check only that. `shed` counts
    refusals. `heads` are bytes of incomplete heads, whose caller is not known yet.
    """

    __slots__ = ("_head_free", "_heads_max", "_keys", "_organizations", "files", "heads", "pressed", "shed")

    def __init__(self, limits: HttpLimits) -> None:
        self.files = BatchFiles()
        self._organizations, self._keys = FairShares(), FairShares()
        self.heads = self.shed = 0
        self.pressed = False
        self.renew(limits)

    def renew(self, limits: HttpLimits) -> None:
        """Apply these limits from now on; bytes that are buffered already stay counted."""
        organizations, keys, largest = self._organizations, self._keys, limits.body_bytes_max
        # The largest body must fit into every part, and no part is more than half.
        most = max(limits.buffered_bytes_max, 2 * largest)
        organizations.bound_by_share(most, limits.buffered_share, largest)
        keys.bound(most, max(largest, organizations.each // 2))
        self.files.renew(largest)
        self._heads_max, self._head_free = limits.heads_bytes_max, limits.head_free_bytes
        self._press()

    @property
    def used(self) -> int:
        """The number of all buffered bytes, without those of heads."""
        return self._organizations.used

    def acquire(self, caller: Caller, size: int) -> bool:
        """Count `size` more bytes for a caller until `release`; return False if the share has no room."""
        organizations, keys = self._organizations, self._keys
        if organizations.allows(caller.organization_id, size) and keys.allows(caller.key_id, size):
            self.add(caller, size)
            return True
        self.shed += 1
        return False

    def add(self, caller: Caller, size: int) -> None:
        """Count `size` more bytes that are already buffered for a caller."""
        self._organizations.add(caller.organization_id, size)
        self._keys.add(caller.key_id, size)
        self._press()

    def release(self, caller: Caller, size: int) -> None:
        """Release `size` buffered bytes of a caller."""
        self._organizations.release(caller.organization_id, size)
        self._keys.release(caller.key_id, size)
        self._press()

    def check_new(self, caller: Caller) -> None:
        """Raise `Overloaded` if data buffered for this caller's slow connections fill the caller's share."""
        if not self.has_room(caller):
            self.shed += 1
            raise Overloaded(
                "The gateway holds too much for slow connections of this caller.", retry_after_s=1
            )

    def has_room(self, caller: Caller) -> bool:
        """Return whether this caller's share of the buffers has room."""
        return self._organizations.allows(caller.organization_id, 1) and self._keys.allows(caller.key_id, 1)

    def keep_head(self, size: int, before: int) -> int | None:
        """Count the bytes of an incomplete head: `size` now, of them `before` counted already.

        Return the new count, or None if there is no room. Some bytes of each connection are not counted, so
        that every client can send a head.
        """
        counted = max(0, size - self._head_free)
        self.heads -= before
        if counted and self.heads + counted > self._heads_max:
            self.shed += 1
            return None
        self.heads += counted
        return counted

    def _press(self) -> None:
        self.pressed = self._organizations.used * 2 >= self._keys.each


class ConnectionBuffers:
    """Bytes buffered for one connection in addition to the body in progress.

    `unread` are counted bytes of heads, whose caller is not known yet. `untaken` are bytes of answers,
    counted for their caller: they exist already, so they are never refused.
    """

    __slots__ = ("_buffers", "_caller", "unread", "untaken")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._caller: Caller | None = None
        self.unread = self.untaken = 0

    def keep_unread(self, size: int) -> bool:
        """Set the counted bytes of unread requests to `size`; return False if there is no room."""
        counted = self._buffers.keep_head(size, self.unread)
        self.unread = counted or 0
        return counted is not None

    def keep_untaken(self, caller: Caller | None, size: int) -> bool:
        """Set the counted bytes of answers that the client has not read to `size`.

        Return whether the caller's share has room for these bytes.
        """
        buffers, before = self._buffers, self.untaken
        if before and self._caller is not None:
            buffers.release(self._caller, before)
        self._caller, self.untaken = caller, size if caller is not None else 0
        if caller is None or not size:
            return True
        buffers.add(caller, size)
        return buffers.has_room(caller)


def full() -> Refusal:
    """Return the refusal of a request whose bytes find no room."""
    return Overloaded("The gateway keeps as much of unfinished requests as it may.", retry_after_s=1)


# The driver of one request's coroutine: resumes the coroutine when the awaited value arrives.
#
# After an error a second coroutine handles that error, because compiled coroutines cannot await while an
# exception propagates.
#
# A step needs no task and no event loop: the code that sets a `Wait` runs the handler up to its next `Wait`.
# Rare paths may also await an asyncio future.

_E = TypeVar("_E", bound=BaseException)
_Handling = Coroutine[Any, None, None]


def bare(error: _E) -> _E:
    """Return the error after removing the tracebacks from it and its causes.

    Otherwise a frame that stores the error would be kept alive, with all its data, until garbage collection.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


class RequestDriver(Waiter):
    """Runs a coroutine that awaits `Wait`s; `ended` is called once, with the last error or None.

    `interrupt` raises in the coroutine at its wait, unless it is `shielded`: a charge is never interrupted,
    it only waits for a bounded time (`expire_wait`).
    """

    __slots__ = ("_coroutine", "_future", "_given_up", "_pending", "_running", "_wait", "over", "shielded")

    _coroutine: _Handling | None
    _given_up: Callable[[Any, BaseException], _Handling] | None

    def __init__(self) -> None:
        self.shielded = self.over = self._running = False
        self._wait: Wait[Any] | None = None
        self._future: asyncio.Future[Any] | None = None
        self._pending: BaseException | None = None

    def tell(
        self, coroutine: _Handling, given_up: Callable[[Any, BaseException], _Handling] | None = None
    ) -> None:
        """Start a coroutine, and run it to its first wait. If it fails, pass the error to `given_up`."""
        self._coroutine, self._given_up = coroutine, given_up
        self._step(None)

    def interrupt(self, error: BaseException) -> None:
        """Raise an error in the present or next wait; ignore it if the coroutine is shielded."""
        if self.over or self.shielded:
            return
        if self._running:
            self._pending = error
        else:
            self._step(error)

    def expire_wait(self, error: BaseException) -> None:
        """Raise an error in the present wait, even a shielded one: its maximum time has passed."""
        if not self.over and not self._running:
            self._step(error)

    def ended(self, error: BaseException | None) -> None:
        """Finish the exchange when its handler ends; `error` is the handler's failure, if any."""
        raise NotImplementedError

    def resume(self, wait: Wait[Any]) -> None:
        """Resume the coroutine if `wait` is the one that it waits for now, not one that was given up."""
        if self._wait is wait:
            self._step(None)

    def _resume_after(self, future: asyncio.Future[Any]) -> None:
        if self._future is future:
            self._step(None)

    def _step(self, error: BaseException | None) -> None:
        """Run the coroutine until it waits or ends; throw `error` into it if there is one."""
        coroutine = self._coroutine
        assert coroutine is not None
        self._wait = self._future = None
        self._running = True
        try:
            awaited = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration:
            self._end(None)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # any is reported to the client
            self._end(failure)
        else:
            self._wait_for(awaited)

    def _wait_for(self, awaited: Any) -> None:
        """Suspend the coroutine until the awaited value exists; an earlier interrupt ends the wait."""
        if awaited is OVER:
            self._end(None)
            return
        self._running = False
        pending, self._pending = self._pending, None
        if pending is not None and not self.shielded:
            self._step(pending)
            return
        if type(awaited) is Wait:
            self._wait = awaited
            awaited.resumes(self)
        elif asyncio.isfuture(awaited):
            self._future = awaited
            awaited.add_done_callback(self._resume_after)
        else:  # such as that of `asyncio.sleep(0)`: nobody would ever resume it
            self._step(TypeError(f"a request waits for {awaited!r}, neither a Wait nor a future of asyncio"))

    def _end(self, error: BaseException | None) -> None:
        """End the request; if it was given up, run what handles that first."""
        given_up = self._given_up
        if error is not None and given_up is not None:
            self._coroutine, self._given_up = given_up(self, error), None
            self._step(None)
            return
        self._running = False
        self.over = True
        self._coroutine = None  # breaks a reference cycle with a coroutine that awaits `OVER`
        self.ended(error)
