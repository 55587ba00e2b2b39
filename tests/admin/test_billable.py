"""Whatever is accepted can be billed: what is too much is refused by its field, and nothing is written."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import psycopg
import pytest

from tests.admin.conftest import Api
from tests.admin.test_invoices import acme, draft

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
    assert (answer.status, answer.json["accepted"]) == (200, 0), answer.raw
    [why] = answer.json["rejected"]
    return why["field"], why["reason"]


@pytest.mark.parametrize("invoicing", ["next", "now", "prepaid"])
async def test_credits_for_more_than_can_be_billed_are_refused(api: Api, invoicing: str) -> None:
    made = await api.make("organizations", name="Acme")
    body = {
        "organization_id": made["id"], "credits_added": 10**15, "unit_cost": HUGE, "invoicing": invoicing,
    }  # fmt: skip
    field, why = await refused(api, "POST", "credit-additions", body)
    most = int(MOST / Fraction(HUGE))
    assert (field, f"must be at most {most} at {HUGE} each" in why) == ("credits_added", True)
    assert (await api.post("credit-additions", {**body, "credits_added": most + 1})).status == 422
    assert (await api.post("credit-additions", {**body, "credits_added": most})).status in {201, 202}


async def test_every_sibling_names_its_field(api: Api) -> None:
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
    assert (field, "must be at most 10000000 at 1000" in why) == ("data.usage", True)
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
    assert (await rejected(api, {"subject": f"tenant:{ids['tenant']}", "data": units}))[0] == "data.units"
    tier = {"tiers": [{"up_to": None, "unit_price": "9007199255"}]}
    assert (await refused(api, "PATCH", f"services/{ids['service']}", {"pricing": tier}))[0].endswith(
        "unit_price"
    )


async def test_prices_from_before_their_bound_are_shown(api: Api) -> None:
    plan = await api.make(
        "token-plans", name="Dear", total_amount=5, overage_policy="bill", overage_unit_price="1"
    )
    with psycopg.connect(api.url) as connection:
        connection.execute("UPDATE token_plan SET overage_unit_price = 5000 WHERE id = %s", (plan["id"],))
    shown = await api.get(f"token-plans/{plan['id']}")
    assert (shown.status, shown.json["overage_unit_price"]) == (200, "5000.00")


async def test_an_invoice_leaves_what_none_can_bear_and_says_so(api: Api) -> None:
    ids = await acme(api)
    rows = [
        (10**15, 10**8, "impossible"),
        (8 * 10**14, 1, "first"),
        (3 * 10**14, 1, "next"),
    ]
    with psycopg.connect(api.url) as connection:
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
