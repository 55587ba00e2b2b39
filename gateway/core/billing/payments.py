"""What of an invoice is paid: its payment status, and how much may be paid, applied and given back.

Pure. The status follows from the rest to pay, the day it is due, and whether a person gave it up; so no
order of payments, notes and days makes another one of it.
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
# Who still waits for money, and may give it up.
WAITING = frozenset({OPEN, OVERDUE})
# On which invoice credits are: the next one, or one of their own, at once; prepaid they wait for its payment.
NEXT, NOW, PREPAID = "next", "now", "prepaid"
# Why credit was applied: to the invoice that its note corrects, to the oldest that was due, to one that a
# person named; or taken back, since one of both is void.
OWN, OLDEST, ASKED, VOID = APPLY_REASONS = ("own", "oldest", "asked", "void")
DUE_DAYS_MAX = 365
# Credits of an organization that are bought automatically.
TOP_UPS_A_MONTH_MAX = 100
NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class OpenInvoice:
    """A finalized invoice: what is left to pay of it and until when.

    `due_date` is the last day it may be paid on; None has none.
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
    """Return the last day an invoice may be paid on."""
    return finalized + timedelta(days=due_days)


def require_payable(amount: Decimal, rest: Decimal, currency: str) -> None:
    """Raise `Unprocessable` where an amount cannot be paid of the rest."""
    _require(amount, rest, currency, "is left to pay")


def require_returnable(amount: Decimal, rest: Decimal, currency: str) -> None:
    """Raise `Unprocessable` where so much of a payment cannot be given back."""
    _require(amount, rest, currency, "is left of the payment")


def require_open(amount: Decimal, credit: Decimal, currency: str) -> None:
    """Raise `Unprocessable` where a note has not so much credit left."""
    _require(amount, credit, currency, "is left of the credit note")


# A document and its rest: credit of a note, or the rest to pay of an invoice.
Left = tuple[int, Decimal]


def spread_credit(notes: Iterable[Left], dues: Iterable[Left]) -> list[tuple[int, int, Decimal]]:
    """Apply credit to what is due, each in its order: note, invoice, and how much."""
    found = list[tuple[int, int, Decimal]]()
    waiting = (note for note in notes if note[1] > NOTHING)
    note_id, credit = next(waiting, (0, NOTHING))
    for invoice_id, due in dues:
        left = due
        while left > NOTHING and credit > NOTHING:
            part = min(left, credit)
            found.append((note_id, invoice_id, part))
            left, credit = left - part, credit - part
            if not credit:
                note_id, credit = next(waiting, (0, NOTHING))
    return found


def _require(amount: Decimal, rest: Decimal, currency: str, left: str) -> None:
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
    """Return an organization's price of a credit: of automatic purchases, else of debt; None for none."""
    terms = owner["auto_top_up"]
    price = terms["unit_cost"] if terms else owner["credit_unit_cost"]
    return None if price is None else Decimal(str(price))
