"""A client's WebSocket. In the Responses API, each message is an HTTP call, whose events are its answers.

Nothing here admits, meters or charges. A socket stands between its client, which sends frames, and a
`ClientConnection`, to which each message is a call with the head that opened the socket. So the call of a
message is checked, held, sent, charged, drained and cut like a posted one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from gateway.core.accounts.limits import Header
from gateway.core.families.header_fields import KEY_PROTOCOLS, PROTOCOLS_FIELD
from gateway.core.families.refusal import describe_refusal
from gateway.core.families.registry import SHAPES
from gateway.core.metering.reading import UNREADABLE
from gateway.core.metering.stream import Splitter, data_of
from gateway.core.model import Caller, Family
from gateway.core.wait import OVER
from gateway.errors import InvalidRequest, Overloaded, Refusal, RequestTooLarge, UpstreamUnreachable
from gateway.http.admission import cached_caller, identify
from gateway.http.protocol.answer import EVENT_STREAM
from gateway.http.protocol.request import RequestHead, accept_of
from gateway.http.routing.head import SocketOpening
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.server.buffers import full
from gateway.http.server.connection import ReadPause
from gateway.http.server.exchange import ClientPort, Exchange, Worker
from gateway.http.turns import FairQueue

# Codes of RFC 6455, 7.4.1, and IANA's 1013.
_AWAY, _TOO_LARGE, _BROKEN, _LATER = 1001, 1009, 1011, 1013
# Reasons not to read a socket: its connection is busy, its client reads slowly, frames of it wait for others,
# or it has sent too many messages. Of live sockets: a message waits for a turn, the upstream reads slowly, the
# owners of a message's objects are looked up.
INNER, _BLOCKED, TURN, WAITING, SLOW, _RATE, OWNERS = 1, 2, 4, 8, 16, 32, 64
_HELD = _BLOCKED | WAITING | SLOW | _RATE | OWNERS
# How many seconds' messages may come at once.
BURST_S: Final = 5.0
COUNTED_BYTES: Final = 4_096  # of text, which take as long as a message
# Bytes of an answer that is no stream: a refusal, ours or the upstream's.
REFUSAL_BYTES_MAX: Final = 64 * 1024
# Headers of a refusal that its client gets.
_TOLD = (b"retry-after", b"x-request-id", b"x-should-retry", b"x-tollkeeper-", b"x-ratelimit-", b"ratelimit")


async def open_socket(exchange: Exchange) -> None:
    """Open a socket for an authenticated caller, unless there are too many."""
    caller = cached_caller(exchange) or await identify(exchange)
    take_place(exchange, caller)
    open_as(ResponseSocket(exchange.connection, exchange.head.routed, exchange.worker, caller), exchange)
    await OVER


def take_place(exchange: Exchange, caller: Caller) -> None:
    """Count one more socket of the caller's organization.

    Raise a `Refusal` if the request has a body, the gateway stops, or there are too many sockets.
    """
    if exchange.head.refusal is not None:
        raise exchange.head.refusal
    if exchange.connection.body.length:
        raise InvalidRequest("A WebSocket is opened by a request without a body.")
    if not exchange.decide_keep_alive():
        raise Overloaded("This gateway is stopping: connect again.", retry_after_s=1)
    if not exchange.worker.sockets.acquire(caller.organization_id):
        raise Overloaded("There are too many WebSockets at this gateway.", retry_after_s=1)


def open_as(socket: WebSocket, exchange: Exchange) -> None:
    """Answer 101 with the first offered protocol, and hand the connection over to `socket`."""
    request = exchange.head.routed.opens
    assert request is not None
    offered = b",".join(request.all(PROTOCOLS_FIELD)).split(b",")
    named = [name for text in offered if (name := text.strip()) and not name.startswith(KEY_PROTOCOLS)]
    exchange.status = 101
    exchange.write(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: %b\r\n%bx-request-id: %b\r\n\r\n"
        % (
            accept_of(request),
            b"sec-websocket-protocol: %b\r\n" % named[0] if named else b"",
            exchange.request_id.encode(),
        )
    )
    limits = exchange.worker.limits
    socket.begin(exchange.connection.splice(socket, replace(limits, keep_alive_s=limits.socket_idle_s)))


class MessageBucket:
    """The messages that a client may send: `rate` a second, in bursts of `BURST_S` seconds."""

    __slots__ = ("_at", "_most", "_rate", "_tokens")

    def __init__(self, rate: int, now: float) -> None:
        self._rate, self._at = rate, now
        self._tokens = self._most = rate * BURST_S

    def take(self, now: float) -> float:
        """Count a message, and return for how many seconds the next one has to wait."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        return max(0.0, (1 - self._tokens) / self._rate)

    def spend(self, size: int) -> None:
        """Count a message of `size` bytes, whose text is counted, as one more for each `COUNTED_BYTES`."""
        self._tokens -= size // COUNTED_BYTES


class FrameReader(asyncio.Protocol):
    """A socket whose frames are processed one at a time, in turn with those of the other sockets in `turns`."""

    def __init__(self, transport: Any, kind: ConnectionType, turns: FairQueue) -> None:
        self._transport, self._turns = transport, turns
        self.reading = ReadPause(transport)
        self._frames = Connection(kind)
        self._message = bytearray()
        self._closed = self._queued = False

    def _read(self, data: bytes) -> None:
        """Read frames: process the first one, and queue the others."""
        self._frames.receive_data(data)
        if not self._queued:
            self._go_on()

    def _go_on(self) -> bool:
        """Process one frame, queue the next, and return whether there was one."""
        raise NotImplementedError

    def _queue(self) -> None:
        """Process the next frame when it is the turn of this socket."""
        if not self._queued:
            self._queued = True
            self._turns.wait_for(self._take_turn)

    def _take_turn(self) -> None:
        self._queued = False
        if self._go_on():
            self.reading.pause(TURN)  # until no frame is left


class WebSocket(FrameReader):
    """The protocol of a client's socket, and the transport of its connection."""

    busy = ""
    refuses_by_event = True  # else a refusal is the reason of the close frame

    def __init__(
        self, connection: ClientPort, request: RequestHead, family: Family, worker: Worker, caller: Caller
    ) -> None:
        super().__init__(connection.transport, ConnectionType.SERVER, worker.frames)
        self._caller, self._worker, self._limits = caller, worker, worker.limits
        self._connection = connection
        self.opening = SocketOpening(request)
        self.family = family
        self._size = self._frames_here = 0
        self._dropped = False
        self._answer: SocketAnswer | None = None
        self._end: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._bucket = MessageBucket(worker.limits.live_messages_s, self._loop.time())

    def begin(self, early: bytes) -> None:
        """Adopt the transport of the connection, with the bytes received early."""
        self._transport.set_protocol(self)
        if not self._transport.is_reading():
            self.reading.paused = INNER
        if early:
            self._loop.call_soon(self.data_received, early)

    # the protocol of the client's socket

    def data_received(self, data: bytes) -> None:
        """Process the frames of a client that is there."""
        if not self._transport.is_closing():
            self._read(data)

    def eof_received(self) -> bool:
        """Return False: the transport closes at the client's end of file, with or without a close frame."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Release what the socket uses after a disconnect.

        Calls in progress are read to their end or canceled, as their route says.
        """
        self._closed = True
        self.reading.close()
        if self._end is not None:
            self._end.cancel()
        self._return_bytes()
        if self._answer is not None:
            self.keep(-self._answer.kept)
            self._answer.kept = 0
        self._worker.sockets.release(self._caller.organization_id)
        self._hang_up(error)

    def pause_writing(self) -> None:
        """Stop reading from the client and the upstream while the client reads slowly."""
        self.reading.pause(_BLOCKED)
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Resume after a slow client has caught up. Frames that were received before are processed first."""
        self._connection.resume_writing()
        self.reading.resume(_BLOCKED)
        self._queue()

    def shut(self) -> None:
        """Close the socket because the gateway stops, after the current response."""
        self._connection.shut()

    # the transport of the connection, and the sink of its answers

    def begin_answer(self, status: int, content_type: bytes, fields: list[Header]) -> None:
        """Note how an answer begins; the fields are those of a refusal by the upstream."""
        if self._answer is not None:
            self._answer.begin(status, content_type, fields)

    def answer(self, data: bytes, last: bool) -> None:
        """Send the complete events of an answer to the client."""
        answer = self._answer
        if answer is not None:
            self._send_events(answer, answer.feed(data, last))

    def refuse_turn(self, refusal: Refusal, request_id: str, fields: list[Header]) -> None:
        """Send a refusal of the gateway as the whole answer of a turn."""
        answer = self._answer
        if answer is not None:
            answer.refuse(refusal, request_id, fields)
            self._send_events(answer, [])

    def _send_events(self, answer: SocketAnswer, events: list[str]) -> None:
        """Send an answer's events to the client; a refused answer is one event."""
        if self._closed:  # nobody gets them
            events = []
        elif answer.refused is not None and self.refuses_by_event:
            events = [answer.refused.event]
        written = b"".join([self._frames.send(TextMessage(data=event)) for event in events])
        if answer.over:
            self._answer = None
        if written:
            self._transport.write(written)
        self._note_passed(events, answer)
        if answer.kept > self._limits.socket_event_bytes_max:
            self.close()

    def close(self) -> None:
        """Send a close frame, and close once the client has answered or its time is over."""
        self._close(_AWAY if self._answer is None else _BROKEN)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def can_write_eof(self) -> bool:
        """Return False: a frame ends the connection, not an end of file."""
        return False

    def is_closing(self) -> bool:
        """Return whether the socket is closed or about to close."""
        return self._closed or bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        """Stop reading from the client."""
        self.reading.pause(INNER)

    def resume_reading(self) -> None:
        """Resume reading from the client."""
        self.reading.resume(INNER)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait to be sent."""
        return int(self._transport.get_write_buffer_size())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the socket, as asyncio transports do."""
        return self._transport.get_extra_info(name, default)

    @property
    def event_bytes_max(self) -> int:
        """The largest event that is read, in bytes."""
        return self._worker.bounds.event_bytes_max

    def keep(self, size: int) -> None:
        """Count `size` more bytes buffered for the client, or fewer if negative."""
        if size > 0:
            self._worker.buffers.add(self._caller, size)
        elif size < 0:
            self._worker.buffers.release(self._caller, -size)

    # frames and messages

    def _go_on(self) -> bool:
        """Handle the next event of the client; return whether there was one."""
        if self._transport.is_closing() or self.reading.paused & _HELD:
            return False
        event = next(self._frames.events(), None)
        if event is None:
            self.reading.resume(TURN)
            return False
        self._take(event)
        if isinstance(event, Ping | Pong) or getattr(event, "message_finished", False):
            wait_s = self._bucket.take(self._loop.time())
            if wait_s and not self._closed:
                self.reading.pause(_RATE)
                self._loop.call_later(wait_s, self._refill)
        self._queue()
        return True

    def _refill(self) -> None:
        """Process messages again after a pause. If the client has left, nobody waits for them."""
        if self._transport.is_closing():
            return
        if not self._leaves():
            self.reading.resume(_RATE)
            self._queue()

    def _leaves(self) -> bool:
        """Return whether the client has left while it was not read, and end its connection then."""
        reading = self.reading
        left = bool(reading.paused) and not self._transport.is_closing()
        left = left and (reading.is_left() or reading.is_ended())
        if left:
            self._transport.abort()
        return left

    def _take(self, event: Event) -> None:
        """Handle an event of the client's socket: a message, a ping or its end."""
        if self._closed:
            if isinstance(event, CloseConnection):
                self._transport.close()
        elif isinstance(event, TextMessage | BytesMessage):
            self._take_part(event)
        elif isinstance(event, Ping):
            self._transport.write(self._frames.send(event.response()))
        elif isinstance(event, CloseConnection):  # or the bytes are no frames
            self._say_end(event.response())
            self._transport.close()

    def _take_part(self, event: TextMessage | BytesMessage) -> None:
        """Append a part of a message, or drop it if the message is refused already."""
        data, limits = event.data, self._limits
        part = data.encode() if isinstance(data, str) else bytes(data)
        self._frames_here += event.frame_finished
        self._size += len(part)
        if not self._dropped and ((self.busy and self._answer is not None) or not isinstance(data, str)):
            self._dropped = True
            self._refuse(InvalidRequest(self.busy if isinstance(data, str) else "A message must be text."))
        if self._dropped:
            part = b""
        if self._size > limits.body_bytes_max or self._frames_here > limits.socket_frames_max:
            self._refuse(RequestTooLarge(), _TOO_LARGE)
        elif part and not self._worker.buffers.acquire(self._caller, len(part)):
            self._refuse(full(), _LATER)
        else:
            self._message += part
            if event.message_finished:
                dropped, body = self._dropped, bytes(self._message)
                self._return_bytes()
                self._size, self._frames_here, self._dropped = 0, 0, False
                if not dropped:
                    self._ask(body)

    def _hang_up(self, error: Exception | None) -> None:
        """Notify the HTTP connection, which answers the messages, that the client is gone."""
        self._connection.connection_lost(error)

    def _ask(self, body: bytes) -> None:
        """Process a complete message."""
        raise NotImplementedError

    def _note_passed(self, events: list[str], answer: SocketAnswer) -> None:
        """Handle that `events` of an answer were sent; they are the last ones if `answer.over`."""

    def _return_bytes(self) -> None:
        """Release the buffered message."""
        if self._message:
            self._worker.buffers.release(self._caller, len(self._message))
            self._message = bytearray()

    def _refuse(self, refusal: Refusal, code: int = 0) -> None:
        """Send an error for a message that is no call; `code` closes the socket, 0 keeps it open."""
        fields, document = describe_refusal(refusal, self.family, "")
        event = refused_turn(refusal.status, fields, document, b"").event
        self._transport.write(self._frames.send(TextMessage(data=event)))
        if code:
            self._close(code)

    def _close(self, code: int, why: str | None = None) -> None:
        if not self._closed:
            self._say_end(CloseConnection(code=code, reason=why))

    def _say_end(self, event: CloseConnection) -> None:
        """Send the close frame; abort after `linger_s` if the client does not close."""
        self._closed = True
        self._return_bytes()
        self._transport.write(self._frames.send(event))
        self._end = self._loop.call_later(self._limits.linger_s, self._leave)

    def _leave(self) -> None:
        if not self._connection.blocked:  # otherwise the connection has set a deadline
            self._transport.abort()


class ResponseSocket(WebSocket):
    """A socket of the Responses API. Each message is the body of an HTTP request."""

    busy = "A response is being made on this connection: wait for its end."

    def __init__(self, connection: ClientPort, routed: RoutedHead, worker: Worker, caller: Caller) -> None:
        opens, route = routed.opens, routed.route
        assert opens is not None
        request = replace(opens, method=b"POST", upgrades=False, expects=False)  # of the route's calls
        super().__init__(connection, request, routed.family, worker, caller)
        made = None if route is None else SHAPES[route.meter].messages
        assert made is not None
        self._messages, self._remembered = made(), 0

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the remembered messages, and release the connection."""
        self._messages.forget()
        self._remember()
        super().connection_lost(error)

    def _ask(self, body: bytes) -> None:
        """Begin a request with the message as its body."""
        self._answer = SocketAnswer(self)
        self._connection.body.messages = self._messages
        self._connection.ask(self.opening, body)

    def _note_passed(self, events: list[str], answer: SocketAnswer) -> None:
        for one in events:
            self._messages.hear(one)
        if answer.over:
            self._messages.end()
        self._remember()

    def _remember(self) -> None:
        """Count the bytes of responses kept for later messages, or forget these if there is no room."""
        if self._messages.size == self._remembered:
            return
        shares, organization_id = self._worker.sockets_keep, self._caller.organization_id
        if self._remembered:
            shares.release(organization_id, self._remembered)
        self._remembered = self._messages.size
        if self._remembered and not shares.acquire(organization_id, self._remembered):
            self._messages.forget()
            self._remembered = 0


class RefusedTurn(NamedTuple):
    """The refusal of a message: its status, its message, and both in an event."""

    status: int
    message: str
    event: str


def refused_turn(status: int, fields: list[Header], document: object, body: bytes) -> RefusedTurn:
    """Return a refusal with its error and some of its headers; `body` is its text if the `document` has no error."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        message = body.decode("utf-8", "replace") or HTTPStatus(status).phrase
        error = {"message": message, "type": "server_error", "param": None, "code": None}
    headers = {
        name.decode("latin-1"): value.decode("latin-1") for name, value in fields if name.startswith(_TOLD)
    }
    event = {"type": "error", "status": status, "error": {**error, "headers": headers}}
    return RefusedTurn(status, str(error.get("message", "")), msgspec.json.encode(event).decode())


class SocketAnswer:
    """An answer that becomes events.

    `kept` are bytes of incomplete events, and `over` marks its end. `refused` is its refusal, by the gateway or by the
    upstream, whose answer is no stream then.
    """

    def __init__(self, socket: WebSocket) -> None:
        self.over = self.is_stream = False
        self.refused: RefusedTurn | None = None
        self.kept = self._status = 0
        self._socket = socket
        self._splitter = Splitter()
        self._fields: list[Header] = []
        self._parts: list[bytes] = []
        self._tail = b""

    def begin(self, status: int, content_type: bytes, fields: list[Header]) -> None:
        """Note the status, whether the answer is a stream, and the fields of one that is not."""
        self._status, self._fields = status, fields
        self.is_stream = status == HTTPStatus.OK and content_type.lower().startswith(EVENT_STREAM)

    def refuse(self, refusal: Refusal, request_id: str, fields: list[Header]) -> None:
        """End the answer by a refusal, whose client gets these fields too."""
        self._take_parts()
        self.over, self.is_stream = True, False
        own, document = describe_refusal(refusal, self._socket.family, request_id)
        self.refused = refused_turn(refusal.status, [*own, *fields], document, b"")

    def feed(self, data: bytes, last: bool) -> list[str]:
        """Return the events that these bytes complete. A refusal is stored at the `last` of them."""
        self.over = last
        if data:
            self._keep(len(data))
            self._parts.append(data)
        if not self.is_stream:
            self._collect(last)
            return []
        ending = self._tail + data
        self._tail = ending[-3:]
        if last:
            return [*_texts([*self._splitter.feed(self._take_parts()), self._splitter.take()])]
        if b"\n\n" not in ending and b"\r" not in ending:
            return []
        events = [*_texts(self._splitter.feed(self._take_parts()))]
        self._keep(len(self._splitter.pending))
        return events

    def _collect(self, last: bool) -> None:
        """Collect an answer that is no stream; after its last part, refuse the turn by it."""
        if self.kept > REFUSAL_BYTES_MAX:
            self._parts = [self._take_parts()[:REFUSAL_BYTES_MAX]]
            self._keep(REFUSAL_BYTES_MAX)
        if not last:
            return
        if self._status < HTTPStatus.MULTIPLE_CHOICES:
            self.refuse(UpstreamUnreachable("The upstream's answer is no stream of events."), "", [])
            return
        body, document = self._take_parts(), None
        with suppress(*UNREADABLE):
            document = msgspec.json.decode(body)
        self.refused = refused_turn(self._status, self._fields, document, body)

    def _keep(self, size: int) -> None:
        self.kept += size
        self._socket.keep(size)

    def _take_parts(self) -> bytes:
        parts, self._parts = self._parts, []
        self._keep(-self.kept)
        return b"".join(parts)


def _texts(events: list[bytes]) -> Iterator[str]:
    """Yield the data of events, except the end mark `[DONE]` of some servers."""
    for event in events:
        data = data_of(event)
        if data and data != b"[DONE]":
            yield data.decode("utf-8", "replace")
