"""What an invoice says besides its lines: who sells, who buys, when it is due, which invoices it corrects.

It is copied when the invoice becomes final. Paper and XML say what was copied, whatever is set later. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from gateway.core.billing.payment import due_on
from gateway.errors import Unprocessable

INVOICE, CREDIT_NOTE = "invoice", "credit_note"
ADDRESS_LINES_MAX = 10
# Named on one credit note; what an organization was billed in twenty years of months.
CORRECTED_MAX = 240


@dataclass(frozen=True, slots=True)
class Party:
    """Who sells or buys: a name, lines of address, a country (ISO 3166), a tax number."""

    name: str
    address: tuple[str, ...] = ()
    country: str | None = None
    tax_number: str | None = None


@dataclass(frozen=True, slots=True)
class Letterhead:
    """Who sends the invoices, notes below their totals, and days to pay; 0 days say nothing.

    `addresses` are customers' lines by organization id or name, where the organization has none of its own.
    """

    seller: Party | None = None
    notes: tuple[str, ...] = ()
    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    due_days: int = 0
    iban: str | None = None

    def buyer(self, organization_id: int, party: Party) -> Party:
        """A customer with the address that is known of it."""
        known = self.addresses.get(str(organization_id), self.addresses.get(party.name, ()))
        address = party.address or tuple(known)
        return Party(party.name, address, party.country, party.tax_number)

    def due_date(self, kind: str, finalized: date | None) -> date | None:
        """The last day to pay what was made final on a day; of a credit note there is none."""
        if kind != INVOICE or finalized is None or not self.due_days:
            return None
        return due_on(finalized, self.due_days)


NO_LETTERHEAD = Letterhead()


@dataclass(frozen=True, slots=True)
class Corrected:
    """An invoice of which a credit note gives something back."""

    number: str
    date: str


@dataclass(frozen=True, slots=True)
class Document:
    """What is copied."""

    seller: Party | None
    buyer: Party
    notes: tuple[str, ...] = ()
    due_date: str | None = None
    corrects: tuple[Corrected, ...] = ()
    # Where it is to be paid to.
    iban: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)


def document_of(kept: Mapping[str, Any]) -> Document:
    """Read what is kept."""
    seller = kept["seller"]
    return Document(
        None if seller is None else _party(seller),
        _party(kept["buyer"]),
        tuple(kept["notes"]),
        kept["due_date"],
        tuple(Corrected(**each) for each in kept["corrects"]),
        kept["iban"],
    )


def require_complete(document: Document, lines: int) -> None:
    """`Unprocessable` where a document must not become final: nobody sells, or nothing is sold."""
    errors = []
    if document.seller is None:
        errors.append(
            ("seller", "is not known: TOLLKEEPER_INVOICE_ISSUER must be the seller's name and address")
        )
    if not lines:
        errors.append(("lines", "has none: there is nothing to bill"))
    if errors:
        raise Unprocessable("This cannot become final.", tuple(errors))


def _party(kept: Mapping[str, Any]) -> Party:
    return Party(kept["name"], tuple(kept["address"]), kept["country"], kept["tax_number"])
