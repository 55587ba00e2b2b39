"""Invoices on paper: the answer of the API, the issuer's own details, one template.

The template gets plain text and JSON; nothing of it is read as markup.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import typst

from gateway.core.accounts.administration import Row
from gateway.core.billing.invoice import span

TEMPLATE = Path(__file__).with_name("invoice.typ")
LOGO_KINDS = frozenset({".svg", ".png", ".jpg", ".jpeg"})

ENDLESS = 10

GROUPS = {
    "subscription": "Subscription",
    "overage": "Tokens beyond the plan",
    "credits_purchased": "Credits",
    "credits_consumed": "Credits used",
    "usage": "Usage",
}


@dataclass(frozen=True, slots=True)
class InvoiceRenderer:
    """Who sends the invoices: lines of name and address, a logo, notes below the total.

    `addresses` are the customers' lines by organization id or name. `due_days` 0 says nothing.
    """

    issuer: tuple[str, ...] = ()
    logo: Path | None = None
    notes: tuple[str, ...] = ()
    addresses: Mapping[str, Sequence[str]] | None = None
    due_days: int = 0

    def pdf(self, invoice: Row) -> bytes:
        """Set an invoice, as the API answers it, on paper: the bytes of a PDF."""
        with tempfile.TemporaryDirectory(prefix="invoice-") as folder:
            root = Path(folder)
            logo = ""
            if self.logo is not None:
                logo = f"logo{self.logo.suffix.lower()}"
                (root / logo).write_bytes(self.logo.read_bytes())
            main = root / "invoice.typ"
            main.write_bytes(TEMPLATE.read_bytes())
            content = {**self._content(invoice), "logo": logo}
            inputs = {"invoice": json.dumps(content, ensure_ascii=False)}
            return typst.compile(str(main), root=folder, format="pdf", sys_inputs=inputs)

    def _content(self, invoice: Any) -> dict[str, Any]:
        note = invoice["kind"] == "credit_note"
        status = invoice["status"]
        return {
            "title": "Credit note" if note else "Invoice",
            "number": invoice["number"] or "draft",
            "watermark": "" if status == "finalized" else status,
            "issuer": list(self.issuer),
            "customer": self._customer(invoice),
            "facts": self._facts(invoice),
            "currency": invoice["currency"],
            "groups": _groups(invoice["lines"]),
            "taxes": [
                {"description": line["description"], "amount": _grouped(line["amount"])}
                for line in invoice["lines"]
                if line["kind"] == "tax"
            ],
            "subtotal": _grouped(invoice["subtotal"]),
            "total": _grouped(invoice["total_amount"]),
            "total_label": "Total" if note or not self.due_days else "Amount due",
            "notes": list(self.notes),
        }

    def _customer(self, invoice: Any) -> list[str]:
        name = invoice["customer"] or ""
        known = self.addresses or {}
        return [name, *known.get(str(invoice["organization_id"]), known.get(name, ()))]

    def _facts(self, invoice: Any) -> list[tuple[str, str]]:
        start, end = (date.fromisoformat(invoice[name]) for name in ("period_start", "period_end"))
        facts = [("Period", span(start, end))]
        if invoice["finalized_at"]:
            issued = date.fromisoformat(invoice["finalized_at"][:10])
            facts.append(("Date", _day(issued)))
            if self.due_days and invoice["kind"] == "invoice":
                facts.append(("Due", _day(issued + timedelta(days=self.due_days))))
        return facts


def _groups(lines: Sequence[Any]) -> list[dict[str, Any]]:
    found = []
    for kind, name in GROUPS.items():
        entries = [
            {
                "description": line["description"],
                "quantity": f"{line['quantity']:,}",
                "unit_price": "" if kind == "credits_consumed" else _grouped(_short(line["unit_price"])),
                "amount": _grouped(line["amount"]),
            }
            for line in lines
            if line["kind"] == kind
        ]
        if entries:
            found.append({"name": name, "lines": entries})
    return found


def _grouped(amount: str) -> str:
    """Write a decimal with separators and a real minus sign."""
    sign, digits = ("\N{MINUS SIGN}", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, point, part = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{part}"


def _short(price: str) -> str:
    """The price of one day has endless decimals: four are enough to read."""
    decimals = len(price.partition(".")[2])
    return price if decimals <= ENDLESS else f"{Decimal(price):.4f}"


def _day(day: date) -> str:
    return f"{day.day} {day:%B %Y}"
