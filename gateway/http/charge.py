"""The hold of one call and what becomes of it: charged once, or released.

Everything a settlement says is put together here. Whoever holds a `Charge` ends it with
exactly one `settle`; neither that nor `reserve` is ever interrupted, both are bounded in time.
"""

from __future__ import annotations

from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.facts import CallFacts, briefly, write_facts
from gateway.core.billing.rate import TokenRate
from gateway.core.calls.call import Call, input_tokens
from gateway.core.calls.claim import claimed, dearest_of, output_bound
from gateway.core.calls.estimate import NO_ESTIMATE
from gateway.core.calls.reading import limit_output
from gateway.core.calls.tariff import charge_of, rate_of
from gateway.core.calls.tool_uses import limit_models, limit_uses
from gateway.core.families.numbers import check_numbers
from gateway.core.families.refusal import from_decision
from gateway.core.metering.making import AnswerMeter
from gateway.core.model import (
    Caller,
    Decision,
    HoldRequest,
    Service,
    Settled,
    Settlement,
    Usage,
    Verdict,
)
from gateway.errors import CountersUnavailable
from gateway.http.budget_hold import BudgetHold
from gateway.http.call_facts import NO_DETAIL, settled_facts
from gateway.http.clock import NEVER
from gateway.http.coverage import Coverage
from gateway.http.priced import NO_PRICES, Admitted, cost_of, price_of
from gateway.http.server.exchange import Exchange

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
