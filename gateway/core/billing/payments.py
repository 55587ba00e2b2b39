"""Payment of invoices: their payment status, and how much may be paid, applied and given back.

Pure. The status follows from the amount left to pay, the due date, and whether a person gave it up, so the
order of payments, notes and days does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from gateway.core.billing.money import rounded
from gateway.errors import Unprocessable

OPEN, PAID, OVERDUE, UNCOLLECTIBLE = "open", "paid", "overdue", "uncollectible"
PAYMENT_STATUSES = (OPEN, PAID, OVERDUE, UNCOLLECTIBLE)
# Statuses in which payment is expected, and may be given up.
WAITING = frozenset({OPEN, OVERDUE})
# The invoice for bought credits: the next one, or a separate one at once. Prepaid ones wait for payment.
NEXT, NOW, PREPAID = "next", "now", "prepaid"
# Why credit was applied: to the invoice that its note corrects, to the oldest due one, to one that a person
# named; or taken back, because invoice or note became void.
OWN, OLDEST, ASKED, VOID = APPLY_REASONS = ("own", "oldest", "asked", "void")
DUE_DAYS_MAX = 365
# Most automatic purchases of credits by an organization in a month.
TOP_UPS_A_MONTH_MAX = 100
NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class OpenInvoice:
    """A finalized invoice with the amount left to pay.

    `due_date` is the last day to pay; None means no due date.
    """

    rest: Decimal
    due_date: date | None = None
    given_up: bool = False

    def status(self, today: date) -> str:
        if self.rest <= NOTHING:
            return PAID
        if self.given_up:
            return UNCOLLECTIBLE
        if self.due_date is not None and self.due_date < today:
            return OVERDUE
        return OPEN


def due_on(finalized: date, due_days: int) -> date:
    """Return the last day to pay an invoice finalized on this day."""
    return finalized + timedelta(days=due_days)


def require_payable(amount: Decimal, rest: Decimal, currency: str) -> None:
    """Raise `Unprocessable` if `amount` is not above 0, or more than is left to pay."""
    _require(amount, rest, currency, "is left to pay")


def require_returnable(amount: Decimal, rest: Decimal, currency: str) -> None:
    """Raise `Unprocessable` if `amount` is not above 0, or more than is left of a payment."""
    _require(amount, rest, currency, "is left of the payment")


def require_open(amount: Decimal, credit: Decimal, currency: str) -> None:
    """Raise `Unprocessable` if `amount` is not above 0, or more than is left of a note's credit."""
    _require(amount, credit, currency, "is left of the credit note")


# The id of a document and its rest: the credit of a note, or the amount left to pay of an invoice.
Left = tuple[int, Decimal]


def spread_credit(notes: Iterable[Left], dues: Iterable[Left]) -> list[tuple[int, int, Decimal]]:
    """Apply the credit of notes to due invoices in order; return (note id, invoice id, amount) parts."""
    parts = list[tuple[int, int, Decimal]]()
    waiting = (note for note in notes if note[1] > NOTHING)
    note_id, credit = next(waiting, (0, NOTHING))
    for invoice_id, due in dues:
        left = due
        while left > NOTHING and credit > NOTHING:
            part = min(left, credit)
            parts.append((note_id, invoice_id, part))
            left, credit = left - part, credit - part
            if not credit:
                note_id, credit = next(waiting, (0, NOTHING))
    return parts


def _require(amount: Decimal, rest: Decimal, currency: str, left: str) -> None:
    """Raise Unprocessable unless an amount is payable: above 0, at most `rest`, in whole minor units."""
    wrong = None
    if amount != rounded(amount, currency):
        wrong = f"has more decimals than {currency}"
    elif amount <= NOTHING:
        wrong = "must be above 0"
    elif amount > rest:
        wrong = f"{currency} {rounded(max(rest, NOTHING), currency):f} {left}, not {amount:f}"
    if wrong is not None:
        raise Unprocessable(errors=(("amount", wrong),))


def purchase_price(owner: Mapping[str, Any]) -> Decimal | None:
    """Return an organization's price for a credit; None if unset.

    It is the price of automatic purchases if these are on, else the price for credits used beyond the
    balance.
    """
    terms = owner["auto_top_up"]
    price = terms["unit_cost"] if terms else owner["credit_unit_cost"]
    return None if price is None else Decimal(str(price))
