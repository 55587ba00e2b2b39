"""XRechnung and Peppol: what their rules ask for besides the norm is said, or named where it is missing.

Documents of the cases here and of `test_electronic` were run on 2026-11-28 through KoSIT's schematron for
XRechnung 3.0 (2.5.0, with its rules of July 2026) and Peppol's of BIS Billing 3.0 (May 2025), which are not
in this repository: none was broken, but for those of Greek law.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import Unprocessable
from gateway.features.documents.e_invoice import EN_16931, PEPPOL, PROFILES, XRECHNUNG, Profile, terms_of
from gateway.features.documents.renderer import FACTUR_X, UBL, electronic_invoice
from tests.features.documents.made import BUYER, SELLER, invoice, note
from tests.features.documents.rules import broken

IBAN = "DE02120300000000202051"
PLACE = {"street": "Main Road 5", "city": "Berlin", "post_code": "10115", "region": None, "country": None}
CONTACT = {"name": "Ada", "phone": "+49 30 123", "email": "ada@example.com"}
OF_SELLER = SELLER | {"postal": PLACE, "contact": CONTACT, "endpoint_id": "9930:DE123456789"}
OF_BUYER = BUYER | {
    "postal": PLACE,
    "endpoint_id": "9957:FR40303265045",
    "buyer_reference": "04011000-12345-67",
}
BY_MAIL = OF_BUYER | {"endpoint_id": "bills@example.fr"}
GERMAN = OF_BUYER | {"country": "DE", "tax_number": "DE987654321"}

Made = dict[str, Any]


def full(made: Made | None = None, **more: Any) -> Made:
    return (made or invoice()) | {"seller": OF_SELLER, "buyer": OF_BUYER, "iban": IBAN} | more


@pytest.mark.parametrize("syntax", [FACTUR_X, UBL])
def test_xrechnung_invoice_states_buyer_reference_contact_address_and_endpoint_ids(syntax: str) -> None:
    made = electronic_invoice(full(buyer=BY_MAIL), syntax, XRECHNUNG).decode()
    for said in (
        ">urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0<",
        ">urn:fdc:peppol.eu:2017:poacc:billing:01:1.0<", ">04011000-12345-67<", ">Berlin<", ">10115<",
        ">Ada<", ">+49 30 123<", ">ada@example.com<", 'schemeID="9930">DE123456789<',
        'schemeID="EM">bills@example.fr<',
    ):  # fmt: skip
        assert said in made
    assert "urn:fdc" not in electronic_invoice(full(), syntax, EN_16931).decode()


def test_peppol_invoice_names_the_peppol_specification_and_merges_all_notes_into_a_single_note() -> None:
    made = electronic_invoice(full(invoice(notes=["Thank you.", "Pay soon."])), UBL, PEPPOL).decode()
    assert ">urn:cen.eu:en16931:2017#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0<" in made
    assert made.count("<cbc:Note>") == 1
    assert broken(made.encode(), UBL) == []


@pytest.mark.parametrize(
    ("profile", "more", "fields"),
    [
        (XRECHNUNG, {"iban": None}, ["iban"]),
        (XRECHNUNG, {"seller": OF_SELLER | {"contact": CONTACT | {"phone": None}}}, ["seller.contact.phone"]),
        (
            XRECHNUNG,
            {"seller": OF_SELLER | {"postal": None}},
            ["seller.address.city", "seller.address.post_code"],
        ),
        (PEPPOL, {"buyer": OF_BUYER | {"buyer_reference": None}}, ["buyer.buyer_reference"]),
        (PEPPOL, {"buyer": OF_BUYER | {"endpoint_id": None}}, ["buyer.endpoint_id"]),
        (PEPPOL, {"buyer": BY_MAIL}, ["buyer.endpoint_id"]),
        (PEPPOL, {"iban": None, "buyer": GERMAN}, ["iban"]),
        (PEPPOL, {"buyer": GERMAN | {"postal": None}}, ["buyer.address.city", "buyer.address.post_code"]),
    ],
)
def test_xrechnung_or_peppol_invoice_error_names_each_missing_or_unusable_field(
    profile: Profile, more: Made, fields: list[str]
) -> None:
    with pytest.raises(Unprocessable) as refused:
        terms_of(full(**more), profile)
    assert [field for field, _ in refused.value.errors] == fields
    terms_of(full(**more), EN_16931)


def test_peppol_invoice_outside_germany_needs_no_bank_account_and_no_postal_address() -> None:
    parties = {"seller": OF_SELLER | {"postal": None, "contact": None}, "buyer": OF_BUYER | {"postal": None}}
    assert terms_of(full(iban=None, **parties), PEPPOL)["BT-81"] == "1"


@pytest.mark.parametrize("profile", [XRECHNUNG, PEPPOL])
def test_xrechnung_or_peppol_credit_note_states_payment_means_without_a_bank_account(
    profile: Profile,
) -> None:
    terms = terms_of(full(note()), profile)
    assert (terms["BT-81"], "BT-84" in terms) == ("1", False)
    assert broken(electronic_invoice(full(note()), UBL, profile), UBL) == []


def test_peppol_line_with_a_rounded_amount_states_the_price_for_the_whole_quantity() -> None:
    made = full(invoice(((3, "0.4", "2", "0", "export"), (5, "2", "10", "0", "export")), currency="JPY"))
    first, second = terms_of(made, PEPPOL)["BG-25"]
    assert (first["BT-146"], first["BT-149"], second["BT-146"]) == ("2", "3", "2")
    assert "BT-149" not in second
    assert [line["BT-146"] for line in terms_of(made)["BG-25"]] == ["0.4", "2"]


def test_xrechnung_line_with_dates_outside_the_invoice_period_states_no_dates() -> None:
    made = full()
    made["lines"][0] |= {"period_start": "2026-03-31", "period_end": "2026-04-02"}
    assert ["BT-134" in line for line in terms_of(made, XRECHNUNG)["BG-25"]] == [False, True]
    assert ["BT-134" in line for line in terms_of(made)["BG-25"]] == [True, True]


def test_tax_out_of_scope_is_stated_with_rate_zero_in_xrechnung_and_peppol_only() -> None:
    made = full(invoice(((1, "10", "10.00", "0", "outside_scope"),)))
    assert [terms_of(made, profile)["BG-23"][0].get("BT-119") for profile in PROFILES.values()] == [
        None, "0", "0",
    ]  # fmt: skip
