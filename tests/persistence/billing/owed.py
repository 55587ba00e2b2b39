"""What an organization owes, counted by another way: by fractions, of what happened."""

from __future__ import annotations

import math
from calendar import monthrange
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import pairwise
from operator import itemgetter

from gateway.core.billing.money import PriceTier
from tests.persistence.billing.carried import Carried, Lot

NANO = 10**9
DAY = timedelta(days=1)
# By plans that ended, tokens at what so many of them cost.
Shares = dict[int, dict[tuple[Fraction, int], int]]
# Name: cost of a month, tokens, policy, price of one beyond.
PLANS: dict[str, tuple[str, int, str, str | None]] = {
    "Small": ("29.00", 1_000, "bill", "0.000003"),
    "Large": ("99.99", 100_000, "bill", "0.00004"),
    "Blocks": ("10.00", 5_000, "block", None),
    "Carries": ("20.00", 3_000, "carry", None),
    "Owes": ("15.00", 700, "carry", None),
}
BY_TOKENS = {terms[1]: terms for terms in PLANS.values()}


@dataclass
class Term:
    """A plan in force from one day to another, and where its cycles count from."""

    cost: Fraction
    months: int
    anchor: date
    start: date
    end: date
    billing: str | None = None
    free_until: date = date.min
    off: Fraction = Fraction(0)
    off_until: date = date.max

    def fee(self, day: date) -> Fraction:
        """What a day comes to: its share of the cycle, in nano-units that add up, less what is off."""
        if day < self.free_until:
            return Fraction(0)
        return self._share(day) * (1 - (self.off if day < self.off_until else 0))

    def token_cycle(self, day: date) -> tuple[date, date]:
        """The month from the anchor's day on that a day lies in."""
        monthly, number = replace(self, months=1), 0
        while monthly._begins(number + 1) <= day:
            number += 1
        return monthly._begins(number), monthly._begins(number + 1)

    def known_until(self, today: date) -> date:
        """Up to where days are owed: in advance of a whole cycle, once it has begun."""
        if self.billing != "advance" or self.start > today:
            return min(self.end, today)
        passed = 0
        while self._begins(passed) <= today and self._begins(passed) < self.end:
            passed += 1
        return min(self._begins(passed), self.end)

    def _share(self, day: date) -> Fraction:
        passed = 0
        while self._begins(passed + 1) <= day:
            passed += 1
        first, whole = self._begins(passed), (self._begins(passed + 1) - self._begins(passed)).days
        before = (day - first).days
        return self._rounded(Fraction(before + 1, whole)) - self._rounded(Fraction(before, whole))

    def _begins(self, cycle: int) -> date:
        return _begins(self.anchor, self.months, cycle)

    def _rounded(self, part: Fraction) -> Fraction:
        nano = self.cost * part * NANO
        return Fraction((nano.numerator * 2 + nano.denominator) // (2 * nano.denominator), NANO)


@dataclass
class EndedPlan:
    """A plan that ended: the cycle of tokens it was of, what that costs, what was used, and when.

    `has` is what the next plan has; `again` what a later one of the cycle has, `math.inf` if it bills.
    """

    cycle: tuple[date, date]
    anchor: date
    day: date
    until: date
    worth: Fraction
    total: int
    has: int
    # As it was when the plan ended, and with what was told since.
    first: int
    used: int
    span: tuple[datetime, datetime]
    lot: Lot | None = None
    again: float | None = None


def _nano(amount: Fraction) -> Fraction:
    nano = amount * NANO
    return Fraction((nano.numerator * 2 + nano.denominator) // (2 * nano.denominator), NANO)


@dataclass
class Owed:
    """What happened, and what it comes to."""

    terms: list[Term] = field(default_factory=list)
    others: Fraction = Fraction(0)
    units: dict[tuple[int, int], int] = field(default_factory=dict)
    charged_of_cycle: int = 0
    credited: Fraction = Fraction(0)
    given_back: set[tuple[int, date]] = field(default_factory=set)
    left: list[EndedPlan] = field(default_factory=list)
    carried: Carried = field(default_factory=Carried)
    # By tokens; those that were changed.
    policies: dict[int, str] = field(default_factory=dict)

    def policy(self, total: int) -> str:
        return self.policies.get(total, BY_TOKENS[total][2])

    @property
    def early(self) -> list[tuple[date, Fraction]]:
        """Tokens used ahead of their days, by the day it is of: each stretch of tokens by itself."""
        found = []
        for cycle in dict.fromkeys(each.cycle for each in self.left):
            ends = [each for each in self.left if each.cycle == cycle and self._is_known(each)]
            if not ends:
                continue
            for end in ends:
                end.used = max(0, min(end.first + self.more(end.span), end.total))
            owed = {id(end): dict[tuple[Fraction, int], int]() for end in ends}
            left = {id(end): dict[tuple[Fraction, int], int]() for end in ends}
            runs = [term for term in self.terms if term.start < cycle[1]][-1]
            runs = replace(runs, anchor=ends[-1].anchor)
            paid = Fraction(0)
            for began in dict.fromkeys(end.span[0] for end in ends):
                paid = self._stretches(
                    [end for end in ends if end.span[0] == began], cycle, self._worth(runs, cycle), owed, left
                )
            for end in ends:
                worth, most = (
                    sum((_nano(w * n / of) for (w, of), n in each[id(end)].items()), Fraction(0))
                    for each in (owed, left)
                )
                found.append((end.day, min(max(Fraction(0), worth - paid), most)))
                paid = max(Fraction(0), paid - worth)
        return found

    def _stretches(
        self, ends: list[EndedPlan], cycle: tuple[date, date], runs: Fraction, owed: Shares, left: Shares
    ) -> Fraction:
        """Have each stretch of tokens owed by the last end that had it; what days pay of all that."""
        has: float = ends[-1].has
        before = ends[-1].total
        if ends[-1].again is not None:
            has, before = ends[-1].again, ends[-1].has
        back = before < has and any(end.used > before for end in ends)
        debts = {id(end): None if end.lot is None else self.carried.of(end.lot) for end in ends}
        edges = sorted({0, *(end.used for end in ends), *(int(n) for n in self._others(ends, has))})
        for below, top in list(pairwise(edges))[::-1]:
            had = [end for end in ends if end.used >= top and end.again != math.inf]
            if not had or (not back and top <= has):
                continue
            prices = [(end.worth / end.total, end.worth, end.total) for end in had]
            if back and has >= top:
                prices.append((runs / int(has), runs, int(has)))
            _, worth, of = min(prices, key=itemgetter(0))
            who, count = had[-1], top - below
            owed[id(who)][worth, of] = owed[id(who)].get((worth, of), 0) + count
            debt = debts[id(who)]
            if debt is not None and below >= (who.again or 0):
                count = min(count, debt)
                debts[id(who)] = debt - count
            left[id(who)][worth, of] = left[id(who)].get((worth, of), 0) + count
        until = cycle[1] if back else ends[-1].until
        return sum(
            (t.fee(day) for t in self.terms for day in days(max(cycle[0], t.start), min(t.end, until))),
            Fraction(0),
        )

    @staticmethod
    def _others(ends: list[EndedPlan], has: float) -> list[float]:
        return [n for n in (has, *(end.again or 0 for end in ends)) if n != math.inf]

    def _is_known(self, end: EndedPlan) -> bool:
        return end.lot is None or self.carried.of(end.lot) is not None

    @staticmethod
    def _worth(term: Term, cycle: tuple[date, date]) -> Fraction:
        return sum((term.fee(day) for day in days(*cycle)), Fraction(0))

    def came(self, term: Term, day: date, total: int) -> None:
        """A plan is there from a day on: it has tokens again that one before it in the cycle left."""
        cycle, tokens = term.token_cycle(day), math.inf if self.policy(total) == "bill" else total
        for end in self.left:
            if end.cycle == cycle and end.has < tokens:
                end.again = max(end.again or 0, tokens)

    def more(self, _: tuple[datetime, datetime]) -> int:
        """Tokens of a plan's time that were told once it had ended."""
        return 0

    def plan_ended(
        self, term: Term, now: date, last: date, *, total: int, then: int | None, used: int,
        span: tuple[datetime, datetime], seq: int,
    ) -> None:  # fmt: skip
        """A plan that was in force up to a day ended: its days pay for tokens, or those that were used do.

        Within its cycle a plan that carries takes on the rest, and nothing is owed until that is over.
        """
        if now <= term.free_until:
            return
        cycle = term.token_cycle(last)
        counted, lot = 0, None
        if then is None or cycle[1] <= now:
            if self.policy(total) == "bill":
                return
        elif self.policy(then) == "bill":
            return
        else:
            counted = then
            if self.policy(then) == "carry":
                lot = Lot(seq, *span)
        first = max(day for day in map(term._begins, range(1_000)) if day <= last)
        day, worth = max(first, cycle[0]), self._worth(term, cycle)
        self.left.append(
            EndedPlan(cycle, term.anchor, day, now, worth, total, counted, used, used, span, lot)
        )
        self.carried.lots += [] if lot is None else [lot]

    def fees(self, until: date) -> Fraction:
        """All days that are over; those that a note gave back, as segments have them, are free."""
        return sum(
            (
                term.fee(day)
                for number, term in enumerate(self.terms)
                for day in days(term.start, term.known_until(until))
                if (number, day) not in self.given_back
            ),
            Fraction(0),
        )

    def ended(self, remaining: int, total: int | None) -> None:
        """A cycle, or a plan within it, ended with so many tokens."""
        terms = None if total is None else BY_TOKENS[total]
        if terms is not None and terms[2] == "bill" and terms[3] is not None:
            more = max(0, -remaining - self.charged_of_cycle)
            self.others += more * Fraction(terms[3])
            self.charged_of_cycle += more

    def used(self, day: date, units: int, tiers: tuple[PriceTier, ...]) -> None:
        month = (day.year, day.month)
        before = self.units.get(month, 0)
        self.units[month] = before + units
        self.others += ladder(tiers, before + units) - ladder(tiers, before)


@cache
def _begins(anchor: date, months: int, cycle: int) -> date:
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + cycle * months, 12)
    return date(year, month + 1, min(anchor.day, monthrange(year, month + 1)[1]))


def ladder(tiers: tuple[PriceTier, ...], units: int) -> Fraction:
    """What the first units of a month cost."""
    if units < 0:
        return -ladder(tiers, -units)
    cost, below = Fraction(0), 0
    for tier in tiers:
        upto = units if tier.up_to is None else min(units, tier.up_to)
        cost += max(0, upto - below) * Fraction(tier.unit_price)
        below = max(below, upto)
    return cost


def days(start: date, end: date) -> list[date]:
    return [start + number * DAY for number in range((end - start).days)]
