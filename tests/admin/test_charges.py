"""Charges through the API: read and narrowed by anybody who may read, changed by nobody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest

from tests.admin.conftest import READONLY, Api
from tests.admin.test_catalogue import day
from tests.admin.test_invoices import acme, draft
from tests.connections import connected


async def charged(api: Api) -> tuple[dict[str, int], dict[str, Any]]:
    """An organization whose April is invoiced."""
    ids = await acme(api)
    made = await draft(api, ids)
    return ids, (await api.post(f"invoices/{made['id']}/finalize")).json


async def test_charge_shows_quantity_price_amount_and_the_invoice_line_that_bills_the_charge(
    api: Api,
) -> None:
    ids, made = await charged(api)
    found = (await api.get(f"charges?organization_id={ids['organization']}")).json["items"]
    assert [(each["kind"], each["quantity"], each["unit_price"], each["amount"]) for each in found] == [
        ("usage", "1000", "0.05", "50"), ("usage", "200", "0.04", "8"),
    ]  # fmt: skip
    first = found[0]
    assert (first["period_start"], first["period_end"]) == ("2026-04-10T00:00:00Z", "2026-04-11T00:00:00Z")
    assert (first["source"], first["reason"], first["currency"]) == ("usage_tier", "fact", "USD")
    assert {(each["invoice_id"], each["line"]) for each in found} == {(made["id"], 1), (made["id"], 2)}
    assert (await api.get(f"charges/{first['id']}")).json == first


async def test_charges_can_be_filtered_and_are_listed_page_by_page(api: Api) -> None:
    ids, made = await charged(api)
    await api.post(f"invoices/{made['id']}/void")
    here = f"charges?organization_id={ids['organization']}"

    async def count(narrowed: str) -> int:
        return len((await api.get(f"{here}&{narrowed}")).json["items"])

    narrowed = ("billed=false", "billed=true", "reason=void", "reason=reissued")
    assert [await count(each) for each in narrowed] == [2, 4, 2, 2]
    assert [await count(f"tenant_id={ids['tenant']}"), await count("kind=overage")] == [6, 0]
    assert [await count("from=2026-04-10T00:00:00Z"), await count("to=2026-04-10T00:00:00Z")] == [6, 0]
    page = (await api.get(f"{here}&limit=4")).json
    rest = (await api.get(f"{here}&limit=4&cursor={page['next_cursor']}")).json
    assert (len(page["items"]), len(rest["items"]), rest["next_cursor"]) == (4, 2, None)
    wrong = await api.get("charges?kind=gift")
    assert (wrong.status, wrong.json["errors"][0]["field"]) == (422, "kind")


async def test_readonly_token_sees_the_sum_of_unbilled_charges_and_charges_cannot_be_written(
    api: Api,
) -> None:
    ids = await acme(api)
    reader = api.acting_as(READONLY)
    where = f"organizations/{ids['organization']}/unbilled"
    assert (await reader.get(where)).json == {
        "items": [
            {
                "kind": "usage", "amount": "58", "currency": "USD", "charges": 2,
                "period_start": "2026-04-10T00:00:00Z", "period_end": "2026-04-11T00:00:00Z",
            }
        ],
        "next_cursor": None,
    }  # fmt: skip
    assert (await api.get("organizations/99/unbilled")).status == 404
    assert (await api.post("charges", {})).status == 405
    assert (await api.delete("charges/1")).status == 405


async def test_currency_of_an_organization_cannot_change_while_charges_are_unbilled(api: Api) -> None:
    ids, made = await charged(api)
    await api.post(f"invoices/{made['id']}/void")
    refused = await api.patch(f"organizations/{ids['organization']}", {"currency": "JPY"})
    assert (refused.status, "charges" in refused.json["detail"]) == (409, True)


async def test_month_within_an_invoiced_year_may_be_invoiced_but_an_overlapping_period_may_not(
    api: Api,
) -> None:
    ids = await acme(api)
    year = await draft(api, ids, period_start="2026-01-01", period_end="2027-01-01")
    assert (await api.post("invoices", sent(ids, "2026-05-01", "2026-06-01"))).status == 409
    await api.post(f"invoices/{year['id']}/finalize")
    for start, end, status in (
        ("2026-05-01", "2026-06-01", 201), ("2026-01-01", "2027-01-01", 409),
        ("2026-12-31", "2027-01-02", 409),
    ):  # fmt: skip
        assert (await api.post("invoices", sent(ids, start, end))).status == status
    today = datetime.now(UTC).date()
    assert (await api.post("invoices", sent(ids, "2027-01-01", str(today + timedelta(400))))).status == 201


def sent(ids: dict[str, int], start: str, end: str) -> dict[str, object]:
    return {"organization_id": ids["organization"], "period_start": start, "period_end": end}


# --- billable ---------------------------------------------------------------------------
# Whatever is accepted can be billed: what is too much is refused by its field, and nothing is written.


MOST = 10**12
WRITTEN = """
SELECT (SELECT count(*) FROM credit_addition), (SELECT count(*) FROM control_write),
       (SELECT count(*) FROM organization), (SELECT max(updated_at) FROM organization),
       (SELECT count(*) FROM token_plan), (SELECT count(*) FROM use_event),
       (SELECT count(*) FROM audit_log)"""
HUGE = "99999999.999999999"
CHARGE = """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, fact)
VALUES (%s, 'credits_purchased', '2026-04-10', '2026-04-11', %s, %s, %s, 'USD', 'credit_addition', 1, %s)"""


async def refused(api: Api, verb: str, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """The field that is too much, and why; nothing was written."""
    before = api.rows(WRITTEN)
    answer = await api.call(verb, path, body)
    assert answer.status == 422, answer.raw
    assert api.rows(WRITTEN) == before
    [error] = answer.json["errors"]
    return error["field"], error["message"]


async def rejected(api: Api, body: dict[str, Any]) -> tuple[str, str]:
    """The same of an event."""
    sent = {"specversion": "1.0", "type": "use", "source": "test", "id": "1", **body}
    answer = await api.call("POST", "events", sent)
    assert answer.status == 422, answer.raw
    [why] = answer.json["errors"]
    return why["field"], why["message"]


async def test_credit_purchase_beyond_the_maximum_amount_of_an_invoice_is_refused(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    body = {
        "organization_id": made["id"], "credits_added": 10**15, "unit_cost": HUGE, "invoicing": "prepaid",
    }  # fmt: skip
    field, why = await refused(api, "POST", "credit-additions", body)
    most = int(MOST / Fraction(HUGE))
    assert (field, f"must be at most {most} at {HUGE} each" in why) == ("credits_added", True)
    assert (await api.post("credit-additions", {**body, "credits_added": most + 1})).status == 422
    assert (await api.post("credit-additions", {**body, "credits_added": most})).status in {201, 202}


async def test_every_amount_beyond_the_maximum_amount_of_an_invoice_is_refused_with_the_field_named(
    api: Api,
) -> None:
    ids = await acme(api)
    here, tenant = f"organizations/{ids['organization']}", f"tenants/{ids['tenant']}"
    top_up = {"threshold": 1, "credits": 10**15, "unit_cost": HUGE}
    fields = [
        await refused(api, "PATCH", here, {"auto_top_up": top_up}),
        await refused(api, "PATCH", here, {"credit_limit": 10**15, "credit_unit_cost": "1.5"}),
        await refused(api, "POST", "token-plans", {
            "name": "Dear", "total_amount": 5, "overage_policy": "bill", "overage_unit_price": "1000.1",
        }),
    ]  # fmt: skip
    assert [field for field, _ in fields] == ["auto_top_up.credits", "credit_unit_cost", "overage_unit_price"]
    dear = await api.make(
        "token-plans", name="Dear", total_amount=5, overage_policy="bill", overage_unit_price="1000"
    )
    await api.patch(tenant, {"plan_id": dear["id"]})
    await api.patch(here, {"credit_unit_cost": "1000"})
    assert (await refused(api, "PATCH", here, {"credit_limit": 10**12 + 1}))[0] == "credit_limit"
    back = {"organization_id": ids["organization"], "credits_added": -(10**9) - 1}
    assert (await refused(api, "POST", "credit-additions", back))[0] == "credits_added"
    out = {"direction": "OUT", "reason": "x"}
    assert (await refused(api, "POST", f"{tenant}/adjust", {**out, "amount": 10**7 + 1}))[0] == "amount"
    assert (await api.post(f"{tenant}/adjust", {**out, "amount": 10**7})).status in {200, 202}
    usage = {"service": "chat", "usage": {"input": 10**7 + 1}}
    field, why = await rejected(api, {"subject": f"tenant:{ids['tenant']}", "data": usage})
    assert (field, "must be at most 10000000 at 1000" in why) == ("0.data.usage", True)
    [credits_] = (await api.get("business-models?name=Consumption")).json["items"]
    await api.make(
        "services",
        name="Cr",
        key="cr",
        credits=1,
        service_type="Pay-As-You-Go",
        business_model_id=credits_["id"],
    )
    units = {"service": "cr", "units": 10**7 + 1}
    assert (await rejected(api, {"subject": f"tenant:{ids['tenant']}", "data": units}))[0] == "0.data.units"
    tier = {"tiers": [{"up_to": None, "unit_price": "9007199255"}]}
    assert (await refused(api, "PATCH", f"services/{ids['service']}", {"pricing": tier}))[0].endswith(
        "unit_price"
    )


async def test_overage_price_stored_before_the_maximum_was_lowered_is_still_shown(api: Api) -> None:
    plan = await api.make(
        "token-plans", name="Dear", total_amount=5, overage_policy="bill", overage_unit_price="1"
    )
    with connected(api.url) as connection:
        connection.execute("UPDATE token_plan SET overage_unit_price = 5000 WHERE id = %s", (plan["id"],))
    shown = await api.get(f"token-plans/{plan['id']}")
    assert (shown.status, shown.json["overage_unit_price"]) == (200, "5000.00")


async def test_invoice_leaves_out_charges_above_the_maximum_total_and_states_the_omission(api: Api) -> None:
    ids = await acme(api)
    rows = [
        (10**15, 10**8, "impossible"),
        (8 * 10**14, 1, "first"),
        (3 * 10**14, 1, "next"),
    ]
    with connected(api.url) as connection:
        for quantity, price, fact in rows:
            connection.execute(CHARGE, (ids["organization"], quantity, price, quantity * price, fact))
    made = await draft(api, ids)
    assert [line["amount"] for line in made["lines"][:-1]] == [f"{8 * 10**14}.00", "50.00", "8.00"]
    exact = Fraction(8 * 10**14) + 58
    assert Fraction(made["total_amount"]) == exact + exact / 5
    [note] = [each for each in made["notes"] if each.startswith("Not on this invoice")]
    assert "2 charges, the first of them charge " in note
    assert (await api.post(f"invoices/{made['id']}/finalize")).status == 200
    owed = (await api.get(f"organizations/{ids['organization']}/unbilled")).json["items"]
    assert sum(Fraction(row["amount"]) for row in owed) == 3 * 10**14 + 10**23
    # The next one takes what the first had no room for; of the last no invoice can be made.
    may = await draft(api, ids, period_start="2026-05-01", period_end="2026-06-01")
    assert Fraction(may["subtotal"]) == 3 * 10**14
    assert (await api.post(f"invoices/{may['id']}/finalize")).status == 200
    june = await draft(api, ids, period_start="2026-06-01", period_end="2026-07-01")
    answer = await api.post(f"invoices/{june['id']}/finalize")
    assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (422, ["lines"])
    assert "One invoice bears at most 1,000,000,000,000,000 USD." in answer.json["errors"][0]["message"]
    alone = {"organization_id": ids["organization"], "source": "credit_addition"}
    await api.delete(f"invoices/{june['id']}")
    assert "One invoice bears at most" in (await api.post("invoices", alone)).json["detail"]


# --- currencies -------------------------------------------------------------------------
# Whatever names a currency names one of ISO 4217, and nothing is billed in another than it was said in.


PLAN = {"name": "Starter", "monthly_cost": "29.00", "annual_cost": "290.00", "feature_access": []}
TERM = {"start_date": "2026-04-01", "end_date": "2027-04-01"}


async def test_subscription_plan_in_another_currency_than_the_organization_is_refused(api: Api) -> None:
    plan = await api.make("subscription-plans", **PLAN)
    assert plan["currency"] == "USD"
    yen = await api.make("subscription-plans", **PLAN | {"name": "Yen"}, currency="JPY")
    acme = await api.make("organizations", name="Acme", currency="JPY")
    sent = {"organization_id": acme["id"], **TERM}
    refused = await api.post("organization-subscriptions", {**sent, "plan_id": plan["id"]})
    assert (refused.status, refused.json["errors"]) == (
        422, [{"field": "plan_id", "message": "costs USD, and the organization pays in JPY"}],
    )  # fmt: skip
    made = await api.make("organization-subscriptions", **sent, plan_id=yen["id"])
    for when in ("now", "period_end"):
        refused = await api.post(
            f"organization-subscriptions/{made['id']}/change", {"plan_id": plan["id"], "when": when}
        )
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "plan_id")
    assert (await api.patch(f"subscription-plans/{yen['id']}", {"currency": "USD"})).status == 422


TIERS = [{"up_to": None, "unit_price": "29"}]


async def test_unit_price_in_another_currency_than_the_organization_is_refused(api: Api) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    service = {
        "name": "Maps", "key": "maps-in-yen", "credits": 0, "service_type": "Pay-As-You-Go",
        "business_model_id": pay["id"], "pricing": {"tiers": TIERS, "currency": "JPY"},
    }  # fmt: skip
    for wrong in ("yen", "QQQ"):
        priced = {"tiers": TIERS, "currency": wrong}
        refused = await api.post("services", service | {"pricing": priced})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing.currency")
    refused = await api.post("services", service | {"pricing": {"at_cost": {}, "currency": "JPY"}})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing")
    made = await api.make("services", **service)
    assert made["pricing"]["currency"] == "JPY"
    acme = await api.make("organizations", name="Acme", currency="USD")
    given = {"organization_id": acme["id"], "service_id": made["id"], "negotiated_credits": 0}
    refused = await api.post("organization-services", given)
    assert (refused.status, refused.json["errors"]) == (
        422, [{"field": "service_id", "message": "costs JPY, and the organization pays in USD"}],
    )  # fmt: skip
    dear = {"pricing": {"tiers": TIERS, "currency": "EUR"}}
    refused = await api.post("organization-services", given | dear)
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing.currency")
    own = await api.make("organization-services", **given, pricing={"tiers": TIERS, "currency": "USD"})
    # What it negotiated is in its currency, which stays then; the service may be in any.
    assert (await api.patch(f"organizations/{acme['id']}", {"currency": "JPY"})).status == 409
    euro = {"pricing": {"tiers": TIERS, "currency": "EUR"}}
    assert (await api.patch(f"services/{made['id']}", euro)).status == 200
    refused = await api.patch(f"organization-services/{own['id']}", {"pricing": None})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "service_id")


async def test_service_price_without_a_currency_is_accepted_for_organizations_of_any_currency(
    api: Api,
) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    made = await api.make(
        "services", name="Maps", key="maps-in-any", credits=0, service_type="Pay-As-You-Go",
        business_model_id=pay["id"], pricing={"tiers": TIERS},
    )  # fmt: skip
    for currency in ("USD", "JPY"):
        acme = await api.make("organizations", name=currency, currency=currency)
        await api.make(
            "organization-services", organization_id=acme["id"], service_id=made["id"], negotiated_credits=0
        )
    # Then it cannot be in one that somebody it was given does not pay in.
    yen = {"pricing": {"tiers": TIERS, "currency": "JPY"}}
    refused = await api.patch(f"services/{made['id']}", yen)
    assert (refused.status, "costs JPY" in refused.json["detail"]) == (409, True)


async def test_overage_price_of_a_plan_in_another_currency_than_the_organization_is_refused(api: Api) -> None:
    bills = {
        "name": "Yen", "total_amount": 1_000, "overage_policy": "bill", "overage_unit_price": "0.1",
        "currency": "JPY",
    }  # fmt: skip
    refused = await api.post("token-plans", bills | {"overage_unit_price": None, "overage_policy": "block"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "currency")
    yen = await api.make("token-plans", **bills)
    acme = await api.make("organizations", name="Acme", currency="USD")
    tenant = {"name": "Main", "organization_id": acme["id"]}
    refused = await api.post("tenants", tenant | {"plan_id": yen["id"]})
    wrong = [{"field": "plan_id", "message": "costs JPY, and the organization pays in USD"}]
    assert (refused.status, refused.json["errors"]) == (422, wrong)
    any_ = await api.make("token-plans", **bills | {"name": "Any", "currency": None})
    made = await api.make("tenants", **tenant, plan_id=any_["id"])
    refused = await api.patch(f"tenant-quotas/{made['id']}", {"plan_id": yen["id"]})
    assert (refused.status, refused.json["errors"]) == (422, wrong)
    for resource, body, field in (
        (f"token-plans/{any_['id']}", {"currency": "JPY"}, "currency"),
        (f"token-plans/{any_['id']}", {"currency": "EUR"}, "currency"),
    ):
        refused = await api.patch(resource, body)
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, field)
    assert (await api.patch(f"token-plans/{any_['id']}", {"currency": "USD"})).status == 200
    refused = await api.post("subscription-plans", PLAN | {"token_plan_id": yen["id"]})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "token_plan_id")
    sold = await api.make("subscription-plans", **PLAN | {"token_plan_id": yen["id"]}, currency="JPY")
    assert sold["token_plan_id"] == yen["id"]
    refused = await api.patch(f"token-plans/{yen['id']}", {"currency": "USD"})
    assert (refused.status, refused.json["errors"][0]["message"]) == (
        422, "cannot be USD: who is on this plan pays in JPY",
    )  # fmt: skip


async def test_usage_event_for_a_service_priced_in_another_currency_is_refused(api: Api) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    await api.make(
        "services", name="Maps", key="maps-by-event", credits=0, service_type="Pay-As-You-Go",
        business_model_id=pay["id"], pricing={"tiers": TIERS, "currency": "JPY"},
    )  # fmt: skip
    acme = await api.make("organizations", name="Acme", currency="USD")
    tenant = await api.make("tenants", name="Main", organization_id=acme["id"])
    told = await api.post(
        "events",
        {
            "specversion": "1.0", "type": "use", "source": "t", "id": "1",
            "subject": f"tenant:{tenant['id']}",
            "data": {"service": "maps-by-event", "units": 3},
        },
    )  # fmt: skip
    [why] = told.json["errors"]
    assert (told.status, why["field"]) == (422, "0.data.service")
    assert "costs JPY" in why["message"]


# --- tax rates --------------------------------------------------------------------------
# Tax by the date of supply: dated rates, lines split where one ends, and what was billed before stays.


async def rated(api: Api, organization: int, since: str, rate: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = await api.make(
        "tax-rates", organization_id=organization, effective_from=since, rate=rate, **more
    )
    return made


def taxes(made: dict[str, Any]) -> list[tuple[str, str]]:
    return [(line["description"], line["amount"]) for line in made["lines"] if line["kind"] == "tax"]


async def test_use_is_taxed_at_the_rate_in_force_on_the_day_of_use(api: Api) -> None:
    ids = await acme(api)
    await rated(api, ids["organization"], "2026-04-11", "0.30")
    await rated(api, ids["organization"], "2026-04-10", "0.16")
    assert taxes(await draft(api, ids)) == [("Tax 16 %", "9.28")]


async def test_changing_the_tax_rate_of_an_organization_adds_a_tax_rate_row_effective_today(api: Api) -> None:
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


async def test_invoice_with_a_zero_tax_rate_states_the_reason(api: Api) -> None:
    ids = await acme(api)
    await rated(
        api, ids["organization"], "2026-04-01", "0", category="reverse_charge",
        reason="Reverse charge, Article 196",
    )  # fmt: skip
    made = await draft(api, ids)
    assert taxes(made) == [("Tax 0 %, Reverse charge, Article 196", "0.00")]
    assert {line["tax_category"] for line in made["lines"]} == {"reverse_charge"}
    assert made["total_amount"] == made["subtotal"] == "58.00"


async def test_credit_note_refunds_the_tax_of_each_credited_line(api: Api) -> None:
    ids = await acme(api)
    with connected(api.url) as connection:
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
    await api.post(f"invoices/{rest['id']}/finalize")
    with connected(api.url) as connection:
        left = connection.execute(
            "SELECT sum(exact) FROM invoice_line WHERE kind = 'usage'"
            " GROUP BY coalesce(corrects_position, position)"
        )
        assert left.fetchall() == [(0,), (0,)]


async def test_tax_rates_cannot_be_changed_or_deleted(api: Api) -> None:
    organization = (await api.make("organizations", name="Acme"))["id"]
    made = await rated(api, organization, "2026-04-01", "0.2")
    assert (await api.patch(f"tax-rates/{made['id']}", {"rate": "0"})).status == 405
    assert (await api.delete(f"tax-rates/{made['id']}")).status == 405
    for statement in ("UPDATE tax_rate SET rate = 0", "DELETE FROM tax_rate", "TRUNCATE tax_rate"):
        with connected(api.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)
