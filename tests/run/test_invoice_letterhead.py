"""The issuer's details: lines from settings, files that are there, everything else stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.billing.document import InvoiceParty
from gateway.errors import SettingError
from gateway.run.letterhead import invoice_renderer, letterhead
from gateway.settings.settings import Settings

INVOICE = {
    "organization_id": 3, "kind": "invoice", "number": "2026-000001", "status": "finalized",
    "customer": "Acme #1", "currency": "USD", "period_start": "2026-04-01", "period_end": "2026-05-01",
    "subtotal": "-1234.50", "tax": "0.00", "total_amount": "-1234.50", "finalized_at": "2026-05-01T00:03:12Z",
    "seller": None, "buyer": None,
    "lines": [
        {"kind": "usage", "description": "*not* _markup_ #x", "quantity": -3, "unit_price": "0.966666666667",
         "amount": "-1234.50"},
    ],
}  # fmt: skip
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="9" height="9"/></svg>'


def test_nothing_set_still_makes_an_invoice() -> None:
    assert invoice_renderer(Settings()).pdf(INVOICE).startswith(b"%PDF-")


def test_everything_set(tmp_path: Path) -> None:
    logo, addresses = tmp_path / "logo.svg", tmp_path / "addresses.json"
    logo.write_text(SVG)
    addresses.write_text('{"3": ["Werkstraße 5", "10115 Berlin"]}')
    made = invoice_renderer(
        Settings(
            invoice_issuer="Tollkeeper Ltd\n 12 Gate Street \n\n", invoice_logo=str(logo),
            invoice_notes="Pay soon.\\nThank you.", invoice_addresses=str(addresses), invoice_due_days=14,
            invoice_country="DE", invoice_tax_number="DE123456789",
        )
    )  # fmt: skip
    assert made.letterhead.seller == InvoiceParty("Tollkeeper Ltd", ("12 Gate Street",), "DE", "DE123456789")
    assert made.letterhead.notes == ("Pay soon.", "Thank you.")
    assert made.pdf(INVOICE).startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("invoice_logo", None),
        ("invoice_addresses", None),
        ("invoice_addresses", "[1]"),
        ("invoice_addresses", '{"3": "Berlin"}'),
        ("invoice_addresses", "{"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    place = tmp_path / "file.svg"
    if content is not None:
        place.write_text(content)
    with pytest.raises(SettingError, match=name.upper()):
        invoice_renderer(Settings(**{name: str(place)}))


@pytest.mark.parametrize("country", ["QQ", "de", "DEU"])
def test_a_country_is_one_of_iso_3166(country: str) -> None:
    with pytest.raises(SettingError, match="INVOICE_COUNTRY"):
        letterhead(Settings(invoice_country=country))


def test_a_logo_is_a_picture(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="svg"):
        invoice_renderer(Settings(invoice_logo=str(tmp_path / "logo.exe")))
