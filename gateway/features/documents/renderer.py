"""Invoices as PDF: from the API's answer, the stored seller and buyer, and one template.

The template gets plain text and JSON, and interprets nothing of it as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge_kinds import CHARGE_KINDS
from gateway.core.billing.document import (
    CREDIT_NOTE,
    NO_LETTERHEAD,
    Document,
    InvoiceParty,
    Letterhead,
    Tax,
    document_of,
)
from gateway.core.billing.invoice import INFORMATION, span
from gateway.extras import loading
from gateway.features.documents.e_invoice import (
    EN_16931,
    PEPPOL,
    XRECHNUNG,
    Profile,
    due_of,
    prepaid_of,
    terms_of,
)

# Electronic invoices: the terms of EN 16931 as XML, and a PDF that carries it (Factur-X).
#
# The library is loaded for the first document. It loads no rules over the network.

# The extra of this package with the libraries for PDF and XML.
EXTRA = "documents"
FACTUR_X, UBL = "factur-x", "ubl"
# The library's name of each syntax.
_SYNTAXES = {FACTUR_X: "factur-x", UBL: "ubl-2.1"}
# The stored kind of a document by profile and syntax.
KINDS = {
    (EN_16931, FACTUR_X): "factur-x",
    (EN_16931, UBL): "ubl",
    (XRECHNUNG, FACTUR_X): "xrechnung",
    (XRECHNUNG, UBL): "xrechnung-ubl",
    (PEPPOL, UBL): "peppol",
}
_LEVEL = EN_16931.name
# The XML has the same facts as the pages.
_RELATION = "alternative"


def electronic_invoice(invoice: Row, syntax: str, profile: Profile = EN_16931) -> bytes:
    """Return an invoice as XML in the format CII or UBL, checked against the format's schema.

    Raise `Conflict` if it is not final, `Unprocessable` if it lacks values that the profile requires. The
    library knows the norm's profile alone, so the identifier of another profile is inserted afterwards.
    """
    with loading(EXTRA):
        from facturx import generate_xml  # 35 MB that few keepers need

    made: bytes = generate_xml(
        terms_of(invoice, profile), flavor=_SYNTAXES[syntax], level=_LEVEL, check_xsd=True,
        check_schematron=None,
    )  # fmt: skip
    return made.replace(f">{EN_16931.specification}<".encode(), f">{profile.specification}<".encode(), 1)


def pdf_carrying(pdf: bytes, content: bytes, invoice: Row) -> bytes:
    with loading(EXTRA):
        from facturx import generate_from_binary

    title = f"{invoice['kind']} {invoice['number']}".replace("_", " ").capitalize()
    seller: Any = invoice["seller"]
    about = {"author": seller["name"], "title": title, "subject": title, "keywords": "Factur-X"}
    made: bytes = generate_from_binary(
        pdf, content, flavor="factur-x", level=_LEVEL, check_xsd=False, pdf_metadata=about, lang="en",
        afrelationship=_RELATION,
    )  # fmt: skip
    return made


LOGO_KINDS = frozenset({".svg", ".png", ".jpg", ".jpeg"})

ENDLESS = 10
ADOPTED = "Seller and terms were not copied when this became final; they are as they were when it was set."

# Headings of lines by their kind.
HEADINGS = {kind.name: kind.heading for kind in CHARGE_KINDS} | {INFORMATION: "Credits used"}


@dataclass(frozen=True, slots=True)
class InvoiceRenderer:
    """Renders invoices, with a logo.

    The letterhead is for old invoices, into which it was not copied.
    """

    letterhead: Letterhead = NO_LETTERHEAD
    logo: Path | None = None

    @property
    def seller(self) -> str:
        """The name of the seller of invoices, empty if it is not configured."""
        return self.letterhead.seller.name if self.letterhead.seller is not None else ""

    def pdf(self, invoice: Row, xml: bytes = b"") -> bytes:
        """Return the PDF of an invoice, given as the API answers it. It contains the XML if possible."""
        with loading(EXTRA):
            from gateway.features.documents import press

        lines: Any = invoice["lines"]
        content = self.content(invoice)
        archived = press.archive(content, self.logo, len(lines)) if xml else None
        if archived is not None:
            return pdf_carrying(archived, xml, invoice)
        return press.set_pages(content, self.logo, len(lines))

    def xml(self, invoice: Row, syntax: str, profile: Profile = EN_16931) -> bytes:
        """Return an invoice as CII or UBL by a profile of EN 16931."""
        return electronic_invoice(invoice, syntax, profile)

    def content(self, invoice: Any) -> dict[str, Any]:
        """Return the texts of an invoice for the template of its PDF."""
        note, status = invoice["kind"] == CREDIT_NOTE, invoice["status"]
        document, adopted = self._document(invoice)
        seller = _party(document.seller)
        return {
            "title": "Credit note" if note else "Invoice",
            "number": invoice["number"] or "draft",
            "watermark": "" if status == "finalized" else status,
            "issuer": seller,
            "customer": _party(document.buyer) or [""],
            "issued": _parts(invoice["finalized_at"]),
            "facts": _facts(invoice, document),
            "currency": invoice["currency"],
            "groups": _groups(invoice["lines"]),
            "taxes": [*_taxes(invoice), *_prepaid(invoice)],
            "subtotal": _grouped(invoice["subtotal"]),
            "total": _grouped(f"{due_of(invoice):f}"),
            "total_label": "Total" if note or not document.due_date else "Amount due",
            "notes": [*_accounting(invoice, document), *document.notes, *([ADOPTED] if adopted else ())],
        }

    def _document(self, invoice: Any) -> tuple[Document, bool]:
        """Return the data of an invoice's parties.

        The flag is set if today's data is used for a final invoice. Old invoices have no copy of the data as
        of their day.
        """
        if invoice["seller"] is not None or invoice["buyer"] is not None:
            return document_of(invoice), False
        head, issued = self.letterhead, invoice["finalized_at"]
        buyer = head.buyer(invoice["organization_id"], InvoiceParty(invoice["customer"] or ""))
        day = date.fromisoformat(issued[:10]) if issued else None
        due = head.due_date(invoice["kind"], day)
        return Document(head.seller, buyer, head.notes, due.isoformat() if due else None), issued is not None


def _taxes(invoice: Any) -> list[dict[str, str]]:
    """Return the rows of an invoice's taxes: rate, or the reason for no tax, with taxed amount and tax.

    A rate of zero has no line in the invoice. Old lines have no stored tax.
    """
    bases: dict[str, Decimal] = {}
    amounts: dict[str, Decimal] = {}
    nothing = abs(Decimal(invoice["subtotal"])) * 0
    for line in invoice["lines"]:
        sums = amounts if line["kind"] == "tax" else bases
        if name := _name_tax(line):
            sums[name] = sums.get(name, nothing) + Decimal(line["amount"])
    return [
        {
            "description": f"{name} on {_grouped(f'{bases[name]:f}')}" if name in bases else name,
            "amount": _grouped(f"{amounts.get(name, nothing):f}"),
        }
        for name in bases | amounts
    ]


def _accounting(invoice: Any, document: Document) -> list[str]:
    """Return the note on the tax in the seller's accounting currency, with its rate, source and day."""
    if (tax := document.accounting_tax) is None:
        return []
    day, rate = _day(date.fromisoformat(tax.published_on)), f"{tax.rate} {tax.currency}"
    converted = f"at {rate} for 1 {invoice['currency']} ({tax.source}, {day})"
    return [f"Tax in {tax.currency}: {_grouped(tax.amount)}, {converted}"]


def _name_tax(line: Any) -> str:
    """Return the tax of a line in words. An old tax line, without a stored tax, has its own text."""
    if line["tax_rate"] is None:
        return line["description"] if line["kind"] == "tax" else ""
    tax = Tax(Decimal(line["tax_rate"]), line["tax_category"], line["tax_reason"])
    return tax.said or "Tax 0 %"


def _rate(line: Any) -> str:
    return "" if line["tax_rate"] is None else f"{Tax(Decimal(line['tax_rate'])).percent} %"


def _prepaid(invoice: Any) -> list[dict[str, str]]:
    """Return the rows between taxes and amount due (total and applied credit); empty without credit."""
    prepaid = prepaid_of(invoice)
    if not prepaid:
        return []
    applied = {"description": "Credit applied", "amount": _grouped(f"{-prepaid:f}")}
    return [{"description": "Total", "amount": _grouped(invoice["total_amount"])}, applied]


def _party(party: InvoiceParty | None) -> list[str]:
    if party is None:
        return []
    number = [f"Tax number {party.tax_number}"] if party.tax_number else []
    return [party.name, *party.address, *number]


def _facts(invoice: Any, document: Document) -> list[tuple[str, str]]:
    """Return the named facts in an invoice's head: period, dates, account, corrected invoices."""
    start, end = (date.fromisoformat(invoice[name]) for name in ("period_start", "period_end"))
    facts = [("Period", span(start, end))]
    if invoice["finalized_at"]:
        facts.append(("Date", _day(date.fromisoformat(invoice["finalized_at"][:10]))))
    if document.due_date:
        facts.append(("Due", _day(date.fromisoformat(document.due_date))))
    if document.iban and invoice["kind"] != CREDIT_NOTE:
        facts.append(("IBAN", " ".join(wrap(document.iban, 4))))
    corrected = (
        (reference.number, _day(date.fromisoformat(reference.date))) for reference in document.corrects
    )
    return facts + [("Corrects", f"{number} of {day}") for number, day in corrected]


def _groups(lines: Sequence[Any]) -> list[dict[str, Any]]:
    """Return an invoice's lines by heading, with grouped digits."""
    groups_ = []
    lines_of_supply = (line for line in lines if line["kind"] in HEADINGS)
    for kind, of_kind in groupby(lines_of_supply, key=lambda line: line["kind"]):
        entries = [
            {
                "description": line["description"],
                "quantity": _grouped(f"{line['quantity']}"),
                "unit_price": "" if kind == INFORMATION else _grouped(_short(line["unit_price"])),
                "tax": _rate(line),
                "amount": _grouped(line["amount"]),
            }
            for line in of_kind
        ]
        groups_.append({"name": HEADINGS[kind], "lines": entries})
    return groups_


def _grouped(amount: str) -> str:
    """Format a decimal with thousands separators and a real minus sign."""
    sign, digits = ("\N{MINUS SIGN}", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, point, part = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{part}"


def _short(price: str) -> str:
    """Return a price, cut to four decimals if it has very many, as a month's price divided by days has."""
    decimals = len(price.partition(".")[2])
    return price if decimals <= ENDLESS else f"{Decimal(price):.4f}"


def _parts(moment: str | None) -> dict[str, int] | None:
    if moment is None:
        return None
    day = date.fromisoformat(moment[:10])
    return {"year": day.year, "month": day.month, "day": day.day}


def _day(day: date) -> str:
    return f"{day.day} {day:%B %Y}"
