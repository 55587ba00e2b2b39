"""Discounts on services: which use they are of, what they come to, and how invoices show them.

Units of the service cost 0.0010 up to 10,000 of a month, 0.0008 beyond. Figures are added up by hand.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections import defaultdict
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.resources.invoices import Invoice
from gateway.core.accounts.outbox import EventKind
from gateway.features.documents.renderer import FACTUR_X, InvoiceRenderer, electronic_invoice
from persistence import engine
from persistence.billing.invoice_usage import InvoiceUsage
from tests.persistence.april import TIERS, April, april, at, invoiced, opened, plan, service, use
from tests.persistence.billing.drawn import some
from tests.persistence.billing.owed import ladder
from tests.persistence.billing.papers import to_cents
from tests.persistence.billing.test_due import customer, total
from tests.persistence.migrated import empty

__all__ = ["april"]

APRIL, MAY, JUNE = (date(2026, month, 1) for month in (4, 5, 6))


async def buyer(april: April, fee: str = "29.00", **terms: object) -> dict[str, int]:
    """A customer with a plan of this fee a month, and the service without a discount."""
    starter = await plan(april, "Starter", fee, 2_000_000)
    ids = await customer(april, starter, APRIL, None, **terms)
    tiers = [{"up_to": tier.up_to, "unit_price": str(tier.unit_price)} for tier in TIERS]
    rerank = await service(april, "rerank", "Pay-Per-Use", pricing={"tiers": tiers})
    negotiated = await april.do(
        "organization-services", "create", organization_id=ids["organization"], service_id=rerank,
        negotiated_credits=0,
    )  # fmt: skip
    await april.on(at(4, 1))
    return ids | {"rerank": rerank, "negotiated": negotiated["id"]}


async def agree(april: April, ids: dict[str, int], discount: str | None) -> None:
    value = None if discount is None else Decimal(discount)
    await april.do("organization-services", "change", ids["negotiated"], discount=value)


def spend(april: April, ids: dict[str, int], units: int) -> None:
    use(april.account, ids["rerank"], units=units)
    april.flush()


def lines_of(invoice: dict[str, Any], *kinds: str) -> list[tuple[str, str, int, str]]:
    return [
        (line["kind"], line["description"], line["quantity"], line["amount"])
        for line in invoice["lines"]
        if line["kind"] in kinds
    ]


async def test_discount_on_a_service_comes_after_tiers_and_before_minimum_and_tax(april: April) -> None:
    ids = await buyer(april, minimum_commitment=Decimal("50.00"))
    await april.do("organizations", "change", ids["organization"], tax_rate=Decimal("0.20"))
    await agree(april, ids, "0.10")
    # 10,000 units are 10.00, 5,000 more are 4.00: a tenth of 14.00 is off.
    spend(april, ids, 15_000)
    await april.on(at(5, 1, 6))
    invoice = await invoiced(april, ids, APRIL, MAY)
    assert [(kind, quantity, amount) for kind, _, quantity, amount in lines_of(
        invoice, "subscription", "usage", "discount", "minimum_commitment", "tax"
    )] == [
        ("subscription", 1, "29.00"),
        ("usage", 10_000, "10.00"),
        ("usage", 5_000, "4.00"),
        ("discount", -1, "-1.40"),
        # 29.00 + 14.00 - 1.40 are 41.60, so 8.40 are missing to 50.00; a fifth of 50.00 is tax.
        ("minimum_commitment", 1, "8.40"),
        ("tax", 1, "10.00"),
    ]  # fmt: skip
    assert [str(invoice[name]) for name in ("subtotal", "tax", "total_amount")] == ["50.00", "10.00", "60.00"]
    [(_, description, _, _)] = lines_of(invoice, "discount")
    assert description == "Discount 10 %, rerank, April 2026"


async def test_discount_on_a_service_holds_for_the_whole_month_of_its_setting(april: April) -> None:
    ids = await buyer(april)
    for month, discount, used in ((4, None, 1_000), (5, "0.10", 2_000), (6, "0.50", 3_000), (7, None, 4_000)):
        await april.on(at(month, 3))
        spend(april, ids, used)
        await april.on(at(month, 20))
        if month > 4:
            await agree(april, ids, discount)
    await april.on(at(8, 1, 6))
    invoice = await invoiced(april, ids, APRIL, date(2026, 8, 1))
    assert lines_of(invoice, "discount") == [
        ("discount", "Discount 10 %, rerank, May 2026", -1, "-0.20"),
        ("discount", "Discount 50 %, rerank, June 2026", -1, "-1.50"),
    ]


async def test_discount_set_after_a_part_of_its_month_was_billed_is_on_the_next_invoice(april: April) -> None:
    ids = await buyer(april)
    spend(april, ids, 5_000)
    await april.on(at(4, 16))
    first = await invoiced(april, ids, APRIL, date(2026, 4, 16))
    assert lines_of(first, "usage", "discount") == [("usage", "rerank, April 2026", 5_000, "5.00")]
    await agree(april, ids, "0.10")
    spend(april, ids, 2_000)
    await agree(april, ids, "0.20")
    await april.on(at(5, 1, 6))
    second = await invoiced(april, ids, date(2026, 4, 16), MAY)
    # A fifth of 5.00 and of 2.00.
    assert [line[3] for line in lines_of(second, "discount")] == ["-1.40"]
    # Set back within the month's own days it is charged again; in May it changes nothing of April.
    await agree(april, ids, None)
    await april.on(at(6, 1, 6))
    assert lines_of(await invoiced(april, ids, MAY, JUNE), "discount") == []


async def test_discount_ends_with_the_month_before_its_negotiated_price_is_deleted(april: April) -> None:
    ids = await buyer(april)
    await agree(april, ids, "0.10")
    spend(april, ids, 1_000)
    await april.on(at(5, 2))
    spend(april, ids, 1_000)
    await april.do("organization-services", "delete", ids["negotiated"])
    await april.on(at(6, 1, 6))
    invoice = await invoiced(april, ids, APRIL, JUNE)
    assert [line[1:] for line in lines_of(invoice, "discount")] == [
        ("Discount 10 %, rerank, April 2026", -1, "-0.10")
    ]


async def test_discount_of_a_void_invoice_is_owed_again_once(april: April) -> None:
    ids = await buyer(april)
    await agree(april, ids, "0.10")
    spend(april, ids, 1_000)
    await april.on(at(5, 1, 6))
    first = await invoiced(april, ids, APRIL, MAY)
    await april.do("invoices", "void", first["id"])
    again = await invoiced(april, ids, APRIL, MAY)
    assert (
        lines_of(again, "discount")
        == lines_of(first, "discount")
        == [("discount", "Discount 10 %, rerank, April 2026", -1, "-0.10")]
    )
    assert total(again) == total(first) == Decimal("29.90")


async def test_discount_has_the_same_amount_in_draft_api_csv_xml_and_pdf(april: April) -> None:
    ids = await buyer(april)
    await agree(april, ids, "0.10")
    spend(april, ids, 15_000)
    await april.on(at(5, 1, 6))
    draft = await april.do(
        "invoices", "create", organization_id=ids["organization"], period_start=APRIL, period_end=MAY
    )
    final = await april.do("invoices", "finalize", draft["id"])
    api = await april.store.get("invoices", draft["id"])
    for invoice in (draft, final, api):
        assert [line[3] for line in lines_of(invoice, "discount")] == ["-1.40"]
    pool = engine.create(april.url)
    usage = InvoiceUsage(pool)
    pieces = [piece async for piece in usage.csv(draft["id"], april.now.date())]
    await pool.dispose()
    rows = csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline=""))
    sums: dict[str, Fraction] = defaultdict(Fraction)
    services = set()
    for row in rows:
        if row["kind"] == "discount":
            services.add(row["service"])
        if row["amount"]:
            sums[row["line"]] += Fraction(row["amount"])
    [position] = [line["position"] for line in api["lines"] if line["kind"] == "discount"]
    assert (sums[str(position)], services) == (Fraction("-1.40"), {"rerank"})
    assert sum(sums.values()) == Fraction("41.60")
    shown = Invoice.model_validate(final).model_dump(mode="json")
    content = InvoiceRenderer().content(shown)
    assert [
        (group["name"], [line["amount"].replace("\N{MINUS SIGN}", "-") for line in group["lines"]])
        for group in content["groups"]
    ] == [("Subscription", ["29.00"]), ("Usage", ["10.00", "4.00"]), ("Discounts", ["-1.40"])]
    party = {"name": "Acme", "address": ["5 Main Road"], "country": "FR", "tax_number": "FR40303265045"}
    document = ET.fromstring(electronic_invoice(shown | {"seller": party, "buyer": party}, FACTUR_X))
    amounts = [each.text for each in document.iter() if each.tag.endswith("}LineTotalAmount")]
    assert amounts == ["29.00", "10.00", "4.00", "-1.40", "41.60"]


async def test_use_taken_back_after_its_invoice_takes_its_discount_back(april: April) -> None:
    ids = await buyer(april)
    await agree(april, ids, "0.10")
    request_id = "00000000-0000-4000-8000-000000000001"
    use(april.account, ids["rerank"], units=5_000, request_id=request_id)
    april.flush()
    first = await invoiced(april, ids, APRIL, date(2026, 4, 11))
    assert [line[3] for line in lines_of(first, "usage", "discount")] == ["5.00", "-0.50"]
    corrects = b'{"corrects":"%s","reason":"counted twice"}' % request_id.encode()
    use(april.account, ids["rerank"], units=-2_000, kind=EventKind.ADJUST, metadata=corrects)
    april.flush()
    second = await invoiced(april, ids, date(2026, 4, 11), MAY)
    # 2,000 units were 2.00, and 0.20 were off them.
    assert [line[2:] for line in lines_of(second, "usage", "discount")] == [(-2_000, "-2.00"), (1, "0.20")]
    [(_, description, _, _)] = lines_of(second, "discount")
    assert description == "Discount 10 %, rerank, April 2026, taken back"


async def test_credit_note_gives_the_rest_of_a_discount_back_after_use_was_taken_back(april: April) -> None:
    ids = await buyer(april, fee="0.00")
    await agree(april, ids, "0.10")
    request_id = "00000000-0000-4000-8000-000000000001"
    use(april.account, ids["rerank"], units=5_000, request_id=request_id)
    april.flush()
    first = await invoiced(april, ids, APRIL, date(2026, 4, 11))
    assert total(first) == Decimal("4.50")
    corrects = b'{"corrects":"%s","reason":"counted twice"}' % request_id.encode()
    use(april.account, ids["rerank"], units=-2_000, kind=EventKind.ADJUST, metadata=corrects)
    april.flush()
    second = await invoiced(april, ids, date(2026, 4, 11), MAY)
    assert (second["kind"], total(second)) == ("credit_note", Decimal("-1.80"))
    note = await april.do("invoices", "credit-note", first["id"])
    done = await april.do("invoices", "finalize", note["id"])
    # Of 5.00 and 0.50 off, 3.00 and 0.30 are left.
    assert [line[3] for line in lines_of(done, "usage", "discount")] == ["-3.00", "0.30"]
    assert [line["unit_price"] for line in done["lines"] if line["kind"] == "discount"] == ["0.300000000000"]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from([0, 1, 333, 9_999, 12_345]),
        st.sampled_from(["same", None, "0.1", "0.333333", "1"]),
        st.booleans(),
    ),
    min_size=3,
    max_size=9,
)


@some(3)
@given(steps=STEPS)
def test_discount_of_any_history_is_the_rate_of_the_month_times_its_cost(
    migrated: str, steps: list[tuple[int, int, str | None, bool]]
) -> None:
    asyncio.run(live(migrated, steps))


async def live(url: str, steps: list[tuple[int, int, str | None, bool]]) -> None:
    """Wait, use, agree and bill at random; then count by month, with fractions."""
    empty(url)
    async with opened(url, at(3, 25)) as april:
        ids = await buyer(april)
        units: dict[tuple[int, int], int] = defaultdict(int)
        rates: dict[tuple[int, int], Fraction] = {}
        today, billed_until, invoices = APRIL, APRIL, list[dict[str, Any]]()
        for waits, used, discount, bills in steps:
            today += timedelta(days=waits)
            month = (today.year, today.month)
            await april.on(at(today.month, today.day, year=today.year))
            if used:
                spend(april, ids, used)
                units[month] += used
            if discount != "same":
                await agree(april, ids, discount)
                rates[month] = Fraction(discount or 0)
            if bills and today > billed_until:
                invoices.append(await invoiced(april, ids, billed_until, today))
                billed_until = today
        today += timedelta(days=40)
        await april.on(at(today.month, today.day, year=today.year))
        invoices.append(await invoiced(april, ids, billed_until, today))
        off, cost = Fraction(0), Fraction(0)
        for month, used in units.items():
            before = [since for since in rates if since <= month]
            rate = rates[max(before)] if before else Fraction(0)
            cost += ladder(TIERS, used)
            off += ladder(TIERS, used) * rate
        sums = {
            kind: Fraction(str(amount))
            for kind, amount in april.rows("SELECT kind, sum(amount) FROM charge GROUP BY kind")
        }
        assert (sums.get("usage", 0), -sums.get("discount", 0)) == (cost, off)
        lines = [line for invoice in invoices for line in invoice.get("lines", ())]
        shown = sum((Fraction(line["amount"]) for line in lines if line["kind"] == "discount"), Fraction(0))
        assert shown == -to_cents(off)
        assert april.broken() == []


@pytest.mark.parametrize(
    ("agreed", "later", "lines", "totals"),
    [
        # 19 of 30 days of 29.00 are 18.37; 9.00 more are 27.37, and a fifth is 5.47. The note gives all back.
        ("0.10", "0.50", None, ("32.84", "-32.84")),
        # 5.00 are off: 23.37, and a fifth is 4.67.
        ("0.50", None, None, ("28.04", "-28.04")),
        # The note gives the use back, 10.00 and a fifth, and not its discount.
        ("0.10", "0.50", "usage", ("32.84", "-12.00")),
    ],
)
async def test_discount_that_changes_leaves_use_alone_that_a_credit_note_gave_back(
    april: April, agreed: str, later: str | None, lines: str | None, totals: tuple[str, str]
) -> None:
    ids = await buyer(april)
    await april.do("organizations", "change", ids["organization"], tax_rate=Decimal("0.20"))
    await agree(april, ids, agreed)
    spend(april, ids, 10_000)
    await april.on(at(4, 20))
    first = await invoiced(april, ids, APRIL, date(2026, 4, 20))
    [position] = [line["position"] for line in first["lines"] if line["kind"] == "usage"]
    asked = {} if lines is None else {"lines": [{"position": position, "amount": Decimal(10)}]}
    note = await april.do("invoices", "credit-note", first["id"], **asked)
    await april.do("invoices", "finalize", note["id"])
    assert [total(first), total(note)] == [Decimal(amount) for amount in totals]
    await agree(april, ids, later)
    await april.on(at(5, 1, 6))
    second = await invoiced(april, ids, date(2026, 4, 20), MAY)
    assert lines_of(second, "usage", "discount") == []
