"""The comparison of our counts with a provider's: a row for each day and model, with a verdict.

Only fields of the provider's report are compared: no requests or costs if the report has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation, Overflow
from enum import StrEnum
from typing import Annotated, Final, TypeVar

import msgspec

from gateway.core.billing.money import ONE_NANO
from gateway.errors import TollkeeperError

# A report of either side: exact amounts by day and model.

# The compared values. `input` excludes cached tokens, and `cache_write` includes writes for an hour. All but
# the cost are counts.
FIELDS: Final = ("requests", "input", "cache_read", "cache_write", "cache_write_1h", "output", "cost")
ROWS_MAX: Final = 100_000  # days and models of one report
COUNT_MAX: Final = 2**53 - 1
NAME_CHARACTERS_MAX: Final = 512
MONEY_DIGITS_MAX: Final = 15  # before the point
MONEY_DECIMALS_MAX: Final = 40

# Precise enough for a share of the sum of all rows: rounding would raise an error.
EXACT: Final = Context(prec=200, traps=[Inexact, InvalidOperation, Overflow])
ZERO: Final = Decimal(0)
_MONEY = re.compile(r"-?[0-9]{1,60}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,3})?", re.ASCII)

Amounts = dict[str, Decimal]


class BadReport(TollkeeperError, reason="bad_report"):
    """The report cannot be read."""


@dataclass(frozen=True, slots=True)
class ReportLine:
    """The amounts of a model in one line of a report. The currency is empty without a cost."""

    model: str
    amounts: Mapping[str, Decimal]
    currency: str = ""


@dataclass(slots=True)
class ProviderReport:
    """Amounts by day and model. `states` are the fields that the report has, `days` the covered days."""

    rows: dict[tuple[date, str], Amounts] = field(default_factory=dict)
    days: set[date] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    currency: str = ""
    rows_max: int = ROWS_MAX

    def add(self, day: date, line: ReportLine) -> None:
        """Add one line to its day and model; `BadReport` if costs are in two currencies."""
        if len(line.model) > NAME_CHARACTERS_MAX:
            raise BadReport(f"the name of a model must have at most {NAME_CHARACTERS_MAX} characters")
        if line.currency and self.currency and line.currency != self.currency:
            raise BadReport(f"costs must be in one currency, not in {self.currency} and in {line.currency}")
        self.currency = self.currency or line.currency
        self.states.update(line.amounts)
        self.days.add(day)
        # Providers write names in one case, callers in any.
        sums = self.rows.setdefault((day, line.model.lower()), {})
        if len(self.rows) > self.rows_max:
            raise BadReport(f"a report may have at most {self.rows_max:,} days and models: ask for less time")
        for name, amount in line.amounts.items():
            sums[name] = EXACT.add(sums.get(name, ZERO), amount)


def money(text: str) -> Decimal:
    """Parse a decimal number exactly; ValueError describes a valid one."""
    amount = Decimal(text) if _MONEY.fullmatch(text) else None
    if amount is not None and amount == 0:
        return ZERO
    exponent = amount.as_tuple().exponent if amount is not None else None
    if amount is None or not isinstance(exponent, int):
        raise ValueError("must be a decimal number such as 12.50")
    if amount.adjusted() >= MONEY_DIGITS_MAX or exponent < -MONEY_DECIMALS_MAX:
        raise ValueError(
            f"must have at most {MONEY_DIGITS_MAX} digits before the point and {MONEY_DECIMALS_MAX} behind it"
        )
    return amount


def count(text: str) -> int:
    """Parse a count as spreadsheets write it, such as 12 or 12.0; ValueError describes a valid one."""
    match = re.fullmatch(r"([0-9]{1,16})(?:\.0+)?", text, re.ASCII)
    if match is None or int(match[1]) > COUNT_MAX:
        raise ValueError(f"must be a whole number from 0 to {COUNT_MAX}")
    return int(match[1])


# Names of the same model: callers ask for `gpt-4o`, providers bill `gpt-4o-2024-08-06`.

# The end of a name with a version: 2024-08-06, 20250514, 0613.
_DATED: Final = re.compile(
    r"(?<=.)[-@](?:20\d\d-[01]\d-[0-3]\d|20\d\d[01]\d[0-3]\d|[01]\d[0-3]\d)\Z", re.ASCII
)
_NEWEST: Final = "-latest"


def bare(name: str) -> str:
    """Return a model's name without its version; display names such as `Claude Haiku 4.5` become ids."""
    return _DATED.sub("", _id(name).removesuffix(_NEWEST))


def is_dated(name: str) -> bool:
    """Return whether a name denotes a single version."""
    return _DATED.search(_id(name)) is not None


def _id(name: str) -> str:
    return (re.sub(r"[ .]+", "-", name) if " " in name else name).lower()


def groups(names: Collection[str], answered: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Return names in groups that may mean the same model.

    Versions are separate if each name has one. If a name without a version is among them, all are one group,
    because its usage cannot be split. A name is also grouped with the models that `answered` for it.
    """
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(some: Iterable[str]) -> None:
        first, *others = map(root, some)
        for other in others:
            parent[root(other)] = root(first)

    versions: dict[str, list[str]] = {}
    for name in names:
        versions.setdefault(bare(name), []).append(name)
    for some in versions.values():
        if not all(map(is_dated, some)):
            join(some)
    for name in names:
        join([name, *(other for other in answered.get(name, ()) if other in parent)])
    groups_: dict[str, set[str]] = {}
    for name in names:
        groups_.setdefault(root(name), set()).add(name)
    return list(groups_.values())


SHOWN: Final = Decimal("0.01")  # of a percentage
_SHOWING: Final = Context(prec=200, rounding=ROUND_HALF_UP)


class ComparisonResult(StrEnum):
    """The result for one row of the comparison."""

    MATCHED = "matched"
    DIFFERS = "differs"
    OURS_ONLY = "ours only"
    THEIRS_ONLY = "theirs only"


class NameMatch(StrEnum):
    """The reason why the names in a row count as one model."""

    NAME = "name"
    DATE = "date"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The allowed difference by field: `percent` of the provider's amount or `amount`, the larger one."""

    percent: Mapping[str, Decimal] = field(default_factory=dict)
    amount: Mapping[str, Decimal] = field(default_factory=dict)

    def allows(self, name: str, ours: Decimal, theirs: Decimal) -> bool:
        """Return whether the difference of two amounts is within the tolerance of a field."""
        share = EXACT.multiply(abs(theirs), EXACT.scaleb(self.percent.get(name, ZERO), Decimal(-2)))
        return abs(EXACT.subtract(ours, theirs)) <= max(share, self.amount.get(name, ZERO))


@dataclass(frozen=True, slots=True)
class DayComparison:
    """A model on one day on both sides. A side without usage is empty. `model` is the shortest name."""

    day: date | None
    model: str
    verdict: ComparisonResult
    by: NameMatch
    our_names: tuple[str, ...]
    their_names: tuple[str, ...]
    ours: Mapping[str, Decimal]
    theirs: Mapping[str, Decimal]

    def difference(self, name: str) -> Decimal:
        """Return our amount of a field minus the provider's."""
        return EXACT.subtract(self.ours.get(name, ZERO), self.theirs.get(name, ZERO))

    def percent(self, name: str) -> Decimal | None:
        """Return the difference in percent of the provider's amount, with two decimals; None if that is 0."""
        theirs = self.theirs.get(name, ZERO)
        if not theirs:
            return None
        share = _SHOWING.divide(EXACT.scaleb(self.difference(name), Decimal(2)), theirs)
        return _SHOWING.quantize(share, SHOWN)


def compare_reports(
    ours: ProviderReport,
    theirs: ProviderReport,
    tolerance: Tolerance,
    answered: Mapping[str, Collection[str]],
) -> list[DayComparison]:
    """Return every day and model of either side, by day and name; `BadReport` if the currencies differ.

    `answered` has the models that answered, by requested model.
    """
    if ours.currency and theirs.currency and ours.currency != theirs.currency:
        raise BadReport(
            f"Our costs are in {ours.currency}, theirs in {theirs.currency}: compare usage without costs, or "
            "price the calls in the provider's currency"
        )
    mine, reported = _models_by_day(ours), _models_by_day(theirs)
    rows = []
    for day in sorted(mine.keys() | reported.keys()):
        here, there = mine.get(day, {}), reported.get(day, {})
        for names in groups(here.keys() | there.keys(), answered):
            lines = _beside(day, names, here, there, answered)
            if lines.verdict is ComparisonResult.DIFFERS:
                lines = replace(lines, theirs=_stated_amounts(lines.theirs, theirs.states))
                if _alike(lines.ours, lines.theirs, tolerance):
                    lines = replace(lines, verdict=ComparisonResult.MATCHED)
            rows.append(lines)
    return sorted(rows, key=lambda row: (str(row.day), row.model))


def total(rows: Sequence[DayComparison], states: Collection[str]) -> DayComparison:
    """Return the sum of all rows, matched if each row is."""
    alike = all(row.verdict is ComparisonResult.MATCHED for row in rows)
    ours, theirs = _sum(row.ours for row in rows), _sum(row.theirs for row in rows)
    verdict = ComparisonResult.MATCHED if alike else ComparisonResult.DIFFERS
    return DayComparison(
        None, "total", verdict, NameMatch.NAME, (), (), ours, _stated_amounts(theirs, states)
    )


def counted(rows: Iterable[DayComparison]) -> dict[str, int]:
    """Return the number of rows by verdict."""
    counter = Counter(row.verdict for row in rows)
    return {verdict.value: counter[verdict] for verdict in ComparisonResult}


def lost_rows(rows: Iterable[DayComparison]) -> set[str]:
    """Return names that only we have, on days on which only the provider has some other name."""
    rows = list(rows)
    days = {row.day for row in rows if row.verdict is ComparisonResult.THEIRS_ONLY}
    return {
        name
        for row in rows
        if row.verdict is ComparisonResult.OURS_ONLY and row.day in days
        for name in row.our_names
    }


def read_tolerance(texts: Iterable[str]) -> Tolerance:
    """Parse tolerances such as `1%`, `cost=0.01` or `requests=5%`. Without a field it applies to all."""
    percent: dict[str, Decimal] = {}
    amount: dict[str, Decimal] = {}
    for text in texts:
        name, is_named, text_ = text.rpartition("=")
        if is_named and name not in FIELDS:
            raise ValueError(f"must be of one of {', '.join(FIELDS)}, not of {name!r}")
        most = money(text_.removesuffix("%"))
        if most < 0:
            raise ValueError(f"must not be negative, as {text!r} is")
        tolerance = percent if text_.endswith("%") else amount
        tolerance.update(dict.fromkeys((name,) if is_named else FIELDS, most))
    return Tolerance(percent, amount)


def _models_by_day(report: ProviderReport) -> dict[date, dict[str, Amounts]]:
    """Return the models with usage on each day of a report. Failed calls alone are no usage."""
    days: dict[date, dict[str, Amounts]] = {}
    for (day, model), amounts in report.rows.items():
        if any(amount for name, amount in amounts.items() if name != "requests"):
            days.setdefault(day, {})[model] = amounts
    return days


def _beside(
    day: date,
    names: set[str],
    here: Mapping[str, Amounts],
    there: Mapping[str, Amounts],
    answered: Mapping[str, Collection[str]],
) -> DayComparison:
    """Return our amounts (`here`) and the provider's (`there`) of a day, as sums over `names` of one model.

    The verdict is DIFFERS until the amounts are compared.
    """
    mine, reported = sorted(names & here.keys()), sorted(names & there.keys())
    verdict, by = ComparisonResult.DIFFERS, NameMatch.NAME
    if not reported:
        verdict = ComparisonResult.OURS_ONLY
    elif not mine:
        verdict = ComparisonResult.THEIRS_ONLY
    elif mine != reported:
        by = (
            NameMatch.ANSWERED
            if any(set(answered.get(name, ())) & set(reported) for name in mine)
            else NameMatch.DATE
        )
    plainest = min(names, key=lambda name: (len(name), name))
    ours, theirs = _sum(here[name] for name in mine), _sum(there[name] for name in reported)
    return DayComparison(day, plainest, verdict, by, tuple(mine), tuple(reported), ours, theirs)


def _alike(ours: Mapping[str, Decimal], theirs: Mapping[str, Decimal], tolerance: Tolerance) -> bool:
    """Return whether our amounts and a provider's are equal within the tolerance and our rounding."""
    # Our cost is rounded once for each call, to a whole nano-unit.
    rounded = {"cost": EXACT.multiply(ONE_NANO, max(ours.get("requests", ZERO), Decimal(1)))}
    return all(
        tolerance.allows(name, ours.get(name, ZERO), amount)
        or abs(EXACT.subtract(ours.get(name, ZERO), amount)) <= rounded.get(name, ZERO)
        # Our requests include failed ones, which a provider does not report.
        or (name == "requests" and ours.get(name, ZERO) >= amount)
        for name, amount in theirs.items()
    )


def _stated_amounts(amounts: Mapping[str, Decimal], states: Collection[str]) -> Amounts:
    """Return the amounts of the fields that a report states; 0 for a stated field without an amount."""
    return {name: amounts.get(name, ZERO) for name in FIELDS if name in states}


def _sum(some: Iterable[Mapping[str, Decimal]]) -> Amounts:
    added: Amounts = {}
    for amounts in some:
        for name, amount in amounts.items():
            added[name] = EXACT.add(added.get(name, ZERO), amount)
    return added


# Differences between providers' reports: an object each, in a file of its own.

Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
# Reads one result of a bucket; msgspec.ValidationError and ValueError say what is wrong with it.
ReadResult = Callable[[bytes], ReportLine]
# Reads one row of a table; the line is None if the row only shows a day without usage.
ReadRow = Callable[[Mapping[str, str]], tuple[date, ReportLine | None]]
# A question of the API without its span: its path and its other parameters.
Question = tuple[str, Mapping[str, str]]

DAYS_A_PAGE: Final = 31
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class CsvExport:
    """A kind of CSV export. It is recognized by the column `mark`, and must have all `columns`."""

    mark: str
    columns: tuple[str, ...]
    read: ReadRow


@dataclass(frozen=True, slots=True)
class Format:
    """The formats of one provider's reports.

    `bucket` decodes a bucket: its start, its end and its results. `wanted` names the readable reports.
    `questions` are requests to its API, `span` makes their time parameters, and `headers` authenticate them.
    """

    name: str
    wanted: str
    bucket: Callable[[bytes], tuple[datetime, datetime, list[msgspec.Raw]]]
    result: ReadResult
    tables: tuple[CsvExport, ...]
    url: str
    key_variable: str
    questions: tuple[Question, ...]
    span: Callable[[date, date], Mapping[str, str]]
    headers: Callable[[str], Mapping[str, str]]


def cell(row: Mapping[str, str], name: str, read: Callable[[str], _Read]) -> _Read:
    """Return the value of a column, parsed by `read`; ValueError names the column."""
    try:
        return read(row[name])
    except ValueError as error:
        raise ValueError(f"column {name} {error}") from error
