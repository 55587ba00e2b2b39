"""An invoice in the terms of EN 16931, by their numbers (BT-1, BG-25), from which CII and UBL are written.

A profile narrows the norm: XRechnung 3.0 (KoSIT's rules) and Peppol BIS Billing 3.0 require more.

Amounts are those of the document, and never computed again. Those of a credit note change their sign, because
its type already means a refund. Required values that the document lacks are named. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from gateway.core.billing.document import (
    CODES,
    CREDIT_NOTE,
    MAIL_SCHEME,
    OUTSIDE_SCOPE,
    REASONS,
    REVERSE_CHARGE,
    STANDARD,
    ZERO,
    Contact,
    Document,
    InvoiceParty,
    PostalAddress,
    Tax,
    document_of,
)
from gateway.core.billing.money import EXACT
from gateway.errors import Conflict, Unprocessable

INVOICE_CODE, CREDIT_NOTE_CODE = "380", "381"
# The norm's amounts have two decimals at most.
AMOUNT_DIGITS_MAX = 2
# UN/ECE: a credit transfer, and one within SEPA; pieces, for whatever is counted.
TRANSFER, SEPA_TRANSFER = "30", "58"
PIECE = "C62"
NO_DUE_DATE = "As agreed"
NOTHING_DUE = "Nothing is to be paid: this gives back"

# The code of a payment without a named account.
UNDEFINED_MEANS = "1"
GERMANY = "DE"
# The largest difference of a line from quantity times price (PEPPOL-EN16931-R120).
LINE_SLACK = Decimal("0.02")

Terms = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """The specification that an electronic invoice follows (BT-24), and its business process (BT-23).

    A profile with a process is for networks. It requires endpoints, a buyer's reference, and lines whose
    amount is quantity times price.
    """

    name: str
    specification: str
    process: str | None = None


_BILLING = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"
EN_16931 = Profile("en16931", "urn:cen.eu:en16931:2017")
XRECHNUNG = Profile(
    "xrechnung", f"{EN_16931.specification}#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0", _BILLING
)
PEPPOL = Profile(
    "peppol", f"{EN_16931.specification}#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0", _BILLING
)
PROFILES = {profile.name: profile for profile in (EN_16931, XRECHNUNG, PEPPOL)}
# A category's code, and a rate in per cent.
Rate = tuple[str, str]

# Characters that XML 1.0 does not allow.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PREFIXES = {"GR": ("EL",), "GB": ("GB", "XI")}
_OLD_TAX = re.compile(r"Tax ([0-9.]+) %")
_ZERO, _CENT = Decimal(0), Decimal("0.01")
_NOWHERE = PostalAddress()


def terms_of(invoice: Mapping[str, Any], profile: Profile = EN_16931) -> Terms:
    """Return the terms of an invoice, given as the API answers it.

    `Conflict` if it is not final; `Unprocessable` names the values that the profile requires and the invoice
    lacks.
    """
    if invoice["status"] != "finalized":
        raise Conflict(f"The invoice is {invoice['status']}; only of a final one XML is made.")
    if invoice["seller"] is None:
        errors = [("seller", "was not copied: this became final before documents kept who sells and buys")]
        raise Unprocessable("This cannot be an electronic invoice.", tuple(errors))
    document, taxes = document_of(invoice), _taxes(invoice)
    errors = [
        *_missing(invoice, document, set(taxes.values())),
        *_missing_in_profile(invoice, document, profile),
    ]
    if errors:
        raise Unprocessable("This cannot be an electronic invoice.", tuple(errors))
    return (
        _head(invoice, document, profile)
        | _totals(invoice, taxes, profile)
        | _accounting(invoice, document)
        | {
            "BG-25": [_line(invoice, line, taxes[line["position"]], profile) for line in _billed(invoice)],
        }
    )


def prepaid_of(invoice: Mapping[str, Any]) -> Decimal:
    """Return the credit applied to an invoice when it became final; later credit is not on the document."""
    return Decimal(invoice.get("amount_prepaid") or 0)


def due_of(invoice: Mapping[str, Any]) -> Decimal:
    """Return the amount to pay when the document became final."""
    return EXACT.subtract(Decimal(invoice["total_amount"]), prepaid_of(invoice))


def is_vat_number(party: InvoiceParty) -> bool:
    """Return whether a tax number is a VAT identifier, which begins with its country (BR-CO-09)."""
    country = party.country or ""
    prefixes = "|".join(_PREFIXES.get(country, (country,)))
    known = _compact(party.tax_number)
    return bool(country) and re.fullmatch(f"({prefixes})[0-9A-Z+*]{{2,15}}", known) is not None


def legible(text: str) -> str:
    """Return a text with each character that XML 1.0 does not allow replaced by U+FFFD."""
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _billed(invoice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [line for line in invoice["lines"] if line["kind"] != "tax"]


def _taxes(invoice: Mapping[str, Any]) -> dict[int, Tax]:
    """Return the tax of each line by position. A missing category follows from the rate and the seller."""
    seller = invoice["seller"]
    vat = is_vat_number(InvoiceParty(seller["name"], (), seller["country"], seller["tax_number"]))
    # Older lines have no stored tax: they all have the tax in the document's own line.
    old = [_OLD_TAX.match(line["description"]) for line in invoice["lines"] if line["kind"] == "tax"]
    rate = next((Decimal(match[1]) / 100 for match in old if match), _ZERO)
    taxes, untaxed = {}, ZERO if vat else OUTSIDE_SCOPE
    for line in invoice["lines"]:
        kept = line["tax_rate"]
        tax = Tax(rate if kept is None else Decimal(kept), line["tax_category"], line["tax_reason"])
        category = tax.category or (STANDARD if tax.rate else untaxed)
        taxes[line["position"]] = Tax(tax.rate, category, tax.reason or REASONS.get(category))
    return taxes


def _missing(invoice: Mapping[str, Any], document: Document, taxes: set[Tax]) -> Iterator[tuple[str, str]]:
    """Yield the (field, message) pairs of values that the norm requires and the invoice lacks."""
    seller, buyer = document.seller, document.buyer
    assert seller is not None
    if not seller.country:
        yield "seller.country", "is required (BR-09): TOLLKEEPER_INVOICE_COUNTRY was not set"
    if not seller.tax_number:
        yield "seller.tax_number", "is required (BR-CO-26): TOLLKEEPER_INVOICE_TAX_NUMBER was not set"
    if not buyer.country:
        yield "buyer.country", "is required (BR-11): the organization had no country"
    if not buyer.tax_number and any(tax.category == REVERSE_CHARGE for tax in taxes):
        yield "buyer.tax_number", "is required for reverse charge (BR-AE-02): the organization had none"
    outside = {tax.category for tax in taxes} - {OUTSIDE_SCOPE}
    if outside and len({tax.category for tax in taxes}) > len(outside):
        yield "lines.tax_category", "outside_scope does not go with others on one document (BR-O-11)"
    amounts = [invoice["subtotal"], invoice["tax"], *(line["amount"] for line in invoice["lines"])]
    second = document.accounting_tax
    for field, currency, some in (
        ("currency", invoice["currency"], amounts),
        ("accounting_tax.currency", second and second.currency, [second.amount] if second else []),
    ):
        if any(_decimals(amount) > AMOUNT_DIGITS_MAX for amount in some):
            yield field, f"{currency} has amounts of more than {AMOUNT_DIGITS_MAX} decimals (BR-DEC)"


def _missing_in_profile(
    invoice: Mapping[str, Any], document: Document, profile: Profile
) -> Iterator[tuple[str, str]]:
    """Yield the fields that XRechnung or Peppol requires and the invoice lacks, each with its rule.

    Between German parties, Peppol requires the same fields as XRechnung.
    """
    if profile.process is None:
        return
    seller, buyer = document.seller, document.buyer
    assert seller is not None
    asked: list[tuple[str, object, str]] = [
        ("buyer.buyer_reference", buyer.buyer_reference, "BR-DE-15, PEPPOL-EN16931-R003"),
        ("buyer.endpoint_id", buyer.endpoint_id, "PEPPOL-EN16931-R010"),
        ("seller.endpoint_id", seller.endpoint_id, "PEPPOL-EN16931-R020"),
    ]
    if profile is XRECHNUNG or seller.country == buyer.country == GERMANY:
        contact = seller.contact or Contact()
        from_, to = seller.postal or _NOWHERE, buyer.postal or _NOWHERE
        asked += [
            ("seller.contact.name", contact.name, "BR-DE-5"),
            ("seller.contact.phone", contact.phone, "BR-DE-6"),
            ("seller.contact.email", contact.email, "BR-DE-7"),
            ("seller.address.city", from_.city, "BR-DE-3"),
            ("seller.address.post_code", from_.post_code, "BR-DE-4"),
            ("buyer.address.city", to.city, "BR-DE-8"),
            ("buyer.address.post_code", to.post_code, "BR-DE-9"),
            ("iban", document.iban or invoice["kind"] == CREDIT_NOTE, "BR-DE-1"),
        ]
    yield from ((name, f"is required ({rule})") for name, value, rule in asked if not value)
    for name, party in (("buyer", buyer), ("seller", seller)):
        if profile is PEPPOL and party.endpoint is not None and party.endpoint[0] == MAIL_SCHEME:
            yield f"{name}.endpoint_id", "has no scheme of Peppol's, such as 0088 (PEPPOL-EN16931-CL008)"


def _head(invoice: Mapping[str, Any], document: Document, profile: Profile) -> Terms:
    """Return the terms of an invoice that are not about its lines or taxes, by their numbers in EN 16931."""
    note = invoice["kind"] == CREDIT_NOTE
    assert document.seller is not None
    start, end = (date.fromisoformat(invoice[name]) for name in ("period_start", "period_end"))
    outside = all(tax.category == OUTSIDE_SCOPE for tax in _taxes(invoice).values())
    terms: Terms = {
        "BT-1": invoice["number"],
        "BT-2": date.fromisoformat(invoice["finalized_at"][:10]),
        "BT-3": CREDIT_NOTE_CODE if note else INVOICE_CODE,
        "BT-5": invoice["currency"],
        "BT-72": end - timedelta(days=1),
        "BT-73": start,
        "BT-74": end - timedelta(days=1),
        "BG-1": [{"BT-22": note} for note in _notes(document, profile)],
        "BG-3": [
            {"BT-25": corrected.number, "BT-26": date.fromisoformat(corrected.date)}
            for corrected in document.corrects
        ],
        "BG-4": _party(document.seller, sells=True, outside=outside),
        "BG-7": _party(document.buyer, sells=False, outside=outside),
    }
    if document.due_date:
        terms["BT-9"] = date.fromisoformat(document.due_date)
    else:
        terms["BT-20"] = NOTHING_DUE if note else legible(" ".join(document.notes)) or NO_DUE_DATE
    if document.iban and not note:
        terms["BT-81"] = SEPA_TRANSFER if invoice["currency"] == "EUR" else TRANSFER
        terms["BT-84"] = document.iban
    elif profile.process is not None:
        terms["BT-81"] = UNDEFINED_MEANS
    if profile.process is not None:
        terms |= {"BT-23": profile.process, "BT-10": legible(document.buyer.buyer_reference or "")}
    elif document.buyer.buyer_reference:
        terms["BT-10"] = legible(document.buyer.buyer_reference)
    return terms


def _notes(document: Document, profile: Profile) -> list[str]:
    """Return the notes of a document, joined for networks that allow only one (PEPPOL-EN16931-R002)."""
    notes = [legible(note) for note in document.notes]
    return notes if profile.process is None or not notes else ["\n".join(notes)]


def _party(party: InvoiceParty, *, sells: bool, outside: bool) -> Terms:
    """Return the terms of a party, without a VAT identifier outside the scope of tax (BR-O-02)."""
    made: Terms = {"name": legible(party.name), "country_code": party.country}
    made |= _address(party)
    if party.contact is not None:
        made["contacts"] = [{name: legible(text) for name, text in asdict(party.contact).items() if text}]
    if party.endpoint is not None:
        made |= dict(zip(("einvoicing_addr_schemeid", "einvoicing_addr"), party.endpoint, strict=True))
    if party.tax_number and is_vat_number(party) and not outside:
        made["vat_identifier"] = _compact(party.tax_number)
    elif party.tax_number:
        made["legal_identifier"] = legible(party.tax_number)
        if sells:
            made["tax_identifier"] = legible(party.tax_number)
    return made


def _address(party: InvoiceParty) -> Terms:
    """Return an address by its parts if they are known, else by its lines."""
    if party.postal is not None:
        postal = party.postal
        parts = {
            "addr_l1": postal.street, "city": postal.city, "postcode": postal.post_code,
            "country_subdivision": postal.region,
        }  # fmt: skip
        return {name: legible(text) for name, text in parts.items() if text}
    lines = [legible(line) for line in party.address]
    made: Terms = dict(zip(("addr_l1", "addr_l2"), lines, strict=False))
    if len(lines) > 2:
        made["addr_l3"] = ", ".join(lines[2:])
    return made


def _totals(invoice: Mapping[str, Any], taxes: Mapping[int, Tax], profile: Profile) -> Terms:
    """Return the totals of an invoice as terms, by their numbers in EN 16931."""
    subtotal, tax, total = (_amount(invoice, invoice[name]) for name in ("subtotal", "tax", "total_amount"))
    prepaid = prepaid_of(invoice)
    return {
        "BT-106": subtotal, "BT-109": subtotal, "BT-110": tax, "BT-112": total,
        **({"BT-113": _amount(invoice, prepaid)} if prepaid else {}),
        "BT-115": _amount(invoice, due_of(invoice)),
        "BG-23": _breakdown(invoice, taxes, profile),
    }  # fmt: skip


def _accounting(invoice: Mapping[str, Any], document: Document) -> Terms:
    """Return the terms of the tax in the seller's accounting currency (BR-53), none where it is not said."""
    tax = document.accounting_tax
    return {} if tax is None else {"BT-6": tax.currency, "BT-111": _amount(invoice, tax.amount)}


def _breakdown(invoice: Mapping[str, Any], taxes: Mapping[int, Tax], profile: Profile) -> list[Terms]:
    """Return the taxed amount and the tax for each rate of a category, as on the document."""
    basis: dict[Rate, Decimal] = {}
    paid: dict[Rate, Decimal] = {}
    reasons: dict[Rate, str | None] = {}
    for line in invoice["lines"]:
        tax, sums = taxes[line["position"]], paid if line["kind"] == "tax" else basis
        rate = (CODES[tax.category or STANDARD], tax.percent)
        sums[rate] = EXACT.add(sums.get(rate, _ZERO), Decimal(line["amount"]))
        reasons.setdefault(rate, tax.reason)
    return [
        {
            "BT-116": _amount(invoice, of_rate),
            "BT-117": _amount(invoice, paid.get(rate, _ZERO)),
            "BT-118": rate[0],
            # XRechnung wants a rate there, of zero too (BR-DE-14).
            **({"BT-119": rate[1]} if profile.process is not None else _percent("BT-119", rate)),
            **({"BT-120": legible(reason)} if (reason := reasons[rate]) else {}),
        }
        for rate, of_rate in basis.items()
    ]


def _percent(term: str, rate: Rate) -> Terms:
    """Return the term of a tax rate, none outside the scope of tax (BR-O-05)."""
    return {} if rate[0] == CODES[OUTSIDE_SCOPE] else {term: rate[1]}


def _line(invoice: Mapping[str, Any], line: Mapping[str, Any], tax: Tax, profile: Profile) -> Terms:
    """Return the terms of a line. A refund has a negative quantity, never a negative price (BR-27)."""
    rate = (CODES[tax.category or STANDARD], tax.percent)
    return {
        "BT-126": str(line["position"]),
        "BT-129": f"{_turned(invoice, Decimal(line['quantity'])):f}",
        "BT-130": PIECE,
        "BT-131": _amount(invoice, line["amount"]),
        **_price(line, profile),
        "BT-151": rate[0],
        **_percent("BT-152", rate),
        "BT-153": legible(line["description"]),
        **_supply_period(invoice, line, profile),
    }


def _price(line: Mapping[str, Any], profile: Profile) -> Terms:
    """Return a line's unit price, or if rounding made it too inexact, the amount for the whole quantity."""
    quantity, price, amount = (Decimal(line[name]) for name in ("quantity", "unit_price", "amount"))
    if profile.process is None or abs(EXACT.multiply(quantity, price) - amount) <= LINE_SLACK:
        return {"BT-146": line["unit_price"]}
    return {"BT-146": f"{abs(amount):f}", "BT-149": f"{abs(quantity):f}"}


def _supply_period(invoice: Mapping[str, Any], line: Mapping[str, Any], profile: Profile) -> Terms:
    """Return the first and the last day of a line's period as terms, if they are stored.

    For a network such as Peppol, they are left out unless they lie within the invoice's period
    (PEPPOL-EN16931-R110, -R111).
    """
    start, end = line["period_start"], line["period_end"]
    if start is None or end is None:
        return {}
    within = invoice["period_start"] <= start and end <= invoice["period_end"]
    if profile.process is not None and not within:
        return {}
    first, last = date.fromisoformat(start), date.fromisoformat(end) - timedelta(days=1)
    return {"BT-134": first, "BT-135": last}


def _amount(invoice: Mapping[str, Any], amount: str | Decimal) -> str:
    return f"{_turned(invoice, Decimal(amount)).quantize(_CENT, context=EXACT):f}"


def _turned(invoice: Mapping[str, Any], figure: Decimal) -> Decimal:
    """Return an amount with the sign that its document needs: that of a credit note becomes positive."""
    return EXACT.add(EXACT.minus(figure) if invoice["kind"] == CREDIT_NOTE else figure, _ZERO)


def _decimals(amount: str) -> int:
    return len(amount.partition(".")[2].rstrip("0"))


def _compact(number: str | None) -> str:
    return re.sub(r"[\s.\-/]", "", number or "").upper()
