"""Electronic invoices: the terms of EN 16931 as XML, and a PDF that carries it (Factur-X).

The library is loaded when the first is asked for. It is asked for no rules over the network.
"""

from __future__ import annotations

from typing import Any

from gateway.core.accounts.administration import Row
from gateway.core.billing.e_invoice import terms_of

FACTUR_X, UBL = "factur-x", "ubl"
# How the library calls each syntax.
_SYNTAXES = {FACTUR_X: "factur-x", UBL: "ubl-2.1"}
_PROFILE = "en16931"
# What holds the same facts as the pages do.
_RELATION = "alternative"


def xml(invoice: Row, syntax: str) -> bytes:
    """Write an invoice as CII or UBL, checked against its schema; refuses as `terms_of` does."""
    from facturx import generate_xml  # noqa: PLC0415  # 35 MB that few keepers need

    made: bytes = generate_xml(
        terms_of(invoice), flavor=_SYNTAXES[syntax], level=_PROFILE, check_xsd=True, check_schematron=None
    )
    return made


def carrying(pdf: bytes, content: bytes, invoice: Row) -> bytes:
    """Put the XML of an invoice into its PDF/A-3."""
    from facturx import generate_from_binary  # noqa: PLC0415  # as above

    title = f"{invoice['kind']} {invoice['number']}".replace("_", " ").capitalize()
    seller: Any = invoice["seller"]
    about = {"author": seller["name"], "title": title, "subject": title, "keywords": "Factur-X"}
    made: bytes = generate_from_binary(
        pdf, content, flavor="factur-x", level=_PROFILE, check_xsd=False, pdf_metadata=about, lang="en",
        afrelationship=_RELATION,
    )  # fmt: skip
    return made
