"""One request and its answer, as the handler sees them.

An exchange outlives its client if the route says that a begun answer is drained and charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.calls.ports import AdmissionPorts
from gateway.core.accounts.limits import Header
from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.calls.forms import FormReader
from gateway.core.calls.models import ConfiguredModels
from gateway.core.families.controlled import Document
from gateway.core.families.family import SocketMessages
from gateway.core.http_limits import HttpLimits
from gateway.core.metering.meter import Meter
from gateway.core.model import Caller
from gateway.core.shares import FairShares
from gateway.core.traces import Trace
from gateway.core.wait import Wait
from gateway.errors import CountersUnavailable, InvalidRequest, Refusal, RequestTooLarge
from gateway.http.ports import Ports
from gateway.http.routing.head import CallHead, HeadReader, SocketOpening
from gateway.http.routing.openings import UpstreamOpening
from gateway.http.server.buffers import Buffers, RequestDriver, bare
from gateway.http.tally import NEVER, TickClock
from gateway.http.turns import FairQueue, LargeBodies
from gateway.http.upstream.pool import Link, Upstream


# The received part of a request's body, and the wait for more.
#
# Awaited bytes count in their caller's share, from the first wait until `stop_counting`. A body that is not awaited
# has at most the bytes of one read: the connection then stops reading its socket.
class RequestBody:
    """The body of the present request.

    `length` is its stated length, `failure` why it will not arrive in full. `size` are the bytes that have
    arrived, `kept` the bytes counted in a share. A `form` reads them as they arrive; a `long` one is
    forwarded as it arrives. `invited`: its client was sent `100 Continue`. `messages` are the earlier ones of
    its WebSocket. `document` is the call of a live session's turn, which has no bytes.
    """

    __slots__ = (
        "_buffers", "_caller", "_enough", "_grace", "_parts", "_wait", "document", "failure", "form", "invited",
        "kept", "length", "long", "messages", "size",
    )  # fmt: skip

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._caller: Caller | None = None
        self._parts: list[bytes] = []
        self.size = self._enough = self.kept = 0
        self._wait: Wait[None] | None = None
        self.length: int | None = None
        self.failure: Refusal | None = None
        self.form: FormReader | None = None
        self.long = self.invited = False
        self.messages: SocketMessages | None = None
        self.document: Document | None = None
        self._grace: asyncio.TimerHandle | None = None

    @property
    def awaited(self) -> bool:
        """Whether the handler waits for more of the body."""
        return self._wait is not None

    @property
    def enough(self) -> bool:
        """Whether more bytes have arrived than the maximum that the handler waits for."""
        return self.size > self._enough

    def add(self, part: bytes) -> None:
        """Append a part of the body."""
        self._parts.append(part)

    def refusal_of(self, part: bytes, last: bool) -> Refusal | None:
        """Pass a part to the form's reader, and end the form after the `last`; return a refusal or None."""
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
        """Return the bytes that have arrived, and remove them from the buffer."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def arrival(self, caller: Caller | None, enough: int) -> Wait[None]:
        """Wait for the body's end, or for more than `enough` bytes; they count in the caller's buffers."""
        self._caller, self._enough = caller, enough
        wait: Wait[None] = Wait()
        self._wait = wait
        return wait

    def soon(self, caller: Caller, length: int, limits: HttpLimits) -> Wait[None] | None:
        """Wait for a small body, at most for `body_grace_s` seconds.

        Return None if the body is large, or if buffers are nearly full: before its admission, a call must not
        make the gateway refuse others.
        """
        if length > limits.collected_bytes_max or self._buffers.pressed:
            return None
        wait = self.arrival(caller, length)
        self.count(caller, length)
        self._grace = asyncio.get_running_loop().call_later(limits.body_grace_s, self.wake)
        return wait

    def count(self, caller: Caller, more: int) -> None:
        """Count `more` bytes for a caller without checking that the caller's share has room."""
        self._caller = caller
        self._buffers.add(caller, more)
        self.kept += more

    def afford(self) -> bool:
        """Count all arrived bytes of the body in the caller's share of the buffers.

        Return False if the share has no room, or if the caller is unknown.
        """
        more, caller = self.size - self.kept, self._caller
        if more > 0:
            if caller is None or not self._buffers.acquire(caller, more):
                return False
            self.kept += more
        return True

    def claim(self, caller: Caller, size: int) -> bool:
        """Count `size` bytes that the handler took from the buffer in the caller's share.

        Return False if the share is full.
        """
        self._caller, self.size = caller, max(size, self.kept)
        return self.afford()

    def wake(self) -> None:
        """End the wait of the handler."""
        wait = self._ended()
        if wait is not None:
            wait.set(None)

    def fail(self, error: BaseException) -> bool:
        """Fail the wait of the handler with `error`; return False if it does not wait."""
        wait = self._ended()
        if wait is not None:
            wait.fail(error)
        return wait is not None

    def stop_counting(self) -> None:
        """Release the bytes of this body that are counted in the caller's share."""
        kept, self.kept = self.kept, 0
        if kept and self._caller is not None:
            self._buffers.release(self._caller, kept)

    def forget(self) -> None:
        """Forget the body of an ended request, and release its buffered bytes."""
        self.stop_counting()
        self._ended()
        self._parts, self.form = [], None

    def _ended(self) -> Wait[None] | None:
        wait, self._wait = self._wait, None
        grace = self._grace
        if grace is not None:
            self._grace = None
            grace.cancel()
        return wait


@dataclass(frozen=True, slots=True)
class Worker:
    """The state that all requests of one worker share.

    `bounds` are the maxima that meters believe. `heads` reads heads with its cache. `buffers` counts bytes
    for slow connections, `bodies` queues large bodies. `workloads` has digests of keys by the URI of a client
    certificate. `models` are the configured models. `sockets` counts WebSockets, and `sockets_keep` the bytes
    that they store; `frames` queues what they send. `admission` is what admissions ask. `rename` replaces a
    request id by another one, a new one if that is empty, and returns it.
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
    sockets: FairShares
    sockets_keep: FairShares
    frames: FairQueue
    admission: AdmissionPorts
    rename: Callable[[str, str], str]

    def produced(self, started: float) -> float:
        """Record the time to the first output of a stream requested at `started`; return the present time."""
        now = self.ports.seconds()
        self.ports.tally.first_token_seconds.observe(now - started)
        return now


class ClientGone(Exception):
    """The client closed its connection before it had the whole answer."""


class TurnSink(Protocol):
    """A WebSocket, to which the answers of its turns are passed, and refusals as values."""

    def begin_answer(self, status: int, content_type: bytes, fields: list[Header]) -> None: ...
    def answer(self, data: bytes, last: bool) -> None: ...
    def refuse_turn(self, refusal: Refusal, request_id: str, fields: list[Header]) -> None: ...


class ClientPort(Protocol):
    """The parts of a client's connection that an exchange uses."""

    transport: Any
    blocked: bool
    body: RequestBody
    socket: TurnSink | None
    exchange: Exchange | None

    @property
    def body_complete(self) -> bool: ...
    @property
    def reusable(self) -> bool: ...
    async def late_body(self, caller: Caller, bytes_max: int) -> None: ...
    async def small_body(self, caller: Caller, bytes_max: int) -> None: ...
    def invite_body(self) -> None: ...
    def body_soon(self, caller: Caller) -> Wait[None] | None: ...
    def stream_body(self, link: Link) -> None: ...
    def keep_untaken(self, size: int) -> bool: ...
    def writable(self) -> Wait[None]: ...
    def splice(self, transport: TurnSink, limits: HttpLimits) -> bytes: ...
    def ask(self, opening: SocketOpening, body: bytes) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shut(self) -> None: ...
    def finish(self, keep_alive: bool) -> None: ...
    def cut(self, reset: bool) -> None: ...
    def detach_client(self) -> None: ...


class AdmittedHold(Protocol):
    """The parts of an `AdmittedCall` that an exchange uses."""

    @property
    def due(self) -> bool: ...
    @property
    def charges(self) -> bool: ...
    def keep_alive(self) -> None: ...
    def settle(
        self, status: int, complete: bool, abandoned: bool, failed: tuple[int, str], silent_s: float = 0.0
    ) -> Awaitable[bool]: ...


class Attempt:
    """Where a call is sent, and how far its upstream is with it; after a failure, the next upstream.

    `name` is the upstream's name in the configuration, `model` its name of the model (empty: the call's),
    `key` the index of its credential, and `opening` the request's opening if the head alone does not decide
    that. `upstream` and `link` are set while a connection is in use. `status` is that of the answer, 0 before
    its head. `forwarded`: the upstream has received the request. `started_s` and `ended` bound the time spent at
    all upstreams, in seconds. `failed_before` are the upstreams that failed before, each with the cause;
    `unanswered`: one of them received the whole request, and did not answer in time. `waits` is set during a wait
    for capacity, `waited_ms` is its length. `chosen`: the key is that of the account to ask. `empty`:
    the upstream is out of money or quota, for its account or the call (`read_credit`), else "".
    """

    __slots__ = (
        "chosen",
        "empty",
        "ended",
        "failed_before",
        "forwarded",
        "key",
        "link",
        "model",
        "name",
        "opening",
        "started_s",
        "status",
        "unanswered",
        "upstream",
        "waited_ms",
        "waits",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name, self.model = name, ""
        self.key = self.status = self.waited_ms = 0
        self.started_s = self.ended = 0.0
        self.opening: UpstreamOpening | None = None
        self.upstream: Upstream | None = None
        self.link: Link | None = None
        self.forwarded = self.unanswered = self.waits = self.chosen = False
        self.empty = ""
        self.failed_before: tuple[tuple[str, str], ...] = ()

    def leave(self, caller: Caller | None) -> None:
        """Release the connection to the upstream, which the caller's call has used."""
        upstream, link = self.upstream, self.link
        self.upstream = self.link = None
        if upstream is not None and caller is not None:
            upstream.release(caller.organization_id, link)


class Drain:
    """The reading of an answer for its usage, for a client that left or was answered.

    `answered` are the status and reason that the client was sent. `silent_since` is the time of the last
    output, 0 before any.
    """

    __slots__ = ("_read", "_tokens", "_tokens_max", "answered", "silent_since")

    def __init__(self) -> None:
        self.answered: tuple[int, str] | None = None
        self.silent_since = 0.0
        self._read, self._tokens, self._tokens_max = 0, -1, 0

    def check(self, worker: Worker, meter: Meter, size: int, streamed: bool) -> None:
        """Count `size` more bytes of the answer.

        Raise `ClientGone` once the usage is known, or if the maximum of bytes or tokens is exceeded.
        """
        limits, before = worker.limits, self._tokens
        tokens = self._tokens = meter.observed() if streamed else 0
        if before < 0:
            self._tokens_max = tokens + limits.drain_tokens_max
        if tokens > before >= 0 or (tokens and not self.silent_since):
            self.silent_since = worker.ports.seconds()
        self._read += size
        if meter.known or self._read > limits.drain_bytes_max or tokens > self._tokens_max:
            raise ClientGone


class Exchange(RequestDriver):
    """The state of one request. Times are seconds of the worker's monotonic clock.

    `head` is the request's head with its route, `call` the request read from its body. `worker` is the
    worker's state at the beginning. `caller` is set once known, `admitted` by admission. `attempt` is the side
    of the upstream, `drain` the reading for a client that was answered or has left. `fail` ends a begun
    answer with an error. `opened`: a head was sent to the client; `broken`: the begun answer cannot be
    completed. `before_end` is called with the ids in an answer, before the client has its end. `trace` is
    None unless requests are traced.
    """

    __slots__ = (
        "_on_end",
        "admitted",
        "attempt",
        "before_end",
        "broken",
        "call",
        "caller",
        "connection",
        "deadline",
        "drain",
        "fail",
        "gone",
        "head",
        "keep_alive",
        "opened",
        "reason",
        "request_id",
        "started",
        "status",
        "trace",
        "until_close",
        "worker",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it comes
        self, connection: ClientPort, head: CallHead, request_id: str, started: float, worker: Worker,
        on_end: Callable[[Exchange, BaseException | None], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self.connection = connection
        self.head = head
        self.request_id = request_id
        self.started = started
        self.worker = worker
        self._on_end = on_end
        self.deadline = NEVER
        self.gone = self.opened = self.broken = self.until_close = self.keep_alive = False
        self.status = 0
        self.reason = ""
        self.call: CallRequest | None = None
        self.caller: Caller | None = None
        self.admitted: AdmittedHold | None = None
        self.attempt = Attempt(head.routed.upstream)
        self.drain: Drain | None = None
        self.fail: Callable[[Refusal], bool] | None = None
        self.before_end: Callable[[list[str]], Awaitable[object]] | None = None
        self.trace: Trace | None = None

    def ended(self, error: BaseException | None) -> None:
        """Report the end of the exchange to the worker, then release the connection."""
        self._on_end(self, error)
        # These refer to this exchange: the cycle is broken without the garbage collector.
        self.admitted = self.fail = self.before_end = None
        if self.answered is not None:
            return
        if self.broken:
            self.connection.cut(self.until_close)
        else:
            self.connection.finish(self.keep_alive)

    def send_again(self, request_id: str) -> None:
        """Start another attempt, under another request id."""
        self.request_id, self.attempt = request_id, Attempt(self.head.routed.upstream)

    def hand_on(self, hold: AdmittedHold, call: CallRequest, attempt: Attempt, request_id: str) -> None:
        """Return to an attempt before the last one, whose answer the client gets."""
        self.admitted, self.call, self.attempt, self.request_id = hold, call, attempt, request_id

    def cut(self, reason: str, *, broken: bool = True) -> None:
        """End this exchange with a reason; `broken` closes its connection."""
        self.reason, self.broken = reason, broken

    @property
    def answered(self) -> tuple[int, str] | None:
        """The status and reason that the client was sent before its upstream's answer; None before."""
        return None if self.drain is None else self.drain.answered

    @property
    def origin(self) -> str:
        """The gateway's base URL: the configured one, else the one that this client used."""
        public = self.worker.limits.public_url
        if public:
            return public
        tls = self.connection.transport.get_extra_info("sslcontext") is not None
        return f"http{'s' if tls else ''}://{self.head.routed.host.decode('latin-1')}"

    # the request

    async def whole_body(self, caller: Caller, bytes_max: int) -> bytes:
        """Return the whole body of at most `bytes_max` bytes, of a request with a valid head.

        Arriving bytes count in the caller's share of the buffers. While it is read, a client that disconnects
        ends the exchange, even a shielded one.
        """
        buffers, connection, shielded = self.worker.buffers, self.connection, self.shielded
        self.unshield()
        refusal = self.head.refusal or connection.body.failure
        if refusal is not None:
            raise refusal
        if buffers.pressed:
            buffers.check_new(caller)
        if not connection.body_complete:
            await connection.late_body(caller, bytes_max)
        body = connection.body.take_parts()
        if not connection.body_complete or len(body) > bytes_max:
            raise RequestTooLarge(f"A body here may have {bytes_max} bytes.")
        if shielded:
            self.shield()
        return body

    # the answer

    def decide_keep_alive(self) -> bool:
        """Decide whether the connection serves another request, as stated in the answer's head."""
        routed, connection = self.head.routed, self.connection
        self.keep_alive = routed.keep_alive and connection.reusable and self.answered is None
        if routed.expects and not connection.body_complete:
            self.keep_alive = False  # the client may or may not send its body
        return self.keep_alive

    def write(self, data: bytes) -> None:
        """Send a part of the answer; do nothing once the client is gone."""
        self.opened = True
        if not self.gone:
            self.connection.transport.write(data)

    def write_turn(self, data: bytes, last: bool) -> None:
        """Send a part of a turn's answer to its WebSocket; do nothing once the client is gone."""
        self.opened = True
        socket = self.connection.socket
        if socket is not None and not self.gone:
            socket.answer(data, last)

    def refuse_turn(self, refusal: Refusal) -> None:
        """Refuse a turn of a WebSocket, which renders the refusal."""
        self.status, self.opened, socket = refusal.status, True, self.connection.socket
        self.decide_keep_alive()
        if socket is not None and not self.gone:
            socket.refuse_turn(refusal, self.request_id, self.turn_fields)

    @property
    def turn_fields(self) -> list[Header]:
        """The fields of every refused turn: its request id, and how long it waited for capacity."""
        fields, waited_ms = [(b"x-request-id", self.request_id.encode())], self.attempt.waited_ms
        return [*fields, (b"x-tollkeeper-waited-ms", b"%d" % waited_ms)] if waited_ms else fields

    # interruptions

    def shield(self) -> None:
        """Stop interruptions of the handler until `unshield`, but by the deadline of the counters."""
        worker = self.worker
        self.shielded, self.deadline = True, worker.clock.now + worker.limits.counters_s

    def unshield(self) -> None:
        """Allow interruptions of the handler again."""
        self.shielded, self.deadline = False, NEVER

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Continue, within this context, even if the client disconnects."""
        self.shield()
        try:
            yield
        finally:
            self.unshield()

    def body_failed(self, refusal: Refusal) -> None:
        """Store the failure of the body, and interrupt a handler that waits for its upstream."""
        self.connection.body.failure = refusal
        if self.attempt.started_s:
            self.interrupt(refusal)

    def client_gone(self) -> None:
        """Process the client's departure: read a charged answer to its end, and interrupt any other call.

        A call is also interrupted if its request is incomplete, or its route's setting says abort.
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
        """Whether an upstream works on a complete, charged call, whose route reads the answer to its end."""
        route, charge = self.head.routed.route, self.admitted
        due = (charge is not None and charge.due and charge.charges) or self.before_end is not None
        drains = due and self.attempt.forwarded and route is not None and self._drains(route.on_disconnect)
        return drains and self.connection.body_complete

    def detach_client(self) -> None:
        """Release a client that has its whole answer; the upstream's answer is still read for its usage."""
        self.gone = True
        self._begin_drain()
        self.connection.detach_client()

    def _begin_drain(self) -> None:
        self.drain = self.drain or Drain()
        self.deadline = self.worker.clock.now + self.worker.limits.drain_s

    def _drains(self, on_disconnect: str) -> bool:
        """Return whether an answer is read to its end after the client left.

        It is if the route's setting `on_disconnect` says so, or if the upstream works on after a closed
        connection.
        """
        upstream = self.attempt.upstream
        facts = None if upstream is None else upstream.target.facts
        return on_disconnect != "abort" or (facts is not None and facts.on_cut == "goes_on")

    def check(self, now: float, watched_before: float) -> None:
        """End a wait past its deadline, or renew the hold of a call that began before `watched_before`.

        Times are in seconds of the server's clock.
        """
        if self.deadline < now:
            self.deadline = NEVER
            if self.shielded:
                self.expire_wait(CountersUnavailable(retry_after_s=1))
            else:
                self.interrupt(ClientGone())
        elif self.admitted is not None and self.started < watched_before:
            self.admitted.keep_alive()
