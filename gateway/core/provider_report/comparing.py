"""What we counted beside what a provider counted: a row a day and model, with a verdict.

Compared is what the provider's report says: no requests where it has none, no cost where it has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import StrEnum
from typing import Final

from gateway.core.billing.pricing import ONE_NANO
from gateway.core.provider_report.names import groups
from gateway.core.provider_report.report import EXACT, FIELDS, ZERO, Amounts, BadReport, Report, money

SHOWN: Final = Decimal("0.01")  # of a percentage
_SHOWING: Final = Context(prec=200, rounding=ROUND_HALF_UP)


class Verdict(StrEnum):
    """What came of comparing."""

    MATCHED = "matched"
    DIFFERS = "differs"
    OURS_ONLY = "ours only"
    THEIRS_ONLY = "theirs only"


class By(StrEnum):
    """How the names of a row were found to be of one model."""

    NAME = "name"
    DATE = "date"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much may differ, by field: `percent` of theirs, or `amount`; the larger one counts."""

    percent: Mapping[str, Decimal] = field(default_factory=dict)
    amount: Mapping[str, Decimal] = field(default_factory=dict)

    def allows(self, name: str, ours: Decimal, theirs: Decimal) -> bool:
        """Whether so much may differ."""
        share = EXACT.multiply(abs(theirs), EXACT.scaleb(self.percent.get(name, ZERO), Decimal(-2)))
        return abs(EXACT.subtract(ours, theirs)) <= max(share, self.amount.get(name, ZERO))


@dataclass(frozen=True, slots=True)
class Compared:
    """A day's model on both sides; a side is empty where it has none of it. `model` is its plainest name."""

    day: date | None
    model: str
    verdict: Verdict
    by: By
    our_names: tuple[str, ...]
    their_names: tuple[str, ...]
    ours: Mapping[str, Decimal]
    theirs: Mapping[str, Decimal]

    def difference(self, name: str) -> Decimal:
        """Ours less theirs."""
        return EXACT.subtract(self.ours.get(name, ZERO), self.theirs.get(name, ZERO))

    def percent(self, name: str) -> Decimal | None:
        """The difference in hundredths of theirs, to two places; None where theirs is nothing."""
        theirs = self.theirs.get(name, ZERO)
        if not theirs:
            return None
        share = _SHOWING.divide(EXACT.scaleb(self.difference(name), Decimal(2)), theirs)
        return _SHOWING.quantize(share, SHOWN)


def compare(
    ours: Report, theirs: Report, tolerance: Tolerance, answered: Mapping[str, Collection[str]]
) -> list[Compared]:
    """Every day and model of either side, by day and name; `BadReport` where costs cannot be compared.

    `answered` has the names of the models that answered for one that was asked for.
    """
    if ours.currency and theirs.currency and ours.currency != theirs.currency:
        raise BadReport(
            f"Our costs are in {ours.currency}, theirs in {theirs.currency}: compare usage without costs, or "
            "price the calls in the provider's currency"
        )
    mine, its = _by_day(ours), _by_day(theirs)
    rows = []
    for day in sorted(mine.keys() | its.keys()):
        here, there = mine.get(day, {}), its.get(day, {})
        for names in groups(here.keys() | there.keys(), answered):
            found = _beside(day, names, here, there, answered)
            if found.verdict is Verdict.DIFFERS:
                found = replace(found, theirs=_of(found.theirs, theirs.states))
                if _alike(found.ours, found.theirs, tolerance):
                    found = replace(found, verdict=Verdict.MATCHED)
            rows.append(found)
    return sorted(rows, key=lambda row: (str(row.day), row.model))


def total(rows: Sequence[Compared], states: Collection[str]) -> Compared:
    """All rows as one, matched where each of them is."""
    alike = all(row.verdict is Verdict.MATCHED for row in rows)
    ours, theirs = _sum(row.ours for row in rows), _sum(row.theirs for row in rows)
    verdict = Verdict.MATCHED if alike else Verdict.DIFFERS
    return Compared(None, "total", verdict, By.NAME, (), (), ours, _of(theirs, states))


def counted(rows: Iterable[Compared]) -> dict[str, int]:
    """How many rows have which verdict."""
    found = Counter(row.verdict for row in rows)
    return {verdict.value: found[verdict] for verdict in Verdict}


def lost(rows: Iterable[Compared]) -> set[str]:
    """Names that only we have, on days on which the provider has others that we have not."""
    rows = list(rows)
    days = {row.day for row in rows if row.verdict is Verdict.THEIRS_ONLY}
    return {
        name for row in rows if row.verdict is Verdict.OURS_ONLY and row.day in days for name in row.our_names
    }


def read_tolerance(texts: Iterable[str]) -> Tolerance:
    """Read `1%`, `cost=0.01` or `requests=5%`; without a field it is of each."""
    percent: dict[str, Decimal] = {}
    amount: dict[str, Decimal] = {}
    for text in texts:
        name, is_named, said = text.rpartition("=")
        if is_named and name not in FIELDS:
            raise ValueError(f"must be of one of {', '.join(FIELDS)}, not of {name!r}")
        most = money(said.removesuffix("%"))
        if most < 0:
            raise ValueError(f"must not be negative, as {text!r} is")
        found = percent if said.endswith("%") else amount
        found.update(dict.fromkeys((name,) if is_named else FIELDS, most))
    return Tolerance(percent, amount)


def _by_day(report: Report) -> dict[date, dict[str, Amounts]]:
    """A report's models of each day that used anything: a call that failed may have used nothing."""
    found: dict[date, dict[str, Amounts]] = {}
    for (day, model), amounts in report.rows.items():
        if any(amount for name, amount in amounts.items() if name != "requests"):
            found.setdefault(day, {})[model] = amounts
    return found


def _beside(
    day: date,
    names: set[str],
    here: Mapping[str, Amounts],
    there: Mapping[str, Amounts],
    answered: Mapping[str, Collection[str]],
) -> Compared:
    """What both sides have under some names of a day; where both have any, it differs until compared."""
    mine, its = sorted(names & here.keys()), sorted(names & there.keys())
    verdict, by = Verdict.DIFFERS, By.NAME
    if not its:
        verdict = Verdict.OURS_ONLY
    elif not mine:
        verdict = Verdict.THEIRS_ONLY
    elif mine != its:
        by = By.ANSWERED if any(set(answered.get(name, ())) & set(its) for name in mine) else By.DATE
    plainest = min(names, key=lambda name: (len(name), name))
    ours, theirs = _sum(here[name] for name in mine), _sum(there[name] for name in its)
    return Compared(day, plainest, verdict, by, tuple(mine), tuple(its), ours, theirs)


def _alike(ours: Mapping[str, Decimal], theirs: Mapping[str, Decimal], tolerance: Tolerance) -> bool:
    # Ours is rounded once a call, to a whole nano-unit of money.
    rounded = {"cost": EXACT.multiply(ONE_NANO, max(ours.get("requests", ZERO), Decimal(1)))}
    return all(
        tolerance.allows(name, ours.get(name, ZERO), amount)
        or abs(EXACT.subtract(ours.get(name, ZERO), amount)) <= rounded.get(name, ZERO)
        # Ours are failed ones as well, of which a provider says nothing.
        or (name == "requests" and ours.get(name, ZERO) >= amount)
        for name, amount in theirs.items()
    )


def _of(amounts: Mapping[str, Decimal], states: Collection[str]) -> Amounts:
    """What a report says of each field that it says anything of."""
    return {name: amounts.get(name, ZERO) for name in FIELDS if name in states}


def _sum(some: Iterable[Mapping[str, Decimal]]) -> Amounts:
    added: Amounts = {}
    for amounts in some:
        for name, amount in amounts.items():
            added[name] = EXACT.add(added.get(name, ZERO), amount)
    return added
