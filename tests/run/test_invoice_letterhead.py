"""The issuer's details: lines from settings, files that are there, everything else stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.billing.document import Contact, InvoiceParty
from gateway.errors import SettingError
from gateway.run.letterhead import letterhead
from gateway.settings.settings import Settings


def test_everything_set(tmp_path: Path) -> None:
    addresses = tmp_path / "addresses.json"
    addresses.write_text('{"3": ["Werkstraße 5", "10115 Berlin"]}')
    made = letterhead(
        Settings(
            invoice_issuer="Tollkeeper Ltd\n 12 Gate Street \n\n",
            invoice_notes="Pay soon.\\nThank you.", invoice_addresses=str(addresses), invoice_due_days=14,
            invoice_country="DE", invoice_tax_number="DE123456789",
        )
    )  # fmt: skip
    assert made.seller == InvoiceParty("Tollkeeper Ltd", ("12 Gate Street",), "DE", "DE123456789")
    assert made.notes == ("Pay soon.", "Thank you.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
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
        letterhead(Settings(**{name: str(place)}))


def test_electronic_invoices_say_more_of_the_seller() -> None:
    said = (
        '{"address": {"street": "Gate Street 12", "city": "Berlin", "post_code": "10115", "country": "DE"},'
        ' "contact": {"name": "Ada", "phone": "+49 1 23", "email": "ada@example.com"},'
        ' "endpoint_id": "9930:DE123456789"}'
    )
    made = letterhead(Settings(invoice_issuer="Tollkeeper Ltd\nElsewhere", invoice_seller=said)).seller
    assert made is not None
    assert (made.address, made.country) == (("Gate Street 12", "10115 Berlin"), "DE")
    assert made.contact == Contact("Ada", "+49 1 23", "ada@example.com")
    assert made.endpoint == ("9930", "DE123456789")


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        '{"adress": {}}',
        '{"endpoint_id": "x"}',
        '{"address": {"country": "QQ"}}',
        '{"address": {"cty": "Berlin"}}',
        '{"contact": {"name": 5}}',
    ],
)
def test_details_of_the_seller_that_cannot_be_used_stop_the_start(said: str) -> None:
    with pytest.raises(SettingError, match="INVOICE_SELLER"):
        letterhead(Settings(invoice_issuer="Ltd", invoice_seller=said))


@pytest.mark.parametrize("country", ["QQ", "de", "DEU"])
def test_a_country_is_one_of_iso_3166(country: str) -> None:
    with pytest.raises(SettingError, match="INVOICE_COUNTRY"):
        letterhead(Settings(invoice_country=country))


@pytest.mark.parametrize(
    ("country", "wanted", "currency", "is_required"),
    [("PL", "", "PLN", False), ("BG", "", "EUR", False), ("US", "", None, False), ("PL", "CZK", "CZK", True)],
)
def test_taxes_are_said_in_the_currency_of_the_country_or_of_the_setting(
    country: str, wanted: str, currency: str | None, is_required: bool
) -> None:
    made = letterhead(Settings(invoice_issuer="Ltd", invoice_country=country, invoice_tax_currency=wanted))
    assert (made.accounting_currency, made.requires_rate) == (currency, is_required)


def test_an_unknown_tax_currency_stops_the_start() -> None:
    with pytest.raises(SettingError, match="INVOICE_TAX_CURRENCY"):
        letterhead(Settings(invoice_tax_currency="ZLO"))
