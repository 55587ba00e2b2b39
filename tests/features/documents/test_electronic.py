"""Electronic invoices keep the rules of EN 16931, and say what the invoice does."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gateway.features.documents.renderer import FACTUR_X, UBL, InvoiceRenderer, electronic_invoice
from tests.features.documents.made import BUYER, SELLER, invoice, note
from tests.features.documents.rules import broken

AMERICAN = {"country": "US", "tax_number": "12-3456789"}
CASES: dict[str, dict[str, Any]] = {
    "usual": invoice(),
    "credit note": note(),
    "due at once, to an account": invoice(due_date=None, iban="DE02120300000000202051"),
    "without notes": invoice(due_date=None, notes=[]),
    "in yen": invoice(((1000, "0.05", "50", "0.1", None),), ((1, "5", "5", "0.1", None),), currency="JPY"),
    "two rates": invoice(
        ((15, "1", "15.00", "0.19", None), (15, "1", "15.00", "0.16", "standard")),
        ((1, "2.85", "2.85", "0.19", None), (1, "2.40", "2.40", "0.16", "standard")),
    ),
    "given back in it": invoice(
        ((30, "1", "30.00", "0.2", None), (-10, "1", "-10.00", "0.2", None)),
        ((1, "4", "4.00", "0.2", None),),
    ),
    "smallest prices, largest amounts": invoice(
        ((2**53 - 1, "0.000000000001", "9007.20", "0.2", None), (1, "1", "999999999999.99", "0.2", None)),
        ((1, "1", "200000001801.44", "0.2", None),),
    ),
    "nothing taxed": invoice(((1, "10", "10.00", "0", None),)),
    "a seller without VAT": invoice(
        ((1, "10", "10.00", "0", None),), seller=SELLER | AMERICAN, buyer=BUYER | AMERICAN
    ),
    "another tax number": invoice(seller=SELLER | {"tax_number": "201/123/40209"}),
    "Greece": invoice(seller=SELLER | {"country": "GR", "tax_number": "EL094259216"}),
    **{
        category: invoice(((1, "10", "10.00", "0", category),))
        for category in ("zero", "exempt", "reverse_charge", "outside_scope", "export")
    },
    "information of another rate": invoice(
        ((9, "0", "0.00", "0.16", None), (1, "10", "10.00", "0.2", None)), ((1, "2", "2.00", "0.2", None),)
    ),
    "credit was applied": invoice(amount_prepaid="20.00"),
    "credit covers it": invoice(amount_prepaid="69.60"),
    "nobody's address": invoice(seller=SELLER | {"address": []}, buyer=BUYER | {"address": []}),
}


@pytest.mark.parametrize("syntax", [FACTUR_X, UBL])
@pytest.mark.parametrize("case", CASES)
def test_electronic_invoice_breaks_no_rule_of_en_16931(case: str, syntax: str) -> None:
    assert broken(electronic_invoice(CASES[case], syntax), syntax) == []


@pytest.mark.parametrize("syntax", [FACTUR_X, UBL])
def test_en_16931_check_finds_a_wrong_invoice_total(syntax: str) -> None:
    wrong = invoice(total_amount="69.61")
    assert any(
        "BR-CO-15" in rule or "BT-112" in rule for rule in broken(electronic_invoice(wrong, syntax), syntax)
    )


def texts(content: bytes, name: str) -> list[str]:
    """What the elements of a name say, in order."""
    return [each.text or "" for each in ET.fromstring(content).iter() if each.tag.endswith(f"}}{name}")]


def test_electronic_invoice_states_the_type_dates_taxes_and_totals_of_the_invoice() -> None:
    made = electronic_invoice(CASES["two rates"], FACTUR_X)
    assert texts(made, "TypeCode")[0] == "380"
    supplied = ["20260401", "20260430"]
    head = ["20260430", *supplied, "20260515"]
    assert texts(made, "DateTimeString") == ["20260501", *supplied, *supplied, *head]
    assert texts(made, "BilledQuantity") == ["15", "15"]
    assert texts(made, "CalculatedAmount") == ["2.85", "2.40"]
    assert texts(made, "BasisAmount") == ["15.00", "15.00"]
    assert texts(made, "RateApplicablePercent") == ["19", "16", "19", "16"]
    totals = ("LineTotalAmount", "TaxTotalAmount", "GrandTotalAmount", "DuePayableAmount")
    assert [texts(made, name)[-1] for name in totals] == ["30.00", "5.25", "35.25", "35.25"]
    assert texts(made, "ID")[-2:] == ["DE123456789", "FR40303265045"]
    assert texts(made, "LineThree") == ["10115 Berlin"]


@pytest.mark.parametrize(("syntax", "quantity"), [(FACTUR_X, "BilledQuantity"), (UBL, "CreditedQuantity")])
def test_electronic_credit_note_has_positive_amounts_and_names_the_invoice(
    syntax: str, quantity: str
) -> None:
    made = electronic_invoice(note(), syntax)
    assert texts(made, quantity) == ["1000", "1"]
    assert "381" in made.decode()
    assert "2026-000007" in made.decode()
    assert "-" not in "".join(texts(made, "LineTotalAmount") + texts(made, "LineExtensionAmount"))
    payable = texts(made, "DuePayableAmount") + texts(made, "PayableAmount")
    assert payable == ["64.80"]


@pytest.mark.parametrize(("syntax", "names"), [
    (FACTUR_X, ("TotalPrepaidAmount", "DuePayableAmount")), (UBL, ("PrepaidAmount", "PayableAmount")),
])  # fmt: skip
def test_credit_applied_to_an_invoice_reduces_the_amount_due_in_xml_and_pdf(
    syntax: str, names: tuple[str, str]
) -> None:
    found = CASES["credit was applied"]
    assert [texts(electronic_invoice(found, syntax), name) for name in names] == [["20.00"], ["49.60"]]
    on_paper = InvoiceRenderer().content(found)
    assert [(each["description"], each["amount"]) for each in on_paper["taxes"]] == [
        ("Tax 20 % on 58.00", "11.60"), ("Total", "69.60"), ("Credit applied", "\N{MINUS SIGN}20.00"),
    ]  # fmt: skip
    assert (on_paper["total_label"], on_paper["total"]) == ("Amount due", "49.60")


def test_invoice_pdf_lists_every_tax_rate_with_base_and_reason_even_a_zero_rate() -> None:
    lines = (
        (15, "1", "15.00", "0.19", None), (-5, "1", "-5.00", "0.16", "standard"),
        (9, "1", "9.00", "0", None), (2, "1", "2.00", "0", "reverse_charge"),
    )  # fmt: skip
    taxes = ((1, "2.85", "2.85", "0.19", None), (1, "-0.80", "-0.80", "0.16", "standard"))
    made = InvoiceRenderer().content(invoice(lines, taxes))
    assert [(each["description"], each["amount"]) for each in made["taxes"]] == [
        ("Tax 19 % on 15.00", "2.85"), ("Tax 16 % on −5.00", "−0.80"),
        ("Tax 0 % on 9.00", "0.00"), ("Tax 0 %, Reverse charge on 2.00", "0.00"),
    ]  # fmt: skip
    [group] = made["groups"]
    assert [each["tax"] for each in group["lines"]] == ["19 %", "16 %", "0 %", "0 %"]
    assert [each["quantity"] for each in group["lines"]][1] == "−5"


def test_invoice_pdf_embeds_exactly_the_invoice_xml() -> None:
    from facturx import get_xml_from_pdf

    content = electronic_invoice(invoice(), FACTUR_X)
    pdf = InvoiceRenderer().pdf(invoice(), content)
    assert get_xml_from_pdf(pdf, check_xsd=False) == ("factur-x.xml", content)
