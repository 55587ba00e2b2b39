"""The tax of an invoice in the seller's accounting currency: by which rate, how rounded, and who says it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.document import AccountingTax, InvoiceParty, Letterhead
from gateway.errors import Unprocessable
from gateway.features.documents.e_invoice import EN_16931, PEPPOL, XRECHNUNG, Profile, terms_of
from gateway.features.documents.renderer import FACTUR_X, UBL, InvoiceRenderer, electronic_invoice
from tests.admin.conftest import Api, api_of
from tests.admin.test_invoices import acme, draft
from tests.features.documents.made import invoice, note
from tests.features.documents.rules import broken
from tests.features.documents.test_profiles import full
from tests.search import examples

ZLOTY = {
    "currency": "PLN", "rate": "4.2567", "published_on": "2026-04-30", "source": "NBP 83/A/NBP/2026",
    "amount": "49.38",
}  # fmt: skip
DOCUMENTS = {
    "invoice": invoice(accounting_tax=ZLOTY),
    "credit note": note(accounting_tax=ZLOTY | {"amount": "-45.97"}),
}
AMOUNTS = {"invoice": "49.38", "credit note": "45.97"}


@pytest.mark.parametrize(
    ("syntax", "profile"),
    [(FACTUR_X, EN_16931), (UBL, EN_16931), (FACTUR_X, XRECHNUNG), (UBL, XRECHNUNG), (UBL, PEPPOL)],
    ids=lambda each: getattr(each, "name", each),
)
@pytest.mark.parametrize("case", DOCUMENTS)
def test_electronic_invoice_states_the_tax_in_accounting_currency_and_obeys_en_16931(
    case: str, syntax: str, profile: Profile
) -> None:
    made = electronic_invoice(full(DOCUMENTS[case]), syntax, profile)
    # The rules for CII know the norm's own profile alone.
    usual = made.replace(profile.specification.encode(), EN_16931.specification.encode())
    assert broken(usual, syntax) == []
    assert [one.text for one in _named(made, "TaxCurrencyCode")] == ["PLN"]
    foreign = [one for one in ET.fromstring(made).iter() if one.get("currencyID") == "PLN"]
    assert [one.text for one in foreign] == [AMOUNTS[case]]


@pytest.mark.parametrize(("syntax", "rule"), [(FACTUR_X, "BT-111"), (UBL, "BR-53")])
def test_en_16931_check_reports_a_missing_tax_amount_in_accounting_currency(syntax: str, rule: str) -> None:
    made = electronic_invoice(DOCUMENTS["invoice"], syntax).decode()
    without = re.sub(
        r"<ram:TaxTotalAmount currencyID=.PLN.>.*?</ram:TaxTotalAmount>"
        r"|<cac:TaxTotal>\s*<cbc:TaxAmount currencyID=.PLN.>.*?</cbc:TaxAmount>\s*</cac:TaxTotal>",
        "", made, flags=re.DOTALL,
    )  # fmt: skip
    assert without != made
    assert any(rule in each for each in broken(without.encode(), syntax))


def test_invoice_pdf_notes_state_the_tax_in_accounting_currency_with_rate_source_and_day() -> None:
    said = "Tax in PLN: 49.38, at 4.2567 PLN for 1 EUR (NBP 83/A/NBP/2026, 30 April 2026)"
    assert InvoiceRenderer().content(DOCUMENTS["invoice"])["notes"] == [said, "Thank you."]
    assert InvoiceRenderer().pdf(DOCUMENTS["invoice"]).startswith(b"%PDF-")


def test_electronic_invoice_refuses_a_tax_in_accounting_currency_with_three_decimals() -> None:
    with pytest.raises(Unprocessable) as refused:
        terms_of(invoice(accounting_tax=ZLOTY | {"currency": "KWD", "amount": "3.561"}))
    assert [field for field, _ in refused.value.errors] == ["accounting_tax.currency"]


@given(
    st.integers(-(10**16), 10**16),
    st.integers(1, 10**15),
    st.sampled_from([("PLN", 2), ("ISK", 0), ("KWD", 3)]),
)
@settings(max_examples=examples(200))
def test_tax_in_accounting_currency_is_tax_times_exchange_rate_rounded_half_up_once(
    cents: int, nano: int, currency: tuple[str, int]
) -> None:
    code, digits = currency
    rate = Decimal(nano).scaleb(-9)
    made = AccountingTax(code, f"{rate:f}", "2026-04-30", "ECB").of(Decimal(cents).scaleb(-2))
    exact = Fraction(abs(cents) * nano * 10**digits, 100 * 10**9)
    whole = (exact + Fraction(1, 2)).__floor__()
    assert Fraction(made.amount) == Fraction(whole if cents > 0 else -whole, 10**digits)


SELLER = InvoiceParty("Seller", (), "PL", "PL5260250274")
BUYER = {"address": ["5 Main Road"], "country": "PL", "tax_number": "PL5252344078"}


def _named(content: bytes, name: str) -> list[ET.Element]:
    return [one for one in ET.fromstring(content).iter() if one.tag.endswith(f"}}{name}")]


def stated(rate: str, **more: Any) -> dict[str, Any]:
    today = datetime.now(UTC).date()
    return {
        "currency": "EUR", "accounting_currency": "PLN", "rate": rate, "source": "NBP",
        "published_on": str(today - timedelta(days=1)), "effective_from": str(today - timedelta(days=2)),
        "effective_to": str(today + timedelta(days=2)),
    } | more  # fmt: skip


async def test_invoice_waits_for_a_required_exchange_rate_and_the_credit_note_uses_the_same_rate(
    admin_database: str, keeper_database: str
) -> None:
    head = Letterhead(SELLER, accounting_currency="PLN", requires_rate=True)
    async with api_of(admin_database, keeper_database, head) as api:
        made = await draft(api, await acme(api, currency="EUR", **BUYER))
        where = f"invoices/{made['id']}"
        # Of other days, and to another currency.
        await api.make("accounting-rates", **stated("9", effective_from="2020-01-01", effective_to=None))
        await api.make("accounting-rates", **stated("9", accounting_currency="CZK"))
        refused = await api.post(f"{where}/finalize")
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "accounting_tax")
        assert "EUR to PLN" in refused.json["errors"][0]["message"]
        await api.make("accounting-rates", **stated("9"))
        await api.make("accounting-rates", **stated("4.2567"))
        said = (await api.post(f"{where}/finalize")).json["accounting_tax"]
        assert said == ZLOTY | {"source": "NBP", "published_on": stated("1")["published_on"]}
        found = (await api.get(f"{where}.xml?format=ubl")).raw
        assert [one.text for one in _named(found, "TaxCurrencyCode")] == ["PLN"]
        await api.make("accounting-rates", **stated("5"))
        back = (await api.post(f"{where}/credit-note", {"lines": [{"position": 2}]})).json
        final = (await api.post(f"invoices/{back['id']}/finalize")).json["accounting_tax"]
        # Tax of 1.60 at the rate of the invoice.
        assert final == said | {"amount": "-6.81"}


async def test_invoice_finalized_before_an_optional_rate_exists_has_no_tax_in_accounting_currency(
    admin_database: str, keeper_database: str
) -> None:
    async with api_of(admin_database, keeper_database, Letterhead(SELLER, accounting_currency="PLN")) as api:
        ids = await acme(api, currency="EUR", **BUYER)
        first = await draft(api, ids)
        assert (await api.post(f"invoices/{first['id']}/finalize")).json["accounting_tax"] is None
        await api.make("accounting-rates", **stated("4.2567"))
        back = (await api.post(f"invoices/{first['id']}/credit-note")).json
        assert (await api.post(f"invoices/{back['id']}/finalize")).json["accounting_tax"] is None


async def test_exchange_rate_for_the_accounting_currency_cannot_be_changed_or_deleted(api: Api) -> None:
    made = await api.make("accounting-rates", **stated("4.25"))
    assert (await api.patch(f"accounting-rates/{made['id']}", {"rate": "1"})).status == 405
    assert (await api.delete(f"accounting-rates/{made['id']}")).status == 405
