"""One admitted call, and the end of its hold: charged once, or released.

`gateway/calls/charge.py` computes the charge. The holder of an `AdmittedCall` ends it with exactly one
`settle`; `settle` and `reserve` are never interrupted, and both are bounded in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from gateway.calls.admit import Admission
from gateway.calls.aim import fields_allowed
from gateway.calls.answers import check_admitted
from gateway.calls.charge import NO_DETAIL, ChargedUse, Counted, MeteredUse, UseTerms, charge, release
from gateway.core.accounts.budgets import TOKENS
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.call_facts import NONE, TEXT_CHARACTERS_MAX
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.upstream_jobs import HOLD_MS_MAX
from gateway.core.billing.money import ENDLESS, NANO
from gateway.core.billing.price_book import (
    BASE_CURRENCY,
    KINDS,
    TOKENS_A_PRICE,
    Counts,
    TokenRate,
    dearest,
    usual_rate,
)
from gateway.core.billing.reported_cost import REPORTED, ReportedCost
from gateway.core.calls.call import TIMED_OUT, CallRequest, input_tokens
from gateway.core.calls.claims import CallClaim, answer_bound, bind_uses, lower_task, unheld_rate
from gateway.core.calls.output_limits import bind_output
from gateway.core.calls.routes import ModelTarget
from gateway.core.calls.tariff import NO_PRICES, CallPrices, covered, rate_of
from gateway.core.families.refusal import from_refused
from gateway.core.metering.meter import Detail, Meter
from gateway.core.model import (
    BY_BUDGETS,
    BY_CREDITS,
    BY_QUOTA,
    INTEGER_MAX,
    Admitted,
    Caller,
    HoldExtension,
    HoldRequest,
    Refused,
    Service,
    SettleResult,
    TokenUsage,
    Verdict,
)
from gateway.errors import CountersUnavailable, Refusal
from gateway.http.protocol.answer import refuses
from gateway.http.server.exchange import Attempt, Exchange

_UNUSED = TokenUsage(units=0)
NO_UNITS: frozenset[str] = frozenset()
_SHORT: Final = {
    BY_QUOTA: Verdict.QUOTA_EXCEEDED,
    BY_CREDITS: Verdict.INSUFFICIENT_CREDITS,
    BY_BUDGETS: Verdict.BUDGET_EXCEEDED,
}
_UNVERIFIED = SettleResult.UNVERIFIED
# Uses that continue after their call, and are not followed as jobs.
_MADE_ALONE: Final = frozenset({"fine_tuning_job", "eval_run"})
# The status that the client gets (0: the upstream's own), and the reason.
Failed = tuple[int, str]
# Releases an upstream's capacity: gets the tokens that a call used, and whether the call was forwarded.
Room = Callable[[int, bool], None]
_NOT: Failed = (0, "")


class AdmittedCall:
    """A call with all results of its admission; `settle` ends it exactly once.

    `head` and `call` are its request, `attempt` is the side of its upstream. `service`, `prices` and
    `budgets` are those of the moment of admission. `take` sets `claim` and `decision`; `meter` exists once an
    answer is metered. `due` is True between `take` and `settle`. `upstream_id` is the upstream's own id
    of the call. `first_token` is the time in seconds at which a stream produced its first output, 0 before. A
    call that `raises` another one replaces its hold, which was taken by the head alone. `asked_body` is the body of a
    call that is sent as another model, which may be sent again as its caller asked.
    """

    __slots__ = (
        "_accounts", "_asked_prices", "_covered", "_exchange", "_money_rate", "_observed", "_raises", "_rate", "_request", "_tags",
        "asked_body", "attempt", "binds", "budgets", "call", "caller", "claim", "decision", "due", "first_token", "groups",
        "head", "meter", "prices", "request_id", "room", "service", "upstream_id", "user", "worker",
    )  # fmt: skip

    claim: CallClaim
    decision: Admitted
    _request: HoldRequest

    def __init__(  # noqa: PLR0917  # who asks for what, and what it costs
        self, exchange: Exchange, caller: Caller, service: Service, call: CallRequest,
        raises: AdmittedCall | None = None, prices: CallPrices = NO_PRICES,
        budgets: CallBudgets | None = None, admission: Admission | None = None,
    ) -> None:  # fmt: skip
        self._exchange = exchange
        self.worker = exchange.worker
        self.head, self.request_id, self.attempt = exchange.head, exchange.request_id, exchange.attempt
        self.caller = caller
        self.service = service
        self.call = call
        self.prices = prices
        self.budgets = budgets
        self.user = ""
        # Those declared at the moment of admission.
        self._tags: Tags = ()
        if caller.tags or self.head.attribution.tags:
            self._tags = self.worker.ports.directory.tags(caller, self.head.attribution)
        self.groups: tuple[int, ...] = ()
        self._raises = raises
        self._asked_prices: CallPrices | None = None
        self._accounts: tuple[str, ...] = ()
        # The watched extension of the hold. Then, once computed: the tokens that the hold covers (-1 before),
        # and the costs of a token, in credits and in money.
        self._observed: HoldExtension | None = None
        self._covered = -1
        self._rate: TokenRate | None = None
        self.binds = False  # whether the hold may be the limit of its call
        self._money_rate: TokenRate | None = None
        self.meter: Meter | None = None
        self.room: Room | None = None
        self.upstream_id = b""
        self.first_token = 0.0
        self.due = False
        self.asked_body = b""
        if admission is not None:
            self.take(admission)

    def take(self, admission: Admission) -> None:
        """Set the decisions of an admission of the call, and bind its body to the hold.

        Raise `InvalidRequest` for a body that cannot be bound.
        """
        worker, head, budgets = self.worker, self.head, self.budgets
        call, caller, vectors = self.call, self.caller, self.prices.vectors
        _, claim, request, decision, self.binds, _, self._asked_prices, _ = admission
        self.user = request.user
        if worker.ports.directory.grouped:
            self.groups = worker.ports.directory.groups(caller, head.attribution, call)
        self.claim, self._request = claim, request
        self.decision, self.due = decision, True
        self._exchange.admitted = self
        if call.aim.substitution is not None:
            tally = worker.ports.tally
            tally.count_substituted(tally.substituted_calls, call.spec.model)
        estimator = worker.ports.estimator
        if request.ceiling and decision.bounded == (caller.tenant_id in estimator.unbound):
            estimator.note_plan(caller.tenant_id, binds=decision.bounded)
        if self._raises is not None:
            self._raises.unwatch_hold()
            self._raises = None
        if budgets is not None:
            self._accounts = request.names
        if decision.bounded or claim.dearest is not None or budgets is not None:
            enforced = NO_UNITS if budgets is None else budgets.enforced
            bind_uses(call, claim, vectors, enforced)
            bound = answer_bound(call, claim, decision, enforced)
            if bound is not None:
                bind_output(call, bound, fields_allowed(worker.admission, call, self.attempt.name))
            if claim.budget is not None and head.attribution.run is not None:
                lower_task(call, claim.budget, decision)

    async def reserve(self, request: HoldRequest, budgets: CallBudgets | None) -> Admitted:
        """Reserve a hold without interruption; raise the `Refusal` of a limit that has too little left."""
        exchange, is_shielded = self._exchange, self._exchange.shielded
        exchange.shield()
        try:
            answer = await self.worker.ports.counters.reserve(request)
        finally:
            exchange.unshield()
            if is_shielded:
                exchange.shield()  # with a new deadline
        return check_admitted(self.worker.admission, request.caller, budgets, answer)

    async def extend_for_job(self) -> Admitted:
        """Extend the hold to last as long as a background job, and return what it holds now.

        Raise a `Refusal` if a limit refuses; the hold is never less than before.
        """
        request = replace(self._request, raises=True, ttl_ms=HOLD_MS_MAX)
        return await self.reserve(request, self.budgets)

    def keep_price_of_target(self) -> None:
        """Drop the prices of all targets but the one that answers, which is that of the attempt."""
        prices, targets = self.prices, len(self.call.aim.targets)
        if targets < 2:
            return
        number = self.call.aim.targets.index(ModelTarget(self.attempt.name, self.attempt.model))
        named, vectors = prices.named, prices.vectors
        if len(named) >= targets:
            named = (named[number], *named[targets:])
        if len(vectors) >= targets:
            vectors = (vectors[number], *vectors[targets:])
            if self.service.pricing.per_million is not None:
                vectors = (dearest(vectors),)
        self.prices = CallPrices(vectors, named, prices.at_ms, prices.own, prices.hourly)

    @property
    def charges(self) -> bool:
        """Whether the call can have a charge. It has none on a free route, or with only its head admitted."""
        return self.service.id != 0

    # While the call runs: a hold that does not cover the use so far is extended.

    def keep_alive(self) -> None:
        if self.due and self._observed is None and not self.call.spec.background:
            self._watch()

    def keep_covered(self, tokens: int) -> bool:
        """Return whether a stream that used `tokens` may continue; extend its hold if that is used up."""
        if tokens and not self.first_token:
            self.first_token = self.worker.produced(self._exchange.started)
        decision, observed, meter = self.decision, self._observed, self.meter
        weights, quota_tokens = decision.weights, 0
        if weights is not None and meter is not None:
            usage = meter.so_far()
            quota_tokens = weights.count(meter.detail.counts(usage), usage.total)
        if observed is None:
            if tokens <= self._tokens_covered() and quota_tokens <= decision.held_tokens:
                return True
            observed = self._watch()
        observed.tokens, observed.quota_tokens = tokens, quota_tokens
        holds = tokens < observed.held or tokens == observed.held == observed.most
        if holds and (not quota_tokens or quota_tokens < observed.quota):
            return True
        if observed.exhausted:
            return not observed.cut
        self.worker.ports.counters.request_extension(observed)
        return True

    def request_more(self, tokens: int, step: int, answered: Callable[[], object] | None) -> bool:
        """Return whether the hold covers `tokens` more input tokens than the call's estimated need.

        A strict plan or credits may hold more than the need: that part counts too. If the hold is too small,
        `tokens` and a `step` more are requested from Redis, and `answered` is called with the result. If
        `answered` is None, nothing is requested.
        """
        observed, weights = self._observed or self._watch(), self.decision.weights
        covered_, held_quota = self._tokens_covered(), self.decision.held_tokens
        need = self.claim.estimate.need + (self.call.media.text_beyond if self.call.bound else 0)
        if weights is not None:
            held_quota = min(held_quota, weights.at_most(need, need))
        wanted = 0 if covered_ >= ENDLESS else min(covered_, need) + tokens
        quota = 0 if weights is None else held_quota + weights.at_most(tokens, tokens)
        if wanted <= observed.held and (weights is None or quota <= observed.quota):
            return True
        if answered is None:
            return False
        observed.reserved = wanted + step if wanted else 0
        if weights is not None:
            observed.reserved_quota = quota + weights.at_most(step, step)
        observed.rate = _reading_more(self._rate, tokens + step)
        observed.money_rate = _reading_more(self._money_rate, tokens + step)
        budget = self.claim.budget
        if budget is not None:
            observed.hold_rate = _reading_more(budget.likely, tokens + step)
        observed.most, observed.answered = INTEGER_MAX, answered
        self.worker.ports.counters.request_extension(observed)
        return False

    def short_of(self) -> Refusal:
        """Return the refusal for the limit that had too little left when `request_more` asked for more."""
        observed = self._observed
        short = BY_QUOTA if observed is None else observed.short
        budget = self.decision.budget
        verdict = _SHORT[short] if short != BY_BUDGETS or budget is not None else _SHORT[BY_QUOTA]
        spent = self.worker.ports.directory.spent_answer
        there = self.decision
        refused = Refused(
            verdict, limit=there.limit, until_ms=there.until_ms, now_ms=there.now_ms, budget=budget
        )
        refusal = from_refused(refused, lambda: spent(self.caller))
        refusal.args = ("The amount left does not cover this message.",)
        return refusal

    def charge_to_hold_of(self, before: AdmittedCall) -> None:
        """Charge this call to the hold of `before`, an earlier call on the same WebSocket."""
        self.user, self.groups, self.claim = before.user, before.groups, before.claim
        self._accounts = before._accounts
        self.decision, self.due, self.binds = Admitted(), True, before.binds
        self._exchange.admitted = self

    def _watch(self) -> HoldExtension:
        """Start to renew the hold of this call before its deadline; return the `HoldExtension` to watch."""
        decision, budgets = self.decision, self.budgets
        held = self._tokens_covered()
        observed = self._observed = HoldExtension(
            self.caller, self.request_id, held, counts=self.service.counts_tokens, rate=self._rate,
            weights=decision.weights, quota=decision.held_tokens, most=self.call.most or INTEGER_MAX,
        )  # fmt: skip
        if budgets is not None:
            observed.budgets, observed.money_rate = self._accounts, self._money_rate
            observed.hold_rate = None if self.claim.budget is None else self.claim.budget.likely
            observed.counts_budget_tokens = TOKENS in budgets.units
        self.worker.ports.counters.watch(observed)
        return observed

    def _tokens_covered(self) -> int:
        """Return the number of tokens that the original hold covers, without a plan's weighted tokens."""
        if self._covered >= 0:
            return self._covered
        decision, budgets, read = self.decision, self.budgets, self.call.input_estimate
        rate = self._rate = rate_of(self.service, self.prices.vectors, read)
        counts = self.service.counts_tokens and decision.weights is None
        most = covered(counts, rate, decision.held_tokens, decision.held_credits)
        if budgets is not None and TOKENS in budgets.units:
            most = min(most, decision.budget_tokens_held)
        budget = self.claim.budget
        if budget is not None and budget.likely is not None:
            self._money_rate = usual_rate(self.claim.vectors, read, in_money=True)
            most = min(most, budget.likely.paid(decision.money_held))
        self._covered = most
        return most

    # the end of the call

    async def settle(
        self, status: int, complete: bool, abandoned: bool = False, failed: Failed = _NOT,
        silent_s: float = 0.0,
    ) -> bool:  # fmt: skip
        """Replace the hold by the metered use; return whether Redis acknowledged this.

        The unused part is released. A call that its client `abandoned` after the upstream received it costs
        at least its units and input, and so does a call that the upstream gave up by the call's own timeout.
        If an upstream may have made a result without reporting it, the call costs one unit until a report is
        found. If the gateway stopped waiting, output since the last report is charged by the `silent_s`
        seconds that passed. `failed` holds the status and reason that the client gets, if they differ from
        the upstream's.
        """
        assert self.due, "a charge ends once"
        exchange, ports, charges = self._exchange, self.worker.ports, self.charges
        usage = self.meter.usage() if self.meter is not None and not self.attempt.empty else _UNUSED
        if charges and (
            (abandoned and _says_nothing(usage) and (status == 0 or 200 <= status < 300))
            or _gave_up(self.call, usage, status)
        ):
            # The least cost of a call that an upstream took: it has read the input, even if nobody hears
            # the answer
            tokens = input_tokens(self.call) if self.call.has_input else 0
            usage = TokenUsage(tokens, total=tokens, estimated=tokens > 0)
        elif charges and not complete and self._may_have_made(usage, status):
            usage = TokenUsage(estimated=True)
        if silent_s and charges and (status == 0 or 200 <= status < 300):
            usage = self._unseen(usage, silent_s)
        used = usage.units > 0 or usage.total > 0
        charged = self._charge_of(usage, failed[0] or status, failed[1], used) if charges else None
        settlement = release(self._terms()) if charged is None else charged.settlement
        if charged is not None:
            used = settlement.charge
        if self.call.spec.background:
            settlement.hold_ttl_ms = HOLD_MS_MAX
        self.unwatch_hold()
        exchange.shield()
        try:
            settled = await ports.counters.settle(settlement)
        except CountersUnavailable:
            ports.tally.settlements_failed += 1
            return not used
        finally:
            exchange.unshield()
            if self.room is not None:  # even if this fails, the call is charged
                self.leave_room(usage.total)
        if settled is _UNVERIFIED:
            ports.tally.settlements_failed += 1
            return not used
        if used and charged is not None:
            if complete:
                self._learn(usage, charged.counted)
            ports.tally.charged(charged.counted, self.attempt.name)
            if (apart := charged.counted.apart) is not None:
                ports.log(
                    "reported_cost_differs", level="warning", request_id=self.request_id,
                    upstream=self.attempt.name, model=self.call.spec.model, book=apart[0] / NANO,
                    reported=apart[1] / NANO,
                )  # fmt: skip
        return True

    def leave_room(self, tokens: int) -> None:
        """Release the upstream's capacity that this call reserved beyond the `tokens` used."""
        room, self.room = self.room, None
        if room is not None:
            room(tokens, self.attempt.forwarded)

    def unwatch_hold(self) -> None:
        """Stop watching the hold, which was released or handed over to another call."""
        self.due = False
        if self._observed is not None:
            self.worker.ports.counters.unwatch(self._observed)
            self._observed = None

    def _terms(self) -> UseTerms:
        budgets = self.budgets
        return UseTerms(
            self.caller, self.request_id, self.user, self.service, self.prices, self._accounts,
            budgets is not None, "" if budgets is None else budgets.currency, None,
            self.head.said.columns, self._tags, self.groups, self.call.aim.substitution, self._asked_prices,
        )  # fmt: skip

    def _charge_of(self, usage: TokenUsage, status: int, reason: str, used: bool) -> ChargedUse:
        """Return the charge for this call's usage, with the HTTP status and the reason of the call's end.

        `used` is False if nothing is charged.
        """
        exchange, head, call, meter = self._exchange, self.head, self.call, self.meter
        ports, routed = self.worker.ports, head.routed
        now_s = ports.seconds()
        if used and routed.units > 1 and not usage.reported:
            usage.units = max(usage.units, routed.units)
        detail = NO_DETAIL if meter is None else meter.detail
        done = status == 0 or 200 <= status < 300 or exchange.answered is not None
        units = None if detail.replaces_units else call.spec.units.likely
        if units:
            done = done or not _MADE_ALONE.isdisjoint(units)
            units = call.units(usage.input)
        took, first_token = now_s - exchange.started, self.first_token
        if first_token:
            first_token -= exchange.started
        elif call.spec.streamed and meter is not None and meter.produced:
            first_token = took  # the whole output came at once
        terms = self._terms()
        if used:
            terms.weights = self.decision.weights
        use = MeteredUse(
            used, _counts_of(detail, usage, call), usage.total, usage.units, usage.estimated, detail,
            call.spec.model, routed.label, call.family, status,
            _metadata_of(head.attribution.metadata, self.attempt), reason, call.spec.streamed, int(took * 1000),
            int(first_token * 1000) if first_token else None, head.attribution.session,
            self.upstream_id[:TEXT_CHARACTERS_MAX].decode("latin-1"), self.attempt.model,
            units if done else None, tiers=call.tiers,
        )  # fmt: skip
        if detail.cost is not None:
            use.reported = self._reported_cost(detail.cost)
        ended_ms = 0
        if detail.declined or self.prices.hourly:
            use.at_ms = ended_ms = ports.refusals.now_ms()
        charged = charge(ports.directory.price, ended_ms, use, terms)
        if charged.settlement.charge:
            charged.settlement.frame = self.decision.frame
        return charged

    def _reported_cost(self, nano: int) -> ReportedCost:
        """Return the provider's reported cost (`nano`, in nano-dollars) with the exchange rate at admission."""
        directory, upstream = self.worker.ports.directory, self.attempt.upstream
        currency, rate = directory.pays_in(self.caller), ""
        if currency != BASE_CURRENCY:
            rate = directory.base_rate(self.caller, self.prices.at_ms) or ""
            currency = currency if rate else BASE_CURRENCY
        decides = upstream is not None and upstream.target.cost == REPORTED
        return ReportedCost(nano, currency, rate, decides)

    def _unseen(self, usage: TokenUsage, silent_s: float) -> TokenUsage:
        """Add the output that the model may have produced in `silent_s` seconds, at its usual speed."""
        call, meter = self.call, self.meter
        each = call.output_ceiling if call.output_max is None else call.output_max
        if not (call.has_input and each) or (meter is not None and meter.is_whole):
            return usage
        speed = self.worker.ports.estimator.speed(call)
        likely = usage.output + int(silent_s * speed * call.spec.choices) + 1
        output = max(usage.output, min(likely, each * call.spec.choices))
        total = min(usage.total + output - usage.output, self.worker.bounds.usage_tokens_max)
        return TokenUsage(
            usage.input, output, usage.cached, usage.reasoning, total, usage.units, usage.reported, True
        )

    def _may_have_made(self, usage: TokenUsage, status: int) -> bool:
        """Return whether an upstream that read the whole request may have made an unreported result."""
        if _MADE_ALONE.isdisjoint(self.call.spec.units.likely or ()) or not _says_nothing(usage):
            return False
        return self.attempt.forwarded and self._exchange.connection.body_complete and not refuses(status)

    def _learn(self, usage: TokenUsage, counted: Counted) -> None:
        """Pass the usage of this call to the estimator, for better estimates of the next calls."""
        took = self.attempt.ended - self.attempt.started_s
        self.worker.ports.estimator.learn(
            self.call, self.caller.organization_id, self.service.key, usage,
            self._input_share(usage, counted), key_id=self.caller.key_id, seconds=took,
        )  # fmt: skip

    def _input_share(self, usage: TokenUsage, counted: Counted) -> float | None:
        """Return the actual cost of the input as a share of its cost without a cache; None if unknown.

        Outside of budgets in money it is None as well for a usual call: one without a cache, of a key whose
        input is held at its price.
        """
        budget, estimate = self.claim.budget, self.claim.estimate
        rate, share = None if budget is None or budget.holds_most else budget.likely, estimate.input_share
        if rate is None and not usage.cached and share == 1 and estimate.need:
            return None
        budgets, cost = self.budgets, counted.cost
        if cost is None or self.call.storage is not None:
            return None
        if rate is None or budgets is None or counted.currency != budgets.currency:
            if self.meter is None or self.meter.detail.tools:
                return None
            if self.call.spec.units.likely and not self.meter.detail.replaces_units:  # they set its cost
                return None
            share, rate = 1.0, unheld_rate(self.prices.in_currency(counted.currency), estimate, self.call)
        if rate is None or not (rate.input and rate.read):
            return None
        asked = rate.input / share
        paid = (cost - rate.cost(0, usage.output)) * TOKENS_A_PRICE
        # Without a cache, a small input does not predict the next one, whose size is held at the full price.
        read = rate.read if usage.cached else usage.input
        return max(0.0, paid / (asked * read)) if read else None


def _counts_of(detail: Detail, usage: TokenUsage, call: CallRequest) -> Counts:
    """Return the tokens of a usage by kind.

    If the upstream reported none, tokens of sound and images are taken from the media in the request.
    """
    counts = detail.counts(usage)
    if usage.reported or call.media.mute or not call.media.tokens or counts[_HEARD] or counts[_SEEN]:
        return counts
    heard = min(call.media.heard, counts[0])
    seen = min(call.media.tokens - call.media.heard, counts[0] - heard)
    by_media = list(counts)
    by_media[_HEARD], by_media[_SEEN] = heard, seen
    return tuple(by_media)


_HEARD: Final = KINDS.index("audio_input")
_SEEN: Final = KINDS.index("image_input")


def _reading_more(rate: TokenRate | None, tokens: int) -> TokenRate | None:
    """Return a copy of the rate for a call with `tokens` more input tokens; None without a rate."""
    if rate is None:
        return None
    read = rate.read + tokens
    return TokenRate(read, rate.input, rate.output, rate.fixed, rate.factor, rate.in_money)


def _metadata_of(said: bytes, attempt: Attempt) -> msgspec.Raw:
    """Return a call's metadata `said` as JSON, with the upstreams that failed before the present one."""
    if not attempt.failed_before:
        return msgspec.Raw(said) if said else NONE
    attempts = [{"upstream": name, "cause": cause} for name, cause in attempt.failed_before]
    document: dict[str, object] = msgspec.json.decode(said) if said else {}
    document["attempts"] = [*attempts, {"upstream": attempt.name}]
    return msgspec.Raw(msgspec.json.encode(document))


# Whether a call without a reported use may have cost its upstream something.


def _gave_up(call: CallRequest, usage: TokenUsage, status: int) -> bool:
    """Return whether a call without reported usage may have ended by a timeout stated in its own request."""
    if not (call.gives_up and call.has_input and _says_nothing(usage)):
        return False
    return status in TIMED_OUT or 200 <= status < 300


def _says_nothing(usage: TokenUsage) -> bool:
    return not (usage.units > 0 or usage.total > 0 or usage.reported)
