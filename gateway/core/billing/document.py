"""The content of an invoice besides its lines: seller, buyer, due date, and invoices that it corrects.

It is copied when the invoice becomes final. PDF and XML use the copy, even if settings change later. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from decimal import Decimal
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

from gateway.core.billing.money import EXACT, rounded
from gateway.core.billing.payments import due_on
from gateway.errors import TollkeeperError, Unprocessable

INVOICE, CREDIT_NOTE = "invoice", "credit_note"
ADDRESS_LINES_MAX = 10
# Most invoices named on one credit note: twenty years of monthly invoices.
CORRECTED_MAX = 240
# Most fields with unprintable letters in an error, and most letters named of each.
ILLEGIBLE_MAX = LETTERS_MAX = 10
# The letters of the bundled font: Latin with its accents.
_USUAL = re.compile(r"[ -~\u00a0-\u017f]*")


@cache
def countries() -> frozenset[str]:
    """Return the two-letter codes of all countries (ISO 3166), from the package `tzdata`."""
    rows = (files("tzdata") / "zoneinfo" / "iso3166.tab").read_text("utf-8").splitlines()
    return frozenset(row[:2] for row in rows if row and not row.startswith("#"))


# At least two characters before and after one `@`, without a dot next to it (BR-DE-28 of XRechnung).
# Control characters are named, since \s has not the same ones everywhere that the pattern is read.
_NONE = r"@\s\x00-\x1f\x7f-\x9f\ufeff"
MAIL = rf"[^{_NONE}.][^{_NONE}]*[^{_NONE}.]@[^{_NONE}.][^{_NONE}]*[^{_NONE}.]"
# Where electronic invoices go: a scheme of the Peppol code list (EAS) and an identifier, or a mail address.
ENDPOINT = rf"(?:[0-9]{{4}}:[!-~]{{1,150}}|{MAIL})"
MAIL_SCHEME = "EM"


def is_mail_address(text: str) -> bool:
    return re.fullmatch(MAIL, text) is not None


# The currency in which the law of a seller's country wants the tax of invoices that are in another one: of
# members of the union by Council Directive 2006/112/EC, article 230, with their currencies of 2026; of the
# United Kingdom by the VAT Regulations 1995, 14(1).
_EURO = "AT BE BG CY DE EE ES FI FR GR HR IE IT LT LU LV MT NL PT SI SK"
TAX_CURRENCIES: Mapping[str, str] = dict.fromkeys(_EURO.split(), "EUR") | {
    "CZ": "CZK", "DK": "DKK", "GB": "GBP", "HU": "HUF", "PL": "PLN", "RO": "RON", "SE": "SEK",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AccountingTax:
    """The tax of a document in the accounting currency of its seller, and the rate it was converted by.

    `rate` is how much of `currency` a unit of the document's currency is, as `source` published it on a day.
    """

    currency: str
    rate: str
    published_on: str
    source: str
    amount: str = "0"

    def of(self, tax: Decimal) -> AccountingTax:
        """Return the same with the amount of a tax by its rate, rounded half up."""
        amount = rounded(EXACT.multiply(tax, Decimal(self.rate)), self.currency)
        return replace(self, amount=f"{amount:f}")


@dataclass(frozen=True, slots=True)
class PostalAddress:
    """A postal address by its parts."""

    street: str | None = None
    city: str | None = None
    post_code: str | None = None
    region: str | None = None
    country: str | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The address as printed lines."""
        place = " ".join(filter(None, (self.post_code, self.city)))
        return tuple(filter(None, (self.street, place, self.region)))


@dataclass(frozen=True, slots=True)
class Contact:
    """The contact for questions about an invoice."""

    name: str | None = None
    phone: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class InvoiceParty:
    """A seller or buyer: a name, lines of address, a country (ISO 3166), a tax number.

    `postal` is the address by its parts, if known. Invoices show the buyer's `buyer_reference`; electronic
    ones are sent to `endpoint_id`.
    """

    name: str
    address: tuple[str, ...] = ()
    country: str | None = None
    tax_number: str | None = None
    postal: PostalAddress | None = None
    contact: Contact | None = None
    endpoint_id: str | None = None
    buyer_reference: str | None = None

    @property
    def endpoint(self) -> tuple[str, str] | None:
        """The scheme and the identifier of the party's address for electronic invoices; None without one."""
        if self.endpoint_id is None:
            return None
        if is_mail_address(self.endpoint_id):
            return MAIL_SCHEME, self.endpoint_id
        scheme, _, identifier = self.endpoint_id.partition(":")
        return scheme, identifier


def party_of(name: str, fields: Mapping[str, Any]) -> InvoiceParty:
    """Return a party from an organization's fields; its address may be lines or parts."""
    address, country, contact = fields.get("address"), fields.get("country"), fields.get("contact")
    postal, lines = None, tuple(address or ())
    if isinstance(address, Mapping):
        postal = PostalAddress(**address)
        country, lines = postal.country or country, postal.lines
    return InvoiceParty(
        name, lines, country, fields.get("tax_number"), postal, Contact(**contact) if contact else None,
        fields.get("endpoint_id"), fields.get("buyer_reference"),
    )  # fmt: skip


class UnseenLetters(TollkeeperError, reason="store_unavailable", status=503):
    """Some texts have letters that were not looked up in fonts in time; try again."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self.texts = texts


@dataclass(frozen=True, slots=True)
class Letterhead:
    """The sender of invoices, notes below their totals, and the days to pay; 0 means no due date.

    `addresses` are lines of customers' addresses by organization id or name, for organizations without an own
    one. `missing_glyphs` are letters without a font by text, as far as texts were checked; None if nobody
    checks.
    Taxes are also said in the `accounting_currency`; with `requires_rate` none becomes final without a rate.
    """

    seller: InvoiceParty | None = None
    notes: tuple[str, ...] = ()
    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    due_days: int = 0
    iban: str | None = None
    missing_glyphs: Mapping[str, str] | None = None
    accounting_currency: str | None = None
    requires_rate: bool = False

    def buyer(self, organization_id: int, party: InvoiceParty) -> InvoiceParty:
        """Return `party` as the buyer; if it has no address, with the one configured for its id or name."""
        known = self.addresses.get(str(organization_id), self.addresses.get(party.name, ()))
        return replace(party, address=party.address or tuple(known))

    def due_date(self, kind: str, finalized: date | None) -> date | None:
        """Return the last day to pay an invoice that became final on a day.

        None for another `kind` of document, for a draft (`finalized` is None), and if no term is
        configured.
        """
        if kind != INVOICE or finalized is None or not self.due_days:
            return None
        return due_on(finalized, self.due_days)


NO_LETTERHEAD = Letterhead()


@dataclass(frozen=True, slots=True)
class InvoiceReference:
    """A reference to an invoice that a credit note corrects."""

    number: str
    date: str


@dataclass(frozen=True, slots=True)
class Document:
    """The values that are copied when an invoice becomes final."""

    seller: InvoiceParty | None
    buyer: InvoiceParty
    notes: tuple[str, ...] = ()
    due_date: str | None = None
    corrects: tuple[InvoiceReference, ...] = ()
    # The bank account for payments.
    iban: str | None = None
    accounting_tax: AccountingTax | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def document_of(kept: Mapping[str, Any]) -> Document:
    seller, accounting_tax = kept["seller"], kept.get("accounting_tax")
    return Document(
        None if seller is None else _party(seller),
        _party(kept["buyer"]),
        tuple(kept["notes"]),
        kept["due_date"],
        tuple(InvoiceReference(**reference) for reference in kept["corrects"]),
        kept["iban"],
        AccountingTax(**accounting_tax) if accounting_tax else None,
    )


def require_complete(
    document: Document, lines: Sequence[str], missing_glyphs: Mapping[str, str] | None
) -> None:
    """Raise `Unprocessable` if a document cannot become final: no seller, no lines, or unprintable letters.

    `lines` are the descriptions of the lines. Raise `UnseenLetters` if some texts were not checked for
    missing letters.
    """
    errors = []
    if document.seller is None:
        errors.append(
            ("seller", "is not known: TOLLKEEPER_INVOICE_ISSUER must be the seller's name and address")
        )
    if not lines:
        errors.append(("lines", "has none: there is nothing to bill"))
    if missing_glyphs is not None:
        errors += islice(_illegible(document, lines, missing_glyphs), ILLEGIBLE_MAX)
    if errors:
        raise Unprocessable("This cannot become final.", tuple(errors))


def _illegible(
    document: Document, lines: Sequence[str], missing_glyphs: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (field, error) for each text with letters that no font has."""
    unusual = {field_: glyphs for field_, text in _texts(document, lines) if (glyphs := _unusual(text))}
    if unseen := [glyphs for glyphs in unusual.values() if glyphs not in missing_glyphs]:
        raise UnseenLetters(unseen)
    for field_, glyphs in unusual.items():
        if missing := missing_glyphs[glyphs][:LETTERS_MAX]:
            named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing)
            yield field_, f"has {named}, which no font here shows: install one where the keeper runs"


def _unusual(text: str) -> str:
    """Return those words of a text that have letters which the bundled font lacks."""
    return " ".join(word for word in text.split() if _USUAL.fullmatch(word) is None)


def _texts(document: Document, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each printed field of a document, and its text."""
    for name, party in (("seller", document.seller), ("buyer", document.buyer)):
        if party is not None:
            yield f"{name}.name", party.name
            yield f"{name}.address", " ".join(party.address)
            yield f"{name}.tax_number", party.tax_number or ""
    yield "notes", " ".join(document.notes)
    if document.accounting_tax is not None:
        yield "accounting_tax.source", document.accounting_tax.source
    for position, description in enumerate(lines, 1):
        yield f"lines.{position}.description", description


def _party(kept: Mapping[str, Any]) -> InvoiceParty:
    """Return the party in a stored invoice. Older invoices have no separate address fields."""
    party, postal = party_of(kept["name"], kept), kept.get("postal")
    return party if postal is None else replace(party, postal=PostalAddress(**postal))


# Tax by the date of supply: its rate, and the reason if it is zero. Pure.
#
# Categories are those of EN 16931 (UNTDID 5305). A rate applies from its day on until the next one does.

STANDARD, ZERO, EXEMPT, REVERSE_CHARGE = "standard", "zero", "exempt", "reverse_charge"
OUTSIDE_SCOPE, EXPORT = "outside_scope", "export"
CODES = {
    STANDARD: "S", ZERO: "Z", EXEMPT: "E", REVERSE_CHARGE: "AE", OUTSIDE_SCOPE: "O", EXPORT: "G",
}  # fmt: skip
CATEGORIES = tuple(CODES)
# Default reasons on documents without tax.
REASONS = {
    EXEMPT: "Exempt from tax",
    REVERSE_CHARGE: "Reverse charge",
    OUTSIDE_SCOPE: "Not subject to tax",
    EXPORT: "Export outside the union",
}


@dataclass(frozen=True, slots=True)
class Tax:
    """A tax rate as a fraction, its category (None if unknown), and the reason why no tax is due."""

    rate: Decimal
    category: str | None = None
    reason: str | None = None

    @property
    def percent(self) -> str:
        """The rate in percent, without trailing zeros."""
        return f"{(self.rate * 100).normalize():f}"

    @property
    def said(self) -> str:
        """The text for the tax in documents; empty for a rate of 0 without a reason."""
        if self.rate:
            return f"Tax {self.percent} %"
        why = self.reason or REASONS.get(self.category or "")
        return f"Tax 0 %, {why}" if why else ""


@dataclass(frozen=True, slots=True)
class EffectiveTax:
    """A tax, and the first day of supply to which it applies."""

    effective_from: date
    tax: Tax


def in_force(dated: Sequence[EffectiveTax], before: Tax, day: date) -> Tax:
    """Return the tax in force on a day: the last in `dated` that began by then, else `before`.

    `dated` are in the order of their days; of two with the same day the later entry counts.
    """
    current = before
    for version in dated:
        if version.effective_from > day:
            break
        current = version.tax
    return current


def misfits(tax: Tax) -> tuple[tuple[str, str], ...]:
    """Return (field, error) for each contradiction between the rate, category and reason of a tax."""
    errors = []
    if tax.rate and tax.category not in (None, STANDARD):
        errors.append(("category", f"is {STANDARD} of a rate above zero, not {tax.category}"))
    if not tax.rate and tax.category == STANDARD:
        untaxed = ", ".join(name for name in CATEGORIES if name != STANDARD)
        errors.append(("category", f"is one of {untaxed} where the rate is zero"))
    if tax.reason is not None and tax.category not in REASONS:
        errors.append(
            ("reason", f"says why nothing is taxed; for that the category is one of {', '.join(REASONS)}")
        )
    return tuple(errors)


def taxes_of(lines: Iterable[tuple[Tax | None, Decimal]]) -> dict[Tax, Decimal]:
    """Return the sums of line amounts by tax, in the order in which taxes first occur."""
    sums: dict[Tax, Decimal] = {}
    for tax, amount in lines:
        if tax is not None:
            sums[tax] = sums.get(tax, Decimal(0)) + amount
    return sums
