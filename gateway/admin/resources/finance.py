"""Reports for finance: what is owed, deferred, earned and taxed, and entries for an accounting system."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.admin.resources.paging import Paged
from gateway.admin.resources.resource import Document, Report
from gateway.admin.resources.values import (
    Currency,
    Day,
    Exactly,
    Id,
    In,
    Instant,
    Out,
    Text,
    plausible,
)
from gateway.core.accounts.roles import access
from gateway.core.billing.finance import ACCOUNT_CHARS_MAX, ACCOUNTS, SUPPLY

MONTHS_MAX = 120
_MONTH = re.compile(r"(19[7-9][0-9]|2[0-9]{3})-(0[1-9]|1[0-2])", re.ASCII)
_CODE = re.compile(rf"[A-Za-z0-9 ._/-]{{1,{ACCOUNT_CHARS_MAX}}}", re.ASCII)


def _month(text: str) -> str:
    if _MONTH.fullmatch(text) is None:
        raise ValueError("must be a month, such as 2026-04")
    plausible(date.fromisoformat(f"{text}-01"))
    return text


def _codes(text: str) -> str:
    for pair in text.split(","):
        name, _, code = pair.partition(":")
        if name not in ACCOUNTS or _CODE.fullmatch(code) is None:
            raise ValueError(
                "must be pairs such as receivables:1200 with commas between; the accounts are "
                + ", ".join(ACCOUNTS)
            )
    return text


Month = Annotated[
    Text,
    AfterValidator(_month),
    WithJsonSchema({"type": "string", "pattern": f"^{_MONTH.pattern}$", "examples": ["2026-04"]}),
]


class FinanceAsked(In):
    """Whose figures."""

    organization_id: Id | None = None
    currency: Currency | None = None


class DayAsked(FinanceAsked):
    """At the end of a day."""

    at: Day | None = Field(default=None, description="As it was at the end of this day in UTC; else today.")


class MonthsAsked(FinanceAsked):
    """Of whole months of UTC."""

    since: Month | None = Field(default=None, alias="from", description="The first month; else that of `to`.")
    until: Month | None = Field(default=None, alias="to", description="The last month; else this one.")


class TaxAsked(MonthsAsked):
    """Of whole months, of documents or of what they bill."""

    by: Literal["document", "supply"] = Field(
        default="document", description=f"The month a document became final in, or ({SUPPLY}) of the supply."
    )


class LedgerAsked(MonthsAsked):
    """Of whole months, with the accounts' codes."""

    accounts: Annotated[Text, AfterValidator(_codes)] | None = Field(
        default=None, description="Codes of accounts, such as `receivables:1200,bank:1800`."
    )


class _Of(Out):
    organization_id: Id
    organization: str
    currency: str


class Receivable(_Of):
    """What an organization has to pay of its invoices in one currency."""

    invoices: int = Field(description="Of which something is left to pay.")
    open: Exactly = Field(description="Not due yet, or without a day.")
    overdue_1_30: Exactly = Field(description="Due 1 to 30 days before.")
    overdue_31_60: Exactly
    overdue_61_90: Exactly
    overdue_over_90: Exactly
    to_pay_back: Exactly = Field(description="What credit notes and overpaid invoices leave to pay back.")
    uncollectible: Exactly = Field(description="What was given up; not in the total.")
    total: Exactly = Field(description="Open and overdue, less what is to be paid back.")


class Unbilled(_Of):
    """What was charged and no final invoice had."""

    month: Day = Field(description="The first day of the month it is supplied in.")
    kind: str
    amount: Exactly = Field(description="Before tax, not rounded.")
    charges: int


class Balance(_Of):
    """What an organization owes altogether in one currency."""

    invoiced: Exactly = Field(description="Invoices in force.")
    credited: Exactly = Field(description="Credit notes in force.")
    paid: Exactly = Field(description="Money that came in for invoices, less what went back.")
    applied: Exactly = Field(description="Credit of notes that was applied to invoices.")
    refunded: Exactly = Field(description="Money that was paid back for credit notes.")
    due: Exactly = Field(description="invoiced - paid - applied.")
    open_credit: Exactly = Field(description="credited - applied - refunded.")
    unbilled: Exactly = Field(description="What was charged and no final invoice had, before tax.")
    balance: Exactly = Field(description="due - open_credit + unbilled.")


class Deferred(_Of):
    """What was charged ahead of its supply."""

    month: Day | None = Field(
        description="The first day of the month it is supplied in; null of credits that are not used yet."
    )
    kind: str
    amount: Exactly


class Revenue(_Of):
    """What was earned in a month."""

    month: Day
    kind: str
    amount: Exactly


class TaxItem(_Of):
    """What documents of a month say of a tax rate."""

    month: Day
    rate: Exactly = Field(description="A fraction, such as 0.2.")
    net: Exactly
    tax: Exactly
    documents: int


class Leg(_Of):
    """One side of an entry: a debit or a credit."""

    entry_id: str = Field(description="Names the entry for ever; its debits are its credits.")
    date: Instant
    account: str = Field(description="Its name, or the code it was given.")
    debit: Exactly | None
    credit: Exactly | None
    source: str = Field(
        description="charge, release, use, expiry, return, posting, invoice, void, payment, application "
        "or write_off."
    )
    source_id: Id
    invoice_id: Id | None
    number: str | None = Field(description="Of the invoice.")
    description: str


ITEMS: dict[str, type[Out]] = {
    "receivables": Receivable,
    "unbilled": Unbilled,
    "balances": Balance,
    "deferred-revenue": Deferred,
    "revenue": Revenue,
    "taxes": TaxItem,
    "ledger": Leg,
}
ASKED: dict[str, type[FinanceAsked]] = {
    "receivables": DayAsked,
    "unbilled": DayAsked,
    "balances": DayAsked,
    "deferred-revenue": DayAsked,
    "revenue": MonthsAsked,
    "taxes": TaxAsked,
    "ledger": LedgerAsked,
}
_SUMMARIES = {
    "receivables": "What organizations have to pay, by age, at the end of a day",
    "unbilled": "What was charged and no invoice has, by month of supply and kind, at the end of a day",
    "balances": "What organizations owe altogether: documents, payments, credit and what is unbilled",
    "deferred-revenue": "What was charged and is not supplied yet, by month of supply; and credits not used",
    "revenue": "What was earned, by month of supply and kind",
    "taxes": "Tax by month, rate and currency",
    "ledger": "Double entries of charges, credits, invoices, payments and credit notes",
}


class Receivables(Out):
    """What organizations have to pay."""

    items: list[Receivable]
    next_cursor: str | None = Field(description="What asks for the next page; null on the last one.")


class UnbilledCharges(Out):
    """What no invoice has."""

    items: list[Unbilled]
    next_cursor: str | None


class Balances(Out):
    """What organizations owe altogether."""

    items: list[Balance]
    next_cursor: str | None


class DeferredRevenue(Out):
    """What is billed ahead."""

    items: list[Deferred]
    next_cursor: str | None


class EarnedRevenue(Out):
    """What was earned."""

    items: list[Revenue]
    next_cursor: str | None


class Taxes(Out):
    """What documents say of taxes."""

    items: list[TaxItem]
    next_cursor: str | None


class LedgerEntries(Out):
    """Entries, a leg each."""

    items: list[Leg]
    next_cursor: str | None


_PAGES: dict[str, type[Out]] = {
    "receivables": Receivables,
    "unbilled": UnbilledCharges,
    "balances": Balances,
    "deferred-revenue": DeferredRevenue,
    "revenue": EarnedRevenue,
    "taxes": Taxes,
    "ledger": LedgerEntries,
}
_PARQUET = Document(".parquet", "application/vnd.apache.parquet", "The same as Parquet")


class DayPage(DayAsked, Paged):
    """The same by pages."""


class MonthsPage(MonthsAsked, Paged):
    """The same by pages."""


class TaxPage(TaxAsked, Paged):
    """The same by pages."""


class LedgerPage(LedgerAsked, Paged):
    """The same by pages."""


PAGED: dict[str, type[In]] = {
    "receivables": DayPage,
    "unbilled": DayPage,
    "balances": DayPage,
    "deferred-revenue": DayPage,
    "revenue": MonthsPage,
    "taxes": TaxPage,
    "ledger": LedgerPage,
}
REPORTS = tuple(
    Report(
        name=f"reports/{name}",
        access=access(),
        description=f"{summary}.",
        summary=summary,
        out=_PAGES[name],
        asked=PAGED[name],
        documents=(Document(".csv", "text/csv", "The same as CSV, all of its items"),)
        + ((_PARQUET,) if name != "ledger" else ()),
        by_hand=True,
    )
    for name, summary in _SUMMARIES.items()
)
