"""What an organization owes, counted by another way: by fractions, of what happened."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cache

from gateway.core.billing.pricing import Tier
from tests.persistence.billing.carried import Carried, Lot

NANO = 10**9
DAY = timedelta(days=1)
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

    def known_until(self, today: date) -> date:
        """Up to where days are owed: in advance of a whole cycle, once its first is over."""
        if self.billing != "advance" or self.start >= today:
            return min(self.end, today)
        passed = 0
        while self._begins(passed) < min(today, self.end):
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


@dataclass(frozen=True)
class Left:
    """A plan that ended: the cycle its days pay, what it and its days cost, what was used of it, and when.

    `place` is where cycles count from, and the first day of this one.
    """

    place: tuple[date, date]
    day: date
    worth: Fraction
    paid: Fraction
    total: int
    counted: int
    used: int
    span: tuple[datetime, datetime]
    lot: Lot | None = None


def _worth_of(left: Left, tokens: int) -> Fraction:
    nano = left.worth * tokens / left.total * NANO
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
    left: list[Left] = field(default_factory=list)
    carried: Carried = field(default_factory=Carried)
    # By tokens; those that were changed.
    policies: dict[int, str] = field(default_factory=dict)

    def policy(self, total: int) -> str:
        return self.policies.get(total, BY_TOKENS[total][2])

    @property
    def early(self) -> list[tuple[date, Fraction]]:
        """Tokens used ahead of their days, by the day it is of: plans of a cycle come to its fee at most."""
        found, paid = [], dict[tuple[date, date], Fraction]()
        for each in self.left:
            used = max(0, min(each.used + self.more(each.span), each.total))
            before = paid.get(each.place, Fraction(0))
            if not each.worth:
                continue
            money = _worth_of(each, max(0, used - each.counted)) - each.paid - before
            if each.lot is not None:
                money = min(money, _worth_of(each, self.carried.of(each.lot) or 0))
            money = max(Fraction(0), money)
            paid[each.place] = before + money
            found.append((each.day, money))
        return found

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
        monthly, number = replace(term, months=1), 0
        while monthly._begins(number + 1) <= last:
            number += 1
        cycle = monthly._begins(number), monthly._begins(number + 1)
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
        worth = sum((term.fee(day) for day in days(*cycle)), Fraction(0))
        paid = Fraction(0)
        for each in self.terms:
            if each.anchor == term.anchor:
                paid += sum(
                    (each.fee(day) for day in days(max(cycle[0], each.start), min(each.end, now))),
                    Fraction(0),
                )
        first = max(day for day in map(term._begins, range(1_000)) if day <= last)
        self.left.append(
            Left(
                (term.anchor, cycle[0]), max(first, cycle[0]), worth, paid, total, counted, used, span, lot
            )
        )  # fmt: skip
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

    def used(self, day: date, units: int, tiers: tuple[Tier, ...]) -> None:
        month = (day.year, day.month)
        before = self.units.get(month, 0)
        self.units[month] = before + units
        self.others += ladder(tiers, before + units) - ladder(tiers, before)


@cache
def _begins(anchor: date, months: int, cycle: int) -> date:
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + cycle * months, 12)
    return date(year, month + 1, min(anchor.day, monthrange(year, month + 1)[1]))


def ladder(tiers: tuple[Tier, ...], units: int) -> Fraction:
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
