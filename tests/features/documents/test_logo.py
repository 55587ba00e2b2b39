"""The logo of documents: a picture that is there; everything else stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.billing.document import Letterhead
from gateway.errors import SettingError
from gateway.features.documents.feature import logo_of
from gateway.features.documents.renderer import InvoiceRenderer
from gateway.settings.settings import Settings

INVOICE = {
    "organization_id": 3, "kind": "invoice", "number": "2026-000001", "status": "finalized",
    "customer": "Acme #1", "currency": "USD", "period_start": "2026-04-01", "period_end": "2026-05-01",
    "subtotal": "-1234.50", "tax": "0.00", "total_amount": "-1234.50", "finalized_at": "2026-05-01T00:03:12Z",
    "seller": None, "buyer": None,
    "lines": [
        {"kind": "usage", "description": "*not* _markup_ #x", "quantity": -3, "unit_price": "0.966666666667",
         "amount": "-1234.50", "tax_rate": None},
    ],
}  # fmt: skip
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="9" height="9"/></svg>'


def test_invoice_pdf_is_made_without_a_configured_logo() -> None:
    assert logo_of(Settings()) is None
    assert InvoiceRenderer().pdf(INVOICE).startswith(b"%PDF-")


def test_invoice_pdf_is_made_with_the_configured_logo(tmp_path: Path) -> None:
    logo = tmp_path / "logo.svg"
    logo.write_text(SVG)
    made = InvoiceRenderer(Letterhead(), logo_of(Settings().with_values(invoice_logo=str(logo))))
    assert made.logo == logo
    assert made.pdf(INVOICE).startswith(b"%PDF-")


@pytest.mark.parametrize(("name", "said"), [("logo.exe", "svg"), ("logo.svg", "INVOICE_LOGO")])
def test_logo_file_that_is_missing_or_not_an_image_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        logo_of(Settings().with_values(invoice_logo=str(tmp_path / name)))
