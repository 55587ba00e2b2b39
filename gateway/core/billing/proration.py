"""Tokens that were used ahead of the days that pay for them, where a plan ends inside a cycle. Pure.

A plan's tokens are given whole and its fee is paid by day. So a cycle of tokens in which a plan ended owes
its days, or the share of the tokens that were used, whichever is more. Each token is owed once, at the lowest
price of the plans that had it. What the plan that runs on took over is paid by its days; where it has more
than one before it left, the tokens came back, and all days of the cycle pay for them. A plan that bills has a
price for what is beyond it, and its days pay all within it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from itertools import pairwise

from gateway.core.accounts.budgets import bounds
from gateway.core.billing.charges import day_fees
from gateway.core.billing.money import EXACT, ONE_NANO
from gateway.core.billing.subscription import PlanSegment, cycle_of, midnight
from gateway.core.model import INTEGER_MAX
from gateway.core.times import moment_of, ms_of

UNIT_PRICE_DIGITS = 12
HALF_NANO = EXACT.divide(ONE_NANO, Decimal(2))
BILL, CARRY = "bill", "carry"
# Of debt that the plan behind has whole, or has as its own.
ALL = INTEGER_MAX
# How cycles of tokens are called where windows of budgets are counted.
WINDOWS = {"daily": "day", "weekly": "week", "monthly": "month"}


# The place of the plan that runs on: of nobody's end.
_RUNS = -1


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """A cycle's number of tokens (None: without limit), its start, and the policy beyond it."""

    total: int | None
    policy: str
    interval: str
    time_zone: str
    anchor_day: int


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """A segment that ended, with all of its subscription. `at` is the last moment it was in force.

    `over`: no other one follows.
    """

    subscription_id: int
    segments: Sequence[PlanSegment]
    segment: PlanSegment
    at: datetime
    over: bool

    @property
    def last_day(self) -> date:
        """The last UTC day on which it was in force, for a part of it at least."""
        return self.at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class PlanEnd:
    """A tenant's plan that ended, in a cycle of tokens that `ends` (None: never) and is paid from a day on.

    The days of the whole cycle cost `worth` by this plan, those that were had, before `until`, came to
    `paid`. The next plan has `counted` of the tokens that were used. `begins` is the first day this is owed
    for. `carries`: the next plan takes on the rest as debt, so it is owed once that is not carried on any
    more; where the cycle was over before the plan went, nobody took anything on, and it is owed at once.
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
    """What a tenant had used of a plan as that ended; `began` names the row of its ledger that gave tokens.

    `regained` are the tokens of a later plan of the cycle that has more than the next one: `ALL` of one that
    bills, which charges what is beyond it by itself. No more is owed than the `debt` that was left, of tokens
    beyond those that were regained; None where nothing was carried on.
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
        """What a token of it costs."""
        return EXACT.divide(self.worth, Decimal(self.total))

    def worth_of(self, tokens: int) -> Decimal:
        """Return the worth of `tokens` of this use, in whole nano-units."""
        exact = EXACT.divide(EXACT.multiply(self.worth, Decimal(tokens)), Decimal(self.total))
        return exact.quantize(ONE_NANO, ROUND_HALF_UP, EXACT)


@dataclass(frozen=True, slots=True)
class EarlyUse:
    """Tokens that the end of a plan owes, their amount and price; one that is paid in part counts."""

    tokens: int
    amount: Decimal
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class DebtEnd:
    """Debt that no plan carries on from now on, in a cycle of tokens that `ends`: None, it never does.

    The plan behind has `counted` more tokens than the one that carried it; `ALL`: without limit, or it bills.
    """

    ends: datetime | None
    counted: int


@dataclass(frozen=True, slots=True)
class PlanStart:
    """A row of a tenant's ledger that begins something: a reset, or another plan. `moved` has its sign."""

    at: datetime
    is_reset: bool
    remaining: int | None
    moved: int


def plan_end(ended: SegmentEnd, had: TokenTerms, then: TokenTerms | None) -> PlanEnd | None:
    """Return the facts by which an ended plan owes; None in a trial, and where use was owed elsewhere.

    `then` is the plan that follows, None where there is none or it counts no tokens.
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
        # Whose clock was first, the ledger says.
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
    """Return the end of an earlier plan's debt with the plan that carried it; None where the next one carries
    it on.

    `ended` is None where a person gives the tenant another plan.
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
    """Return the index of the turn at which a plan ended, or the cycle of tokens around its end."""
    last = len(turns) - 1
    if ends is None:
        return last
    return next((at for at, turn in enumerate(turns) if turn.is_reset and turn.at >= ends), last)


def begin_of(turns: Sequence[PlanStart], stop: int) -> int | None:
    """Return the turn from which on tokens of the cycle were used."""
    begins = [at for at in range(stop) if turns[at].is_reset or (at > 0 and turns[at - 1].remaining is None)]
    return begins[-1] if begins else None


def tokens_used(turns: Sequence[PlanStart], total: int, ends: datetime | None, told: int = 0) -> int:
    """Return tokens of a plan that were used in a cycle; `turns` end with the plan's end, the newest is the
    last.

    Recharged or rolled-over tokens are used before the plan's own. `told` are those that came behind it.
    """
    stop = stop_of(turns, ends)
    begin = begin_of(turns, stop)
    had = None if begin is None else turns[begin].remaining
    if begin is None or had is None:
        return 0
    had += sum(turn.moved for turn in turns[begin + 1 : stop])
    return max(0, min(min(had, total) - _left(turns[stop]) + told, total))


def _left(turn: PlanStart) -> int:
    """Return the tokens that remained just before a turn."""
    return (turn.remaining or 0) - turn.moved


def ahead(ends: Sequence[PlanUsage], fees: Callable[[date | None], Decimal], runs: Decimal) -> list[EarlyUse]:
    """Return, for each end of a plan in a cycle, the earliest first, the use ahead of the fees paid.

    `fees` returns the fees up to a day (None: all of them), `runs` is the price of the cycle by the plan that
    runs on. Days pay for the earliest use first. Of several tenants the one that used most is paid for.
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
    """Tokens that the end of a plan owes, each by the plan whose price it has; and those left of a debt."""

    def __init__(self, debt: int | None) -> None:
        self.debt = debt
        self.tokens, self.left = Counter[PlanUsage](), Counter[PlanUsage]()

    @property
    def worth(self) -> Decimal:
        """What all of them come to."""
        return sum((end.worth_of(tokens) for end, tokens in self.tokens.items()), Decimal(0))

    @property
    def most(self) -> Decimal:
        """The most that is owed of that."""
        return sum((end.worth_of(tokens) for end, tokens in self.left.items()), Decimal(0))

    def add(self, tokens: int, by: PlanUsage, *, is_debt: bool) -> None:
        """Add tokens at a plan's price; what came last is paid back first."""
        self.tokens[by] += tokens
        if is_debt and self.debt is not None:
            tokens = min(tokens, self.debt)
            self.debt -= tokens
        self.left[by] += tokens

    def ahead(self, amount: Decimal, end: PlanUsage) -> EarlyUse:
        """Return the number of tokens that the amount is of their price; half a nano-unit is no token."""
        prices = {each.price for each in self.tokens} or {end.price}
        price = prices.pop()
        if prices:
            price = EXACT.divide(self.worth, Decimal(self.tokens.total()))
        exact = EXACT.divide(amount - HALF_NANO, price) if amount else Decimal(0)
        tokens = int(exact.to_integral_value(ROUND_CEILING, EXACT))
        return EarlyUse(max(tokens, int(amount > 0)), amount, _rounded(price))


def _shares(ends: Mapping[int, PlanUsage], runs: Decimal) -> tuple[dict[int, _DebtShare], date | None]:
    """Return each end's share of a tenant's tokens, and up to which day days pay for them: None is all days.

    A token is the last end's that had it, at the lowest price of the plans that had. Tokens given again
    within the cycle are others.
    """
    shares, until = {place: _DebtShare(end.debt) for place, end in ends.items()}, None
    given = defaultdict[object, dict[int, PlanUsage]](dict)
    for place, end in ends.items():
        given[end.began][place] = end
    for group in given.values():
        last, most = group[max(group)], max(end.used for end in group.values())
        # What the plan that runs on has, and what the one before it had: it may have tokens again.
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
    """Return a price of a token; of an endless decimal so many digits."""
    return price.quantize(Decimal(1).scaleb(-UNIT_PRICE_DIGITS), context=EXACT)


def token_cycle(terms: TokenTerms, anchor: date, at: datetime) -> tuple[date, datetime | None]:
    """Return the cycle of tokens of a moment: from which day on days pay for it, and when it ends.

    Tokens that are given once are paid by all days since the anchor, the first day of the subscription.
    """
    window = WINDOWS.get(terms.interval)
    if window is None:
        return anchor, None
    start_ms, end_ms, _ = bounds(window, terms.time_zone, terms.anchor_day, ms_of(at))
    return moment_of(start_ms).astimezone(UTC).date(), moment_of(end_ms)


def days_of(segment: PlanSegment, paid_from: date, ends: datetime | None, day: date) -> tuple[date, date]:
    """Return the days of a cycle of tokens; those that are given once are worth the fee of a day's cycle."""
    if ends is None:
        return cycle_of(segment.anchor, segment.interval, day)
    return paid_from, ends.astimezone(UTC).date()


def fees_of(segments: Iterable[PlanSegment], since: date, until: date) -> Decimal:
    """Return the fees of the days of segments, less discounts."""
    return sum((fee.amount for each in segments for fee in day_fees(each, since, until)), Decimal(0))


# What a cycle of tokens was sold with: whatever a plan says later applies from the next one on. Pure.

_ALWAYS = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """What a plan said from a moment on."""

    since: datetime
    terms: TokenTerms


def sold_with(
    said: Sequence[PlanVersion], given: PlanVersion | None, renewed: datetime | None, at: datetime
) -> TokenTerms:
    """Return the terms of the cycle that ran at a moment; `said` is what the plan says since when, the oldest
    first.

    They are those of the cycle's beginning: by the calendar, by a reset a person asked for (`renewed`), or as
    the tenant got the plan (`given`), whichever was last. Terms set within the cycle are left aside, and so
    is a cycle it would have had: the one that ran is of the terms before.
    """
    place = max((place for place, each in enumerate(said) if each.since <= at), default=0)
    while True:
        each = said[place]
        begins = max(_begin_of(each.terms, at), renewed or _ALWAYS)
        if given is not None and given.since >= begins:
            return given.terms
        if each.since <= begins or place == 0:
            return each.terms
        at, place = each.since, place - 1


def _begin_of(terms: TokenTerms, at: datetime) -> datetime:
    """Return when a cycle began by the calendar; tokens that are given once have one that always was."""
    window = WINDOWS.get(terms.interval)
    if window is None:
        return _ALWAYS
    return moment_of(bounds(window, terms.time_zone, terms.anchor_day, ms_of(at))[0])
