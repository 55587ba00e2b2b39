"""Ends calls without a complete answer: what the client gets, and what happens to the hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.core.accounts.refusals import RefusedCall
from gateway.core.families.refusal import refused_by, render
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.errors import (
    CountersRefused,
    InternalError,
    InvalidApiKey,
    Overloaded,
    Refusal,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.http.admission import reserve_before_body
from gateway.http.admitted_call import AdmittedCall
from gateway.http.forward import late_answer, note_failure
from gateway.http.ports import Log, Ports
from gateway.http.relay import ANSWER_CUT, CLIENT_GONE, own_answer, relay, store_sizes
from gateway.http.routing.cors import Preflight
from gateway.http.routing.head import CallHead
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.routing.routes import METADATA_PATH, OWN_PATHS
from gateway.http.server.buffers import bare
from gateway.http.server.exchange import AdmittedHold, ClientGone, Drain, Exchange


async def given_up(exchange: Exchange, error: BaseException) -> None:
    """End a failed call: release its hold, and report the failure to its client."""
    expected = isinstance(error, Refusal | ClientGone) or not isinstance(error, Exception)
    failure = bare(error if expected else UnexpectedError(error))  # of others only type and place
    caller, charge, link = exchange.caller, exchange.admitted, exchange.attempt.link
    alone = exchange.connection.body.messages is None and exchange.before_end is None
    outlasts = link is not None and link.is_late and alone and exchange.is_worked_on
    if outlasts and isinstance(failure, UpstreamTimeout):  # its caller still pays for the upstream's work
        await _outlast(exchange, failure)
        return
    exchange.attempt.leave(caller)
    if charge is not None and charge.due:
        await _settle(exchange, charge, failure)
    if isinstance(failure, UnexpectedError) and caller is not None and charge is None:
        failure = await _counted(exchange, caller, failure)
    if caller is not None and not exchange.opened and isinstance(failure, Refusal | UnexpectedError):
        note_refused(exchange, caller, failure)
    if isinstance(failure, InvalidApiKey):
        exchange.worker.ports.tally.refused(0, failure.reason)
        await refuse_wrong(exchange, failure)
    else:
        _tell(exchange, failure)


async def _outlast(exchange: Exchange, late: UpstreamTimeout) -> None:
    """Answer the client with a timeout, and read the upstream's answer on for its usage."""
    charge, attempt, link = exchange.admitted, exchange.attempt, exchange.attempt.link
    ports, drain = exchange.worker.ports, exchange.drain or Drain()
    assert isinstance(charge, AdmittedCall)
    assert link is not None
    exchange.drain = drain
    began = charge.meter is not None and charge.meter.produced
    drain.silent_since = ports.seconds() - link.silent_s if began else 0.0
    if exchange.gone:
        exchange.cut(CLIENT_GONE)
        note_failure(ports, exchange.request_id, attempt.name, late)
    else:
        drain.answered = _came_to(late, exchange.opened, None)
        _tell(exchange, late)
        exchange.detach_client()
    failure: BaseException | None = None
    try:
        answer = await late_answer(charge)
        await relay(exchange, charge, answer)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the call is charged in any case
        failure = bare(error)
    if failure is not None:
        attempt.leave(charge.caller)
        if charge.due:
            await _settle(exchange, charge, failure)
    if drain.answered is not None:
        exchange.status = drain.answered[0] or exchange.status
    if failure is not None and not isinstance(failure, Refusal | ClientGone):
        raise failure


async def _settle(exchange: Exchange, charge: AdmittedHold, failure: BaseException) -> None:
    """Charge a failed call, or release its hold."""
    attempt, drain, silent_s = exchange.attempt, exchange.drain, 0.0
    late = isinstance(failure, UpstreamTimeout) and attempt.forwarded and exchange.before_end is None
    left = drain is not None and attempt.forwarded and isinstance(failure, ClientGone)
    if exchange.answered is not None or left or (late and exchange.connection.body_complete):
        # The upstream may still work on a call that the gateway no longer waits for.
        since = attempt.started_s if drain is None else drain.silent_since or attempt.started_s
        silent_s = exchange.worker.ports.seconds() - since
    abandoned, told = _is_abandoned(exchange, failure), _came_to(failure, exchange.opened, exchange.answered)
    await charge.settle(attempt.status, False, abandoned, told, silent_s)
    if isinstance(charge, AdmittedCall) and charge.meter is not None and charge.meter.own_id:
        store_sizes(charge, charge.meter, [])  # its client may have got the id


def _came_to(failure: BaseException, opened: bool, answered: tuple[int, str] | None) -> tuple[int, str]:
    """Return the status that the client of a failed call gets, and the reason.

    `opened`: its answer has begun. `answered` is what it was sent before.
    """
    if answered is not None:
        return answered
    if isinstance(failure, ClientGone):
        return 0, CLIENT_GONE
    if opened:
        return 0, ANSWER_CUT
    refusal = failure if isinstance(failure, Refusal) else InternalError()
    return refusal.status, refusal.reason


def _is_abandoned(exchange: Exchange, failure: BaseException) -> bool:
    """Return whether a failed answer is the caller's fault, so that the begun work is charged.

    It is if the client left or sent no complete request. It is also if a call with tokens was not answered in
    time: the caller chose the request, and the upstream read it.
    """
    whole, attempt, status = exchange.connection.body_complete, exchange.attempt, exchange.attempt.status
    has_input = exchange.call is not None and exchange.call.has_input
    if exchange.answered is not None or (
        attempt.unanswered and has_input
    ):  # read by an earlier target that failed
        return True
    if exchange.connection.body.long and not whole:
        return False  # no upstream can read an incomplete form
    if isinstance(failure, UpstreamUnreachable):
        return exchange.gone and 200 <= status < 300 and has_input
    if whole and isinstance(failure, UpstreamTimeout):
        return attempt.forwarded and not status and has_input
    return attempt.forwarded and (exchange.gone or not whole)


async def _counted(exchange: Exchange, caller: Caller, fault: UnexpectedError) -> BaseException:
    """Count a call that failed before admission as one request against its caller's limits.

    Return the error to report: `fault`, or the refusal of a limit.
    """
    failure: BaseException = fault
    held: AdmittedCall | None = None
    try:
        held = await reserve_before_body(exchange, caller)
    except Refusal as refusal:
        failure = bare(refusal)
    except Exception as error:  # noqa: BLE001  # the first error is reported
        bare(error)
    if held is not None:
        await held.settle(0, False)
    return failure


def _tell(exchange: Exchange, failure: BaseException) -> None:
    """Answer a call that failed. If the answer has begun, it ends with an error or is cut.

    An unexpected error is raised again.
    """
    ports, caller = exchange.worker.ports, exchange.caller
    if isinstance(failure, UpstreamFailure):
        note_failure(ports, exchange.request_id, exchange.attempt.name, failure)
    elif isinstance(failure, CountersRefused):
        _tell_of_counters(ports, exchange.request_id, failure)
    if isinstance(failure, Refusal) and not exchange.opened:
        if failure.reason:  # else it is the answer to a preflight
            ports.tally.refused(caller.tenant_id if caller is not None else 0, failure.reason)
        refuse(exchange, failure)
    elif isinstance(failure, Refusal):
        # An overload is reported in the answer. An answer that its upstream cut, or that was not charged, is
        # cut.
        fail = exchange.fail if isinstance(failure, Overloaded) else None
        exchange.cut(ANSWER_CUT, broken=fail is None or not fail(failure))
        route = exchange.head.routed.label
        ports.log("answer_cut", request_id=exchange.request_id, route=route, why=failure.message)
    elif isinstance(failure, ClientGone):
        exchange.cut(CLIENT_GONE)
    else:
        raise failure


def _tell_of_counters(ports: Ports, request_id: str, failure: CountersRefused) -> None:
    """Log at intervals why Redis refused a call; the client only reads that counters are unavailable."""
    count = ports.failing.note("", failure.reason, ports.seconds())
    if count:
        said = {"request_id": request_id, "why": failure.message, "failures": count}
        ports.log("counters_refused", **said, level="error")


def refuse(exchange: Exchange, refusal: Refusal) -> None:
    """Send a refusal as a whole answer in the error format of the request's API.

    A `Preflight` is also a refusal: it is the answer to a browser's CORS request.
    """
    if isinstance(refusal, Preflight):
        own_answer(exchange, refusal.status, list(refusal.fields), b"")
        return
    exchange.reason, routed = refusal.reason, exchange.head.routed
    if exchange.connection.socket is not None:
        exchange.refuse_turn(refusal)
        return
    if exchange.call is not None and exchange.call.spec.mcp.reply_to is not None:
        refusal.reply_to = exchange.call.spec.mcp.reply_to
    fields, body = render(refusal, routed.family, exchange.request_id)
    issued = exchange.worker.ports.tokens.issuers
    if issued and isinstance(refusal, InvalidApiKey) and FAMILIES[routed.family].session_field:
        metadata = exchange.origin + METADATA_PATH + ("" if "{" in routed.label else routed.label)
        challenge = f'Bearer resource_metadata="{metadata}"'  # RFC 9728, 5.1
        fields.append((b"www-authenticate", challenge.encode()))
    if routed.allow:
        fields.append((b"allow", ", ".join(routed.allow).encode()))
    own_answer(exchange, refusal.status, fields, body)


async def refuse_wrong(exchange: Exchange, wrong: InvalidApiKey) -> None:
    """Refuse an invalid credential; delay the answer if the same address has sent many invalid ones."""
    failures = exchange.worker.ports.failures
    peer = exchange.connection.transport.get_extra_info("peername")
    delay_s = failures.count(str(peer[0]) if isinstance(peer, tuple) else "", wrong.failure)
    if not delay_s:
        refuse(exchange, wrong)
        return
    failures.delayed += 1
    # While the answer waits, the rest of head and body is freed; the connection closes after the answer.
    before, cors = exchange.head.routed, exchange.head.cors
    exchange.connection.body.take_parts()
    freed = RoutedHead(
        before.family, before.label, method=before.method, minor=before.minor, host=before.host
    )
    exchange.head = CallHead(freed)
    exchange.head.cors = cors
    waited: Wait[None] = Wait()
    timer = asyncio.get_running_loop().call_later(delay_s, waited.set, None)
    gone = False
    try:
        await waited
    except ClientGone:
        gone = True
    timer.cancel()
    failures.delayed -= 1
    exchange.cut(wrong.reason, broken=gone)
    if not gone:
        refuse(exchange, wrong)


# Internal errors: type and place are logged, never the message, which may quote a body.
#
# A caller may be able to repeat an error at will, so the number of lines is limited.

LINES_MAX = 10  # of `request_failed` in PERIOD_S
PERIOD_S = 60.0
_OURS = "gateway."


class UnexpectedError(Exception):
    """An error that is not a refusal: only its type, and the line of the gateway that raised it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.place = _place(error)


class FaultLog:
    """A log of internal errors, limited to `LINES_MAX` lines a period; the next line counts omitted ones."""

    __slots__ = ("_began", "_left_out", "_lines", "_log", "_seconds")

    def __init__(self, log: Log, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._began = seconds()
        self._lines = self._left_out = 0

    def note(self, request_id: str, error: BaseException) -> None:
        """Log an error, or only count it if too many were logged in this period."""
        now = self._seconds()
        if now - self._began >= PERIOD_S:
            self._began, self._lines = now, 0
        if self._lines >= LINES_MAX:
            self._left_out += 1
            return
        self._lines += 1
        fault = error if isinstance(error, UnexpectedError) else UnexpectedError(error)
        left_out, self._left_out = self._left_out, 0
        self._log(
            "request_failed", request_id=request_id, error=str(fault), place=fault.place, left_out=left_out,
            level="error",
        )  # fmt: skip


def _place(error: BaseException) -> str:
    """Return the module and line where an error was raised, in the gateway's innermost frame if any."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(_OURS) or not place.startswith(_OURS):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


# Refused calls in the journal, sent without waiting.
def note_refused(exchange: Exchange, caller: Caller, failure: BaseException) -> None:
    """Add a call of a known caller that was refused before its admission to the journal of calls.

    Calls that were admitted are added by their settlement, so they are ignored here.
    """
    charge, head, call = exchange.admitted, exchange.head, exchange.call
    ports, routed = exchange.worker.ports, head.routed
    if (charge is not None and charge.charges) or routed.label in OWN_PATHS:
        return
    refusal = failure if isinstance(failure, Refusal) else InternalError()
    service = ports.directory.service(routed.service_key)
    run, (kind, by) = head.attribution.run, refused_by(refusal)
    ports.refusals.note(
        RefusedCall(
            exchange.request_id, ports.refusals.now_ms(), caller.organization_id, caller.tenant_id,
            caller.key_id, 0 if service is None else service.id,
            caller.acts_for(head.attribution.user, "" if call is None else call.spec.user), head.said.columns,
            head.attribution.session, routed.label, "" if call is None else call.spec.model,
            call is not None and call.spec.streamed, refusal.status, refusal.reason,
            int((ports.seconds() - exchange.started) * 1000), "" if run is None else run.id, kind, by,
            dict(ports.directory.tags(caller, head.attribution)),
            () if call is None else ports.directory.groups(caller, head.attribution, call),
        )
    )  # fmt: skip
