"""One request and its answer: what the handler knows about its client.

An exchange outlives its client where the route says that a begun answer is drained and charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.calls.forms import FormReader
from gateway.core.calls.models import ConfiguredModels
from gateway.core.families.family import SocketMessages
from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.core.shares import FairShares
from gateway.core.traces import Trace
from gateway.core.wait import Wait
from gateway.errors import CountersUnavailable, InvalidRequest, Refusal, RequestTooLarge
from gateway.http.ports import Ports
from gateway.http.protocol.answer import AnswerHead
from gateway.http.routing.head import CallHead, HeadReader
from gateway.http.routing.openings import UpstreamOpening
from gateway.http.server.buffers import Buffers, RequestDriver, bare
from gateway.http.tally import NEVER, TickClock
from gateway.http.turns import LargeBodies
from gateway.http.upstream.pool import Link, Upstream


# The received part of the request's body, and the waiter for more of it.
#
# Bytes that are waited for count in their caller's share, from the first wait until `let_go`. Bodies
# never waited for are bounded by one read: the socket is not read on then, which is its owner's
# affair.
class RequestBody:
    """The body of one request at a time. `size` is what came of it, `kept` what counts in a share.

    A `form` reads what comes of it.
    """

    __slots__ = ("_buffers", "_caller", "_enough", "_grace", "_parts", "_wait", "form", "kept", "size")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._caller: Caller | None = None
        self._parts: list[bytes] = []
        self.size = self._enough = self.kept = 0
        self._wait: Wait[None] | None = None
        self.form: FormReader | None = None
        self._grace: asyncio.TimerHandle | None = None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for more."""
        return self._wait is not None

    @property
    def enough(self) -> bool:
        """Whether there is more than was asked for."""
        return self.size > self._enough

    def add(self, part: bytes) -> None:
        """Append a part of the body."""
        self._parts.append(part)

    def refusal_of(self, part: bytes, last: bool) -> Refusal | None:
        """Feed a part to the form, and end the form with the last one; return the refusal, if any."""
        form = self.form
        if form is not None:
            try:
                form.feed(part)
                if last:
                    form.end()
            except (InvalidRequest, RequestTooLarge) as refusal:
                return bare(refusal)
        return None

    def take_parts(self) -> bytes:
        """Return the bytes that have arrived; they are given away."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def arrival(self, caller: Caller | None, enough: int) -> Wait[None]:
        """Wait for the end, or for more than so many bytes, which a caller's share has."""
        self._caller, self._enough = caller, enough
        wait: Wait[None] = Wait()
        self._wait = wait
        return wait

    def soon(self, caller: Caller, length: int, limits: HttpLimits) -> Wait[None] | None:
        """Wait for the end of a small body, but a moment only.

        None where it is not small, and while much is kept: nobody is refused for bytes nobody admitted.
        """
        if length > limits.collected_bytes_max or self._buffers.pressed:
            return None
        wait = self.arrival(caller, length)
        self.count(caller, length)
        self._grace = asyncio.get_running_loop().call_later(limits.body_grace_s, self.wake)
        return wait

    def count(self, caller: Caller, more: int) -> None:
        """Count `more` buffered bytes for a caller whose share has room."""
        self._caller = caller
        self._buffers.add(caller, more)
        self.kept += more

    def afford(self) -> bool:
        """Return whether all that is here may be kept; a caller that is not known yet has no share."""
        more, caller = self.size - self.kept, self._caller
        if more > 0:
            if caller is None or not self._buffers.acquire(caller, more):
                return False
            self.kept += more
        return True

    def claim(self, caller: Caller, size: int) -> bool:
        """Return whether so many bytes that were given away may be kept on for a caller."""
        self._caller, self.size = caller, max(size, self.kept)
        return self.afford()

    def wake(self) -> None:
        """Wake the waiter."""
        wait = self._ended()
        if wait is not None:
            wait.set(None)

    def fail(self, error: BaseException) -> bool:
        """Fail the waiter with `error`; return False if there is none."""
        wait = self._ended()
        if wait is not None:
            wait.fail(error)
        return wait is not None

    def let_go(self) -> None:
        """Release the count of the buffered bytes."""
        kept, self.kept = self.kept, 0
        if kept and self._caller is not None:
            self._buffers.release(self._caller, kept)

    def forget(self) -> None:
        """Forget the body of an ended request, and release its buffered bytes."""
        self.let_go()
        self._ended()
        self._parts, self.form = [], None

    def _ended(self) -> Wait[None] | None:
        wait, self._wait = self._wait, None
        grace = self._grace
        if grace is not None:
            self._grace = None
            grace.cancel()
        return wait


class _CapacityTurns(Protocol):
    """What a call asks of the queues for what its upstream can take; `admitted` is its `AdmittedCall`."""

    async def take(self, exchange: Exchange, admitted: Any, upstream: Upstream, waits: bool) -> None: ...
    def learn(self, upstream: Upstream, model: str, key: int, answer: AnswerHead) -> None: ...


# What all requests of one worker share.
@dataclass(frozen=True, slots=True)
class Worker:
    """The ports, the limits, the clock, and the upstreams by name. `bounds` is what meters believe.

    `heads` understands heads and remembers what repeats of those of callers that are known; `buffers` counts
    what is kept for slow ends, `bodies` gives large ones their turns. `workloads` has the digests of a
    workload's key by the URI of its certificate, `models` are those that somebody configured,
    `capacity` has those who wait for what upstreams can take, `sockets` who has how many WebSockets,
    `sockets_keep` how many bytes these remember.
    """

    ports: Ports
    limits: HttpLimits
    clock: TickClock
    upstreams: Mapping[str, Upstream]
    bounds: UsageBounds
    heads: HeadReader
    buffers: Buffers
    bodies: LargeBodies
    workloads: Mapping[str, tuple[str, ...]]
    models: ConfiguredModels
    capacity: _CapacityTurns
    sockets: FairShares
    sockets_keep: FairShares

    def produced(self, started: float) -> float:
        """Note when a stream that was asked for at a second first produced something; the second of that."""
        now = self.ports.seconds()
        self.ports.tally.first_token_seconds.observe(now - started)
        return now


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class _Client(Protocol):
    """What an exchange asks of the connection its request came on, which says what each of these is."""

    transport: Any
    blocked: bool
    body: RequestBody
    opened_by: bytes
    messages: SocketMessages | None
    exchange: Exchange | None

    @property
    def body_complete(self) -> bool: ...
    @property
    def reusable(self) -> bool: ...
    def body_arrival(self, bytes_max: int) -> Wait[None]: ...
    def body_soon(self, caller: Caller) -> Wait[None] | None: ...
    def stream_body(self, link: Link) -> None: ...
    def keep_untaken(self, size: int) -> bool: ...
    def writable(self) -> Wait[None]: ...
    def splice(self, transport: Any, limits: HttpLimits) -> bytes: ...
    def data_received(self, data: bytes) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shut(self) -> None: ...
    def finish(self, keep_alive: bool) -> None: ...
    def cut(self, reset: bool) -> None: ...
    def part(self, exchange: Exchange) -> None: ...


class _Hold(Protocol):
    """What an exchange asks of its `AdmittedCall`."""

    @property
    def due(self) -> bool: ...
    @property
    def charges(self) -> bool: ...
    def keep_alive(self) -> None: ...
    def settle(
        self, status: int, complete: bool, abandoned: bool, failed: tuple[int, str]
    ) -> Awaitable[bool]: ...


class Exchange(RequestDriver):
    """The state of one request. Times are seconds of the worker's monotonic clock.

    `head` is what its client sent first, `routed` how that is served, `call` what its body asks for, once
    that was read. `began_upstream` and `ended_upstream` bound the time that is not the gateway's own.
    `worker` is its worker as it was at the beginning. `caller` is set once it is known, `charge` by
    admission, `upstream` and `link` while a connection is its own. `fail` ends a begun answer by saying why,
    once there is one. `forwarded` says that an upstream heard of the request, `opened` that a head was sent,
    `broken` that the begun answer cannot be completed. `before_end` is done before a client has the end of an
    answer: it is told the ids in it. `trace` is there where requests are traced. `upstream_name` is where it
    goes, `model_sent` the model that is asked for there, empty where that is the call's own; `key` numbers
    the credential, and `begins` is how the request begins where its head alone does not say that.
    A form that is `long` passes as it comes, behind its texts. `passed_over` are the upstreams that failed it
    before, each with the cause; `read` says that one of them took the whole request, and did not answer in
    time. What an upstream does for a client that is told already, or has left, is read on where it `drains`:
    `outlasted` is the status and the reason of a client that was told, `silent_since` when the answer said
    something last, and `silent_s` how long it had said nothing when it was given up. It `waits` for its
    upstream's capacity, or has done so for `waited_ms`. The job that its path names `says` more parameters
    of its path.
    """

    __slots__ = (
        "_on_end", "before_end", "began_upstream", "begins", "body_failure", "body_length", "broken",
        "call", "caller", "charge", "connection", "deadline", "drains", "ended_upstream", "fail", "forwarded",
        "gone", "head", "invited", "keep_alive", "key", "link", "long", "model_sent", "opened", "outlasted",
        "passed_over", "read", "reason", "request_id", "routed", "says", "silent_s", "silent_since",
        "started", "status", "trace", "until_close", "upstream", "upstream_name", "waited_ms", "waits",
        "worker",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it comes
        self,
        connection: _Client,
        head: CallHead,
        request_id: str,
        started: float,
        worker: Worker,
        on_end: Callable[[Exchange, BaseException | None], None],
    ) -> None:
        super().__init__()
        self.connection = connection
        self.head, self.routed = head, head.routed
        self.request_id = request_id
        self.started = started
        self.worker = worker
        self._on_end = on_end
        self.began_upstream = self.ended_upstream = 0.0
        self.deadline = NEVER
        self.silent_since = self.silent_s = 0.0
        self.gone = self.opened = self.broken = self.until_close = self.keep_alive = self.drains = False
        self.forwarded = self.invited = False
        self.status = self.waited_ms = 0
        self.waits = False
        self.reason = ""
        self.body_length: int | None = None
        self.body_failure: Refusal | None = None
        self.call: CallRequest | None = None
        self.caller: Caller | None = None
        self.charge: _Hold | None = None
        self.upstream: Upstream | None = None
        self.link: Link | None = None
        self.fail: Callable[[Refusal], bool] | None = None
        self.before_end: Callable[[list[str]], Awaitable[object]] | None = None
        self.trace: Trace | None = None
        self.upstream_name, self.model_sent, self.key = head.routed.upstream, "", 0
        self.begins: UpstreamOpening | None = None
        self.passed_over: tuple[tuple[str, str], ...] = ()
        self.outlasted: tuple[int, str] | None = None
        self.long = False
        self.read = False
        self.says: Mapping[str, str] = {}

    def ended(self, error: BaseException | None) -> None:
        """Report the end to the worker, then release the connection."""
        self._on_end(self, error)
        # These know this exchange: none waits for the collector.
        self.charge = self.fail = self.before_end = None
        if self.outlasted is not None:
            return  # its client was told long ago
        if self.broken:
            self.connection.cut(self.until_close)
        else:
            self.connection.finish(self.keep_alive)

    # the request

    async def late_body(self, bytes_max: int) -> None:
        """Wait for the rest of a body, or for more of it than so many bytes.

        Raises the `Refusal` it earns, or `ClientGone`.
        """
        if self.gone:
            raise ClientGone
        self.invite_body()
        await self.connection.body_arrival(bytes_max)
        if self.body_failure is not None:
            raise self.body_failure

    async def whole_body(self, caller: Caller, bytes_max: int) -> bytes:
        """Return the whole body, kept in a caller's share until it is here."""
        buffers, connection = self.worker.buffers, self.connection
        if buffers.pressed:
            buffers.check_new(caller)
        if self.body_failure is not None:
            raise self.body_failure
        if not connection.body_complete:
            before, self.caller = self.caller, caller
            try:
                await self.late_body(bytes_max)
            finally:
                self.caller = before
        body = connection.body.take_parts()
        if not connection.body_complete or len(body) > bytes_max:
            raise RequestTooLarge(f"A body here may have {bytes_max} bytes.")
        return body

    async def small_body(self, bytes_max: int) -> None:
        """Wait for a body that may have so many bytes: its sender cannot leave half a request then."""
        length = self.body_length
        if not self.connection.body_complete and (length is None or length <= bytes_max):
            await self.late_body(bytes_max)

    def invite_body(self) -> None:
        """Send `100 Continue`, once, to a client that waits for it (RFC 9110, 10.1.1)."""
        if self.routed.expects and not self.gone and not self.invited:
            self.invited = True
            self.connection.transport.write(CONTINUE)

    # the upstream

    def leave_upstream(self) -> None:
        """Release the upstream's connection: its part is over."""
        upstream, link, caller = self.upstream, self.link, self.caller
        self.upstream = self.link = None
        if upstream is not None and caller is not None:
            upstream.release(caller.organization_id, link)

    # the answer

    def decide_keep_alive(self) -> bool:
        """Return whether the connection serves another request after this one; said in the answer's head."""
        routed, connection = self.routed, self.connection
        self.keep_alive = routed.keep_alive and connection.reusable and self.outlasted is None
        if routed.expects and not connection.body_complete:
            self.keep_alive = False  # whether its body follows is the client's choice
        return self.keep_alive

    def write(self, data: bytes) -> None:
        """Send a part of the answer; nothing once the client is gone."""
        self.opened = True
        if not self.gone:
            self.connection.transport.write(data)

    # interruptions

    def body_failed(self, refusal: Refusal) -> None:
        """Store the failure of the rest of the body; interrupt at once a handler that awaits its upstream."""
        self.body_failure = refusal
        if self.began_upstream:
            self.interrupt(refusal)

    def client_gone(self) -> None:
        """Drain a charged answer after the client is gone, and end everything else.

        A request that was cut in its middle may come to nothing; a route may say abort.
        """
        self.gone = True
        if self.shielded:
            return
        if self.is_worked_on:
            self._begin_drain()
        else:
            self.interrupt(ClientGone())

    @property
    def is_worked_on(self) -> bool:
        """Whether an upstream works on a whole call that is charged, and its route reads on to the end."""
        route, charge = self.routed.route, self.charge
        due = (charge is not None and charge.due and charge.charges) or self.before_end is not None
        drains = due and self.forwarded and route is not None and self._drains(route.on_disconnect)
        return drains and self.connection.body_complete

    def part(self) -> None:
        """Part from a client that has its whole answer: read on as for one that left."""
        self.gone = True
        self._begin_drain()
        self.connection.part(self)

    def _begin_drain(self) -> None:
        self.drains, self.deadline = True, self.worker.clock.now + self.worker.limits.drain_s

    def _drains(self, on_disconnect: str) -> bool:
        """Return whether an answer is read to its end without its client, as one that goes on anyway is."""
        facts = None if self.upstream is None else self.upstream.target.facts
        return on_disconnect != "abort" or (facts is not None and facts.on_cut == "goes_on")

    def check(self, now: float, watched_before: float) -> None:
        """Check the deadline of a wait, and keep alive a hold that is due for renewal."""
        if self.deadline < now:
            self.deadline = NEVER
            if self.shielded:
                self.expire_wait(CountersUnavailable(retry_after_s=1))
            else:
                self.interrupt(ClientGone())
        elif self.charge is not None and self.started < watched_before:
            self.charge.keep_alive()
