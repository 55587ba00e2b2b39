"""Queries of finance: periods, owners, and how tax is divided among months of supply. Pure.

Months and days are of UTC. Exports of a past month never change: later changes are entries of the month in
which they happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from gateway.core.billing.charges import KINDS
from gateway.core.billing.money import EXACT, rounded

DOCUMENT, SUPPLY = "document", "supply"
# Kinds of revenue besides those of charges: sold credits are earned when they are used or expire.
DRAWN = ("credits_used", "credits_expired")
# Accounts of the ledger with their descriptions.
ACCOUNTS: Mapping[str, str] = {
    "receivables": "what customers owe by invoices",
    "unbilled": "what was supplied, or is to be, and no invoice has",
    "deferred": "what was charged ahead of its supply",
    "deferred_credits": "credits that were sold and are not used yet",
    "unpaid_credits": "credits that wait for their payment, which nobody has to pay",
    "bank": "money that came in",
    "tax": "tax of invoices",
    "rounding": "what lines are rounded by",
    "bad_debt": "what was given up",
    **{f"revenue_{kind}": f"revenue of the kind {kind}" for kind in (*KINDS, *DRAWN)},
}
ACCOUNT_CHARS_MAX = 40


@dataclass(frozen=True, slots=True)
class ReportPeriod:
    """The period of a report, from `since` to `until` (exclusive), and its filters.

    A report of one moment has only `until`: the state just before it.
    """

    until: datetime
    since: datetime | None = None
    organization_id: int | None = None
    currency: str | None = None
    by: str = DOCUMENT


class LegPlace(NamedTuple):
    """The sort key of a ledger leg: the time of its entry, then debits first."""

    at: datetime
    source: str = ""
    source_id: int = 0
    is_credit: bool = False
    account: str = ""


def tax_by_month(tax: Decimal, nets: Mapping[date, Decimal], currency: str) -> dict[date, Decimal]:
    """Split the tax of a document among months in proportion to `nets`; the parts add up to it."""
    total = sum(nets.values(), Decimal(0))
    months = sorted(nets)
    if not total:
        return {month: tax if month == months[-1] else Decimal(0) for month in months}
    taxes: dict[date, Decimal] = {}
    seen = given = Decimal(0)
    for month in months:
        seen += nets[month]
        upto = rounded(EXACT.divide(EXACT.multiply(tax, seen), total), currency)
        taxes[month], given = upto - given, upto
    return taxes
