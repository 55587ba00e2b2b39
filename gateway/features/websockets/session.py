"""A WebSocket that is forwarded to its upstream, as for the Realtime API: each turn of it is a call.

Nothing here admits, meters or charges. A turn begins with a message of the client, or with an event that may
cost something. It is a call with the head that opened the socket, so it is identified, checked, held and
refused like any. The events are the stream of its answer, up to one with a report of usage, which the client
gets after the charge. A family's `LiveSession` decides which messages pass meanwhile, and to which model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Final
from urllib.parse import unquote

from wsproto import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from gateway.calls.permit import check_objects, named_objects
from gateway.calls.terms import check_models
from gateway.core.calls.call import (
    Body,
    BodyLook,
    CallRequest,
    FieldNames,
    StoredObjects,
    read_document,
    write_document,
    written_of,
)
from gateway.core.families.controlled import Document
from gateway.core.families.family import LiveEvent, LiveSession
from gateway.core.families.objects import read_objects
from gateway.core.families.registry import SHAPES
from gateway.core.metering.meters import make_meter
from gateway.core.model import Caller
from gateway.core.wait import begin
from gateway.errors import InvalidRequest, ModelNotAllowed, Refusal, RequestTooLarge, UpstreamUnreachable
from gateway.features.websockets.sockets import (
    INNER,
    OWNERS,
    SLOW,
    TURN,
    WAITING,
    FrameReader,
    SocketAnswer,
    WebSocket,
    open_as,
    take_place,
)
from gateway.http.admission import admit, cached_caller, identify
from gateway.http.admitted_call import AdmittedCall
from gateway.http.forward import forward, socket_key
from gateway.http.protocol.answer import EVENT_STREAM, AnswerHead
from gateway.http.protocol.request import accepted
from gateway.http.relay import relay
from gateway.http.routing.head import CallHead
from gateway.http.server.exchange import Attempt, ClientGone, ClientPort, Exchange, Worker
from gateway.http.tally import NEVER
from gateway.http.turns import FairQueue
from gateway.http.upstream.pool import Link

# Codes of RFC 6455, 7.4.1. Then reasons not to read an upstream's socket: its events wait for a turn, for the
# client, or for the call that they answer.
_USUAL, _AWAY, _NO_CODE, _BAD, _REFUSED, _TOO_LARGE, _BROKEN = 1000, 1001, 1005, 1007, 1008, 1009, 1011
_OWN_CODES = 3000  # from here on, codes belong to applications
_WAITING, _SLOW, _LINK = 1, 2, 8
# Codes of an upstream's close frame that are passed on.
_SENT_CODES: Final = frozenset({1000, 1001, 1007, 1008, 1009, 1011, 1012, 1013})
# Bytes of one message of a client, which may contain a picture or sound.
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
REASON_BYTES_MAX: Final = 123
LOOK_S: Final = 1.0
# Tokens that are held ahead of messages: some twenty seconds of sound.
HELD_AHEAD: Final = 256
# Statuses of refusals that end no session: a later message may be admitted.
_LATER: Final = frozenset({402, 429})
_LINES: Final = bytes.maketrans(b"\r\n", b"  ")


async def open_live(exchange: Exchange) -> None:
    """Open a live WebSocket by a request's first turn, or run the next turn of an open one.

    A turn is one charged call of the socket.
    """
    there = exchange.connection.transport
    if isinstance(there, LiveSocket):
        await there.turn(exchange)
        return
    caller = cached_caller(exchange) or await identify(exchange)
    take_place(exchange, caller)
    route = exchange.head.routed.route
    made = None if route is None else SHAPES[route.meter].live
    assert made is not None
    pairs = [one.partition("=") for one in exchange.head.routed.query[1:].split("&")]
    session = made({name: unquote(value) for name, _, value in pairs})
    socket = LiveSocket(exchange.connection, exchange.head, exchange.worker, caller, session)
    if session.named_later:
        open_as(socket, exchange)
        return
    try:
        await socket.turn(exchange)
    finally:
        if exchange.connection.transport is not socket:
            exchange.worker.sockets.release(caller.organization_id)


class LiveSocket(WebSocket):
    """The client's socket of a live session, and the messages and events that wait for a turn."""

    def __init__(
        self, connection: ClientPort, head: CallHead, worker: Worker, caller: Caller, session: LiveSession
    ) -> None:
        assert head.routed.opens is not None
        super().__init__(connection, head.routed.opens, head.routed.family, worker, caller)
        self._session, self.refuses_by_event = session, session.refuses_by_event
        self._upstream: UpstreamSocket | None = None
        self._aimed, self._key = ("", ""), 0
        self._route, self._owned = head.routed.route, head.routed.owned
        # The link of the present turn, while its call is admitted and not ended; whether there is a turn; the
        # last admitted call, and the tokens of the session that its hold covers.
        self._link: Link | None = None
        self._turning = False
        self._admitted: AdmittedCall | None = None
        self._covered = 0
        # The models and the number of tools that the present turn was admitted with.
        self._admits: tuple[tuple[str, ...], int] = (), 0
        self._asked_messages: list[bytes] = []
        # Bytes of messages that are buffered until the upstream has them.
        self._owed = 0
        self._kept = b""  # a message that waits for the end of an answer, and its fields that matter for that
        self._kept_asks: Document = {}
        # Events of the upstream that wait, and how many of them end a turn.
        self._heard_events: deque[LiveEvent] = deque()
        self._ends_heard = 0
        self._ends: tuple[int, str] | None = None
        self._seen_at = self._asked_at = self._loop.time()
        self._look: asyncio.TimerHandle | None = None
        # After the client is gone: the deadline for reading the rest, the bytes read, and whether reading
        # stopped. A connection that is over has no more turns. After a refusal only pending output has turns.
        self._gone = self._left = self._spent = self._over = self._refused = False
        self._drained_until, self._drained = 0.0, 0

    # one turn

    async def turn(self, exchange: Exchange) -> None:
        """Run a turn, which is one charged call: admit it, forward messages and events, charge the use."""
        self._turning, self._covered, beyond = True, self._session.needs, self._session.beyond
        try:
            admitted = await self._admit(exchange)
            if self._upstream is None:
                answer = await forward(exchange, admitted)
                if answer.status != 101:
                    await relay(exchange, admitted, answer)
                    return
                self._upstream = self._take_upstream(admitted, answer)
                if exchange.connection.transport is not self:
                    self._answer = SocketAnswer(self)
                    open_as(self, exchange)
                    exchange.opened = False  # the answer, a stream of events, has not begun
                self._upstream.begin()
                if self._asked_messages:  # the upstream has a name of its own for the model
                    target = admitted.worker.upstreams[admitted.attempt.name].target
                    self._asked_messages[0] = self._session.sent_as(
                        self._asked_messages[0], admitted.attempt.model, target
                    )
            else:
                await self._choose_target(admitted)
            self._admitted, call = admitted, admitted.call
            if call.bound:
                self._session.output_max, self._covered = call.output_max, self._covered + beyond
            if exchange.gone or ((self._ends is not None or self._spent) and not self._heard_events):
                self._take_back()
                if self._session.pending:  # its events will not be read
                    exchange.status = 200
                    self._begin_turn(admitted)
                    self._charge_rest(admitted.attempt, admitted.call)
                raise ClientGone
            link = self._begin_turn(admitted)
            if self._asked_messages and self._admits != (self._session.models, self._session.tools):
                self._loop.call_soon(self._pass_judged)  # once the answer is relayed, as it may end at once
            else:
                self._pass()
            self._loop.call_soon(self._flow)
            assert link.answer is not None
            await relay(exchange, admitted, link.answer)
            if not link.complete and not exchange.gone:  # the hold is used up
                self._session.forget()
                self._close(_REFUSED)
        finally:
            self._link = self._session.output_max = None

    async def _admit(self, exchange: Exchange) -> AdmittedCall:
        """Admit the call of a turn.

        If a limit refuses it, but the upstream is already making output, the call is admitted to charge the
        output.
        """
        before, session = self._admitted, self._session
        try:
            caller = self._caller = cached_caller(exchange) or await identify(exchange)
            exchange.connection.body.document = session.document()
            self._admits = session.models, session.tools
            return await admit(exchange, caller)
        except Refusal:
            if self._asked_messages or before is None or not self._is_owed:
                raise
        self._refused = True
        exchange.caller, call = before.caller, exchange.call or before.call
        exchange.call = call
        self._count_input(call)
        owed = AdmittedCall(
            exchange,
            before.caller,
            before.service,
            call,
            None,
            replace(before.prices, at_ms=before.worker.ports.refusals.now_ms()),
            before.budgets,
        )
        owed.charge_to_hold_of(before)
        return owed

    def _count_input(self, call: CallRequest) -> None:
        """Set the input of a turn's call to what the session needs by now."""
        call.media = replace(call.media, tokens=self._session.needs, mute=not self._session.has_media)

    def _charge_rest(self, attempt: Attempt, call: CallRequest | None) -> None:
        """Charge all uncharged usage to this call by estimate: no later event of the upstream is read."""
        if call is not None:
            self._count_input(call)
        attempt.unanswered = True
        self._session.forget()

    def _take_upstream(self, admitted: AdmittedCall, answer: AnswerHead) -> UpstreamSocket:
        """Adopt the connection of an upstream that opened a socket."""
        attempt = admitted.attempt
        link, upstream = attempt.link, attempt.upstream
        assert link is not None
        assert upstream is not None
        shown = b"sec-websocket-accept:%b" % accepted(socket_key(admitted.request_id))
        if not any(line.replace(b" ", b"").lower() == shown.lower() for line in answer.lines):
            raise UpstreamUnreachable("The upstream does not open a WebSocket as it was asked to.")
        released = partial(upstream.release, self._caller.organization_id, None)
        self._aimed, self._key = (attempt.name, attempt.model), attempt.key
        attempt.link = attempt.upstream = None
        return UpstreamSocket(self, link, released, self._worker.frames)

    async def _choose_target(self, admitted: AdmittedCall) -> None:
        """Send a later turn to the socket's upstream; refuse it if the model now has other upstreams."""
        attempt = admitted.attempt
        targets = [(target.upstream, target.model) for target in admitted.call.aim.targets]
        there = targets or [(attempt.name, attempt.model)]
        if self._aimed not in there and not self._is_due:
            raise ModelNotAllowed(
                f"The model {admitted.call.spec.model} leads elsewhere by now: connect again."
            )
        (attempt.name, attempt.model), attempt.key = self._aimed, self._key
        if self._aimed in targets and not self._refused:
            admitted.keep_price_of_target()
        upstream = admitted.worker.upstreams.get(attempt.name)
        limiter = None if upstream is None else upstream.limiter
        if limiter is not None and admitted.charges and not self._is_due:
            await limiter.take(admitted, upstream, waits=True)

    def _begin_turn(self, admitted: AdmittedCall) -> Link:
        """Create the link (connection to the upstream) of a turn, with a meter.

        Events from now on are counted for the turn's call.
        """
        upstream, worker, attempt = self._upstream, admitted.worker, admitted.attempt
        assert upstream is not None
        link = attempt.link = self._link = upstream.turn()
        admitted.meter = make_meter(admitted.call, 200, EVENT_STREAM, b"", worker.bounds)
        attempt.status, attempt.forwarded, attempt.started_s = 200, True, worker.ports.seconds()
        self._asked_at = self._loop.time()
        return link

    @property
    def _is_due(self) -> bool:
        """Whether this turn only charges output that the upstream already makes, and sends no new message."""
        return self._is_owed and not self._asked_messages

    def _ask_for_turn(self) -> None:
        """Begin another turn, with the head that opened the socket."""
        if not (self._turning or self._over) and (self._is_owed or not self.is_closing()):
            self._turning = True
            self._answer = SocketAnswer(self)
            self._connection.ask(self.opening, b"")

    def _end_turn(self, code: int, why: str = "") -> None:
        """End the socket with a close code and reason; a turn in which the client asked nothing is free."""
        self._ends = self._ends or (code, why)
        self._take_back()
        exchange, link = self._connection.exchange, self._link
        if not self._turning and self._session.pending:
            self._ask_for_turn()
        elif not self._turning:
            self._close(*self._ends)
        elif link is not None and self._session.pending:
            self._link = None
            if exchange is not None:
                self._charge_rest(exchange.attempt, exchange.call)
            if code in {_USUAL, _AWAY}:
                self._ends = _BROKEN, ""
            link.connection_lost(None)
        elif exchange is not None and not exchange.shielded and not self._is_owed:
            exchange.attempt.forwarded = False
            exchange.interrupt(ClientGone())

    def _give_back(self) -> None:
        """End a turn without a request of the client: release its hold, and keep the socket open."""
        charge, link = self._admitted, self._link
        if charge is not None and link is not None:
            self._link = charge.meter = None
            link.add_event(b"", last=True)

    # the client's side

    def begin(self, early: bytes) -> None:
        """Start to read from the client, and to look for idleness; `early` are bytes already received."""
        super().begin(early)
        self.reading.resume(INNER)  # the connection answers the opening during the whole first turn
        self._look = self._loop.call_later(LOOK_S, self._look_after)

    def _hang_up(self, error: Exception | None) -> None:
        """End the client's side after a disconnect.

        Output that the upstream is making is read and charged, as far as the route allows.
        """
        self.keep(-self._owed)
        self._owed, self._gone, self._kept = 0, True, b""
        self._take_back()
        upstream, route = self._upstream, self._route
        if upstream is not None and self._is_owed:
            waits_s = 0.0 if route is not None and route.on_disconnect == "abort" else self._limits.drain_s
            self._drained_until = self._loop.time() + waits_s
            if self._connection.blocked:
                self._connection.resume_writing()
            upstream.reading.resume(_SLOW)
        else:
            if upstream is not None:
                upstream.close()  # what it begins from now on is not for this session
            self._leave_connection(error)
        self._look_after()

    def _leave_connection(self, error: Exception | None) -> None:
        """Notify the HTTP connection that the client is gone, so that no turn follows."""
        exchange = self._connection.exchange
        if exchange is not None:
            attempt = exchange.attempt
            attempt.forwarded = attempt.forwarded and (self._session.pending or attempt.unanswered)
        self._over = self._left = True
        self._connection.connection_lost(error)

    def _end_drain(self) -> None:
        """Stop reading for a client that is gone, and charge its pending usage by estimate."""
        self._spent = True
        exchange, link = self._connection.exchange, self._link
        if exchange is not None and link is not None:
            self._link = None
            self._charge_rest(exchange.attempt, exchange.call)
            self._leave_connection(None)
            if exchange.drain is not None:
                exchange.interrupt(ClientGone())
        else:
            self._flow()

    def pause_writing(self) -> None:
        """Pause the upstream while the client reads slowly."""
        super().pause_writing()
        if self._upstream is not None:
            self._upstream.reading.pause(_SLOW)

    def resume_writing(self) -> None:
        """Resume the upstream after the client has caught up."""
        super().resume_writing()
        if self._upstream is not None:
            self._upstream.reading.resume(_SLOW)

    def close(self) -> None:
        """Close the socket with the reason of its end."""
        usual_code = _AWAY if self._answer is None else _BROKEN
        self._turning, self._over = False, True
        self._session.forget()
        code, why = self._ends or (usual_code, "")
        self._close(code, why)

    def hold(self, reason: int) -> None:
        """Stop reading messages of the client. `reason` is a flag; reading resumes once no flag is left."""
        self.reading.pause(reason)

    def go_on(self, reason: int) -> None:
        """Resume reading messages, if no other reason for the pause remains."""
        if not (self._asked_messages or self._kept) and (reason == SLOW or not self.reading.paused & SLOW):
            self.keep(-self._owed)
            self._owed = 0
        if self.reading.paused & reason:
            self.reading.resume(reason)
            self._queue()

    def _ask(self, body: bytes) -> None:
        """Handle a message of the client; first find the owners of objects that it names."""
        if len(body) > MESSAGE_BYTES_MAX:
            self._refuse(RequestTooLarge(f"A message here may have {MESSAGE_BYTES_MAX} bytes."), _TOO_LARGE)
            return
        self._seen_at = self._loop.time()
        try:
            document = read_document(body)
            named = self._naming(document)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if named.objects.unsure:
            self.keep(len(body))
            self.hold(OWNERS)
            begin(self._ask_owned(body, document, named))
        else:
            self._ask_checked(body, document)

    def _naming(self, message: Document) -> CallRequest:
        """Return a call with the texts in a message that may be ids of stored objects.

        Ids of the conversation itself have no owner: no id may be that of another organization's object.
        """
        call = CallRequest("none", self.family, Body(document=message))
        call.body.names = FieldNames(ids=True)
        if self._owned is not None:
            read_objects(self._owned, call)
        return replace(call, objects=StoredObjects(unsure=(*call.objects.named, *call.objects.unsure)))

    async def _ask_owned(self, body: bytes, document: Document, named: CallRequest) -> None:
        """Process a message, unless it names an object of another organization."""
        refusal: Refusal | None = None
        try:
            await check_objects(self._worker.ports.objects, self._caller, named, ())
        except Refusal as error:
            refusal = error
        self.keep(-len(body))
        if self.is_closing():
            return
        if refusal is None:
            self._ask_checked(body, document)
        else:
            self._refuse(refusal)
        self.go_on(OWNERS)

    def _ask_checked(self, body: bytes, document: Document) -> None:
        """Process a message whose objects the caller may use."""
        session, needs = self._session, self._session.needs
        before, tools = session.models, session.tools
        try:
            if session.waits(document):
                self._kept, self._kept_asks = body, {"type": document.get("type")}
                self._owe(len(body))
                self.hold(WAITING)
                return
            written = written_of(document, body, BodyLook(body))
            if session.ask(document, len(body)):
                written = write_document(document)
            self._bound_text(body, document)
            if session.models != before or session.tools > tools:
                try:
                    self._judge(session.tools > tools)
                except Refusal:
                    session.take_back()
                    raise
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._asked_messages.append(written)
        self._owe(len(body))
        if session.needs > needs or session.pending:
            self._asked_at = self._loop.time()
        elif self._upstream is not None and not self._turning:
            self._send()  # costs nothing
            return
        if self._link is None:
            self.hold(WAITING)
            self._ask_for_turn()
        else:
            self._pass()

    def _pass(self, step: int = HELD_AHEAD) -> None:
        """Send the waiting message to the upstream, once the turn's hold (reserved amount) covers it too.

        `step` tokens are held ahead of later messages.
        """
        charge, more = self._admitted, self._uncovered()
        held = partial(self._loop.call_soon, self._pass_held, self._link, step)
        if (
            self._asked_messages
            and charge is not None
            and more > 0
            and not charge.request_more(more, step, held)
        ):
            self.hold(WAITING)
        else:
            self._send()

    def _pass_judged(self) -> None:
        """Send the message that came while its turn was admitted, unless it names what the turn may not have."""
        try:
            self._judge(self._session.tools > self._admits[1])
        except Refusal as refusal:
            self._take_back()
            self._refuse(refusal)
            self.go_on(WAITING)
            return
        if self._link is not None:  # else it begins another turn
            self._pass()

    def _uncovered(self) -> int:
        """Return the tokens that the session needs beyond those that its turn's hold covers."""
        session, charge = self._session, self._admitted
        beyond = session.beyond if charge is not None and charge.call.bound else 0
        return session.needs + beyond - self._covered

    def _bound_text(self, body: bytes, document: Document) -> None:
        """Count the most tokens of the text in the session's last message, if a hold may bind it."""
        charge, texts = self._admitted, self._session.texts
        if not texts.size or (charge is not None and not charge.binds):
            return
        plain = write_document(document) if b"\\u" in body else body  # letters, not their escapes
        size = max(0, texts.size + len(plain) - len(body))
        self._bucket.spend(size)
        call = None if charge is None else charge.call
        texts.add(self._worker.ports.estimator.most_of_message(plain, size, call))

    def _pass_held(self, link: Link | None, step: int) -> None:
        """Send the message that waited for a larger hold, or refuse it because too little is left.

        Before that it is asked for without the `step`. Nothing is done if the turn of `link` is over.
        """
        charge = self._admitted
        if link is None or link is not self._link or charge is None or not self._asked_messages:
            return
        more = self._uncovered()
        if charge.request_more(more, 0, None):
            self._send()
            return
        if step:
            self._pass(0)
            return
        self._take_back()
        self._refuse(charge.short_of(), 0 if self.refuses_by_event else _REFUSED)
        self.go_on(WAITING)

    def _take_back(self) -> None:
        """Drop the message that waits to be sent to the upstream."""
        if self._asked_messages:
            self._asked_messages = []
            self._session.take_back()

    def _owe(self, size: int) -> None:
        """Count `size` more bytes of buffered messages, or fewer if negative."""
        self.keep(size)
        self._owed += size

    def _judge(self, adds_tools: bool) -> None:
        """Check the further models and tools that a message names, while its turn is already admitted.

        Raise `Refusal` if a model is not allowed. If one has a budget that the turn does not hold, or a provider may
        bill a tool, the turn ends and the message begins another; a turn with an answer goes on, and the message is
        refused.
        """
        exchange = self._connection.exchange
        call = None if exchange is None else exchange.call
        charge = None if exchange is None else exchange.admitted
        if exchange is None or call is None or self._link is None or not isinstance(charge, AdmittedCall):
            return
        if adds_tools:
            if self._is_owed:
                raise InvalidRequest(
                    "A tool that may cost something is added between answers: send it again then.",
                    param="tools",
                )
            self._give_back()
            return
        models, routed, caller = charge.worker.models, charge.head.routed, charge.caller
        owned = named_objects(models, routed.owned, caller, call)
        before, call.models_beside = call.models_beside, self._session.models
        try:
            prices = check_models(
                charge.worker.admission, charge.head.attribution, caller, charge.user, call, charge.service,
                charge.budgets,
            )  # fmt: skip
            if len(named_objects(models, routed.owned, caller, call)) > len(owned):
                raise InvalidRequest(
                    "A trained model cannot be named in a message: name it in the address that opens the connection.",
                    param="model",
                )
            if prices is None and self._is_owed:
                raise InvalidRequest(
                    "A budget limits a model of this message, and not the answer that is made: send it after that.",
                    param="model",
                )
        except Refusal:
            call.models_beside = before
            raise
        if prices is None:
            self._give_back()
            return
        charge.prices = prices
        charge.keep_price_of_target()

    def _send(self) -> None:
        """Send the waiting message to the upstream."""
        asked, self._asked_messages = self._asked_messages, []
        exchange, upstream = self._connection.exchange, self._upstream
        if exchange is not None and exchange.call is not None:
            self._count_input(exchange.call)
        if upstream is not None:
            for message in chain.from_iterable(map(self._session.limited, asked)):
                upstream.send(message)
        if not self._kept:
            self.go_on(WAITING)

    def _ask_kept(self) -> None:
        """Process the client's buffered message once the client has got all events before it."""
        ending = self._ends is not None or (self._link is None and self._turning)
        if not self._kept or ending or self._heard_events or self.is_closing():
            return
        if self._session.waits(self._kept_asks):
            return
        body, self._kept = self._kept, b""
        self._owe(-len(body))
        self._ask_checked(body, read_document(body))
        if not self._asked_messages:
            self.go_on(WAITING)

    def _refuse(self, refusal: Refusal, code: int = 0) -> None:
        if self.refuses_by_event:
            super()._refuse(refusal, code)
        else:
            self._close(code or _BAD, refusal.told)

    def _note_passed(self, events: list[str], answer: SocketAnswer) -> None:
        """Note that events were sent to the client; `answer.over` means that the turn is over.

        A refused turn closes the socket, unless the client may send its message again later.
        """
        if answer.over:
            self._turning = False
            refused, by_event = answer.refused, self.refuses_by_event
            if refused is not None:
                passes_by = (
                    refused.status in _LATER and by_event and not self.is_closing() and self._asked_messages
                )
                if self._asked_messages:
                    self._take_back()
                else:
                    self._session.forget()
                if passes_by:
                    self.go_on(WAITING)
                else:
                    self._close(_REFUSED, "" if by_event else refused.message)
            self._loop.call_soon(self._flow)

    def _say_end(self, event: CloseConnection) -> None:
        super()._say_end(event)
        self._flow()

    def _close(self, code: int, why: str | None = None) -> None:
        said = (why or "").encode()[:REASON_BYTES_MAX].decode(errors="ignore")
        super()._close(code, said or None)

    def _look_after(self) -> None:
        """End the socket if it is idle or the gateway stops, unless an answer is still expected.

        If the client is gone, the upstream's socket ends with its last call. Runs again after a while.
        """
        loop, connection = self._loop, self._connection
        if self._look is not None:
            self._look.cancel()
        if self._gone:
            if self._over and connection.exchange is None:
                self._turning = False
                self._flow()
                return
            if not (self._over or self._spent) and loop.time() >= self._drained_until:
                self._end_drain()
            self._look = loop.call_later(LOOK_S, self._look_after)
            return
        limits = self._limits
        self._look = loop.call_later(min(LOOK_S, limits.socket_unasked_s), self._look_after)
        if self._leaves():
            return
        if self.reading.paused and not self._closed:
            # Its end may be behind unread bytes: the kernel of a client that is gone answers with a reset.
            self._transport.write(self._frames.send(Ping()))
        idle = loop.time() - self._seen_at > limits.socket_idle_s
        if not self._turning or self._session.pending:
            return
        if idle or not connection.reusable:
            self._end_turn(_AWAY)
            return
        if loop.time() - self._asked_at > limits.socket_unasked_s and not (
            self._asked_messages or self._heard_events
        ):
            self._give_back()

    # the upstream's side

    def hear(self, event: bytes) -> None:
        """Process an event of the upstream; without a client, stop reading at the limits for draining."""
        self._seen_at = self._loop.time()
        heard = self._session.hear(event)
        self._heard_events.append(heard)
        self._ends_heard += heard.ends
        if self._gone and not self._spent:
            self._drained += len(event)
            meter = None if self._admitted is None else self._admitted.meter
            made = 0 if meter is None else meter.counted()
            if self._drained > self._limits.drain_bytes_max or made > self._limits.drain_tokens_max:
                self._end_drain()
                return
        self._flow()

    def upstream_ended(self, code: int, why: str) -> None:
        """Close the client's socket as the upstream did, after all earlier events."""
        usual = _USUAL if code == _NO_CODE else _BROKEN
        self._ends = self._ends or (code if code in _SENT_CODES or code >= _OWN_CODES else usual, why)
        self._flow()

    @property
    def _is_owed(self) -> bool:
        """Whether the upstream makes or has sent output that no turn has charged yet."""
        return not self._over and (self._session.pending or self._ends_heard > 0)

    def _flow(self) -> None:
        """Forward events to the client as far as a turn pays for them, or they are free.

        Then continue with the next message or turn, or end the socket.
        """
        upstream = self._upstream
        self._pass_heard()
        if upstream is None:
            return
        if self._spent and self._link is not None:
            self._end_drain()
        if self._heard_events:
            upstream.reading.pause(_WAITING)
        else:
            upstream.reading.resume(_WAITING)
        self._ask_kept()
        if self.is_closing() and not (self._is_owed or self._over):
            self._give_back()  # the message of this turn was refused
        idle = not self._turning and not self._is_owed
        if idle and self.is_closing():
            upstream.close()
            if self._gone and not self._left:
                self._leave_connection(None)
        elif idle and self._refused:
            self._close(_REFUSED)
        elif self._ends is not None and not self._heard_events:
            self._end_turn(*self._ends)
        elif (self._heard_events or self._asked_messages or self._session.pending) and self._link is None:
            self._ask_for_turn()  # pending output is a call, even before its first event

    def _pass_heard(self) -> None:
        """Pass the upstream's events on: to the running call, or to the client between calls."""
        closed = self.is_closing()
        while self._heard_events:
            event, is_free, ends, model = self._heard_events[0]
            link = self._link
            if link is None and (self._turning or (not is_free and (not closed or self._is_owed))):
                break
            self._heard_events.popleft()
            self._ends_heard -= ends
            if link is not None:
                if ends:
                    self._link = None
                    if model and self._admitted is not None and self._admitted.meter is not None:
                        self._admitted.meter.detail.answered_by(model)
                link.add_event(b"data: %b\n\n" % event.translate(_LINES), ends)
            elif is_free and not closed:
                self._transport.write(self._frames.send(TextMessage(data=event.decode("utf-8", "replace"))))


class UpstreamSocket(FrameReader):
    """The upstream's socket of a session, and the transport of the links of its turns."""

    def __init__(
        self, client: LiveSocket, link: Link, released: Callable[[], None], queue: FairQueue
    ) -> None:
        super().__init__(link.transport, ConnectionType.CLIENT, queue)
        self._client, self._opened, self._released = client, link, released
        self._most = client.event_bytes_max

    def begin(self) -> None:
        """Adopt the connection to the upstream from the link that opened it, and start to read."""
        early, self._opened.deadline = self._opened.take_payload(), NEVER
        self._transport.set_protocol(self)
        if not self._transport.is_reading():
            self._transport.resume_reading()
        if early:
            asyncio.get_running_loop().call_soon(self.data_received, early)

    def turn(self) -> Link:
        """Return a new link for a turn; its answer counts as begun, so that only events follow."""
        link = self._opened.beside()
        link.connection_made(self)
        link.begin_stream()
        return link

    def send(self, message: bytes) -> None:
        """Send a text message to the upstream, if its socket is open."""
        if not self._closed:
            self._transport.write(self._frames.send(TextMessage(data=message.decode())))

    def close(self) -> None:
        """Close the upstream's socket, if open."""
        if not self._closed:
            self._closed = True
            self._transport.write(self._frames.send(CloseConnection(code=1000)))
            self._transport.close()

    # the protocol of the upstream's socket

    def data_received(self, data: bytes) -> None:
        """Process the frames of an upstream, unless its socket is closed."""
        if not self._closed:
            self._read(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Release the connection, and end the client's socket after the frames that were read."""
        if not self._closed:
            for event in self._frames.events():
                self._take(event)
        self._closed = True
        self.reading.close()
        self._released()
        self._opened.connection_lost(error)
        self._client.upstream_ended(0, "")

    def pause_writing(self) -> None:
        """Pause the client while the upstream reads slowly."""
        self._client.hold(SLOW)

    def resume_writing(self) -> None:
        """Resume the client after the upstream has caught up."""
        self._client.go_on(SLOW)

    def _go_on(self) -> bool:
        """Take the next event that has arrived; return False if the upstream must be read first."""
        event = None if self._closed else next(self._frames.events(), None)
        if event is None:
            self.reading.resume(TURN)
            return False
        self._take(event)
        self._queue()
        return True

    # the transport of a turn's link, whose request is messages

    def abort(self) -> None:
        """Ignore a turn that ends early: the socket stays open for other turns."""

    def pause_reading(self) -> None:
        """Stop reading from the upstream."""
        self.reading.pause(_LINK)

    def resume_reading(self) -> None:
        """Resume reading from the upstream."""
        self.reading.resume(_LINK)

    def _take(self, event: Event) -> None:
        """Handle an event of the upstream's socket: a message, a ping or its end."""
        if self._closed:
            return
        if isinstance(event, TextMessage | BytesMessage):
            data = event.data
            self._message += data.encode() if isinstance(data, str) else data
            if len(self._message) > self._most:
                self._leave(_TOO_LARGE)
            elif event.message_finished:
                message, self._message = bytes(self._message), bytearray()
                self._client.hear(message)
        elif isinstance(event, Ping):
            self._transport.write(self._frames.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._transport.write(self._frames.send(event.response()))
            self._leave(int(event.code), event.reason or "")

    def _leave(self, code: int, why: str = "") -> None:
        self._closed = True
        self._transport.close()
        self._client.upstream_ended(code, why)
