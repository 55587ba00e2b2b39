"""What the norm asks for is named where it is missing; figures are those of the document."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from gateway.core.billing.document import InvoiceParty
from gateway.errors import Conflict, Unprocessable
from gateway.features.documents.e_invoice import is_vat_number, legible, terms_of
from tests.features.documents.made import BUYER, SELLER, invoice, note


@pytest.mark.parametrize("status", ["draft", "void"])
def test_electronic_invoice_content_of_a_draft_or_void_invoice_is_refused(status: str) -> None:
    with pytest.raises(Conflict, match=status):
        terms_of(invoice(status=status))


NOBODY = invoice(((1, "10", "10.00", "0", "reverse_charge"),), buyer=BUYER | {"tax_number": None})
MIXED = invoice(((1, "10", "10.00", "0", "outside_scope"), (1, "10", "10.00", "0", "exempt")))


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (invoice(seller=SELLER | {"country": None}), ["seller.country"]),
        (invoice(seller=SELLER | {"tax_number": None}), ["seller.tax_number"]),
        (invoice(buyer=BUYER | {"country": None}), ["buyer.country"]),
        (NOBODY, ["buyer.tax_number"]),
        (MIXED, ["lines.tax_category"]),
        (invoice(((1, "1.234", "1.234", "0", None),), currency="KWD"), ["currency"]),
        (invoice(seller=None), ["seller"]),
    ],
)
def test_electronic_invoice_error_names_the_missing_or_unusable_field(
    made: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(Unprocessable) as refused:
        terms_of(made)
    assert [field for field, _ in refused.value.errors] == fields


def test_electronic_invoice_accepts_dinar_amounts_ending_in_a_zero_third_decimal() -> None:
    made = terms_of(invoice(((1, "1.5", "1.500", "0", None),), currency="KWD"))
    assert (made["BT-106"], made["BG-25"][0]["BT-131"]) == ("1.50", "1.50")


def test_electronic_invoice_gives_old_lines_without_a_tax_rate_the_rate_of_the_invoice() -> None:
    old = invoice()
    for line in old["lines"]:
        line["tax_rate"] = None
    assert terms_of(old)["BG-23"] == terms_of(invoice())["BG-23"]
    assert [line["BT-152"] for line in terms_of(old)["BG-25"]] == ["20", "20"]


def test_electronic_invoice_line_states_the_period_of_supply() -> None:
    made = invoice()
    made["lines"][0] |= {"period_start": "2026-03-31", "period_end": "2026-04-02"}
    made["lines"][1] |= {"period_start": None, "period_end": None}
    first, second = terms_of(made)["BG-25"]
    assert (first["BT-134"], first["BT-135"]) == (date(2026, 3, 31), date(2026, 4, 1))
    assert not {"BT-134", "BT-135"} & second.keys()


def test_electronic_credit_note_content_has_positive_amounts_and_no_due_date() -> None:
    made = terms_of(note())
    assert (made["BT-3"], made["BT-112"], made["BG-23"][0]["BT-117"]) == ("381", "64.80", "10.80")
    assert [line["BT-129"] for line in made["BG-25"]] == ["1000", "1"]
    assert "BT-9" not in made


@pytest.mark.parametrize(
    ("country", "number", "known"),
    [
        ("DE", "DE 123 456 789", True), ("DE", "201/123/40209", False), ("GR", "EL094259216", True),
        ("GR", "GR094259216", False), ("GB", "XI123456789", True), ("GB", "gb123456789", True),
        ("US", "12-3456789", False), (None, "DE123456789", False), ("FR", None, False),
        ("DE", "DE123456789\n", True), ("AT", "ATU12345678", True),
    ],
)  # fmt: skip
def test_vat_number_is_valid_only_with_the_prefix_of_the_country(
    country: str | None, number: str | None, known: bool
) -> None:
    assert is_vat_number(InvoiceParty("x", (), country, number)) is known


def test_characters_not_allowed_in_xml_become_replacement_characters() -> None:
    assert legible("a\x00b\x0bc\ud800\uffff") == "a\N{REPLACEMENT CHARACTER}b\ufffdc\ufffd\ufffd"
    assert legible("tab\t<&> \U0001f600 é") == "tab\t<&> \U0001f600 é"
