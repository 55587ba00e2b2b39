"""A call that a budget's step sent as another model, which refuses it: the call is sent once more, as asked.

Only a 400 shows that a model does not take a part of a call, since tables of refused parts lag behind the models. The
answer of the substitute is settled with a row of its own, and charges nothing. Then the call is admitted again from the
body that its caller sent, without steps, under a new request id. Where that does not fit, the 400 is handed on. If the
call as asked is answered 2xx, such calls of its session, or of its key for some minutes, are sent as asked at once.
"""

from __future__ import annotations

from typing import Final

from gateway.calls.steps import step_owner
from gateway.core.accounts.steps import SessionModel
from gateway.core.calls.use_request import AS_ASKED
from gateway.core.families.model_differences import read_refused
from gateway.errors import Refusal
from gateway.http.admission import admit
from gateway.http.admitted_call import AdmittedCall
from gateway.http.forward import forward, short_body
from gateway.http.protocol.answer import AnswerHead
from gateway.http.server.exchange import Exchange

# The status by which an API refuses a part of a call.
REFUSED: Final = 400


async def ask_as_asked(
    exchange: Exchange, substituted: AdmittedCall, answer: AnswerHead
) -> tuple[AdmittedCall, AnswerHead]:
    """Return a substituted call and its answer, or the call as it was asked, where its substitute refused it."""
    body, substituted.asked_body = substituted.asked_body, b""
    attempt, caller, worker = substituted.attempt, substituted.caller, substituted.worker
    link, by, substitute = attempt.link, substituted.call.substitution, substituted.call.spec.model
    if answer.status != REFUSED or attempt.empty or link is None or by is None or exchange.gone:
        return substituted, answer
    part = read_refused(await short_body(link, answer))
    await substituted.settle(REFUSED, True)
    exchange.send_again(worker.rename(substituted.request_id, ""))
    exchange.connection.body.add(body)
    try:
        asked = await admit(exchange, caller, kind=AS_ASKED)
    except Refusal:
        held = exchange.admitted
        if held is not None and held.due:  # by its head alone
            await held.settle(0, False, False, (0, ""))
        request_id = worker.rename(exchange.request_id, substituted.request_id)
        exchange.hand_on(substituted, substituted.call, attempt, request_id)
        return substituted, answer
    if link.complete:
        link.take_payload()
    attempt.leave(caller)
    worker.ports.tally.count_substituted(worker.ports.tally.steps_refused, substitute)
    answer = await forward(exchange, asked)
    if 200 <= answer.status < 300:
        ports, owner = worker.ports, step_owner(caller, asked.head.attribution)
        ports.refused.note(owner, by, substitute, part, ports.refusals.now_ms())
        if owner[1]:
            ports.sessions.keep(caller, owner[1], asked.call.spec.model, SessionModel())
        ports.log(
            "substitute_refused", request_id=asked.request_id, budget_id=by.budget_id, model=substitute,
            code=part.code, param=part.param, level="warning",
        )  # fmt: skip
    return asked, answer
