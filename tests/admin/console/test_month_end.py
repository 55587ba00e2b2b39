"""Month-end by hand: all of a month, a part of an invoice given back, what waits, and pages of finance."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway.admin.console.statements import STATEMENTS
from gateway.admin.resources.reports import ITEMS
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import well_formed
from tests.admin.test_invoices import acme, draft


def last_month() -> tuple[date, date]:
    """The first day of the last month, and of this one."""
    this = datetime.now(UTC).date().replace(day=1)
    return (this - timedelta(days=1)).replace(day=1), this


async def subscribed(api: Api, name: str, start: date, billing: str | None = None) -> dict[str, Any]:
    """An organization with a plan of 29.00 a month."""
    plans = (await api.get("subscription-plans?name=Starter")).json["items"]
    made = {"name": "Starter", "monthly_cost": "29.00", "annual_cost": "290", "feature_access": []}
    plan = plans[0] if plans else await api.make("subscription-plans", **made)
    organization = await api.make("organizations", name=name)
    terms = {"billing": billing, "billing_interval": "monthly"} if billing else {}
    await api.make(
        "organization-subscriptions", organization_id=organization["id"], plan_id=plan["id"],
        start_date=str(start), end_date="2100-01-01", **terms,
    )  # fmt: skip
    return organization


def outcomes(page: Page) -> dict[str, str]:
    """What the page says became of each organization."""
    table = page.text.partition('id="done"')[2]
    rows = re.findall(r'title="([^"]+)">.*?data-label="Status">(.*?)</td>', table, re.DOTALL)
    return {name: re.sub("<[^>]+>", "", said).strip() for name, said in rows}


async def test_invoicing_a_month_covers_all_organizations_and_a_repeat_makes_no_second_invoice(
    api: Api, admin: Person
) -> None:
    first, this = last_month()
    for name in ("Acme", "Bolt"):
        await subscribed(api, name, first)
    idle = await api.make("organizations", name="Idle")
    month = f"{first:%Y-%m}"
    assert f'value="{month}" selected' in (await admin.open("/invoices/month")).text
    assert 'href="/invoices/month"' in (await admin.open("/invoices")).text
    drafts = await admin.fill("/invoices/month", "/invoices/month", month=month, draft="true")
    well_formed(drafts)
    assert outcomes(drafts) == {"Acme": "draft", "Bolt": "draft", "Idle": "nothing to bill"}
    api.counters.unsettled = "Movements of tenant 7 are still on their way."
    refused = await admin.fill("/invoices/month", "/invoices/month", month=month, draft="false")
    assert outcomes(refused) == {
        "Acme": api.counters.unsettled, "Bolt": api.counters.unsettled, "Idle": "nothing to bill",
    }  # fmt: skip
    api.counters.unsettled = None
    for _ in range(2):
        done = await admin.fill("/invoices/month", "/invoices/month", month=month, draft="false")
        assert outcomes(done) == {"Acme": "finalized", "Bolt": "finalized", "Idle": "nothing to bill"}
    rows = (await api.get("invoices")).json["items"]
    assert [(row["period_start"], row["period_end"], row["status"]) for row in rows] == [
        (str(first), str(this), "finalized")
    ] * 2
    assert all(row["number"] in done.text for row in rows)
    behind = await admin.fill("/invoices/month", "/invoices/month", month=month, after=str(idle["id"] - 1))
    assert outcomes(behind) == {"Idle": "nothing to bill"}
    wrong = await admin.fill("/invoices/month", "/invoices/month", month="2020-01")
    assert (wrong.status, "must be one of these months" in wrong.text) == (422, True)


async def test_readonly_person_may_not_invoice_a_month(api: Api, reader: Person) -> None:
    assert (await reader.open("/invoices/month")).status == 404
    token = (await reader.open("/")).form_token
    assert (await reader.post("/invoices/month", {"form_token": token, "month": "2020-01"})).status == 403


async def test_new_invoice_form_offers_the_last_whole_month(api: Api, admin: Person) -> None:
    first, this = last_month()
    page = (await admin.open("/invoices/new?organization_id=3")).text
    [href] = re.findall(r'href="([^"]+)">Last month<', page)
    asked = parse_qs(urlsplit(href.replace("&amp;", "&")).query)
    assert asked == {
        "organization_id": ["3"], "period_start": [str(first)], "period_end": [str(this)],
    }  # fmt: skip


async def test_credit_note_form_credits_the_ticked_invoice_lines_by_the_typed_amounts(
    api: Api, admin: Person
) -> None:
    made = await draft(api, await acme(api))
    one = f"/invoices/{made['id']}"
    await api.post(f"invoices/{made['id']}/finalize")
    form = (await admin.open(one)).text.partition(f'action="{one}/credit-note"')[2].partition("</form>")[0]
    assert re.findall(r'name="lines" value="(\d+)"', form) == ["1", "2"]
    refused = await admin.fill(one, f"{one}/credit-note", lines="2", lines__2="many")
    assert refused.status == 422
    again = refused.text.partition(f'action="{one}/credit-note"')[2].partition("</form>")[0]
    assert ('value="2" checked' in again, 'value="many"' in again) == (True, True)
    done = await admin.fill(one, f"{one}/credit-note", lines="2", lines__1="7.00", lines__2="3.00")
    assert done.status == 303
    [note] = (await api.get(f"invoices?corrects_id={made['id']}")).json["items"]
    given = [(line["corrects_position"], line["amount"]) for line in note["lines"] if line["kind"] != "tax"]
    assert given == [(2, "-3.00")]


async def test_subscription_billed_in_arrears_is_shown_as_waiting_with_the_day_of_billing(
    api: Api, admin: Person
) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)  # what begins today has supplied nothing yet
    this = yesterday.replace(day=min(yesterday.day, 28))  # a cycle that does not end tomorrow
    following = (this + timedelta(days=31)).replace(day=this.day)
    owner = await subscribed(api, "Arrears", this, "arrears")
    period = {"period_start": str(this), "period_end": str(following - timedelta(days=1))}
    made = await api.make("invoices", organization_id=owner["id"], **period)
    assert made["lines"] == []
    for address in (f"/invoices/{made['id']}", f"/unbilled?organization_id={owner['id']}"):
        page = await admin.open(address)
        well_formed(page)
        part = page.text.partition('id="waiting"')[2].partition("</section>")[0]
        assert (f"{following} or later" in part, "subscription" in part) == (True, True), address
    assert "waits, as below" in (await admin.open(f"/invoices/{made['id']}")).text
    # The sum that waits is what is unbilled: nothing of it could be billed now.
    [unbilled] = (await api.get(f"organizations/{owner['id']}/unbilled")).json["items"]
    [said] = re.findall(r"\$([\d.,]+)", re.sub("<[^>]+>", "", part))
    assert Decimal(said.replace(",", "")) == Decimal(unbilled["amount"])


async def test_every_finance_report_has_a_page_and_a_csv_file_of_the_same_rows(
    api: Api, admin: Person
) -> None:
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    assert {statement.name for statement in STATEMENTS} == set(ITEMS)
    for statement in STATEMENTS:
        asked = "" if statement.is_of_day else "from=2026-01"
        items = (await api.get(f"reports/{statement.name}?{asked}")).json["items"]
        page = await admin.open(f"/{statement.name}?{asked}")
        well_formed(page)
        assert page.status == 200, statement.name
        last = list(statement.amounts)[-1]
        shown = {
            Decimal(text.replace(",", "").replace("−", "-"))
            for text in re.findall(r'<span class="number">(−?)\$([\d,.]+)</span>', page.text)
            for text in ["".join(text)]
        }
        assert {Decimal(row[last]) for row in items if row[last] and Decimal(row[last])} <= shown
        [file] = re.findall(r'href="(/reports/[^"]+)" download', page.text)
        told = (await admin.open(file.replace("&amp;", "&"))).text
        assert len(told.splitlines()) == len(items) + 1
        wrong = await admin.open(f"/{statement.name}?organization_id=Nobody")
        assert (wrong.status, "names nothing" in wrong.text) == (422, True)
        assert (await admin.open(f"/{statement.name}?currency=dollars")).status == 422


async def test_console_answers_an_id_of_thousands_of_digits_without_a_server_error(
    api: Api, admin: Person
) -> None:
    """5,000 digits are more than Python reads as a number."""
    digits, month = "7" * 5_000, f"{last_month()[0]:%Y-%m}"
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    token = (await admin.open("/")).form_token
    sent = {"form_token": token, "month": month, "draft": "true", "after": digits}
    assert (await admin.post("/invoices/month", sent)).status == 200
    one = f"/invoices/{made['id']}/credit-note"
    assert (await admin.post(one, {"form_token": token, "lines": digits})).status < 500
    for page in (f"/api-keys/new?tenant_id={digits[:4_400]}", f"/usage?tenant_id={digits[:4_400]}"):
        assert (await admin.open(page)).status < 500
