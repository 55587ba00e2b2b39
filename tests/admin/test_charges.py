"""Charges through the API: read and narrowed by anybody who may read, changed by nobody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.admin.conftest import READONLY, Api
from tests.admin.test_invoices import acme, draft


async def charged(api: Api) -> tuple[dict[str, int], dict[str, Any]]:
    """An organization whose April is invoiced."""
    ids = await acme(api)
    made = await draft(api, ids)
    return ids, (await api.post(f"invoices/{made['id']}/finalize")).json


async def test_an_invoice_is_what_its_charges_come_to(api: Api) -> None:
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


async def test_they_are_narrowed_and_come_in_pages(api: Api) -> None:
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


async def test_what_is_unbilled_is_told_to_readers_and_nobody_writes(api: Api) -> None:
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


async def test_a_currency_stays_while_charges_are_open(api: Api) -> None:
    ids, made = await charged(api)
    await api.post(f"invoices/{made['id']}/void")
    refused = await api.patch(f"organizations/{ids['organization']}", {"currency": "JPY"})
    assert (refused.status, "charges" in refused.json["detail"]) == (409, True)


async def test_a_month_within_a_year_that_was_invoiced_may_be_invoiced_and_none_crosses(
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
