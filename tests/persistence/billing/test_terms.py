"""What is agreed of a subscription: fees as one, trials, discounts, minimums, prices of its own."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import Unprocessable
from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import billed, customer, lines, total

__all__ = ["april"]

BEGINS, NEVER = date(2026, 4, 1), None


async def months(april: April, ids: dict[str, int], *which: int) -> list[str]:
    """What the invoices of these months come to, in words."""
    return [str(await billed(april, ids, month)) for month in which]


@pytest.mark.parametrize(
    ("billing", "interval", "expected"),
    [
        ("advance", "annual", ["290.00", "0.00", "0.00", "0.00"]),
        ("arrears", "annual", ["0.00", "0.00", "0.00", "0.00"]),
        ("advance", "quarterly", ["87.00", "0.00", "0.00", "87.00"]),
        ("arrears", "quarterly", ["0.00", "0.00", "87.00", "0.00"]),
        ("advance", "monthly", ["29.00", "29.00", "29.00", "29.00"]),
        (None, "quarterly", ["28.68", "29.64", "28.68", "29.32"]),
    ],
)
async def test_fee_billed_in_advance_or_arrears_is_charged_whole_and_any_other_fee_by_days(
    april: April, billing: str | None, interval: str, expected: list[str]
) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, BEGINS, NEVER, billing_interval=interval, billing=billing)
    await april.on(at(4, 1))
    assert await months(april, ids, 4, 5, 6, 7) == expected


@pytest.mark.parametrize("again", ["by its source", "by its period"])
async def test_annual_fee_voided_after_an_upgrade_is_billed_again_for_the_whole_year(
    april: April, again: str
) -> None:
    small = await plan(april, "Small", "36.50", 1_000)
    large = await plan(april, "Large", "73.00", 9_000)
    ids = await customer(april, small, BEGINS, NEVER, billing_interval="annual", billing="advance")
    owner, subscription = ids["organization"], ids["subscription"]
    await april.on(at(4, 1))
    year = await invoiced(april, ids, BEGINS, date(2026, 4, 2))
    await april.on(at(4, 11))
    await april.do("organization-subscriptions", "change", subscription, plan_id=large, when="now")
    upgrade = await invoiced(april, ids, date(2026, 4, 2), date(2026, 4, 12))
    assert (total(year), total(upgrade)) == (Decimal("365.00"), Decimal("355.00"))
    await april.do("invoices", "void", year["id"])
    # The upgrade gave back 355 days of the first plan: ten days of it alone would leave paper below zero.
    if again == "by its source":
        made = await april.do("invoices", "create", organization_id=owner, source="subscription_segment")
        made = await april.do("invoices", "finalize", made["id"])
    else:
        made = await invoiced(april, ids, BEGINS, date(2026, 4, 2))
    assert total(made) == Decimal("365.00")
    await april.on(at(4, 21))
    await april.do("organization-subscriptions", "cancel", subscription, when="now")
    back = await invoiced(april, ids, date(2026, 4, 12), date(2026, 4, 22))
    assert total(upgrade) + total(made) + total(back) == Decimal("30.00")  # ten days at 1.00, ten at 2.00


async def test_invoice_shows_trial_days_on_a_line_with_amount_zero(april: April) -> None:
    starter = await plan(april, "Starter", "30.00", 2_000_000)
    ids = await customer(april, starter, BEGINS, NEVER, trial_end=date(2026, 4, 16))
    await april.on(at(5, 1))
    made = await invoiced(april, ids, BEGINS, date(2026, 5, 1))
    assert [(each["description"], str(each["amount"])) for each in made["lines"]] == [
        ("Starter, 1 to 15 April 2026, trial", "0.00"),
        ("Starter, 16 to 30 April 2026 (15 of 30 days)", "15.00"),
    ]


async def test_subscription_discount_is_not_applied_after_the_discount_end_date(april: April) -> None:
    starter = await plan(april, "Starter", "30.00", 2_000_000)
    off = {"discount_rate": Decimal("0.20"), "discount_end": date(2026, 5, 1)}
    ids = await customer(april, starter, BEGINS, NEVER, **off)
    await april.on(at(5, 1))
    made = await invoiced(april, ids, BEGINS, date(2026, 5, 1))
    assert [(each["kind"], each["quantity"], str(each["amount"])) for each in made["lines"]] == [
        ("subscription", 1, "30.00"), ("discount", -1, "-6.00"),
    ]  # fmt: skip
    assert await months(april, ids, 5) == ["30.00"]


async def test_negotiated_fee_and_overage_price_replace_the_plan_prices(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    prices = {"negotiated_cost": Decimal("20.00"), "overage_unit_price": Decimal("0.000001")}
    ids = await customer(april, starter, BEGINS, NEVER, **prices)
    await april.on(at(4, 1))
    april.account.consume(3_000_000)
    april.flush()
    await april.on(at(5, 1, 0))
    april.account.reset()
    april.flush()
    made = await invoiced(april, ids, BEGINS, date(2026, 5, 1))
    assert [line[2] for line in lines(made)] == ["20.00", "1.00"]


async def test_shortfall_to_the_minimum_commitment_is_charged_after_the_cycle_ends(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, BEGINS, NEVER, minimum_commitment=Decimal("100.00"))
    await april.on(at(4, 1))
    april.account.consume(3_000_000)
    april.flush()
    await april.on(at(5, 1, 0))
    april.account.reset()
    april.flush()
    made = await invoiced(april, ids, BEGINS, date(2026, 5, 1))
    assert [(line[0], line[2]) for line in lines(made)] == [
        ("subscription", "29.00"), ("overage", "3.00"), ("minimum_commitment", "68.00"),
    ]  # fmt: skip
    assert total(made) == Decimal("100.00")


async def test_credit_note_does_not_trigger_a_new_minimum_commitment_charge(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, BEGINS, date(2026, 5, 1), minimum_commitment=Decimal("31.00"))
    await april.on(at(4, 1))
    april.account.consume(2_500_000)
    april.flush()
    await april.on(at(5, 2))
    made = await invoiced(april, ids, BEGINS, date(2026, 5, 1))
    assert [line[2] for line in lines(made)] == ["29.00", "1.50", "0.50"]
    for part in (1, 2, 3):
        note = await april.do(
            "invoices", "credit-note", made["id"], lines=[{"position": part, "amount": Decimal("0.25")}]
        )
        await april.do("invoices", "finalize", note["id"])
    assert await april.store.unbilled(ids["organization"]) == []
    assert await months(april, ids, 5) == ["0.00"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"trial_end": BEGINS}, "trial_end"),
        ({"discount_end": date(2026, 6, 1)}, "discount_end"),
        ({"discount_rate": Decimal("0.1"), "discount_end": date(2026, 3, 1)}, "discount_end"),
    ],
)
async def test_subscription_creation_error_names_the_invalid_terms_field(
    april: April, fields: dict[str, Any], named: str
) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    with pytest.raises(Unprocessable) as refused:
        await customer(april, starter, BEGINS, NEVER, **fields)
    assert [name for name, _ in refused.value.errors] == [named]


@pytest.mark.parametrize(
    ("cost", "off", "days", "due"), [("29.00", "0.15", 2, "6.67"), ("20.00", "0.15", 1, "3.33")]
)
async def test_invoice_with_a_minimum_commitment_totals_exactly_despite_rounded_lines(
    april: April, cost: str, off: str, days: int, due: str
) -> None:
    """Each line rounded by itself is a cent less: 1.93, 0.29 off that, and 5.02."""
    starter = await plan(april, "Starter", cost, 2_000_000)
    terms = {"discount_rate": Decimal(off), "minimum_commitment": Decimal(100)}
    ids = await customer(april, starter, BEGINS, NEVER, **terms)
    await april.on(at(4, 1 + days))
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    assert await months(april, ids, 4, 5) == [due, "0.00"]
