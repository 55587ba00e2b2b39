"""Invoices as the API answers them, for what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

SELLER = {
    "name": "Tollkeeper Ltd", "address": ["12 Gate Street", "Back yard", "10115 Berlin"], "country": "DE",
    "tax_number": "DE 123 456 789",
}  # fmt: skip
BUYER = {"name": "Acme", "address": ["5 Main Road"], "country": "FR", "tax_number": "FR40303265045"}

# Quantity, unit price and amount of a line, its rate and its category.
Made = tuple[int, str, str, str, str | None]
PLAIN: tuple[Made, ...] = ((1000, "0.05", "50.00", "0.2", None), (200, "0.04", "8.00", "0.2", None))


def line(position: int, made: Made, **more: Any) -> dict[str, Any]:
    quantity, price, amount, rate, category = made
    return {
        "position": position, "kind": "usage", "description": f"Rerank {position}", "quantity": quantity,
        "unit_price": price, "amount": amount, "tax_rate": rate, "tax_category": category,
        "tax_reason": None, "period_start": "2026-04-01", "period_end": "2026-05-01",
    } | more  # fmt: skip


def invoice(lines: Sequence[Made] = PLAIN, taxes: Sequence[Made] = (), **more: Any) -> dict[str, Any]:
    """A final invoice of these lines and taxes."""
    if lines is PLAIN and not taxes:
        taxes = ((1, "11.60", "11.60", "0.2", None),)
    rows = [line(position, made) for position, made in enumerate(lines, 1)]
    rows += [
        line(position, made, kind="tax", description=f"Tax {Decimal(made[3]) * 100:f} %")
        for position, made in enumerate(taxes, len(rows) + 1)
    ]
    subtotal, tax = (sum((Decimal(made[2]) for made in of), Decimal(0)) for of in (lines, taxes))
    return {
        "kind": "invoice", "status": "finalized", "number": "2026-000007", "currency": "EUR",
        "finalized_at": "2026-05-01T00:03:12Z", "period_start": "2026-04-01", "period_end": "2026-05-01",
        "organization_id": 3, "customer": "Acme", "seller": SELLER, "buyer": BUYER, "notes": ["Thank you."],
        "iban": None, "due_date": "2026-05-15", "corrects": [], "lines": rows, "subtotal": f"{subtotal}",
        "tax": f"{tax}", "total_amount": f"{subtotal + tax}",
    } | more  # fmt: skip


def note(**more: Any) -> dict[str, Any]:
    """What gives the usual invoice back, but for a part of it."""
    return invoice(
        ((-1000, "0.05", "-50.00", "0.2", None), (-1, "4.00", "-4.00", "0.2", None)),
        ((-1, "11.60", "-10.80", "0.2", None),),
        kind="credit_note", number="2026-000008", due_date=None,
        corrects=[{"number": "2026-000007", "date": "2026-05-01"}], **more,
    )  # fmt: skip
