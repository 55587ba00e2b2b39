"""The one admission of a use: whether it may begin, at which prices, and what it holds of each limit.

A use is a call, a turn of a socket, a hold of a caller, a job or a line of one. Its module reads it (`UseRequest`) and
knows how it came (`Entrance`) and, if it is no call, its claim (`OwnClaim`). docs/internals/request.md has the order of the checks. No
socket, no clock.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from gateway.calls.answers import check_admitted
from gateway.calls.claim import Entrance, PreparedUse, prepare
from gateway.calls.permit import check_objects, named_objects
from gateway.calls.ports import AdmissionPorts
from gateway.calls.steps import reserve_by_steps
from gateway.calls.terms import AdmissionTerms, find_terms, open_run
from gateway.core.accounts.steps import MatchedStep
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim
from gateway.core.calls.tariff import CallPrices
from gateway.core.calls.use_request import UseRequest
from gateway.core.model import Admitted, HoldRequest
from gateway.errors import Refusal


class Admission(NamedTuple):
    """An admitted use: its terms, its claim of each limit, and the hold that was reserved for it.

    `binds`: the hold may be the limit of the use. `call` is the one to send, which a step of a budget may have aimed
    at another model than its caller named: then `asked_prices` are those of that one, and if it is `sealed`, only that
    model can read it.
    """

    terms: AdmissionTerms
    claim: CallClaim
    request: HoldRequest
    admitted: Admitted
    binds: bool
    call: CallRequest
    asked_prices: CallPrices | None = None
    sealed: bool = False


class OwnClaim(Protocol):
    """The claim of a use that does not hold the estimate of a call."""

    def claim(self, terms: AdmissionTerms) -> tuple[CallClaim, HoldRequest]:
        """Return the claim of the use on each limit, and the request that reserves it."""

    def enter(self) -> Awaitable[None] | None:
        """Count the use where there is a maximum of uses besides limits; None if nothing is counted."""


async def admit(
    ports: AdmissionPorts, asked: UseRequest, entrance: Entrance, own: OwnClaim | None = None
) -> Admission:
    """Admit a use: reserve its hold on every limit; raise the `Refusal` of the first check that it fails.

    It holds the estimate of its call, or its `own` claim. What fails before limits are asked is one of its
    caller's requests all the same.
    """
    call = asked.call
    try:
        terms, opening = find_terms(ports, asked)
        named = named_objects(ports.models, asked.owned, asked.caller, call, asked.listed)
        # most calls name none, and make no coroutine
        if named or call.objects.unsure or call.spec.continues or asked.kind.is_free:
            await _find_objects(ports, asked, named)
        if ports.breaker.entries and asked.kind.is_called:
            entrance.check_paused(call)
        if own is not None:
            claim, request = own.claim(terms)
            if (entering := own.enter()) is not None:
                await entering
        if opening is not None:
            await entrance.hold_by_head()  # a caller that is over a limit opens none
            terms = await open_run(ports.calls, asked, terms, opening)
            if own is not None:
                claim, request = own.claim(terms)
        steps: tuple[MatchedStep, ...] = (
            ports.calls.matches.find(terms.budgets.version, terms.budgets.steps, call.spec.model)
            if own is None and terms.budgets is not None and terms.budgets.steps and asked.kind.takes_steps
            else ()
        )
        if own is not None:
            use = PreparedUse(asked, entrance, terms, claim, request, False)
        elif not steps:
            use = prepare(ports, asked, entrance, terms)
    except Refusal:
        await entrance.hold_by_head()
        raise
    entrance.shield()
    sealed = False
    if steps:
        reservation = await reserve_by_steps(ports, asked, entrance, terms, steps)
        use, admitted, sealed = reservation.use, reservation.admitted, reservation.is_sealed
    else:
        request = use.request
        request.raises = request.raises or entrance.is_held
        answer = await ports.calls.counters.reserve(request)
        admitted = check_admitted(ports, asked.caller, terms.budgets, answer)
    if terms.run is not None:
        ports.calls.runs.admitted(asked.caller, terms.run)
    asked_prices = None if use.asked.call is call else terms.prices
    return Admission(
        use.terms, use.claim, use.request, admitted, use.binds, use.asked.call, asked_prices, sealed
    )


async def _find_objects(ports: AdmissionPorts, asked: UseRequest, named: tuple[str, ...]) -> None:
    """Check the stored objects of a use, and count what a free call puts into one before its upstream gets it.

    The text of an object that the call makes is noted in the call, and so are the sizes with what it puts there.
    """
    call, owned, objects = asked.call, asked.owned, ports.calls.objects
    await check_objects(objects, asked.caller, call, named)
    if not asked.kind.is_free or owned is None or not (owned.reads and owned.apart):
        return
    tokens = ports.estimator.most_put(call)
    if tokens and owned.ids:
        await objects.keep(asked.caller, owned.ids, added=tokens)
        known = await objects.sizes(asked.caller, owned.ids)
        call.note_kept(tokens, dict(zip(owned.ids, known, strict=True)))
    elif tokens:
        call.note_kept(tokens)
