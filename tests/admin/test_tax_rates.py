"""Tax by the date of supply: dated rates, lines split where one ends, and what was billed before stays."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest

from tests.admin.conftest import Api
from tests.admin.test_invoices import acme, draft
from tests.admin.test_subscriptions import day, plan
from tests.in_turn import in_turn

MAY = {"period_start": "2026-05-01", "period_end": "2026-06-01"}


async def rated(api: Api, organization: int, since: str, rate: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = await api.make(
        "tax-rates", organization_id=organization, effective_from=since, rate=rate, **more
    )
    return made


def cents(exact: Fraction) -> Decimal:
    """Half up, in whole cents."""
    return Decimal((200 * exact + 1) // 2) / 100


def taxes(made: dict[str, Any]) -> list[tuple[str, str]]:
    return [(line["description"], line["amount"]) for line in made["lines"] if line["kind"] == "tax"]


@pytest.mark.parametrize(
    ("since", "expected"),
    [("2026-04-10", [("Tax 16 %", "9.28")]), ("2026-04-11", [("Tax 20 %", "11.60")])],
)
async def test_use_is_taxed_with_what_was_in_force_on_its_day(
    api: Api, since: str, expected: list[tuple[str, str]]
) -> None:
    ids = await acme(api)
    await rated(api, ids["organization"], since, "0.16")
    assert taxes(await draft(api, ids)) == expected


async def test_a_fee_is_split_where_the_rate_changes(api: Api) -> None:
    organization = (await api.make("organizations", name="Acme", tax_rate="0.20"))["id"]
    starter = await plan(api, "Starter")
    await api.make(
        "organization-subscriptions", organization_id=organization, plan_id=starter["id"],
        start_date=day(-10), end_date=day(400),
    )  # fmt: skip
    await rated(api, organization, day(-4), "0.10")
    made = await draft(api, {"organization": organization}, period_start=day(-10), period_end=day(0))
    fees = [line for line in made["lines"] if line["kind"] == "subscription"]
    assert [(line["quantity"], line["tax_rate"]) for line in fees] == [(6, "0.20"), (4, "0.10")]
    whole = int(fees[0]["description"].partition(" of ")[2].partition(" ")[0])
    assert Decimal(fees[0]["amount"]) == cents(Fraction(29 * 6, whole))
    assert sum(Decimal(line["amount"]) for line in fees) == cents(Fraction(29 * 10, whole))
    assert taxes(made) == [
        ("Tax 20 %", str(cents(Fraction(fees[0]["amount"]) / 5))),
        ("Tax 10 %", str(cents(Fraction(fees[1]["amount"]) / 10))),
    ]
    assert Decimal(made["tax"]) == sum(Decimal(amount) for _, amount in taxes(made))


async def test_a_change_of_the_organizations_rate_is_a_row_from_today(api: Api) -> None:
    ids = await acme(api)
    where = f"organizations/{ids['organization']}"
    assert (await api.patch(where, {"tax_rate": "0.19"})).json["tax_rate"] == "0.19"
    await api.patch(where, {"tax_rate": "0.19", "name": "Acme Ltd"})
    listed = (await api.get(f"tax-rates?organization_id={ids['organization']}")).json["items"]
    assert [(row["effective_from"], row["rate"]) for row in listed] == [
        ("1970-01-01", "0.20"), (day(0), "0.19"),
    ]  # fmt: skip
    assert taxes(await draft(api, ids)) == [("Tax 20 %", "11.60")]
    await rated(api, ids["organization"], day(30), "0.5")
    assert (await api.get(where)).json["tax_rate"] == "0.19"
    await rated(api, ids["organization"], day(-1), "0.3")
    assert (await api.get(where)).json["tax_rate"] == "0.19"
    await rated(api, ids["organization"], day(0), "0")
    assert (await api.get(where)).json["tax_rate"] == "0.00"


async def test_why_nothing_is_taxed_is_said_on_the_invoice(api: Api) -> None:
    ids = await acme(api)
    await rated(
        api, ids["organization"], "2026-04-01", "0", category="reverse_charge",
        reason="Reverse charge, Article 196",
    )  # fmt: skip
    made = await draft(api, ids)
    assert taxes(made) == [("Tax 0 %, Reverse charge, Article 196", "0.00")]
    assert {line["tax_category"] for line in made["lines"]} == {"reverse_charge"}
    assert made["total_amount"] == made["subtotal"] == "58.00"


async def test_what_was_billed_is_given_back_with_the_tax_it_was_billed_with(api: Api) -> None:
    ids = await acme(api)
    first = await draft(api, ids)
    first = (await api.post(f"invoices/{first['id']}/finalize")).json
    await rated(api, ids["organization"], "2026-01-01", "0.10")
    with psycopg.connect(api.url) as connection:
        connection.execute("UPDATE usage_tier SET quantity = quantity - 100 WHERE unit_price = 0.04")
    back = await draft(api, ids, **MAY)
    assert (back["kind"], back["total_amount"], taxes(back)) == (
        "credit_note",
        "-4.80",
        [("Tax 20 %", "-0.80")],
    )
    # Made void it is owed again, and billed with what is in force for its day by now.
    await api.delete(f"invoices/{back['id']}")
    await api.post(f"invoices/{first['id']}/void")
    assert taxes(await draft(api, ids)) == [("Tax 10 %", "5.40")]


async def test_a_credit_note_gives_back_each_tax_of_its_lines(api: Api) -> None:
    ids = await acme(api)
    with psycopg.connect(api.url) as connection:
        connection.execute("UPDATE usage_tier SET day = '2026-04-20' WHERE unit_price = 0.04")
    await rated(api, ids["organization"], "2026-04-15", "0.10")
    made = await draft(api, ids)
    assert taxes(made) == [("Tax 20 %", "10.00"), ("Tax 10 %", "0.80")]
    await api.post(f"invoices/{made['id']}/finalize")
    sent = {"lines": [{"position": 2, "amount": "4.00"}]}
    note = (await api.post(f"invoices/{made['id']}/credit-note", sent)).json
    assert [line["amount"] for line in note["lines"]] == ["-4.00", "-0.40"]
    await api.post(f"invoices/{note['id']}/finalize")
    rest = (await api.post(f"invoices/{made['id']}/credit-note")).json
    assert Decimal(rest["total_amount"]) + Decimal("-4.40") == -Decimal(made["total_amount"])


@pytest.fixture
async def organization(api: Api) -> int:
    return int((await api.make("organizations", name="Acme"))["id"])


@in_turn(
    ("sent", "field"),
    [
        ({"rate": "1.5"}, "rate"), ({"rate": 0.2}, "rate"), ({"effective_from": "soon"}, "effective_from"),
        ({"category": "exempt"}, "category"), ({"category": "other"}, "category"),
        ({"reason": "x"}, "reason"),
        ({"rate": "0", "category": "standard"}, "category"), ({"organization_id": 99}, "organization_id"),
        ({"rate": "0", "category": "zero", "reason": "x"}, "reason"),
    ],
)  # fmt: skip
async def test_wrong_fields_are_named(api: Api, organization: int, sent: dict[str, Any], field: str) -> None:
    usual = {"organization_id": organization, "effective_from": "2026-04-01", "rate": "0.2"}
    refused = await api.post("tax-rates", usual | sent)
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])
    assert api.rows("SELECT count(*) FROM tax_rate") == [(0,)]


async def test_rates_are_only_added_to(api: Api) -> None:
    organization = (await api.make("organizations", name="Acme"))["id"]
    made = await rated(api, organization, "2026-04-01", "0.2")
    assert (await api.patch(f"tax-rates/{made['id']}", {"rate": "0"})).status == 405
    assert (await api.delete(f"tax-rates/{made['id']}")).status == 405
    for statement in ("UPDATE tax_rate SET rate = 0", "DELETE FROM tax_rate", "TRUNCATE tax_rate"):
        with psycopg.connect(api.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)
