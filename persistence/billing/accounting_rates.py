"""Rates to the seller's accounting currency, as the operator states them, and the tax of invoices by them.

A rate never changes. Of those that are for a day, the one that was stated last counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from sqlalchemy import Connection, func, select

from gateway.core.billing.document import AccountingTax, InvoiceReference, Letterhead
from gateway.errors import Unprocessable
from persistence.entity import Entity, EntityWrite, create, day_in
from persistence.tables import accounting_rate, invoice

# A rate is for the days of a month at most: sources publish one each day, week or month.
RATE_DAYS_MAX = 31

_rates = accounting_rate.c


def convert_tax(
    connection: Connection, letterhead: Letterhead, day: date, currency: str, tax: Decimal
) -> AccountingTax | None:
    """Return the tax of a document, final on a day, in the accounting currency; None where it needs none.

    Raise `Unprocessable` where a rate is required and none is stated.
    """
    wanted = letterhead.accounting_currency
    if not tax or wanted is None or wanted == currency:
        return None
    here = (_rates.currency == currency) & (_rates.accounting_currency == wanted)
    last = func.coalesce(_rates.effective_to, _rates.effective_from)
    of_day = (_rates.effective_from <= day) & (last >= day)
    query = select(_rates.rate, _rates.published_on, _rates.source).where(here, of_day)
    row = connection.execute(query.order_by(_rates.id.desc()).limit(1)).first()
    if row is not None:
        return AccountingTax(wanted, f"{row.rate:f}", row.published_on.isoformat(), row.source).of(tax)
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
    """Raise `Unprocessable` for a rate within a currency, or for days that are none or too many."""
    values = change.command.values
    if values["currency"] == values["accounting_currency"]:
        raise Unprocessable(errors=(("accounting_currency", "must be another one than currency"),))
    if values.get("effective_to") is None:
        return
    days = (day_in(values, "effective_to") - day_in(values, "effective_from")).days
    if not 0 <= days < RATE_DAYS_MAX:
        wanted = f"must be effective_from or a later day, {RATE_DAYS_MAX} days with it at most"
        raise Unprocessable(errors=(("effective_to", wanted),))


SUBJECT = Entity(accounting_rate, time="created_at", verbs={"create": create}, check_values=_check)
