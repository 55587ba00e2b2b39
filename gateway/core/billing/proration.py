"""Tokens used ahead of the fees for them, when a plan ends within a cycle of tokens. Pure.

A plan grants the tokens of a cycle at its start, and its fee is charged by day. So a cycle in which a plan
ended owes the fee of its days, or that of the share of tokens used, whichever is more. Each token is owed
once, at the lowest price of the plans that included it. Tokens that the next plan takes over are paid by that
plan's days. If it grants more than the plan before it had left, tokens were granted again, and all days of
the cycle pay for them. A plan with the policy `bill` has a price for tokens beyond it, and its days pay for
all tokens within it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from itertools import pairwise

from gateway.core.accounts.intervals import PERIODS, window_bounds
from gateway.core.billing.charges import day_fees
from gateway.core.billing.money import EXACT, ONE_NANO
from gateway.core.billing.subscription import PlanSegment, cycle_of, midnight
from gateway.core.model import INTEGER_MAX
from gateway.core.times import moment_of, ms_of

UNIT_PRICE_DIGITS = 12
HALF_NANO = EXACT.divide(ONE_NANO, Decimal(2))
BILL, CARRY = "bill", "carry"
# All tokens of a debt: the next plan is unlimited, or bills them itself.
ALL = INTEGER_MAX
# The key of the current plan, which has not ended.
_RUNS = -1


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """A plan's tokens per cycle (None: unlimited), the policy beyond them, and the start of its cycles."""

    total: int | None
    policy: str
    interval: str
    time_zone: str
    anchor_day: int


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """A segment that ended, with all segments of its subscription. `at` is its last moment in force.

    `over` means that no other segment follows.
    """

    subscription_id: int
    segments: Sequence[PlanSegment]
    segment: PlanSegment
    at: datetime
    over: bool

    @property
    def last_day(self) -> date:
        """The last UTC day on which the segment was in force, at least for a part of the day."""
        return self.at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class PlanEnd:
    """The end of a tenant's plan within a cycle of tokens, which `ends` (None: never).

    Days from `paid_from` on pay for the cycle. All of its days cost `worth` by this plan; those before
    `until` cost `paid`. The next plan counts `counted` of the used tokens. `begins` is the first day of the
    debt's supply. With `carries` the next plan has the unpaid tokens as debt, and they are owed once no plan
    carries that debt on. If the cycle ended before the plan, no debt was passed on, and they are owed at
    once.
    """

    total: int
    counted: int
    worth: Decimal
    paid: Decimal
    paid_from: date
    until: date
    ends: datetime | None
    begins: date
    carries: bool = False


@dataclass(frozen=True, slots=True)
class PlanUsage:
    """A tenant's use of a plan until its end. `began` is the id of the ledger row that granted the tokens.

    `regained` are the tokens of a later plan of the cycle that grants more than the next one; `ALL` for a
    plan that bills, which charges tokens beyond it separately. No more is owed than the remaining `debt`, of
    tokens beyond the regained ones; None if nothing was carried on.
    """

    tenant_id: int
    began: int | None
    until: date
    total: int
    worth: Decimal
    used: int
    counted: int
    regained: int | None = None
    debt: int | None = None

    @property
    def price(self) -> Decimal:
        """The price of one token of the plan."""
        return EXACT.divide(self.worth, Decimal(self.total))

    def worth_of(self, tokens: int) -> Decimal:
        """Return the price of `tokens` tokens, in whole nano-units."""
        exact = EXACT.divide(EXACT.multiply(self.worth, Decimal(tokens)), Decimal(self.total))
        return exact.quantize(ONE_NANO, ROUND_HALF_UP, EXACT)


@dataclass(frozen=True, slots=True)
class EarlyUse:
    """Tokens owed at the end of a plan, their amount and price. A partly paid token counts as one."""

    tokens: int
    amount: Decimal
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class DebtEnd:
    """Debt of tokens that no plan carries on any more, in a cycle that `ends` (None: never).

    The next plan grants `counted` more tokens than the one that carried the debt; `ALL`: it is unlimited, or
    bills.
    """

    ends: datetime | None
    counted: int


@dataclass(frozen=True, slots=True)
class PlanStart:
    """A row of a tenant's ledger that starts a cycle or a plan. `moved` are its tokens with their sign."""

    at: datetime
    is_reset: bool
    remaining: int | None
    moved: int


def plan_end(ended: SegmentEnd, had: TokenTerms, then: TokenTerms | None) -> PlanEnd | None:
    """Return the facts from which the unpaid tokens of an ended plan are computed.

    None for a plan without tokens or in trial, and if other rows charge its use. `had` are the terms of
    the ended plan, `then` those of the next one: None without a next plan, or if it counts no tokens.
    """
    trial_end = ended.segment.terms.trial_end
    if not had.total or (trial_end is not None and ended.segment.end <= trial_end):
        return None
    segment = ended.segment
    paid_from, ends = token_cycle(had, segment.anchor, ended.at)
    counted, carries = 0, False
    if ended.over or (ends is not None and ends <= midnight(ended.segment.end)):
        if had.policy == BILL:
            return None
        # The ledger decides whether the cycle or the plan ended first.
        if not ended.over and then is not None and then.total is not None and then.policy == CARRY:
            counted, carries = then.total, True
    else:
        if then is None or then.total is None or then.policy == BILL:
            return None
        counted, carries = then.total, then.policy == CARRY
    whole = days_of(segment, paid_from, ends, ended.last_day)
    worth = fees_of([replace(segment, start=whole[0], end=whole[1])], *whole)
    paid = fees_of(ended.segments, paid_from, segment.end)
    begins = max(paid_from, cycle_of(segment.anchor, segment.interval, ended.last_day)[0])
    return PlanEnd(had.total, counted, worth, paid, paid_from, segment.end, ends, begins, carries)


def debt_end(ended: SegmentEnd | None, had: TokenTerms, then: TokenTerms | None) -> DebtEnd | None:
    """Return the end of a debt of tokens that an ended plan had taken over from an earlier one.

    None if the next plan takes it over in turn. `had` and `then` are the terms of the ended and the next
    plan. `ended` is None if a person assigns the next plan.
    """
    ends = None if ended is None else token_cycle(had, ended.segment.anchor, ended.at)[1]
    if then is None:
        return DebtEnd(ends, 0)
    if then.total is None or then.policy == BILL:
        return DebtEnd(ends, ALL)
    if then.policy == CARRY:
        return None
    return DebtEnd(ends, max(0, then.total - (had.total or 0)))


def stop_of(turns: Sequence[PlanStart], ends: datetime | None) -> int:
    """Return the index in `turns` of the row that ended a plan.

    If its token cycle ended before, at `ends`, it is the row that ended the cycle.
    """
    last = len(turns) - 1
    if ends is None:
        return last
    return next((at for at, turn in enumerate(turns) if turn.is_reset and turn.at >= ends), last)


def begin_of(turns: Sequence[PlanStart], stop: int) -> int | None:
    """Return the index in `turns` of the row that began the token cycle before `stop`; None if unknown."""
    begins = [at for at in range(stop) if turns[at].is_reset or (at > 0 and turns[at - 1].remaining is None)]
    return begins[-1] if begins else None


def tokens_used(turns: Sequence[PlanStart], total: int, ends: datetime | None, reported: int = 0) -> int:
    """Return how many of a plan's tokens were used in a cycle; the last row of `turns` ends the plan.

    `total` are the tokens that the plan grants. Tokens from a recharge or an earlier cycle are used
    first. `reported` are uses that were reported after the end.
    """
    stop = stop_of(turns, ends)
    begin = begin_of(turns, stop)
    had = None if begin is None else turns[begin].remaining
    if begin is None or had is None:
        return 0
    had += sum(turn.moved for turn in turns[begin + 1 : stop])
    return max(0, min(min(had, total) - _remaining_before(turns[stop]) + reported, total))


def _remaining_before(turn: PlanStart) -> int:
    """Return the tokens that remained just before the movement of a ledger row."""
    return (turn.remaining or 0) - turn.moved


def ahead(ends: Sequence[PlanUsage], fees: Callable[[date | None], Decimal], runs: Decimal) -> list[EarlyUse]:
    """Return, for each end of a plan in a cycle in order of time, the used tokens that fees did not pay.

    `fees` returns the fees paid up to a day (None: all), `runs` is the cycle's price by the current plan.
    Days pay for the earliest use first. Of several tenants, the one with most use is covered by the fees.
    """
    of_tenants = defaultdict[int, dict[int, PlanUsage]](dict)
    for place, end in enumerate(ends):
        of_tenants[end.tenant_id][place] = end
    owed: dict[int, EarlyUse] = {}
    paid = Decimal(0)
    for mine in of_tenants.values():
        shares, until = _shares(mine, runs)
        paid = rest = max(paid, fees(until))
        for place, end in mine.items():
            share = shares[place]
            amount = min(max(Decimal(0), share.worth - rest), share.most)
            owed[place] = share.ahead(amount, end)
            rest, paid = max(Decimal(0), rest - share.worth), paid + amount
    return [owed[place] for place in range(len(ends))]


class _DebtShare:
    """Tokens owed at the end of a plan, counted by the plan that prices them.

    `left` are the tokens within the remaining `debt`, which limits the amount owed.
    """

    def __init__(self, debt: int | None) -> None:
        self.debt = debt
        self.tokens, self.left = Counter[PlanUsage](), Counter[PlanUsage]()

    @property
    def worth(self) -> Decimal:
        """The price of all `tokens` of this share."""
        return sum((end.worth_of(tokens) for end, tokens in self.tokens.items()), Decimal(0))

    @property
    def most(self) -> Decimal:
        """The most that is owed for this share: the price of the tokens in `left`."""
        return sum((end.worth_of(tokens) for end, tokens in self.left.items()), Decimal(0))

    def add(self, tokens: int, by: PlanUsage, *, is_debt: bool) -> None:
        """Add tokens to the share at the price of the plan `by`.

        If `is_debt`, only tokens within the remaining `debt` are owed; tokens added first use it up
        first.
        """
        self.tokens[by] += tokens
        if is_debt and self.debt is not None:
            tokens = min(tokens, self.debt)
            self.debt -= tokens
        self.left[by] += tokens

    def ahead(self, amount: Decimal, end: PlanUsage) -> EarlyUse:
        """Return the tokens of this share that `amount` pays for, with their price; half a nano-unit is none.

        If the share has no tokens, the price is that of the plan `end`.
        """
        prices = {token.price for token in self.tokens} or {end.price}
        price = prices.pop()
        if prices:
            price = EXACT.divide(self.worth, Decimal(self.tokens.total()))
        exact = EXACT.divide(amount - HALF_NANO, price) if amount else Decimal(0)
        tokens = int(exact.to_integral_value(ROUND_CEILING, EXACT))
        return EarlyUse(max(tokens, int(amount > 0)), amount, _rounded(price))


def _shares(ends: Mapping[int, PlanUsage], runs: Decimal) -> tuple[dict[int, _DebtShare], date | None]:
    """Return for each ended plan, by key of `ends`, its share of the tokens that one tenant used.

    Return also the day until which days pay for them (None: all). `runs` is the cycle's price by the
    current plan. A token belongs to the last ended plan that included it, at the lowest price of all that
    did. Tokens granted again within the cycle are other tokens.
    """
    shares, until = {place: _DebtShare(end.debt) for place, end in ends.items()}, None
    given = defaultdict[object, dict[int, PlanUsage]](dict)
    for place, end in ends.items():
        given[end.began][place] = end
    for group in given.values():
        last, most = group[max(group)], max(end.used for end in group.values())
        # The tokens of the current plan and of the one before it: the current plan may grant tokens again.
        has, before = last.counted, last.total
        if last.regained is not None:
            has, before = last.regained, last.counted
        came_back = before < min(has, most)
        passed_on, until = (0, None) if came_back else (has, last.until)
        had = {place: end for place, end in group.items() if end.regained != ALL}
        if came_back:
            had[_RUNS] = replace(last, total=has, worth=runs, used=min(has, most))
        waiting = sorted((end.used, place) for place, end in had.items())
        edges = {edge for end in had.values() for edge in (end.used, end.regained or 0) if edge > passed_on}
        owner, cheapest = _RUNS, None
        for top, bottom in pairwise(sorted({passed_on, *edges}, reverse=True)):
            while waiting and waiting[-1][0] >= top:
                _, place = waiting.pop()
                if cheapest is None or had[place].price < cheapest.price:
                    cheapest = had[place]
                owner = max(owner, place)
            if cheapest is not None and owner != _RUNS:
                is_debt = bottom >= (had[owner].regained or 0)
                shares[owner].add(top - bottom, cheapest, is_debt=is_debt)
    return shares, until


def _rounded(price: Decimal) -> Decimal:
    """Return the price of a token rounded to `UNIT_PRICE_DIGITS` decimals."""
    return price.quantize(Decimal(1).scaleb(-UNIT_PRICE_DIGITS), context=EXACT)


def token_cycle(terms: TokenTerms, anchor: date, at: datetime) -> tuple[date, datetime | None]:
    """Return the first day that pays for the token cycle at the time `at`, and the end of the cycle.

    Tokens that are granted once, and not in each cycle, are paid by all days since `anchor`, the first
    day of the subscription; the end is then None.
    """
    window = PERIODS.get(terms.interval)
    if window is None:
        return anchor, None
    start_ms, end_ms, _ = window_bounds(window.name, terms.time_zone, terms.anchor_day, ms_of(at))
    return moment_of(start_ms).astimezone(UTC).date(), moment_of(end_ms)


def days_of(segment: PlanSegment, paid_from: date, ends: datetime | None, day: date) -> tuple[date, date]:
    """Return the first and the last (exclusive) day of a token cycle from `paid_from` to `ends`.

    If `ends` is None, return those of the fee cycle that contains `day`.
    """
    if ends is None:
        return cycle_of(segment.anchor, segment.interval, day)
    return paid_from, ends.astimezone(UTC).date()


def fees_of(segments: Iterable[PlanSegment], since: date, until: date) -> Decimal:
    """Return the fees, less discounts, for the days from `since` to `until` (exclusive)."""
    return sum((fee.amount for segment in segments for fee in day_fees(segment, since, until)), Decimal(0))


# The terms of a cycle of tokens: later changes of its plan apply from the next cycle on. Pure.

_ALWAYS = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """The terms of a plan from a moment on."""

    since: datetime
    terms: TokenTerms


def sold_with(
    versions: Sequence[PlanVersion], given: PlanVersion | None, renewed: datetime | None, at: datetime
) -> TokenTerms:
    """Return the terms with which the token cycle at the time `at` began.

    `versions` are the versions of the plan, oldest first. A cycle begins by the calendar, by a reset that a
    person requested (`renewed`), or by the plan's assignment (`given`), whichever was last. Versions from
    within the cycle are ignored.
    """
    place = max((place for place, version in enumerate(versions) if version.since <= at), default=0)
    while True:
        version = versions[place]
        begins = max(_begin_of(version.terms, at), renewed or _ALWAYS)
        if given is not None and given.since >= begins:
            return given.terms
        if version.since <= begins or place == 0:
            return version.terms
        at, place = version.since, place - 1


def _begin_of(terms: TokenTerms, at: datetime) -> datetime:
    """Return the begin, by the calendar, of the token cycle at the time `at`.

    For tokens that are granted once it is the earliest possible time.
    """
    window = PERIODS.get(terms.interval)
    if window is None:
        return _ALWAYS
    return moment_of(window_bounds(window.name, terms.time_zone, terms.anchor_day, ms_of(at))[0])
