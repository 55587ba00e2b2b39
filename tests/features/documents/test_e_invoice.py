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
def test_only_what_is_final_has_xml(status: str) -> None:
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
def test_what_is_missing_is_named(made: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(Unprocessable) as refused:
        terms_of(made)
    assert [field for field, _ in refused.value.errors] == fields


def test_dinars_that_need_no_third_decimal_can_be_written() -> None:
    made = terms_of(invoice(((1, "1.5", "1.500", "0", None),), currency="KWD"))
    assert (made["BT-106"], made["BG-25"][0]["BT-131"]) == ("1.50", "1.50")


def test_lines_from_before_taxes_were_kept_have_the_one_of_their_invoice() -> None:
    old = invoice()
    for line in old["lines"]:
        line["tax_rate"] = None
    assert terms_of(old)["BG-23"] == terms_of(invoice())["BG-23"]
    assert [line["BT-152"] for line in terms_of(old)["BG-25"]] == ["20", "20"]


def test_a_line_says_when_what_it_bills_was_supplied() -> None:
    made = invoice()
    made["lines"][0] |= {"period_start": "2026-03-31", "period_end": "2026-04-02"}
    made["lines"][1] |= {"period_start": None, "period_end": None}
    first, second = terms_of(made)["BG-25"]
    assert (first["BT-134"], first["BT-135"]) == (date(2026, 3, 31), date(2026, 4, 1))
    assert not {"BT-134", "BT-135"} & second.keys()


def test_a_note_is_turned_round() -> None:
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
def test_a_vat_number_begins_with_its_country(country: str | None, number: str | None, known: bool) -> None:
    assert is_vat_number(InvoiceParty("x", (), country, number)) is known


def test_what_xml_cannot_have_is_marked() -> None:
    assert legible("a\x00b\x0bc\ud800\uffff") == "a\N{REPLACEMENT CHARACTER}b\ufffdc\ufffd\ufffd"
    assert legible("tab\t<&> \U0001f600 é") == "tab\t<&> \U0001f600 é"
