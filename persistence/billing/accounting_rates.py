"""Rates to the seller's accounting currency, as the operator states them, and the tax of invoices by them.

A rate never changes. Of those that are for a day, the one that was stated last counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, timedelta
from decimal import Decimal

from sqlalchemy import Connection, func, select

from gateway.core.billing.document import AccountingTax, InvoiceReference, Letterhead
from gateway.errors import Unprocessable
from persistence.entity import Entity, EntityWrite, create, day_in
from persistence.tables import accounting_rate, invoice

# A rate is for the days of a month at most: sources publish one each day, week or month.
RATE_DAYS_MAX = 31
# How far the local time of a source may be ahead of UTC.
AHEAD_MAX = timedelta(hours=14)

_rates = accounting_rate.c
# Those of one day to the seller's accounting currency, by the currency of documents.
Rates = Mapping[str, AccountingTax]


def read_rates(connection: Connection, letterhead: Letterhead, day: date) -> Rates:
    """Return the rates to the accounting currency for documents final on a day, by their currency."""
    wanted = letterhead.accounting_currency
    if wanted is None:
        return {}
    last = func.coalesce(_rates.effective_to, _rates.effective_from)
    of_day = (_rates.accounting_currency == wanted) & (_rates.effective_from <= day) & (last >= day)
    query = select(_rates.currency, _rates.rate, _rates.published_on, _rates.source).where(of_day)
    rows = connection.execute(query.distinct(_rates.currency).order_by(_rates.currency, _rates.id.desc()))
    return {
        row.currency: AccountingTax(wanted, f"{row.rate:f}", row.published_on.isoformat(), row.source)
        for row in rows
    }


def convert_tax(
    rates: Rates, letterhead: Letterhead, day: date, currency: str, tax: Decimal
) -> AccountingTax | None:
    """Return the tax of a document, final on a day, in the accounting currency; None where it needs none.

    Raise `Unprocessable` where a rate is required and none is stated.
    """
    wanted = letterhead.accounting_currency
    if not tax or wanted is None or wanted == currency:
        return None
    if currency in rates:
        return rates[currency].of(tax)
    if not letterhead.requires_rate:
        return None
    missing = f"needs the rate of {day} from {currency} to {wanted}: state it in accounting-rates"
    raise Unprocessable("This cannot become final.", (("accounting_tax", missing),))


def tax_of_note(
    connection: Connection, corrects: Sequence[InvoiceReference], tax: Decimal
) -> AccountingTax | None:
    """Return the tax of a credit note by the rate of its invoice: of several, of the latest with one."""
    if not tax or not corrects:
        return None
    kept = invoice.c.document["accounting_tax"]
    query = select(kept).where(
        invoice.c.number.in_([each.number for each in corrects]), func.jsonb_typeof(kept) == "object"
    )
    copied = connection.execute(query.order_by(invoice.c.finalized_at.desc()).limit(1)).scalar()
    return None if copied is None else AccountingTax(**copied).of(tax)


def _check(change: EntityWrite) -> None:
    """Raise `Unprocessable` for a rate within a currency or of a coming day, or for wrong days of its use."""
    values = change.command.values
    if values["currency"] == values["accounting_currency"]:
        raise Unprocessable(errors=(("accounting_currency", "must be another one than currency"),))
    if day_in(values, "published_on") > (change.now.astimezone(UTC) + AHEAD_MAX).date():
        raise Unprocessable(errors=(("published_on", "must not be in the future"),))
    if values.get("effective_to") is None:
        return
    days = (day_in(values, "effective_to") - day_in(values, "effective_from")).days
    if not 0 <= days < RATE_DAYS_MAX:
        wanted = f"must be effective_from or a later day, {RATE_DAYS_MAX} days with it at most"
        raise Unprocessable(errors=(("effective_to", wanted),))


SUBJECT = Entity(accounting_rate, time="created_at", verbs={"create": create}, check_values=_check)
