"""Tokens that were used ahead of the days that pay for them, where a plan ends inside a cycle. Pure.

A plan's tokens are given whole and its fee is paid by day. So once a plan ends, its cycle is looked at: its
days pay for as large a part of the tokens as they are of the cycle's fee, and what was used beyond that is
owed at the same price. A plan that bills has a price for what is beyond it, and its days pay all within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal

from gateway.core.accounts.budgets import bounds
from gateway.core.billing.charge import day_fees
from gateway.core.billing.pricing import EXACT, ONE_NANO
from gateway.core.billing.subscription import Segment, cycle_of, midnight
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import moment_of, ms_of

UNIT_PRICE_DIGITS = 12
HALF_NANO = EXACT.divide(ONE_NANO, Decimal(2))
BILL, CARRY = "bill", "carry"
# Of debt that the plan behind has whole, or has as its own.
ALL = INTEGER_MAX
# How cycles of tokens are called where windows of budgets are counted.
WINDOWS = {"daily": "day", "weekly": "week", "monthly": "month"}


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """How many tokens a cycle has (None: without limit), when it begins, and what is done beyond it."""

    total: int | None
    policy: str
    interval: str
    time_zone: str
    anchor_day: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A segment that ended, with all of its subscription. `at` is the last moment it was in force.

    `over`: no other one follows.
    """

    subscription_id: int
    segments: Sequence[Segment]
    segment: Segment
    at: datetime
    over: bool

    @property
    def last_day(self) -> date:
        """The last UTC day on which it was in force, for a part of it at least."""
        return self.at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class PlanEnd:
    """A tenant's plan that ended, in a cycle of tokens that `ends` (None: never) and is paid from a day on.

    The days of the whole cycle cost `worth` by this plan, those that were had came to `paid`. The next plan
    has `counted` of the tokens that were used. `begins` is the first day this is owed for. `carries`: the
    next plan takes on the rest as debt, so it is owed once that is not carried on any more; where the cycle
    was over before the plan went, nobody took anything on, and it is owed at once.
    """

    total: int
    counted: int
    worth: Decimal
    paid: Decimal
    paid_from: date
    ends: datetime | None
    begins: date
    carries: bool = False


@dataclass(frozen=True, slots=True)
class DebtEnd:
    """Debt that no plan carries on from now on, in a cycle of tokens that `ends`: None, it never does.

    The plan behind has `counted` more tokens than the one that carried it; `ALL`: without limit, or it bills.
    """

    ends: datetime | None
    counted: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A row of a tenant's ledger that begins something: a reset, or another plan. `moved` has its sign."""

    at: datetime
    is_reset: bool
    remaining: int | None
    moved: int


def plan_end(ended: Ended, had: TokenTerms, then: TokenTerms | None) -> PlanEnd | None:
    """What the end of a plan owes by; None in a trial, and where what was used is owed elsewhere.

    `then` is the plan that follows, None where there is none or it counts no tokens.
    """
    trial_end = ended.segment.terms.trial_end
    if not had.total or (trial_end is not None and ended.segment.end <= trial_end):
        return None
    paid_from, whole, ends = _cycle(ended, had)
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
    segment = ended.segment
    worth = _fees([replace(segment, start=whole[0], end=whole[1])], *whole)
    paid = _fees(ended.segments, paid_from, segment.end)
    begins = max(paid_from, cycle_of(segment.anchor, segment.interval, ended.last_day)[0])
    return PlanEnd(had.total, counted, worth, paid, paid_from, ends, begins, carries)


def debt_end(ended: Ended | None, had: TokenTerms, then: TokenTerms | None) -> DebtEnd | None:
    """How debt of an earlier plan ends with the plan that carried it; None where the next one carries it on.

    `ended` is None where a person gives the tenant another plan.
    """
    ends = None if ended is None else _cycle(ended, had)[2]
    if then is None:
        return DebtEnd(ends, 0)
    if then.total is None or then.policy == BILL:
        return DebtEnd(ends, ALL)
    if then.policy == CARRY:
        return None
    return DebtEnd(ends, max(0, then.total - (had.total or 0)))


def stop_of(turns: Sequence[Turn], ends: datetime | None) -> int:
    """Where a plan, or the cycle of tokens it ended in, was over: before this turn."""
    last = len(turns) - 1
    if ends is None:
        return last
    return next((at for at, turn in enumerate(turns) if turn.is_reset and turn.at >= ends), last)


def begin_of(turns: Sequence[Turn], stop: int) -> int | None:
    """The turn from which on tokens of the cycle were used."""
    begins = [at for at in range(stop) if turns[at].is_reset or (at > 0 and turns[at - 1].remaining is None)]
    return begins[-1] if begins else None


def tokens_used(turns: Sequence[Turn], total: int, ends: datetime | None, told: int = 0) -> int:
    """Tokens of a plan that were used in a cycle; `turns` end with the plan's end, the newest is the last.

    What was recharged or rolled over is used before the plan's own. `told` are those that came behind it.
    """
    stop = stop_of(turns, ends)
    begin = begin_of(turns, stop)
    had = None if begin is None else turns[begin].remaining
    if begin is None or had is None:
        return 0
    had += sum(turn.moved for turn in turns[begin + 1 : stop])
    return max(0, min(min(had, total) - _left(turns[stop]) + told, total))


def _left(turn: Turn) -> int:
    """What remained just before a turn."""
    return (turn.remaining or 0) - turn.moved


def tokens_ahead(end: PlanEnd, used: int, charged: Decimal) -> int:
    """Tokens that neither the next plan has nor the cycle's days pay, nor what was charged of it before.

    One that is paid in part counts.
    """
    if not end.worth:
        return 0
    # What was charged is whole nano-units: half of one is no token.
    had = EXACT.add(EXACT.add(end.paid, charged), HALF_NANO)
    paid_for = EXACT.divide_int(EXACT.multiply(Decimal(end.total), had), end.worth)
    return max(0, used - end.counted - int(paid_for))


def amount_ahead(end: PlanEnd, used: int, charged: Decimal, debt: int | None = None) -> Decimal:
    """What these tokens come to beyond what is paid, in whole nano-units: with the days the fee at most.

    `debt` are those that nobody carries on any more, where the next plan carried them.
    """
    owed = amount_of(end, max(0, used - end.counted)) - end.paid - charged
    most = owed if debt is None else min(owed, amount_of(end, debt))
    return max(Decimal(0), most)


def unit_price(end: PlanEnd) -> Decimal:
    """What a token of the plan costs; of an endless decimal so many digits."""
    return EXACT.divide(end.worth, Decimal(end.total)).quantize(
        Decimal(1).scaleb(-UNIT_PRICE_DIGITS), context=EXACT
    )


def amount_of(end: PlanEnd, ahead: int) -> Decimal:
    """What tokens of the plan come to, in whole nano-units."""
    exact = EXACT.divide(EXACT.multiply(end.worth, Decimal(ahead)), Decimal(end.total))
    return exact.quantize(ONE_NANO, ROUND_HALF_UP, EXACT)


def _cycle(ended: Ended, had: TokenTerms) -> tuple[date, tuple[date, date], datetime | None]:
    """From which day on days pay for tokens, all days of the cycle they are of, and the moment it ends.

    Tokens that are given once are paid by the fee of one cycle, and by all days there were.
    """
    segment, window = ended.segment, WINDOWS.get(had.interval)
    if window is None:
        return segment.anchor, cycle_of(segment.anchor, segment.interval, ended.last_day), None
    start_ms, end_ms, _ = bounds(window, had.time_zone, had.anchor_day, ms_of(ended.at))
    ends = moment_of(end_ms)
    first = moment_of(start_ms).astimezone(UTC).date()
    return first, (first, ends.astimezone(UTC).date()), ends


def _fees(segments: Iterable[Segment], since: date, until: date) -> Decimal:
    """What days of segments come to, less what is off."""
    return sum((fee.amount for each in segments for fee in day_fees(each, since, until)), Decimal(0))
