"""The hold of one call and what becomes of it: charged once, or released.

Everything a settlement says is put together here. Whoever holds a `Charge` ends it with
exactly one `settle`; neither that nor `reserve` is ever interrupted, both are bounded in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.core.accounts.budgets import MONEY, TOKENS
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.outbox import (
    NONE,
    OUTPUT,
    REASONING,
    TEXT_CHARACTERS_MAX,
    CallFacts,
    briefly,
    named_unpriced,
    write_facts,
)
from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import Counts, TokenRate, Vector, cost_nano, unpriced, usual_rate
from gateway.core.calls.call import Call, Priced, answering, input_tokens, is_model
from gateway.core.calls.claims import (
    NO_ESTIMATE,
    Estimate,
    budget_bound,
    budget_claim,
    check_numbers,
    claimed,
    dearest_of,
    limit_models,
    limit_output,
    limit_uses,
    output_bound,
    unpriced_tools,
)
from gateway.core.calls.tariff import UNPRICED, Vectors, charge_of, covered, rate_of, vectors_of
from gateway.core.families.refusal import from_decision
from gateway.core.families.registry import SHAPES
from gateway.core.metering.meter import Detail
from gateway.core.metering.meters import AnswerMeter
from gateway.core.model import (
    INTEGER_MAX,
    Attribution,
    Caller,
    Decision,
    HoldRequest,
    Observed,
    Service,
    Settled,
    Settlement,
    Usage,
    Verdict,
)
from gateway.errors import CountersUnavailable, ModelNotPriced, Refusal
from gateway.http.ports import Counters, Directory, Ports
from gateway.http.server.exchange import Exchange
from gateway.http.tally import NEVER, Tally

# What a call that is about to be settled is stored as: what it used and cost, how it went, why it failed.


NO_DETAIL = Detail()
# Why a call failed whose upstream said so.
UPSTREAM_ERROR = "upstream_error"


def settled_facts(  # noqa: PLR0917  # what a call was, part by part
    exchange: Exchange, call: Call, meter: AnswerMeter | None, usage: Usage, counts: Counts, status: int,
    first_token: float, upstream_id: bytes, price: Vector | None, cost: int | None, reason: str,
) -> CallFacts:  # fmt: skip
    """The facts of a call, whose `first_token` came at this second of the exchange's clock, 0 for never.

    `reason` says why it failed, empty where it did not.
    """
    started = exchange.started
    took = exchange.worker.ports.seconds() - started
    if first_token:
        first_token -= started
    elif call.streamed and meter is not None and meter.produced:
        first_token = took  # all of it came at once
    detail = NO_DETAIL if meter is None else meter.detail
    head = exchange.head
    stated = head.attribution.metadata
    return CallFacts(
        model=call.model,
        response_model=detail.model,
        streamed=call.streamed,
        status=status,
        duration_ms=int(took * 1000),
        first_token_ms=int(first_token * 1000) if first_token else None,
        counts=counts,
        total=usage.total,
        units=usage.units,
        estimated=usage.estimated,
        tools=detail.tools,
        service_tier=detail.service_tier,
        cost=cost,
        currency="" if price is None else price.currency,
        price_id=0 if price is None else price.price_id,
        route=exchange.routed.label,
        session=head.attribution.session,
        upstream_request_id=upstream_id[:TEXT_CHARACTERS_MAX].decode("latin-1"),
        metadata=msgspec.Raw(stated) if stated else NONE,
        unknown=msgspec.Raw(detail.unknown) if detail.unknown else NONE,
        reason=reason or (UPSTREAM_ERROR if status >= 400 else ""),
        unpriced=named_unpriced(unpriced(price, detail.tools)) if price is not None and detail.tools else "",
    )


# Which prices a call may have: those of all models it names, as they are when it is admitted.
#
# The hold, the charge and the cost go by these, whatever is set while the call runs. Only what has no price
# at its admission, where money does not decide, has that of the name which answers.


@dataclass(slots=True)
class Admitted:
    """The prices of an admission at this second: `vectors` by which credits or money are charged, none where
    tokens do not set the price, and of the price book those of each model `named`, the asked one's first.
    """

    vectors: Vectors = UNPRICED
    named: tuple[Priced, ...] = ()
    at_s: float = 0.0
    own: bool = False


NO_PRICES: Final = Admitted()
_NO_PRICE: Final = Priced("", None)
_BY_COST: Final = "its service is charged what it costs"


def admitted_at(
    ports: Ports, caller: Caller, service: Service, said: Attribution, call: Call
) -> tuple[Admitted, CallBudgets | None]:
    """The prices of a call and the budgets it takes from; `ModelNotPriced` where one is missing."""
    budgets = ports.directory.budgets(caller, service.id, said, call) if service.id else None
    return prices_under(ports, caller, service, call, budgets), budgets


def prices_under(
    ports: Ports, caller: Caller, service: Service, call: Call, budgets: CallBudgets | None
) -> Admitted:
    """The prices of a call that takes from these budgets; `ModelNotPriced` where one is missing."""
    budgeted = budgets is not None and MONEY in budgets.enforced
    prices = prices_of(ports.directory, caller, service, call, ports.seconds(), budgeted)
    by_cost, asking = service.pricing.at_cost is not None, budgets if budgeted else None
    if ports.refuse_unpriced or budgeted:
        check_known(prices, call, asking)
    if ports.refuse_unpriced or budgeted or by_cost:
        _check_tools(prices, call, _BY_COST if by_cost else _why(asking))
    return prices


def prices_of(  # noqa: PLR0917  # whose call, of what, and whether budgets of money go by it
    directory: Directory, caller: Caller, service: Service, call: Call, now_s: float, budgeted: bool = False
) -> Admitted:
    """The prices a call may have; `ModelNotPriced` where one decides that nobody says.

    Where money of the organization decides, no price is in another currency than its own.
    """
    pricing, at_cost = service.pricing, service.pricing.at_cost is not None
    own = at_cost or budgeted
    named: tuple[Priced, ...] = ()
    if call.model:
        named = (_book(directory, caller, call.model, own),)
        if call.models_beside:
            beside = [model for model in dict.fromkeys(call.models_beside) if model != call.model]
            named += tuple([_book(directory, caller, model, own) for model in beside])
    if not at_cost and pricing.per_million is None and not pricing.tiers:
        return Admitted(UNPRICED, named, now_s, own)
    book = {one.model: one.vector for one in named}
    vectors = vectors_of(service, (call.model, *call.models_beside), book.get)
    return Admitted(vectors, named, now_s, own)


def in_currency(admitted: Admitted, currency: str) -> tuple[Vector, ...]:
    """The prices of the models that may answer, but for those that are in another currency."""
    found = (one.vector for one in admitted.named)
    return tuple([vector for vector in found if vector is not None and vector.currency == currency])


def price_of(  # noqa: PLR0917  # whose call, at which prices it was admitted, and what came of it
    directory: Directory, caller: Caller, admitted: Admitted, detail: Detail, counts: tuple[int, ...],
    now_s: float,
) -> Priced:  # fmt: skip
    """The price of a call of its admission, now that it is known what answered and how much was used."""
    named, answered = admitted.named, detail.model
    if not named:
        return _NO_PRICE
    found = named[0]
    if len(named) > 1:
        found = answering(named, answered, counts, detail.tools, detail.service_tier)
    if (found.vector is None or found.stands_in) and answered and not admitted.own:
        if answered.lower() == found.model.lower():
            return found
        vector = directory.price(caller, answered, now_s - admitted.at_s)
        if vector is not None:
            return Priced(answered, vector)
    return found


def cost_of(  # noqa: PLR0917  # as `price_of`, whose answer `price` is
    directory: Directory, caller: Caller, admitted: Admitted, price: Priced, detail: Detail, counts: Counts,
    now_s: float,
) -> int | None:  # fmt: skip
    """What a call costs in nano-units; tokens of another model within it cost what that model's do."""
    vector = price.vector
    if vector is None:
        return None
    whole, left = 0, counts
    for model, said in detail.beside:
        part = tuple([min(each, most) for each, most in zip(said, left, strict=True)])
        left = tuple([most - each for each, most in zip(part, left, strict=True)])
        known = [one for one in admitted.named if is_model(model, one.model)]
        own = max(known, key=lambda one: len(one.model)).vector if known else None
        if own is None and model:
            own = directory.price(caller, model, now_s - admitted.at_s, admitted.own)
        if own is not None and own.currency == vector.currency:
            vectors: tuple[Vector, ...] = (own,)
        else:
            vectors = (vector, *in_currency(admitted, vector.currency))
        whole += max(cost_nano(one._replace(request=0), part, tier=detail.service_tier) for one in vectors)
    if detail.beside:  # reasoning is of the output that is left
        left = (*left[:REASONING], min(left[REASONING], left[OUTPUT]), *left[REASONING + 1 :])
    return whole + cost_nano(vector, left, detail.tools, detail.service_tier)


def check_known(admitted: Admitted, call: Call, budgets: CallBudgets | None = None) -> None:
    """`ModelNotPriced` where a model that may answer has no price; it says which of `budgets` asks for one.

    Under a budget of money a call of a model must say which: what its upstream would choose nobody can price.
    """
    if budgets is not None and not call.model and call.meter in SHAPES:
        name = budgets.refusing(MONEY)
        raise ModelNotPriced(f"The budget {name} limits what calls cost, and this one names no model.")
    for one in admitted.named:
        if one.vector is None:
            raise ModelNotPriced(f"The model {one.model} has no price here, and {_why(budgets)}.")


def _check_tools(admitted: Admitted, call: Call, why: str) -> None:
    """`ModelNotPriced` where a tool that the call may use has no price."""
    vectors = [one.vector for one in admitted.named if one.vector is not None]
    found = unpriced_tools(call, vectors)
    if found:
        of = " or ".join([one.model for one in admitted.named])
        raise ModelNotPriced(f"The tool {found[0]} of {of} has no price here, and {why}.", param="tools")


def _why(budgets: CallBudgets | None) -> str:
    if budgets is None:
        return "calls without one are refused"
    return f"the budget {budgets.refusing(MONEY)} limits what calls cost"


def _book(directory: Directory, caller: Caller, model: str, own: bool) -> Priced:
    found: Vector | None = directory.price(caller, model, 0.0, own)
    if found is not None:
        return Priced(model, found)
    found = directory.price_as(caller, model, 0.0, own)
    return Priced(model, found, found is not None)


# What one call holds of budgets: what it asks for, how far that binds it, and what it came to.


class BudgetHold:
    """The part of a call's hold that is of `budgets`; `accounts` are those it took from, once admitted."""

    __slots__ = ("_claim", "_prices", "_read", "_usual", "accounts", "budgets")

    def __init__(
        self, budgets: CallBudgets, admitted: Admitted, estimate: Estimate, call: Call, request: HoldRequest
    ) -> None:
        """Have the request ask for what the call could cost, and for how many tokens it could use."""
        units = budgets.units
        self.budgets = budgets
        self.accounts: tuple[str, ...] = ()
        self._prices = in_currency(admitted, budgets.currency) if MONEY in units else ()
        claim = self._claim = budget_claim(self._prices, estimate, call)
        self._read = call.input_estimate
        self._usual: TokenRate | None = None
        request.budgets, request.names = budgets.accounts, budgets.names
        request.money, request.money_most = claim.money, claim.money_most
        request.money_least = claim.money_least
        if TOKENS in units:
            request.raw_tokens, request.raw_most = claim.raw_tokens, claim.raw_most
            request.raw_least = min(estimate.least, claim.raw_tokens)

    @property
    def usual(self) -> TokenRate | None:
        """What the call costs while it runs; None where nobody says, or no budget asks."""
        if self._usual is None and self._prices:
            self._usual = usual_rate(self._prices, self._read, in_money=True)
        return self._usual

    @property
    def counts_tokens(self) -> bool:
        """Whether a window is of tokens."""
        return TOKENS in self.budgets.units

    def name_in(self, decision: Decision) -> None:
        """Say what the budget is called that a decision tells of."""
        if decision.budget is not None:
            self.budgets.name_in(decision.budget)

    def refusal(self, decision: Decision, tally: Tally) -> Refusal:
        """The refusal a decision stands for, counted where a budget refuses."""
        refusal, window = from_decision(decision), decision.budget
        budget = None if window is None else self.budgets.by_id.get(window.budget_id)
        if budget is not None:
            tally.budget_refused(refusal.reason, budget.unit, budget.interval)
        return refusal

    def bound(self, request: HoldRequest, decision: Decision, estimate: Estimate, call: Call) -> int | None:
        """The call is admitted: the most tokens of one answer that its hold allows, None for no limit."""
        self.accounts = request.names
        enforced = self.budgets.enforced
        if MONEY in enforced:
            limit_uses(call, self._prices)
        return budget_bound(self._claim, call, estimate, decision, enforced)

    def covered(self, decision: Decision) -> int:
        """How many tokens of the call its hold covers."""
        most, rate = decision.raw_held if self.counts_tokens else ENDLESS, self.usual
        return most if rate is None else min(most, rate.paid(decision.money_held))

    def money(self, facts: CallFacts) -> int:
        """What a call came to in nano-units; nothing where it has no price in the currency of its budgets."""
        cost = facts.cost
        if cost is None or facts.currency != self.budgets.currency:
            return 0
        return min(cost, INTEGER_MAX)


# Whether the hold of a call that runs covers what was seen of it; what does not is extended meanwhile.


class Coverage:
    """The hold of one call, as `decision` says it was taken; it is watched from when it no longer covers."""

    __slots__ = (
        "_budget_hold",
        "_caller",
        "_counters",
        "_decision",
        "_most",
        "_observed",
        "_rate",
        "_request_id",
        "_service",
    )

    def __init__(  # noqa: PLR0917  # whose hold, of what, and at which price
        self, counters: Counters, caller: Caller, request_id: str, service: Service, decision: Decision,
        rate: TokenRate | None, budget_hold: BudgetHold | None, most: int,
    ) -> None:  # fmt: skip
        self._counters, self._caller, self._request_id = counters, caller, request_id
        self._service, self._decision, self._rate, self._budget_hold = service, decision, rate, budget_hold
        self._most = most
        self._observed: Observed | None = None

    def watch(self) -> Observed:
        """Have the hold renewed from now on."""
        observed = self._observed
        if observed is not None:
            return observed
        budget_hold, decision = self._budget_hold, self._decision
        observed = self._observed = Observed(
            self._caller, self._request_id, self._covered(),
            counts=self._service.counts_tokens, rate=self._rate,
            weights=decision.weights, quota=decision.held_tokens, most=self._most or INTEGER_MAX,
        )  # fmt: skip
        if budget_hold is not None:
            observed.budgets, observed.money_rate = budget_hold.accounts, budget_hold.usual
            observed.counts_raw = budget_hold.counts_tokens
        self._counters.watch(observed)
        return observed

    def let_go(self) -> None:
        """The call is over, or another holds what it held."""
        if self._observed is not None:
            self._counters.unwatch(self._observed)
            self._observed = None

    def covers(self, tokens: int, meter: AnswerMeter | None) -> bool:
        """Whether a stream of so many tokens may go on."""
        decision, observed = self._decision, self._observed
        weighed = _weighed(decision, meter) if decision.weights is not None else 0
        if observed is None:
            if tokens <= self._covered() and weighed <= decision.held_tokens:
                return True
            observed = self.watch()
        observed.tokens, observed.weighed = tokens, weighed
        holds = tokens < observed.held or tokens == observed.held == observed.most
        if holds and (not weighed or weighed < observed.quota):
            return True
        if observed.exhausted:
            return not observed.cut
        self._counters.outgrown(observed)
        return True

    def _covered(self) -> int:
        """Tokens the hold covers as it was taken; what a plan weighs is apart."""
        decision, budget_hold = self._decision, self._budget_hold
        counts = self._service.counts_tokens and decision.weights is None
        most = covered(counts, self._rate, decision.held_tokens, decision.held_credits)
        return most if budget_hold is None else min(most, budget_hold.covered(decision))


def _weighed(decision: Decision, meter: AnswerMeter | None) -> int:
    """How many tokens of the quota were seen so far."""
    weights = decision.weights
    if weights is None or meter is None:
        return 0
    usage = meter.so_far()
    return weights.count(meter.detail.counts(usage), usage.total)


_UNUSED = Usage(units=0)
TIMED_OUT = frozenset({408, 504, 524})  # the last one is Cloudflare's
_NO_FIELDS: frozenset[str] = frozenset()
# The status a client is told, 0 for its upstream's, and why.
Failed = tuple[int, str]
_NOT: Failed = (0, "")


class Charge:
    """One call's claim on its limits: its exchange has this one, from `reserve` to one `settle`.

    `decision` is set by `reserve`, `meter` once an answer is metered, `due` in between. `upstream_id` is
    the upstream's own name of the call, `first_token` when a stream first produced something, in seconds of
    the exchange's clock, 0 before. One that `raises` another takes over what that holds, by the call's
    head, once it is admitted itself.
    """

    __slots__ = (
        "_admitted",
        "_budget_hold",
        "_budgets",
        "_caller",
        "_coverage",
        "_exchange",
        "_raises",
        "_rate",
        "_service",
        "_stands_in",
        "_user",
        "_worker",
        "call",
        "decision",
        "due",
        "first_token",
        "meter",
        "upstream_id",
    )

    decision: Decision
    _rate: TokenRate | None

    def __init__(  # noqa: PLR0917  # who asks for what, and what it costs
        self, exchange: Exchange, caller: Caller, service: Service, call: Call,
        raises: Charge | None = None, admitted: Admitted = NO_PRICES, budgets: CallBudgets | None = None,
    ) -> None:  # fmt: skip
        self._exchange = exchange
        self._worker = exchange.worker
        self._caller = caller
        self._service = service
        self.call = call
        self._user = caller.acts_for(exchange.head.attribution.user, call.user)
        self._raises = raises
        self._admitted = admitted
        self._budgets = budgets
        self._budget_hold: BudgetHold | None = None
        self._stands_in = False
        self._coverage: Coverage | None = None
        self.meter: AnswerMeter | None = None
        self.upstream_id = b""
        self.first_token = 0.0
        self.due = False

    async def reserve(self) -> None:
        """Take a hold on every limit, or raise the `Refusal` that says which one is short."""
        exchange, worker, service = self._exchange, self._worker, self._service
        ports, clock, limits = worker.ports, worker.clock, worker.limits
        call, caller = self.call, self._caller
        prices, estimate, budgets = self._admitted.vectors, NO_ESTIMATE, self._budgets
        if service.counts_tokens or prices or budgets is not None:
            estimate = ports.estimator.hold(call, caller.organization_id, service.key)
        dearest = dearest_of(service, prices, estimate, call)
        rate = rate_of(service, prices, call.input_estimate) if prices else None
        credits_held, credits_least, units = claimed(service, dearest, estimate, exchange.routed.units)
        held = estimate if service.counts_tokens else NO_ESTIMATE
        request = HoldRequest(
            caller, exchange.request_id, self._user, service, held.need, held.ceiling, credits_held, units,
            self._raises is not None, held.least, credits_least, held.read,
            call.input_estimate if held.need else 0,
        )  # fmt: skip
        budget_hold = None
        if budgets is not None:
            budget_hold = self._budget_hold = BudgetHold(budgets, self._admitted, estimate, call, request)
        exchange.shielded, exchange.deadline = True, clock.now + limits.counters_s
        try:
            decision = await ports.counters.reserve(request)
        finally:
            exchange.shielded, exchange.deadline = False, NEVER
        if budget_hold is not None:
            budget_hold.name_in(decision)
        if decision.verdict is not _ADMITTED:
            if budget_hold is None:
                raise from_decision(decision)
            raise budget_hold.refusal(decision, ports.tally)
        self.decision, self._rate, self.due = decision, rate, True
        exchange.charge = self
        if self._raises is not None:
            self._raises.let_go()
            self._raises = None
        bound = None
        if dearest is not None:
            limit_uses(call, prices)
        if decision.bounded or dearest is not None:
            bound = output_bound(dearest, call, estimate, decision)
        if budget_hold is not None:
            of_budgets = budget_hold.bound(request, decision, estimate, call)
            if bound is None or (of_budgets is not None and of_budgets < bound):
                bound = of_budgets
        if bound is not None:
            self._bind(bound)

    def _bind(self, output: int) -> None:
        """Have no answer be longer than is held: what could overrule the call's maximum is refused."""
        upstream = self._worker.upstreams.get(self._exchange.routed.upstream)
        check_numbers(self.call, _NO_FIELDS if upstream is None else upstream.target.fields)
        limit_output(self.call, output)
        limit_models(self.call)

    async def settle(
        self, status: int, complete: bool, abandoned: bool = False, failed: Failed = _NOT
    ) -> bool:
        """Replace the hold by what the meter saw; whether that is acknowledged.

        What was not used is released, which the answer need not wait for to be true. What a client
        `abandoned` once an upstream had heard of it costs its units and its input, whatever came of it. So
        does what its upstream gave up where the call states a timeout of its own.
        `failed` says what the client is told of a failure, where that is not its upstream's.
        """
        assert self.due, "a charge ends once"
        exchange, worker = self._exchange, self._worker
        ports, clock, limits = worker.ports, worker.clock, worker.limits
        usage = self.meter.usage() if self.meter is not None else _UNUSED
        if self.charges and (
            (abandoned and _may_have_worked(usage, status)) or _gave_up(self.call, usage, status)
        ):
            usage = _input_alone(self.call)
        used = usage.units > 0 or usage.total > 0
        facts = self._facts(usage, failed[0] or status, failed[1], used) if self.charges else None
        settlement = self._settlement(usage, facts) if used and facts is not None else self._release(facts)
        self.let_go()
        exchange.shielded, exchange.deadline = True, clock.now + limits.counters_s
        try:
            settled = await ports.counters.settle(settlement)
        except CountersUnavailable:
            ports.tally.settlements_failed += 1
            return not used
        finally:
            exchange.shielded, exchange.deadline = False, NEVER
        if settled is _UNVERIFIED:
            ports.tally.settlements_failed += 1
            return not used
        if used and facts is not None:
            self._count(usage, facts, settlement.credits, complete)
        return True

    def let_go(self) -> None:
        """Nothing is held any more, or another holds it."""
        self.due = False
        if self._coverage is not None:
            self._coverage.let_go()

    @property
    def charges(self) -> bool:
        """Whether it may cost anything: not on a free route, nor by a head alone."""
        return self._service.id != 0

    @property
    def limits_shown(self) -> Decision | None:
        """The limits an answer tells of."""
        return self.decision if self._service.id else None

    def keep_alive(self) -> None:
        """The call lives long: have its hold renewed until it settles."""
        if self.due:
            self._cover().watch()

    def covers(self, tokens: int) -> bool:
        """Whether a stream of so many tokens may go on; a hold that is used up is extended meanwhile."""
        if tokens and not self.first_token:
            self.first_token = self._worker.produced(self._exchange.started)
        return self._cover().covers(tokens, self.meter)

    def _cover(self) -> Coverage:
        coverage = self._coverage
        if coverage is None:
            coverage = self._coverage = Coverage(
                self._worker.ports.counters, self._caller, self._exchange.request_id, self._service,
                self.decision, self._rate, self._budget_hold, self.call.most,
            )  # fmt: skip
        return coverage

    @property
    def settles_after_reply(self) -> bool:
        """Whether the route lets a client have its whole answer before it is charged."""
        route = self._exchange.routed.route
        return route is not None and route.settle == "after_reply"

    def _release(self, facts: CallFacts | None) -> Settlement:
        """What gives the hold back, with what the journal says of a call that came to nothing."""
        budget_hold = self._budget_hold
        return Settlement(
            self._caller,
            self._exchange.request_id,
            self._user,
            self._service,
            False,
            attribution=self._exchange.head.said.columns,
            metadata=b"" if facts is None else write_facts(briefly(facts)),
            budgets=() if budget_hold is None else budget_hold.accounts,
        )

    def _facts(self, usage: Usage, status: int, reason: str, used: bool) -> CallFacts:
        exchange = self._exchange
        if used and exchange.routed.units > 1 and not usage.reported:
            usage.units = exchange.routed.units
        call, meter, ports = self.call, self.meter, exchange.worker.ports
        detail = NO_DETAIL if meter is None else meter.detail
        counts = detail.counts(usage)
        price = price_of(ports.directory, self._caller, self._admitted, detail, counts, ports.seconds())
        self._stands_in = price.stands_in
        cost: int | None = 0
        if price.vector is None or usage.units > 0 or usage.total > 0:
            admitted, now_s = self._admitted, ports.seconds()
            cost = cost_of(ports.directory, self._caller, admitted, price, detail, counts, now_s)
        return settled_facts(
            exchange, call, meter, usage, counts, status, self.first_token, self.upstream_id, price.vector,
            cost, reason,
        )  # fmt: skip

    def _settlement(self, usage: Usage, facts: CallFacts) -> Settlement:
        service, weights = self._service, self.decision.weights
        prices = self._admitted.vectors
        credits_, over, units = charge_of(service, prices, facts.counts, facts.cost, usage.units)
        settlement = Settlement(
            self._caller,
            self._exchange.request_id,
            self._user,
            service,
            True,
            usage.total if service.counts_tokens else 0,
            credits_,
            units,
            self._exchange.head.said.columns,
            write_facts(facts),
            over,
            None if weights is None else weights.count(facts.counts, usage.total),
        )
        budget_hold = self._budget_hold
        if budget_hold is not None:
            settlement.budgets, settlement.raw_tokens = budget_hold.accounts, usage.total
            settlement.money = budget_hold.money(facts)
        return settlement

    def _count(self, usage: Usage, facts: CallFacts, credits_charged: int, complete: bool) -> None:
        """Learn from the call and add it to the worker's numbers."""
        ports, service, call = self._worker.ports, self._service, self.call
        if complete:
            ports.estimator.learn(call, self._caller.organization_id, service.key, usage)
        tally = ports.tally
        tally.settled(service.key, usage, credits_charged)
        if service.counts_tokens:
            tally.used(service.key, usage.input, usage.output, usage.total)
        tally.served(self._caller.tenant_id, usage.total if service.counts_tokens else 0)
        if (cost := facts.cost) is not None:
            tally.cost(service.key, call.model, facts.currency, cost)
        if facts.lacks_price or (usage.total and self._stands_in):
            tally.unpriced[service.key] = tally.unpriced.get(service.key, 0) + 1
        if self.meter is not None and self.meter.detail.says_more:
            tally.unknown_usage[call.family] = tally.unknown_usage.get(call.family, 0) + 1


_ADMITTED = Verdict.ADMITTED
_UNVERIFIED = Settled.UNVERIFIED


def _input_alone(call: Call) -> Usage:
    """What a call costs at least that an upstream took: it has read the input, whoever hears the answer."""
    tokens = input_tokens(call) if call.has_input else 0
    return Usage(tokens, total=tokens, estimated=tokens > 0)


def _may_have_worked(usage: Usage, status: int) -> bool:
    """Whether an upstream that said nothing of any use may have begun: it did not refuse either."""
    return _says_nothing(usage) and (status == 0 or 200 <= status < 300)


def _gave_up(call: Call, usage: Usage, status: int) -> bool:
    """Whether an answer may have come to nothing by the timeout that its call states."""
    timed_out = status in TIMED_OUT or 200 <= status < 300
    return call.gives_up and timed_out and call.has_input and _says_nothing(usage)


def _says_nothing(usage: Usage) -> bool:
    return not (usage.units > 0 or usage.total > 0 or usage.reported)
