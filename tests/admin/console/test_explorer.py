"""The explorer: what its table, chart and files say of calls, and what its address says of it."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest

from gateway.admin.console import reports
from gateway.admin.console.reports import ReportQuery
from gateway.core.accounts.usage import UsageQuery
from gateway.counters.redis.keys import partition_of
from gateway.errors import Unprocessable
from persistence import engine as engines
from persistence.store import Store
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, used

SPAN = "from=2026-03-01&to=2026-03-03"


@pytest.fixture
async def made(api: Api) -> dict[str, Any]:
    """Two teams of one organization, and one of another currency."""
    acme = await api.make("organizations", name="Acme")
    search = await api.make("tenants", name="Search", organization_id=acme["id"])
    bots = await api.make("tenants", name=HOSTILE, organization_id=acme["id"])
    euro = await api.make("organizations", name="Orbit", currency="EUR")
    bank = await api.make("tenants", name="Bank", organization_id=euro["id"])
    ada = await api.make("users", external_id="ada", organization_id=acme["id"])
    first, second = datetime(2026, 3, 1, 10, tzinfo=UTC), datetime(2026, 3, 3, 23, tzinfo=UTC)
    own = {"organization": acme["id"], "tenant": search["id"]}
    used(api, first, 354_000, **own, user=ada["id"])
    used(api, second, 2 * NANO + 1, **own, model="m2", requests=3, tokens=2000)
    used(api, second, NANO, organization=acme["id"], tenant=bots["id"], model=HOSTILE)
    used(api, second, 0, organization=acme["id"], tenant=bots["id"], model="own", unpriced=1)
    used(api, first, 7 * NANO, organization=euro["id"], tenant=bank["id"], currency="EUR")
    used(api, second + timedelta(hours=1), 10**15, **own)
    return {"acme": acme, "search": search, "bots": bots, "bank": bank, "ada": ada}


def rows_of(page: Page) -> list[list[str]]:
    """The cells of the report's table, as they read."""
    table = re.search(r'<table class="report">.*?<tbody>(.*?)</tbody>', page.text, re.DOTALL)
    assert table, page.text
    return [
        [
            unescape(re.sub(r"<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    ]


async def test_the_table_says_what_each_group_cost_to_the_nano_unit(
    reader: Person, made: dict[str, Any]
) -> None:
    page = await reader.open(f"/usage?{SPAN}&group_by=tenant")
    well_formed(page)
    found = [row[:3] for row in rows_of(page)]
    assert found == [
        ["Bank", "€7.000000000", "1"], ["Search", "$2.000354001", "4"], [HOSTILE, "$1.000000000", "2"],
    ]  # fmt: skip
    assert "2026-03-01 00:00 – 2026-03-04 00:00 UTC" in page.text
    assert "1 requests" in page.text  # without a price


async def test_groups_filters_and_sorting_narrow_it(reader: Person, made: dict[str, Any]) -> None:
    tenant = made["search"]["id"]
    page = await reader.open(f"/usage?{SPAN}&group_by=tenant&group_by=model&group_by=none&tenant_id={tenant}")
    assert [row[:3] for row in rows_of(page)] == [
        ["Search", "m2", "$2.000000001"],
        ["Search", "m1", "$0.000354000"],
    ]
    # The filter in force is named, and can be taken away.
    assert re.search(r'class="chip" href="/usage\?[^"]*group_by=tenant,model"', page.text)
    sorted_by_calls = await reader.open(f"/usage?{SPAN}&sort=requests&currency=USD")
    assert [row[0] for row in rows_of(sorted_by_calls)] == ["m2", HOSTILE, "m1", "own"]
    nothing = await reader.open(f"/usage?{SPAN}&model=nobody")
    assert "Nothing was used in this time." in nothing.text


async def test_what_a_link_leads_to_is_what_it_was_made_of(
    api: Api, admin: Person, made: dict[str, Any]
) -> None:
    page = await admin.open(f"/usage?{SPAN}&group_by=tenant,model&tenant_id={made['search']['id']}")
    links = [unescape(link) for link in re.findall(r'href="(/(?:usage|calls)\?[^"]*)"', page.text)]
    assert links
    for link in links:
        assert (await admin.open(link)).status == 200, link
    files = re.findall(r'href="(/usage\.csv\?[^"]*)"', page.text)
    whole, by_day = [(await admin.open(unescape(link))) for link in files]
    rows = list(csv.DictReader(io.StringIO(whole.text)))
    assert [(row["model"], row["cost"]) for row in rows] == [("m2", "2.000000001"), ("m1", "0.000354")]
    starts = [row["start"][:10] for row in csv.DictReader(io.StringIO(by_day.text))]
    assert starts == ["2026-03-01", "2026-03-03"]


async def test_the_chart_is_drawn_from_a_table_of_every_time(reader: Person, made: dict[str, Any]) -> None:
    page = await reader.open(f"/usage?{SPAN}&interval=day&currency=USD")
    table = page.text.split('class="small over-time"')[1].split("</table>")[0]
    days = re.findall(r'<tr data-at="(\d+)"><th scope="row">([^<]*)</th>', table)
    begin = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    assert days == [(str(begin + n * 86400), f"2026-03-0{n + 1}") for n in range(3)]
    assert 'data-value="2.000000001"' in table
    assert table.count("data-value") == 3 * 3  # what cost nothing is no part of it
    lines = await reader.open(f"/usage?{SPAN}&measure=tokens&shape=lines")
    assert 'data-chart="lines" data-currency=""' in lines.text


async def test_of_too_many_groups_the_most_are_drawn(api: Api, made: dict[str, Any]) -> None:
    own = {"organization": made["acme"]["id"], "tenant": made["search"]["id"]}
    for hour in range(12):
        used(api, datetime(2026, 2, 1, hour, tzinfo=UTC), NANO * (hour + 1), **own, model=f"x{hour}")
    used(api, datetime(2026, 2, 1, tzinfo=UTC), NANO, **own, model="x11")
    used(api, datetime(2026, 2, 2, tzinfo=UTC), NANO * 50, **own, model="")
    since = datetime(2026, 2, 1, tzinfo=UTC)
    asked = UsageQuery(since, since + timedelta(days=2), "hour", ("model",), {}, 0)
    engine = engines.create(api.url)
    store = Store(engine, partition_of)
    # Fourteen items over time, thirteen groups.
    whole = await reports.spent(store, asked, "cost")
    apart = await reports.spent(store, asked, "cost", items_max=13)
    assert apart.chart == whole.chart
    assert [row["cost"] for row in apart.totals] == [row["cost"] for row in whole.totals] == [129]
    assert [row["cost"] for row in apart.groups] == [row["cost"] for row in whole.groups]
    chart = apart.chart
    assert chart is not None
    sums = {name: sum(column.parts[at] for column in chart.columns) for at, name in enumerate(chart.series)}
    assert sums == {"no model": 50, "x11": 13, "x10": 11, "x9": 10, "x8": 9, "everything else": 36}
    with pytest.raises(Unprocessable):
        await reports.spent(store, asked, "cost", items_max=12)
    await engine.dispose()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("group_by=colour", "group_by"), ("from=yesterday", "from"), ("range=ever", "from"),
        ("from=2026-03-02&to=2026-03-01", "from"), ("tenant_id=x", "tenant_id"), ("currency=usd", "currency"),
        ("interval=week", "interval"), ("interval=hour&range=90d", "interval"),
        ("from=2026-03-01T10:30", "from"),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly_is_said(reader: Person, query: str, field: str) -> None:
    page = await reader.open(f"/usage?{query}")
    assert page.status == 422
    well_formed(page)
    assert re.search(rf"This cannot be shown: {field} \w", page.text)


async def test_times_are_whole_days_hours_and_ranges() -> None:
    now = datetime(2026, 3, 15, 10, 20, tzinfo=UTC)
    spans = {
        "range=24h": ("2026-03-14T11:00:00Z", "2026-03-15T11:00:00Z"),
        "range=7d": ("2026-03-09T00:00:00Z", "2026-03-16T00:00:00Z"),
        "range=month": ("2026-03-01T00:00:00Z", "2026-03-16T00:00:00Z"),
        "range=last-month": ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        "from=2026-03-01T10:00": ("2026-03-01T10:00:00Z", "2026-03-16T00:00:00Z"),
        "from=2026-03-01&to=2026-03-01": ("2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"),
        "to=9999-12-31": ("", "9999-12-31"),
    }
    for query, span in spans.items():
        sent = dict(part.split("=") for part in query.split("&"))
        assert ReportQuery(sent, (), now).span == span, query


async def test_files_need_a_session(nobody: Person) -> None:
    assert (await nobody.open("/usage.csv")).status == 401
    assert (await nobody.open("/usage")).headers["Location"] == "/sign-in?next=%2Fusage"
