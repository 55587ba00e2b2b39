"""A month's end through a whole stage: what was admitted is what is billed, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from gateway.counters.layouts import states
from gateway.counters.redis import keys
from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until

DRIFT = 12_345


def period() -> dict[str, str]:
    """The running month; its first day and the next month's."""
    first = datetime.now(UTC).date().replace(day=1)
    return {
        "period_start": first.isoformat(),
        "period_end": (first + timedelta(days=32)).replace(day=1).isoformat(),
    }


def subscribed(stage: Stage, since: str) -> tuple[Body, Body, str]:
    """An organization on a subscription since a day, its tenant and a key."""
    token_plan = stage.make(
        "token-plans", name="t", total_amount=2_000_000, overage_policy="bill", overage_unit_price="0.000003"
    )
    plan = stage.make(
        "subscription-plans", name="Starter", monthly_cost="29.00", annual_cost="290.00",
        feature_access=["chat"], token_plan_id=token_plan["id"],
    )  # fmt: skip
    organization = stage.make("organizations", name="Acme", tax_rate="0.20")
    tenant = stage.make("tenants", name="Main", organization_id=organization["id"])
    stage.make(
        "organization-subscriptions", organization_id=organization["id"], plan_id=plan["id"],
        start_date=since, end_date="2900-01-01",
    )  # fmt: skip
    return organization, tenant, stage.make("api-keys", tenant_id=tenant["id"])["key"]


def done(stage: Stage, path: str, body: Any = None) -> Body:
    status, answer = stage.admin("POST", path, body)
    assert status == 200, answer
    found: Body = answer
    return found


def test_what_was_used_is_invoiced_and_drift_is_not(stage: Stage) -> None:
    month = period()
    organization, tenant, key = subscribed(stage, month["period_start"])
    assert stage.chat(key, "1200000,300000").status_code == 200
    assert stage.chat(key, "1200000,300000").status_code == 200
    stage.make("credit-additions", organization_id=organization["id"], credits_added=8_000, unit_cost="0.01")
    posted = f"select count(*) from credit_posting where organization_id = {organization['id']}"
    wait_until(lambda: stage.rows(posted) == [(1,)])
    draft = stage.make("invoices", organization_id=organization["id"], **month)

    # Somebody changes a balance by hand: no invoice until that is made good.
    name = keys.tenant_state(keys.partition_of(organization["id"]), tenant["id"])
    with redis.Redis.from_url(stage.redis_url) as client:
        state = states.unpack(states.TenantState, client.get(name))  # type: ignore[arg-type]  # it is there
        state.limit += DRIFT
        client.set(name, states.pack(state))
    status, refused = stage.admin("POST", f"/invoices/{draft['id']}/finalize")
    assert (status, "drift" in refused["detail"]) == (409, True)
    found = done(stage, "/reconciliation", {"repair": True})
    # Others' calls may be on their way into the ledger; nobody else's balance was changed.
    drifted = [(item["account"], item["difference"]) for item in found["items"] if item["kind"] == "drift"]
    assert drifted == [(f"tenant:{tenant['id']}", DRIFT)]
    [repair] = [row for row in stage.settled(tenant["id"], 4) if row["transaction_type"] == "adjust"]
    assert (repair["direction"], repair["amount"], repair["total_remaining"]) == ("OUT", DRIFT, -1_000_000)

    invoice = done(stage, f"/invoices/{draft['id']}/finalize")
    assert [(line["kind"], line["quantity"], line["amount"]) for line in invoice["lines"]] == [
        ("subscription", 1, "29.00"),
        ("overage", 1_000_000, "3.00"),
        ("credits_purchased", 8_000, "80.00"),
        ("tax", 1, "22.40"),
    ]
    assert (invoice["total_amount"], invoice["status"]) == ("134.40", "finalized")


def test_credits_expire_within_seconds_of_their_moment(stage: Stage) -> None:
    organization = stage.make("organizations", name="Credits")
    where = f"/organizations/{organization['id']}"
    stage.make("credit-additions", organization_id=organization["id"], credits_added=7)
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()  # it has to be made by then
    stage.make("credit-additions", organization_id=organization["id"], credits_added=100, expires_at=soon)
    assert stage.admin("GET", where)[1]["credit_balance"] in {7, 107}
    wait_until(lambda: stage.admin("GET", where)[1]["credit_balance"] == 7)
    kinds = (
        "select kind, amount, balance_after from credit_posting"
        f" where organization_id = {organization['id']} order by seq"
    )
    wait_until(lambda: len(stage.rows(kinds)) == 3)
    assert stage.rows(kinds) == [("addition", 7, 7), ("addition", 100, 107), ("expiry", -100, 7)]
