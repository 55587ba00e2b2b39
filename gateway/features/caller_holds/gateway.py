"""Holds by the API: a caller creates one here, makes its call elsewhere, and settles the hold here.

A hold is admitted, charged and reported like a call, by the same checks, scripts, rows and refusals. It
belongs to no worker: everything for its settlement is in Redis. If its client disconnects, no operation stops
halfway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from gateway.calls.admit import admit
from gateway.calls.aim import fields_allowed
from gateway.calls.claim import hold_request
from gateway.calls.hold_ends import counted_of, end_released, end_settled
from gateway.calls.ports import DirectoryPort
from gateway.calls.prices import charging_prices, named_prices
from gateway.calls.terms import AdmissionTerms, check_listed, consider
from gateway.core.accounts.budgets import MONEY, TOKENS, UNIT_OF
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.caller_holds import (
    LIFE_S_MAX,
    TTL_S_MAX,
    UNITS,
    CallerHold,
    ExtendBody,
    HeldAmounts,
    HoldBody,
    HoldEnd,
    SettleBody,
    StatedUse,
    held_call,
    idempotency_key,
    money_of,
    read_body,
    read_deletion,
    unit_of,
    use_in_answer,
    whole_in,
)
from gateway.core.accounts.limits import limit_headers
from gateway.core.accounts.runs import read_run
from gateway.core.billing.money import whole_credits
from gateway.core.billing.price_book import at_moment, charged, dearest
from gateway.core.calls.call import Body, CallRequest, CallSpec, write_document
from gateway.core.calls.claims import CallClaim, answer_bound
from gateway.core.calls.estimate import NO_ESTIMATE, Estimate
from gateway.core.calls.output_limits import check_numbers
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.calls.tariff import CONSUMPTION, CallPrices, PriceMatch, factor_of, is_in_money
from gateway.core.calls.use_request import HOLD, UseRequest
from gateway.core.families.family import KEPT_ANSWERS
from gateway.core.families.objects import ObjectAccess, read_objects
from gateway.core.families.registry import SHAPES
from gateway.core.model import (
    GENERIC,
    INTEGER_MAX,
    UNSETTLED_CHARGED,
    Admitted,
    Attribution,
    Caller,
    HoldRequest,
    RunRequest,
    Service,
    Settlement,
    SettleResult,
)
from gateway.core.wait import begin, in_task
from gateway.errors import (
    BudgetExceeded,
    CountersUnavailable,
    HoldEnded,
    HoldNotFound,
    InsufficientCredits,
    InvalidRequest,
    ModelNotAllowed,
    QuotaExceeded,
    Refusal,
    ServiceNotIncluded,
)
from gateway.http.admission import (
    CallEntrance,
    cached_caller,
    check_route,
    count_in_turn,
    identify,
    read,
    reserve_before_body,
)
from gateway.http.admitted_call import NO_UNITS
from gateway.http.model_lists import narrow
from gateway.http.ports import Ports
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange, Worker

# Bytes of a request that is decoded at once. The body of a call may be larger, and is decoded in steps.
BODY_BYTES_MAX: Final = 1 << 20
_JSON: Final = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_REPLAYED: Final = (b"idempotent-replayed", b"true")
_CHARGED: Final = "The time of the hold is over, and it was charged as held: settle it instead."


async def take_hold(exchange: Exchange) -> None:
    """Create a hold (a reservation of an amount) for a caller: answer 201, or refuse as for a call.

    All limits of the caller reserve the amount, or none does.
    """
    caller = cached_caller(exchange) or await identify(exchange)
    ports, id_, key = exchange.worker.ports, exchange.request_id, ""
    holds = ports.holds
    with exchange.uninterrupted():
        try:
            body = await exchange.whole_body(caller, BODY_BYTES_MAX)
            key = idempotency_key(exchange.head.passed)
            said = read_body(HoldBody, body)
            if key:
                id_, answer = await holds.begin(caller, key, body, id_)
                if answer:
                    own_answer(exchange, 201, [*_JSON, _REPLAYED], answer)
                    return
        except Refusal:
            await reserve_before_body(exchange, caller)  # a request limit refuses before this error
            raise
        try:
            hold, decision, remaining = await _take_hold(exchange, caller, said, id_, again=bool(key))
        except Refusal:
            holds.leave(caller, id_)
            if key:
                await holds.forget(caller, key)
            raise
        told = hold.render(remaining)
        await _keep(ports, hold, key, body, told)
        if exchange.gone and not key:  # its caller cannot learn its id
            await _give_back(ports, hold)
    own_answer(exchange, 201, [*_JSON, *limit_headers(decision)], told)


async def authorize(exchange: Exchange) -> None:
    """Create a hold (a reservation) for a call that another gateway describes: answer 200 with its id.

    Answer a refusal if the call would be refused. The other gateway writes the path and the body, which alone
    decide the hold: headers of its client have no effect.
    """
    caller = cached_caller(exchange) or await identify(exchange)
    worker, ttl_s = exchange.worker, exchange.head.routed.params["ttl_s"]
    ports, received = worker.ports, exchange.connection.body
    routed = exchange.head.routed.asked
    assert routed is not None
    head = exchange.head = exchange.head.routed_as(routed, exchange.head.proof)
    check_route(routed, ports.directory)
    fields: list[tuple[bytes, bytes]] = [(b"cache-control", b"no-store")]
    with exchange.uninterrupted():
        if not routed.metered:  # it costs nothing
            free = await reserve_before_body(exchange, caller)
            await free.settle(0, complete=False, abandoned=False, failed=(0, ""))
            exchange.admitted = None
            call = read(worker, head, received, caller, b"")
            if routed.listing is not None:
                call.answer_filter = narrow(worker, head, caller, call, routed.listing)
            await check_listed(
                worker.admission, CallEntrance(exchange, caller, None).request_of(call, is_called=False)
            )
            if call.answer_filter.narrow is not None or call.answer_filter.listing:
                raise ModelNotAllowed("Nobody here narrows this list of models: ask for one by its name.")
        else:
            try:
                body = await exchange.whole_body(caller, BODY_BYTES_MAX)
                hold_body = HoldBody(routed.service_key, ttl_s=whole_in(ttl_s, 1, TTL_S_MAX, "ttl_s"))
                if not routed.buffered:
                    hold_body.amount, body = routed.units, b""
                call = read(worker, head, received, caller, body)
                if call.unmeasured:
                    await count_in_turn(worker, caller, call)
            except Refusal:
                await reserve_before_body(exchange, caller)
                raise
            id_ = exchange.request_id
            try:
                hold, decision, _ = await _take_hold(exchange, caller, hold_body, id_, authorized=call)
            except Refusal:
                ports.holds.leave(caller, id_)
                raise
            await _keep(ports, hold, "", b"", b"")
            if exchange.gone:
                await _give_back(ports, hold)
            fields += [(b"x-tollkeeper-hold", hold.id.encode()), *limit_headers(decision)]
    own_answer(exchange, 200, fields, b"")


async def extend_hold(exchange: Exchange) -> None:
    """Extend a hold's time, and raise its amount if the body asks for more."""
    caller = cached_caller(exchange) or await identify(exchange)
    ports = exchange.worker.ports
    holds = ports.holds
    with exchange.uninterrupted():
        body = read_body(ExtendBody, await exchange.whole_body(caller, BODY_BYTES_MAX))
        hold = await holds.find(caller, exchange.head.routed.params["id"])
        if await holds.end_of(hold) is not None:
            raise HoldEnded
        until_ms = holds.now_ms() + 1000 * body.ttl_s
        if until_ms > hold.created_ms + 1000 * LIFE_S_MAX:
            raise InvalidRequest(
                f"ttl_s ends a day ({LIFE_S_MAX} s) after the hold was taken at the latest.", param="ttl_s"
            )
        wanted, more = hold.held, 0
        definitions: tuple[bytes, ...] = ()
        if body.more is not None:
            attribution = _attributed(exchange.head.attribution, hold)
            wanted, more = await _more(ports, attribution, hold, body.more)
            is_own = (caller.key_id, caller.acts_for(hold.user)) == (hold.key_id, hold.user)
            holder = caller if is_own else replace(hold.caller, user="")
            definitions = ports.directory.definitions(holder, hold.budgets, attribution, hold.names())
        found = await holds.extend(hold, 1000 * body.ttl_s, wanted, definitions)
        short = _short(found, wanted)
        hold.expires_ms = until_ms
        if short is None:
            hold.held, hold.asked = found, hold.asked + more
        hold.priced_ms = _dearer_ms(ports.directory, hold, ports.refusals.now_ms())
        await holds.keep(hold)
        if short is not None:
            raise short
    own_answer(exchange, 200, _JSON, hold.render(None))


async def settle_hold(exchange: Exchange) -> None:
    """Settle a hold once by the usage that its caller states. A repeated request gets the same answer."""
    await _settle_by(exchange, BODY_BYTES_MAX, lambda _, body: StatedUse(read_body(SettleBody, body)))


async def settle_by_answer(exchange: Exchange) -> None:
    """Settle a hold by the upstream's answer, which is metered like a proxied answer."""
    params, worker = exchange.head.routed.params, exchange.worker

    def read_answer(hold: CallerHold, body: bytes) -> StatedUse:
        status = whole_in(params["status"], 100, 599, "status")
        kind, coding = (params[name].encode("latin-1") for name in ("content-type", "content-encoding"))
        return use_in_answer(hold, status, kind, coding.lower(), body, worker.bounds)

    await _settle_by(exchange, worker.limits.body_bytes_max, read_answer)


async def _settle_by(
    exchange: Exchange, bytes_max: int, read_use: Callable[[CallerHold, bytes], StatedUse]
) -> None:
    """Settle a hold by the usage that `read_use` finds in the body of an exchange."""
    caller = cached_caller(exchange) or await identify(exchange)
    ports = exchange.worker.ports
    with exchange.uninterrupted():
        body = await exchange.whole_body(caller, bytes_max)
        hold = await ports.holds.find(caller, exchange.head.routed.params["id"])
        use = read_use(hold, body)
        end = await ports.holds.end_of(hold)
        if end is None:
            prices = _prices_then(ports, hold)
            label = exchange.head.routed.label if hold.call is None else hold.call.route
            end = end_settled(
                hold, use.body, use.detail, prices, ports.directory.price, label, ports.holds.now_ms(),
                use.is_estimated,
            )  # fmt: skip
            if use.created:
                await ports.objects.keep(hold.caller, use.created[:1], KEPT_ANSWERS, use.tokens)
                await ports.objects.keep(hold.caller, use.created[1:], KEPT_ANSWERS)
            end = await ports.holds.decide(hold, end)
        if end.released:
            if not end.applied and not await _given_back(ports, hold, end):
                raise CountersUnavailable(retry_after_s=1)  # it was charged as held: settled again, it counts
            raise HoldEnded("The hold was released: nothing can be charged for it any more.")
        if not end.applied:
            await _settle(ports, hold, end)
    own_answer(exchange, 200, _JSON, end.answer.encode())


async def release_hold(exchange: Exchange) -> None:
    """Release a hold without a charge. If Redis is unavailable, a worker releases it later."""
    caller = cached_caller(exchange) or await identify(exchange)
    ports, id_, route = exchange.worker.ports, exchange.head.routed.params["id"], exchange.head.routed.label
    with exchange.uninterrupted():
        if exchange.head.refusal is not None:
            raise exchange.head.refusal
        try:
            await release(ports, caller, id_, route)
        except CountersUnavailable:
            await ports.holds.delete_later(caller, id_, route)
            raise
    own_answer(exchange, 204, [], b"")


async def release(ports: Ports, caller: Caller, id_: str, route: str) -> None:
    """Release a caller's hold; raise `HoldEnded` if it was settled, or charged when it expired.

    A hold that was charged is not marked as released, so that a late settlement counts.
    """
    hold = await ports.holds.find(caller, id_)
    now_ms = ports.holds.now_ms()
    expired = holds_charged(hold, now_ms) and await ports.holds.is_gone(hold)
    if expired and await ports.holds.end_of(hold) is None:
        raise HoldEnded(_CHARGED)
    end = await ports.holds.decide(hold, end_released(hold, route, now_ms))
    if not end.released:
        raise HoldEnded("The hold was settled: what it was charged stays.")
    if not end.applied and not await _given_back(ports, hold, end):
        raise HoldEnded(_CHARGED)


async def delete_again(ports: Ports, raw: bytes) -> None:
    """Release a hold whose caller got 503, unless it has ended. Must run in an asyncio task.

    Raise `CountersUnavailable` if Redis is still unavailable.
    """
    await in_task(begin(_delete_again(ports, raw)))


async def _delete_again(ports: Ports, raw: bytes) -> None:
    wish = read_deletion(raw)
    with suppress(HoldNotFound, HoldEnded):
        await release(ports, wish.caller, wish.id, wish.route)


async def _given_back(ports: Ports, hold: CallerHold, end: HoldEnd) -> bool:
    """Release a hold in Redis, as `end` has decided; False if the hold was charged when it expired.

    Then its stored end is deleted again.
    """
    settled = await _settled(ports, hold, end)
    if settled is SettleResult.UNKNOWN_ACCOUNT:  # it is still held
        raise CountersUnavailable(retry_after_s=1)
    if settled is SettleResult.RECLAIMED and hold.unsettled == UNSETTLED_CHARGED:
        await ports.holds.undecide(hold)
        return False
    await ports.holds.ended(hold, end)
    return True


def holds_charged(hold: CallerHold, now_ms: int) -> bool:
    """Return whether a hold has expired and is charged at its expiry, instead of being released."""
    return hold.unsettled == UNSETTLED_CHARGED and now_ms > hold.expires_ms


async def _keep(ports: Ports, hold: CallerHold, key: str, body: bytes, told: bytes) -> None:
    """Store a new hold, and `told` as the answer of its idempotency `key`; if this fails, release it."""
    try:
        await ports.holds.keep(hold, key, body, told)
    except CountersUnavailable:
        await _give_back(ports, hold)
        raise


# The request of a hold, on the same limits as a call.


async def _take_hold(
    exchange: Exchange, caller: Caller, body: HoldBody, id_: str, *, again: bool = False,
    authorized: CallRequest | None = None,
) -> tuple[CallerHold, Admitted, int | None]:  # fmt: skip
    """Acquire a hold; return its record, its admission, and the amount that remains, in the hold's unit.

    `body` is the request; `again` is set if it was sent before. A hold of an `authorized` call covers its
    highest possible use, because no maximum can be written into its body.
    """
    worker, head = exchange.worker, exchange.head
    entrance = CallEntrance(exchange, caller, None)
    try:
        route, use, unit = (
            await _use(worker, id_, head.attribution, caller, body)
            if authorized is None
            else (
                head.routed.route,
                entrance.request_of(authorized, is_called=False),
                _unit(authorized, body),
            )
        )
    except Refusal:
        await reserve_before_body(exchange, caller)
        raise
    call, attribution = use.call, use.attribution
    exchange.call = call
    own = _HoldClaim(worker.ports, use, body, again, authorized is not None)
    (service, prices, budgets, run), claim, request, admitted, *_ = await admit(
        worker.admission, use, entrance, own
    )
    asked = own.asked
    if body.amount is None:
        asked = own.need if unit == TOKENS else request.units
    if exchange.admitted is not None:  # the new hold replaces the amounts held before its body was read
        if id_ != exchange.request_id:
            await exchange.admitted.settle(0, complete=False, abandoned=False, failed=(0, ""))
            exchange.shield()
        exchange.admitted = None
    hold = CallerHold(
        id_, caller.organization_id, caller.tenant_id, caller.key_id, caller.partition, service, unit, asked,
        HeldAmounts(
            admitted.held_tokens, admitted.held_credits, request.units, admitted.money_held,
            admitted.budget_tokens_held,
        ),
        admitted.now_ms, admitted.now_ms + request.ttl_ms, caller.unsettled, request.user, call.spec.model,
        request.names if budgets is not None else (), "" if budgets is None else budgets.currency,
        prices.own, admitted.weights, head.said.columns, attribution.session,
        attribution.metadata.decode(), None if route is None else held_call(route, call),
        call.models_beside, tuple([target.model for target in call.aim.targets]), "" if run is None else run.id,
        prices.at_ms, worker.ports.directory.tags(caller, attribution),
        worker.ports.directory.groups(caller, attribution, call),
    )  # fmt: skip
    if unit == TOKENS and service.counts_tokens and admitted.weights is None:
        hold.asked = admitted.held_tokens
    refusal = _overruling(worker, call, claim, admitted, budgets, route)
    if refusal is not None:
        await _give_back(worker.ports, hold)
        raise refusal
    return hold, admitted, _remaining(admitted, service, unit)


class _HoldClaim:
    """The claim of a hold: as `said` by its caller, or as much as a call may use that another gateway describes.

    `need` are the tokens of its estimate, and `asked` is its amount in its unit.
    """

    def __init__(
        self, ports: Ports, use: UseRequest, body: HoldBody, again: bool, is_authorized: bool
    ) -> None:
        self._ports, self._use, self._said = ports, use, body
        self._again, self._is_authorized = again, is_authorized
        self.need = self.asked = 0

    def claim(self, terms: AdmissionTerms) -> tuple[CallClaim, HoldRequest]:
        """Return what the hold takes of each limit: what it says, or what its request may use."""
        service, prices, budgets, _ = terms
        use, said = self._use, self._said
        call, estimate = use.call, _estimate(self._ports, use.caller, service, said, use.call)
        if self._is_authorized:
            most = estimate.need if call.output_max is None else estimate.ceiling
            estimate = replace(estimate, need=most, least=0)
        claim, request, self.asked = _make_request(
            use.caller, use.id, use.user, service, call, estimate, prices, budgets, said.amount, self._again
        )
        self.need, request.ttl_ms = estimate.need, 1000 * said.ttl_s
        request.whole = call.output_max is not None and said.request is None
        return claim, request

    def enter(self) -> Awaitable[None]:
        """Count the hold among its caller's open holds."""
        return self._ports.holds.enter(self._use.caller, self._use.id)


def _overruling(  # noqa: PLR0917  # a call, and the decision on it
    worker: Worker, call: CallRequest, claim: CallClaim, decision: Admitted,
    budgets: CallBudgets | None, route: Route | None,
) -> InvalidRequest | None:  # fmt: skip
    """Return the refusal of a call with a number in its body that may overrule the maximum of its answer.

    None if there is none, or if the call needs no maximum.
    """
    enforced = NO_UNITS if budgets is None else budgets.enforced
    bound = None if route is None else answer_bound(call, claim, decision, enforced)
    if route is None or bound is None:
        return None
    try:
        check_numbers(call, fields_allowed(worker.admission, call, route.upstream), bound)
    except InvalidRequest as refusal:
        return refusal
    return None


def _unit(call: CallRequest, body: HoldBody) -> str:
    """Return the unit of a hold for a call."""
    return TOKENS if call.has_input else unit_of(body)


async def _use(
    worker: Worker, id_: str, attribution: Attribution, caller: Caller, body: HoldBody
) -> tuple[Route | None, UseRequest, str]:
    """Return the route (if any), the use and the unit of the hold that `body` requests."""
    ports = worker.ports
    if sum(one is not None for one in (body.max_tokens, body.amount, body.request)) > 1:
        raise InvalidRequest("A hold states one of max_tokens, amount and request.", param="max_tokens")
    if ports.directory.service(body.service) is None:
        raise ServiceNotIncluded(f"There is no service {body.service}.")
    reader = worker.heads.bindings.read_by(body.service)
    family = GENERIC if reader is None else reader.family
    route, call = None, CallRequest("none", family, Body(), CallSpec(body.model), body.max_tokens)
    if body.request is not None:
        route = reader
        if route is None:
            raise InvalidRequest(
                f"No route reads requests of the service {body.service}: say max_tokens or amount.",
                param="request",
            )
        call = read_call(route, {"model": body.model}, write_document(body.request), worker.bounds)
        if body.model and call.spec.model != body.model:
            raise InvalidRequest("model is another one in the request.", param="model")
        if call.unmeasured:
            await count_in_turn(worker, caller, call)
        read_objects(_access(route), call)
    if body.run:
        try:
            attribution = replace(attribution, run=read_run(body.run))
        except ValueError as error:
            raise InvalidRequest(f"run {error}.", param="run") from error
    user = caller.acts_for(body.user or attribution.user, call.spec.user)
    use = UseRequest(
        HOLD, id_, caller, user, replace(attribution, user=user), call, body.service,
        "" if route is None else route.upstream, None if reader is None else _access(reader),
        "this hold names none",
    )  # fmt: skip
    return route, use, _unit(call, body)


def _access(route: Route) -> ObjectAccess:
    """Return how the calls of a route access stored objects."""
    return ObjectAccess((), SHAPES[route.meter].keeps, apart=route.objects != "shared")


def _estimate(ports: Ports, caller: Caller, service: Service, body: HoldBody, call: CallRequest) -> Estimate:
    """Return the tokens of a hold: a stated maximum counts as output, a request is estimated as a call."""
    if call.has_input:
        return ports.estimator.hold(call, caller.organization_id, service.key)
    if body.max_tokens is not None:
        return Estimate(body.max_tokens, body.max_tokens, answers=1)
    if body.amount is None and service.counts_tokens:
        raise InvalidRequest(
            f"The service {service.key} counts tokens: say max_tokens, amount or request.", param="max_tokens"
        )
    # A hold of money or units counts no tokens yet, but a used-up quota refuses it.
    return Estimate(1, 1) if service.counts_tokens else NO_ESTIMATE


def _make_request(  # noqa: PLR0917  # whose hold it is, and what it takes
    caller: Caller, id_: str, user: str, service: Service, call: CallRequest, estimate: Estimate,
    prices: CallPrices, budgets: CallBudgets | None, amount: int | str | None, raises: bool,
) -> tuple[CallClaim, HoldRequest, int]:  # fmt: skip
    """Return the hold's claim on limits, its request to Redis, and the requested amount in the hold's unit.

    With `raises`, Redis looks for an earlier hold of the same id, and raises its amount.
    """
    units = amount if isinstance(amount, int) else 1
    claim, request = hold_request(caller, id_, user, service, call, estimate, prices, budgets, units, raises)
    if not isinstance(amount, str):
        return claim, request, units
    nano = money_of(amount, "amount")
    if nano == 0:  # a used-up budget would admit it
        raise InvalidRequest('amount must be more than 0, such as "5.00".', param="amount")
    if service.pricing.per_million is not None:
        raise InvalidRequest(
            f"The service {service.key} costs credits by token: say max_tokens or request.", param="amount"
        )
    if budgets is not None and MONEY in budgets.units:
        request.money, request.money_most, request.money_least = nano, nano, 0
    cost = charged(nano, factor_of(service))
    if is_in_money(service):
        request.units = min(cost, INTEGER_MAX)
    elif service.pricing.at_cost is not None and service.meter == CONSUMPTION:
        request.credits, request.credits_least = min(whole_credits(cost)[0], INTEGER_MAX), 0
    return claim, request, nano


def _remaining(decision: Admitted, service: Service, unit: str) -> int | None:
    """Return the amount in `unit` that the caller may still hold, by the limit that leaves the least.

    None if no limit has this unit.
    """
    found, window = list[int](), decision.budget
    if unit == TOKENS and decision.tokens_remaining is not None:
        found.append(decision.tokens_remaining)
    if unit == UNITS and decision.credits_remaining is not None and service.credits:
        found.append(max(0, decision.credits_remaining) // service.credits)
    if window is not None and UNIT_OF[window.unit] == unit:
        found.append(window.left)
    return min(found) if found else None


def _attributed(attribution: Attribution, hold: CallerHold) -> Attribution:
    """Return the attribution of a request about a hold, with the facts by which the hold's budgets were found."""
    return replace(
        attribution, user=hold.user, project_id=hold.project_id, session=hold.session, run=None, tags=hold.tags,
    )  # fmt: skip


async def _more(
    ports: Ports, attribution: Attribution, hold: CallerHold, more: int | str
) -> tuple[HeldAmounts, int]:
    """Return a hold's total amounts after an increase by `more` in its unit, and the increase."""
    caller, service = hold.caller, hold.service
    if hold.unit == UNITS:
        raise InvalidRequest("A hold in units stays as it is: take another one beside it.", param="more")
    if isinstance(more, str) is not (hold.unit == MONEY):
        right = 'a decimal such as "5.00"' if hold.unit == MONEY else "a number of tokens"
        raise InvalidRequest(f"more must be {right}, as the hold is in {hold.unit}.", param="more")
    call = hold.names(more if isinstance(more, int) else None)
    estimate = Estimate(more, more, answers=1) if isinstance(more, int) else NO_ESTIMATE
    opened = None
    if hold.run:
        run = RunRequest(hold.run)
        opened = ports.runs.cached(caller, run) or await ports.runs.find(caller, run, ())
    _, prices, budgets, _ = consider(ports, caller, attribution, call, service, opened, bool(hold.budgets))
    amount = more if isinstance(more, str) else None
    _, request, asked = _make_request(
        caller, hold.id, hold.user, service, call, estimate, prices, budgets, amount, raises=True
    )
    held, tokens = hold.held, request.need if hold.weights is None else hold.weights.at_most(request.need, 0)
    wanted = HeldAmounts(
        held.tokens + tokens, held.credits + request.credits, held.units, held.money + request.money,
        held.budget_tokens + request.budget_tokens,
    )  # fmt: skip
    if max(wanted.tokens, wanted.credits, wanted.money, wanted.budget_tokens) > INTEGER_MAX or (
        hold.unit == MONEY and hold.asked + asked > INTEGER_MAX
    ):
        most = "9007199.254740991 of its currency" if hold.unit == MONEY else "one call may"
        raise InvalidRequest(f"more makes the hold larger than {most}.", param="more")
    return wanted, asked if isinstance(more, str) else more


def _dearer_ms(directory: DirectoryPort, hold: CallerHold, now_ms: int) -> int:
    """Return the time of the prices of a hold that is extended now: now, if one has a dearer hour than before.

    So an extension through dear hours has no cheap price.
    """
    then_ms, named = _named_then(directory, hold)
    vectors = [one.vector for one in named if one.vector is not None and one.vector.hours is not None]
    dearer = [at_moment(vector, now_ms).prices > vector.prices for vector in vectors]
    return now_ms if any(dearer) else then_ms


def _short(amounts: HeldAmounts, wanted: HeldAmounts) -> Refusal | None:
    """Return the refusal by the account in `amounts` that had too little for an extension, or None."""
    kept = "The hold has no more than before, and its new time."
    if amounts.tokens < wanted.tokens:
        return QuotaExceeded(f"The quota has too little for this. {kept}")
    if amounts.credits < wanted.credits:
        return InsufficientCredits(f"The organization has too few credits for this. {kept}")
    if amounts.money < wanted.money or amounts.budget_tokens < wanted.budget_tokens:
        return BudgetExceeded(f"A budget has too little for this. {kept}")
    return None


# Its end.


def _named_then(directory: DirectoryPort, hold: CallerHold) -> tuple[int, tuple[PriceMatch, ...]]:
    """Return the time of a hold's prices (Unix ms), and the prices of its models then."""
    at_ms = hold.priced_ms or hold.created_ms
    return at_ms, named_prices(directory, hold.caller, hold.names(), hold.own, at_ms) if hold.model else ()


def _prices_then(ports: Ports, hold: CallerHold) -> CallPrices:
    """Return the prices of a hold at its `priced_ms`. The highest of its models' prices counts by default."""
    at_ms, named = _named_then(ports.directory, hold)
    vectors = charging_prices(hold.service, hold.names(), named)
    return CallPrices(
        (dearest(vectors),) if len(vectors) > 1 else vectors, named, at_ms, hold.own, hourly=True
    )


async def _settle(ports: Ports, hold: CallerHold, end: HoldEnd) -> None:
    """Settle a hold in Redis as `end` has decided.

    If Redis does not know the hold, it was settled before, or the keeper restores it. Without its account the
    keeper charges it once that is stored.
    """
    settled = await _settled(ports, hold, end)
    await ports.holds.ended(hold, end)
    counted = counted_of(hold, end)
    if counted is not None and settled is not SettleResult.UNKNOWN:
        ports.tally.charged(counted)


async def _settled(ports: Ports, hold: CallerHold, end: HoldEnd) -> SettleResult:
    """Send the settlement of a hold to Redis; raise `CountersUnavailable` if its data is not verified."""
    settled = await ports.counters.settle(end.settlement(hold))
    if settled is SettleResult.UNVERIFIED:
        raise CountersUnavailable(retry_after_s=1)
    return settled


async def _give_back(ports: Ports, hold: CallerHold) -> None:
    """Release a hold whose caller never learned its id."""
    release = Settlement(
        hold.caller, hold.id, hold.user, hold.service, charge=False, budgets=hold.budgets,
        hold_ttl_ms=hold.expires_ms - hold.created_ms,
    )  # fmt: skip
    await ports.counters.settle(release)
