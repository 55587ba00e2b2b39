"""What somebody counted: amounts by day and model, each exact. Both sides of a comparison are one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

from gateway.errors import TollkeeperError

# What is compared. `input` is without what a cache had; those that are written to it for an hour are part of
# those that are. All but the cost are counts.
FIELDS: Final = ("requests", "input", "cache_read", "cache_write", "cache_write_1h", "output", "cost")
ROWS_MAX: Final = 100_000  # days and models of one report
COUNT_MAX: Final = 2**53 - 1
NAME_CHARACTERS_MAX: Final = 512
MONEY_DIGITS_MAX: Final = 15  # before the point
MONEY_DECIMALS_MAX: Final = 40

# Wide enough for a share of a sum of as many rows as there may be: nothing is ever rounded unseen.
EXACT: Final = Context(prec=200, traps=[Inexact, InvalidOperation, Overflow])
ZERO: Final = Decimal(0)
_MONEY = re.compile(r"-?[0-9]{1,60}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,3})?", re.ASCII)

Amounts = dict[str, Decimal]


class BadReport(TollkeeperError):
    """The report cannot be read."""

    reason = "bad_report"


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of a report says of a model; the currency is empty where it says no cost."""

    model: str
    amounts: Mapping[str, Decimal]
    currency: str = ""


@dataclass(slots=True)
class Report:
    """Amounts by day and model. `states` are the fields it says anything of; `days` those it covers."""

    rows: dict[tuple[date, str], Amounts] = field(default_factory=dict)
    days: set[date] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    currency: str = ""
    rows_max: int = ROWS_MAX

    def add(self, day: date, line: Line) -> None:
        """Add one line to its day and model; `BadReport` where costs are in two currencies."""
        if len(line.model) > NAME_CHARACTERS_MAX:
            raise BadReport(f"the name of a model must have at most {NAME_CHARACTERS_MAX} characters")
        if line.currency and self.currency and line.currency != self.currency:
            raise BadReport(f"costs must be in one currency, not in {self.currency} and in {line.currency}")
        self.currency = self.currency or line.currency
        self.states.update(line.amounts)
        self.days.add(day)
        # Providers write names in one case; what callers ask for may be in any.
        sums = self.rows.setdefault((day, line.model.lower()), {})
        if len(self.rows) > self.rows_max:
            raise BadReport(f"a report may have at most {self.rows_max:,} days and models: ask for less time")
        for name, amount in line.amounts.items():
            sums[name] = EXACT.add(sums.get(name, ZERO), amount)


def money(text: str) -> Decimal:
    """Read a decimal number exactly; ValueError says what would be right."""
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
    """Read a count as spreadsheets write one, such as 12 or 12.0; ValueError says what would be right."""
    found = re.fullmatch(r"([0-9]{1,16})(?:\.0+)?", text, re.ASCII)
    if found is None or int(found[1]) > COUNT_MAX:
        raise ValueError(f"must be a whole number from 0 to {COUNT_MAX}")
    return int(found[1])
