"""Lists: counted, sorted and written to files, under whatever filters are in force."""

from __future__ import annotations

import csv
import io
import logging
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from gateway.admin.console import reports
from gateway.admin.console.console import Exports
from gateway.admin.console.formatting import label_of
from gateway.admin.console.lists import lines_of, reduced
from gateway.admin.console.reports import ReportQuery
from gateway.admin.console.screens import SCREENS
from gateway.core.accounts.usage import UsageQuery
from gateway.counters.redis.keys import partition_of
from gateway.errors import Unprocessable
from persistence import engine as engines
from persistence.store import Store
from tests.admin.conftest import READONLY, Api, api_of
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, call, used
from tests.admin.test_operations import NEW, OLD


def names_in(page: Page) -> list[str]:
    return [unescape(name) for name in re.findall(r'<a class="clip strong"[^>]*>([^<]*)</a>', page.text)]


async def until_said(person: Person, address: str, said: str) -> None:
    """Look until a page says it: where counting takes too long, it says nothing."""
    while said not in (page := await person.open(address)).text:
        assert " in all<" not in page.text


@pytest.fixture
async def tenants(api: Api) -> dict[str, Any]:
    """Tenants of two organizations, one called after a formula."""
    zenith = await api.make("organizations", name="Zenith")
    acme = await api.make("organizations", name="acme")
    for name, owner in (("beta", zenith), ("=1+1", acme), ("Alpha", acme)):
        await api.make("tenants", name=name, organization_id=owner["id"])
    return {"acme": acme["id"], "zenith": zenith["id"]}


async def test_headings_sort_a_list_both_ways(reader: Person, tenants: dict[str, Any]) -> None:
    page = await reader.open("/tenants")
    well_formed(page)
    assert names_in(page) == ["beta", "=1+1", "Alpha"]
    by_name = await reader.open("/tenants?sort=name")
    well_formed(by_name)
    assert names_in(by_name) == ["=1+1", "Alpha", "beta"]
    assert re.search(r'aria-sort="ascending"><a href="/tenants\?sort=-name">Name', by_name.text)
    assert names_in(await reader.open("/tenants?sort=-name")) == ["beta", "Alpha", "=1+1"]
    # What refers to something is sorted by its name.
    assert names_in(await reader.open("/tenants?sort=organization_id")) == ["=1+1", "Alpha", "beta"]
    assert names_in(await reader.open("/tenants?sort=nothing")) == names_in(page)
    narrowed = f"/tenants?organization_id={tenants['acme']}&sort=-name"
    assert names_in(await reader.open(narrowed)) == ["Alpha", "=1+1"]


async def test_money_column_sorts_by_amount_with_empty_values_last(api: Api, reader: Person) -> None:
    for name, cap in (("a", "9"), ("b", None), ("c", "10.5"), ("d", "100")):
        await api.make("organizations", name=name, spend_cap=cap)
    assert names_in(await reader.open("/organizations?sort=-spend_cap")) == ["d", "c", "a", "b"]
    assert names_in(await reader.open("/organizations?sort=spend_cap")) == ["a", "c", "d", "b"]


async def test_list_is_sorted_up_to_1000_rows_and_a_longer_list_keeps_the_default_order(
    api: Api, reader: Person
) -> None:
    made = await api.make("tenants", name="T0")
    add = (
        "insert into tenant (organization_id, name)"
        " select %s, 'T' || n from generate_series(%s::int, %s::int) as n"
    )
    api.rows(add, made["organization_id"], 1, 119)
    seen: list[str] = []
    address: str | None = "/tenants?sort=-name"
    while address:
        page = await reader.open(address)
        seen += names_in(page)
        following = re.search(r'<a class="button" href="(/tenants\?[^"]*page=\d+)"', page.text)
        address = unescape(following[1]) if following else None
    assert seen == sorted((f"T{n}" for n in range(120)), reverse=True)
    await until_said(reader, "/tenants?search=T1", ">31 in all<")
    api.rows(add, made["organization_id"], 120, 1000)
    page = await reader.open("/tenants?sort=-name")
    assert "up to 1,000 rows are sorted" in page.text
    assert names_in(page)[0] == "T0"
    # Their own order needs no bound.
    assert "rows are sorted" not in (await reader.open("/audit-log?sort=created_at")).text
    api.rows(add, made["organization_id"], 1001, 10_000)
    await until_said(reader, "/tenants", ">more than 10,000 in all<")


async def test_csv_file_of_a_console_list_has_only_rows_that_match_the_filters(
    api: Api, reader: Person, tenants: dict[str, Any]
) -> None:
    page = await reader.open(f"/tenants?organization_id={tenants['acme']}")
    [link] = re.findall(r'href="(/tenants\.csv[^"]*)"', page.text)
    file = await reader.open(unescape(link))
    assert file.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(file.text)))
    assert [row["name"] for row in rows] == ["'=1+1", "Alpha"]
    assert set(rows[0]) == set(SCREENS["tenants"].resource.out.model_fields)
    assert (await reader.open("/tenants.csv?organization_id=x")).status == 422


async def test_every_console_list_can_be_downloaded_as_a_csv_file_of_all_rows(
    api: Api, reader: Person
) -> None:
    made = await api.make("tenants", name="T0")
    api.rows(
        "insert into tenant (organization_id, name) select %s, 'T' || n from generate_series(1, 2500) as n",
        made["organization_id"],
    )
    rows = list(csv.DictReader(io.StringIO((await reader.open("/tenants.csv")).text)))
    assert [row["name"] for row in rows] == [f"T{n}" for n in range(2501)]
    for name, screen in SCREENS.items():
        file = await reader.open(f"/{name}.csv")
        assert (file.status, file.text.split("\r\n")[0].split(",")) == (
            200,
            list(screen.resource.out.model_fields),
        )
    ledger = await reader.open(f"/tenants/{made['id']}/ledger.csv?transaction_type=reset")
    assert ledger.text.startswith("id,")


async def test_csv_file_of_a_console_list_is_refused_beyond_the_maximum_of_rows(
    admin_database: str, keeper_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Exports.__init__.__kwdefaults__, "rows_max", 40)
    async with api_of(admin_database, keeper_database) as api:
        reader = Person(api.client)
        await reader.sign_in(READONLY)
        for _ in range(41):
            call(api, str(uuid4()), organization=1, tenant=1, model="many")
        page = await reader.open("/calls.csv?model=many")
        assert (page.status, "more than 40 rows" in page.text) == (422, True)
        assert (await reader.open("/calls.csv?model=few")).status == 200


async def test_csv_files_of_the_console_are_refused_without_a_session(nobody: Person) -> None:
    answer = await nobody.open("/tenants.csv")
    assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?next=%2Ftenants.csv")


# --- search -----------------------------------------------------------------------------
# The search of every page: where it leads, and what it never keeps.


async def search(person: Person, text: str) -> Page:
    page = await person.open("/tenants")
    return await person.post("/search", {"form_token": page.form_token, "q": text})


@pytest.fixture
async def two_organizations(api: Api) -> dict[str, Any]:
    organization = await api.make("organizations", name="Acme Robotics")
    tenant = await api.make("tenants", name="Search team", organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name=HOSTILE)
    user = await api.make("users", external_id="ada@example.com", organization_id=organization["id"])
    return {"organizations": organization, "tenants": tenant, "api-keys": key, "users": user}


async def test_console_search_with_a_single_hit_redirects_to_the_row(
    api: Api, reader: Person, two_organizations: dict[str, Any]
) -> None:
    request_id = str(uuid4())
    number = call(
        api,
        request_id,
        organization=two_organizations["organizations"]["id"],
        tenant=two_organizations["tenants"]["id"],
    )
    key = two_organizations["api-keys"]
    wanted = {
        "robot": f"/organizations/{two_organizations['organizations']['id']}",
        "  Team ": f"/tenants/{two_organizations['tenants']['id']}",
        "ada@example.com": f"/users/{two_organizations['users']['id']}",
        key["prefix"]: f"/api-keys/{key['id']}",
        key["prefix"][:6]: f"/api-keys/{key['id']}",
        key["key"]: f"/api-keys/{key['id']}",
        f"Authorization: Bearer {key['key']}": f"/api-keys/{key['id']}",
        request_id: f"/calls/{number}",
        request_id.upper(): f"/calls/{number}",
    }
    for text, address in wanted.items():
        answer = await search(reader, text)
        assert (answer.status, answer.headers["Location"]) == (303, address), text
        assert (await reader.open(address)).status == 200


async def test_console_search_lists_several_hits_or_reports_no_hit(
    api: Api, reader: Person, two_organizations: dict[str, Any]
) -> None:
    await api.make("tenants", name="Acme two")
    page = await search(reader, "acme")
    well_formed(page)
    assert page.text.count('<ul class="hits">') == 2
    assert "Acme Robotics" in page.text
    for text in ("nobody", HOSTILE[:40], "%", "x" * 300, "\x00", str(uuid4()), "'; --"):
        page = await search(reader, text)
        assert (page.status, "Nothing was found" in page.text) == (200, True), text
        well_formed(page)
    assert "Nothing is looked for yet" in (await reader.open("/search")).text


async def test_search_for_a_request_id_without_a_stored_call_opens_the_ledger_of_the_tenant(
    api: Api, reader: Person, two_organizations: dict[str, Any]
) -> None:
    request_id, tenant = str(uuid4()), two_organizations["tenants"]["id"]
    api.rows(
        "insert into token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
        " created_at, epoch, seq, cycle, request_id) values (%s, 'consume', 1, 0, 'OUT', now(), 1, 1, 1, %s)",
        tenant, request_id,
    )  # fmt: skip
    answer = await search(reader, request_id)
    assert answer.headers["Location"] == f"/tenants/{tenant}?request_id={request_id}#ledger"


async def test_search_for_a_pasted_api_key_never_puts_the_whole_key_in_a_url_page_or_log(
    api: Api, reader: Person, two_organizations: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    secret = two_organizations["api-keys"]["key"]
    with caplog.at_level(logging.DEBUG):
        unknown = await search(reader, secret[:-3] + "xyz" + " and more")
        other = await search(reader, "tka_" + secret[3:])
        typed = await reader.open(f"/search?q={secret}")
    assert (other.status, f"tka_{secret[3:8]}" in other.text) == (200, True)
    assert typed.headers["Location"] == f"/search?q={secret[:8]}"
    listed = await reader.open(typed.headers["Location"])
    for text in (
        str(unknown.headers),
        unknown.text,
        other.text,
        str(other.headers),
        str(typed.headers),
        typed.text,
        listed.text,
        caplog.text,
    ):
        assert secret[8:20] not in text


async def test_search_text_never_appears_in_a_url(
    api: Api, reader: Person, two_organizations: dict[str, Any]
) -> None:
    await api.make("tenants", name="Acme two")
    for pasted in ("sk-proj-abcdefghijklmnop", "the operator's own, of any shape", "acme"):
        answer = await search(reader, pasted)
        assert (answer.status, "Location" in answer.headers) == (200, False)
        assert pasted not in str(answer.headers)
        assert f"?q={pasted}" not in answer.text


def test_search_cuts_api_keys_to_the_prefix_and_leaves_other_text_unchanged() -> None:
    for text in ("tk_", "tk_ab", "tk_abcde", "network", "tk-abcdefgh", ""):
        assert reduced(text) == text
    assert reduced("tk_abcdefghi") == "tk_abcde"
    assert reduced("x tka_0123456 y tk_abcdefgh") == "tka_01234"


async def test_console_search_needs_a_session_and_a_form_token_from_the_same_origin(
    reader: Person, nobody: Person
) -> None:
    assert (await nobody.open("/search?q=a")).headers["Location"].startswith("/sign-in")
    assert (await reader.post("/search", {"q": "a"})).status == 403
    token = (await reader.open("/")).form_token
    forged = await reader.post("/search", {"form_token": token, "q": "a"}, Origin="https://elsewhere.example")
    assert forged.status == 403


# --- explorer ---------------------------------------------------------------------------
# The explorer: what its table, chart and files say of calls, and what its address says of it.


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


async def test_usage_table_shows_the_cost_of_each_group_to_the_nano_unit(
    reader: Person, made: dict[str, Any]
) -> None:
    page = await reader.open(f"/usage?{SPAN}&group_by=tenant")
    well_formed(page)
    found = [row[:3] for row in rows_of(page)]
    assert found == [
        ["Bank", "€7.000000000", "1"], ["Search", "$2.000354001", "4"], [HOSTILE, "$1.000000000", "2"],
    ]  # fmt: skip
    assert "2026-03-01 00:00 – 2026-03-04 00:00 UTC" in page.text
    assert re.search(r"\b1 request\b", page.text)  # without a price


async def test_usage_report_is_grouped_filtered_and_sorted_by_the_query(
    reader: Person, made: dict[str, Any]
) -> None:
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


async def test_usage_report_offers_and_shows_tags_of_the_organization(
    api: Api, admin: Person, made: dict[str, Any]
) -> None:
    """Without one, those alone that the address names are offered."""
    own = made["search"]["organization_id"]
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature", "team"]})).status == 200
    plain = await admin.open(f"/usage?{SPAN}")
    assert "Tag feature" not in plain.text
    page = await admin.open(f"/usage?{SPAN}&group_by=tag:feature&organization_id={own}&tag:team=")
    well_formed(page)
    assert [row[:2] for row in rows_of(page)] == [["no feature", "$3.000354001"]]
    for name in ("feature", "team"):
        assert f'name="group_by" value="tag:{name}"' in page.text
        assert f'name="tag:{name}"' in page.text
    links = [unescape(link) for link in re.findall(r'href="(/usage\.csv\?[^"]*)"', page.text)]
    rows = list(csv.DictReader(io.StringIO((await admin.open(links[0])).text)))
    assert [(row["tag:feature"], row["cost"]) for row in rows] == [("", "3.000354001")]
    # Calls without a tag have no link: an empty filter of the list finds all.
    assert "/calls?" not in page.text
    wrong = await admin.open(f"/usage?{SPAN}&tag:a%20b=x")
    assert (wrong.status, "is not a filter" in wrong.text) == (422, True)


TAGGED = """
INSERT INTO usage_tag SELECT (jsonb_populate_record(NULL::usage_tag, to_jsonb(r) || %s::jsonb)).*
  FROM usage_rollup AS r WHERE span IN ('hour', 'day') AND model = 'm2' RETURNING 1"""


async def test_usage_report_by_a_tag_links_to_the_calls_with_its_value(
    api: Api, admin: Person, made: dict[str, Any]
) -> None:
    own = made["search"]["organization_id"]
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature"]})).status == 200
    api.rows(TAGGED, '{"tags": {"feature": "search"}, "tags_hash": "1"}')
    more = {
        "organization": own,
        "tenant": made["search"]["id"],
        "created_at": datetime(2026, 3, 2, tzinfo=UTC),
    }
    call(api, str(UUID(int=1)), **more, model="of search", tags='{"feature": "search"}')
    call(api, str(UUID(int=2)), **more, model="of chat", tags='{"feature": "chat"}')
    page = await admin.open(f"/usage?{SPAN}&group_by=tag:feature&organization_id={own}")
    assert [row[:2] for row in rows_of(page)] == [["search", "$2.000000001"], ["no feature", "$1.000354000"]]
    [link] = re.findall(r'href="(/calls\?[^"]*)"', page.text)
    listed = await admin.open(unescape(link))
    well_formed(listed)
    assert ("of search" in listed.text, "of chat" in listed.text) == (True, False)
    assert re.search(
        r'name="tag:feature"[^>]*value="search"|value="search"[^>]*name="tag:feature"', listed.text
    )
    offered = re.compile(r'name="(tag:[^"]*)"')
    assert offered.findall((await admin.open("/calls")).text) == []
    await api.patch(f"organizations/{own}", {"tags": ["feature", "team"]})
    narrowed = await admin.open(f"/calls?organization_id={own}&tag:feature=")
    assert offered.findall(narrowed.text) == ["tag:feature", "tag:team"]
    assert "of chat" in narrowed.text
    assert (await admin.open("/calls?tag:a%20b=x")).status == 422
    assert (await admin.open("/tenants?tag:feature=search")).status == 422


async def test_budget_form_offers_tags_and_sentence_of_budget_names_tags(
    api: Api, admin: Person, made: dict[str, Any]
) -> None:
    own = made["search"]["organization_id"]
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature", "team"]})).status == 200
    key = await api.make("api-keys", tenant_id=made["search"]["id"], name="laptop")
    for path, typed, tags in (
        (f"/organizations/{own}", "feature\nteam\nstage", ["feature", "team", "stage"]),
        (f"/api-keys/{key['id']}", "stage: test\nteam: red", {"stage": "test", "team": "red"}),
        (f"/api-keys/{key['id']}", "", {}),
    ):
        done = await admin.fill(path, f"{path}/change", tags=typed)
        assert done.status == 303, re.findall(r'class="error[^>]*>[^<]*', done.text)
        assert (await api.get(path[1:])).json["tags"] == tags
    form = await admin.open(f"/budgets/new?organization_id={own}")
    assert re.findall(r'<option value="(tag:[^"]*)">', form.text) == ["tag:feature", "tag:team", "tag:stage"]
    said = {
        "organization_id": str(own), "name": "each team", "unit": "money", "amount": "20", "interval": "day",
        "each": "tag:team", "tags": "feature: search",
    }  # fmt: skip
    made_at = await admin.fill("/budgets/new", "/budgets", **said)
    page = await admin.open(made_at.headers["Location"])
    well_formed(page)
    assert "Each value of team of tag feature search may use $20.00 a day." in page.text
    [budget] = (await api.get("budgets?name=each%20team")).json["items"]
    assert (budget["each"], budget["tags"]) == ("tag:team", {"feature": "search"})


async def test_links_and_csv_files_of_the_usage_report_keep_the_filters_of_the_page(
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


async def test_usage_chart_table_has_a_row_for_each_day(reader: Person, made: dict[str, Any]) -> None:
    page = await reader.open(f"/usage?{SPAN}&interval=day&currency=USD")
    table = page.text.split('class="small over-time"')[1].split("</table>")[0]
    days = re.findall(r'<tr data-at="(\d+)"><th scope="row">([^<]*)</th>', table)
    begin = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    assert days == [(str(begin + n * 86400), f"2026-03-0{n + 1}") for n in range(3)]
    assert 'data-value="2.000000001"' in table
    assert table.count("data-value") == 3 * 3  # what cost nothing is no part of it
    lines = await reader.open(f"/usage?{SPAN}&measure=tokens&shape=lines")
    assert 'data-chart="lines" data-currency=""' in lines.text


async def test_usage_chart_of_many_groups_draws_the_largest_and_sums_the_rest(
    api: Api, made: dict[str, Any]
) -> None:
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


async def test_usage_report_with_an_invalid_query_names_the_invalid_field(reader: Person) -> None:
    wrong = {"group_by=colour": "group_by", "range=ever": "from", "interval=hour&range=90d": "interval"}
    for query, field in wrong.items():
        page = await reader.open(f"/usage?{query}")
        assert page.status == 422
        well_formed(page)
        assert re.search(rf"This cannot be shown: {label_of(field)} \w", page.text)


FILTERED = ("/?", "/spend?", "/usage?", "/calls?", "/calls.csv?", "/budgets?", "/tenants?", "/balances?")


@pytest.mark.parametrize("address", FILTERED)
async def test_report_filter_accepts_a_name_and_refuses_an_unknown_or_ambiguous_name(
    api: Api, admin: Person, made: dict[str, Any], address: str
) -> None:
    acme, euro = made["acme"]["id"], made["bank"]["organization_id"]
    of = f"{address}organization_id="
    named, numbered = await admin.open(f"{of}acme"), await admin.open(f"{of}{acme}")
    assert (named.status, numbered.status) == (200, 200)
    assert figures_of(named.text) == figures_of(numbered.text)
    nobody = await admin.open(f"{of}Acm")
    assert (nobody.status, f"Acme ({acme})" in nobody.text, figures_of(nobody.text)) == (422, True, [])
    if "tenants" not in address and "balances" not in address:
        twin = await api.make("tenants", name="Search", organization_id=euro)
        several = await admin.open(f"{address}tenant_id=search")
        assert several.status == 422
        assert f"one of their numbers, {made['search']['id']}, {twin['id']}" in several.text


def figures_of(page: str) -> list[str]:
    """The amounts of a page."""
    return re.findall(r"[$€][\d,.]+", page)


async def test_report_date_range_is_rounded_to_whole_days_or_hours() -> None:
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


async def test_usage_report_page_and_csv_file_need_a_session(nobody: Person) -> None:
    assert (await nobody.open("/usage.csv")).status == 401
    assert (await nobody.open("/usage")).headers["Location"] == "/sign-in?next=%2Fusage"


# --- programs ---------------------------------------------------------------------------
# The page of running programs: who is too old stands first, and nothing that a host says is markup.


async def test_programs_page_lists_programs_of_an_outdated_version_first(api: Api, reader: Person) -> None:
    api.counters.running = [NEW, OLD]
    page = (await reader.open("/programs")).text
    assert page.index("&lt;b&gt;old&lt;/b&gt;") < page.index("<code>new</code>")
    assert str(OLD["refused"]) in page
    assert '>Outdated</p><p class="figure number">1<' in page


async def test_programs_page_is_503_while_the_counters_are_unreachable(api: Api, reader: Person) -> None:
    api.counters.away = True
    assert (await reader.open("/programs")).status == 503


@pytest.mark.parametrize("name", ["jobs", "runs"])
async def test_console_list_shows_a_row_with_a_text_id(name: str) -> None:
    async def names(_: object) -> dict[tuple[str, int], str]:
        return {}

    screen = SCREENS[name]
    row = {**dict.fromkeys(screen.columns), **dict.fromkeys(screen.resource.out.model_fields), "id": 'a"b'}
    desk: Any = SimpleNamespace(names=names)
    [line] = await lines_of(desk, screen, [row])
    assert line.id == 'a"b'


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/tenants?weekday=1", "weekday is not a filter"),
        ("/budgets?tenant_id=&limit=5", "limit is not a filter"),
        ("/organizations?from=2026-01-01", "from is not a filter"),
        ("/invoices?status=red", "Status must be one of"),
        ("/tenants?plan_id=1&plan_id=2", "given twice"),
        ("/usage?weekday=1", "is not a filter"),
        ("/?weekday=1", "is not a filter"),
        ("/balances?weekday=1", "is not a filter"),
        ("/tenants/new?weekday=1", "weekday is not a field to fill in by an address"),
    ],
)
async def test_page_with_an_unknown_parameter_says_so_in_a_line_and_shows_no_rows(
    reader: Person, admin: Person, tenants: dict[str, Any], path: str, line: str
) -> None:
    page = await (admin if "/new" in path else reader).open(path)
    well_formed(page)
    assert (line in unescape(page.text), page.status) == (True, 422)
    assert names_in(page) == []


async def test_unknown_parameter_is_written_on_a_console_page_as_text(
    reader: Person, tenants: dict[str, Any]
) -> None:
    for name in ("%3Cscript%3E", "%ff", "%00", "a" * 4_000):
        page = await reader.open(f"/tenants?{name}=1")
        well_formed(page)
        assert (page.status, "<script>" in page.text.partition("<main")[2]) == (422, False)


async def test_csv_file_of_a_list_is_refused_for_an_unknown_parameter(
    reader: Person, tenants: dict[str, Any]
) -> None:
    assert (await reader.open("/tenants.csv?weekday=1")).status == 422
    assert (await reader.open("/tenants.csv?sort=name&done=deleted")).status == 200


async def test_page_of_a_tenant_keeps_the_parameters_of_its_chart_beside_its_ledger(
    api: Api, reader: Person, tenants: dict[str, Any]
) -> None:
    [(tenant,)] = api.rows("select id from tenant where name = 'beta'")
    page = await reader.open(f"/tenants/{tenant}?of=tokens&by=model")
    assert (page.status, "is not a filter" in page.text) == (200, False)
    assert "weekday is not a filter" in (await reader.open(f"/tenants/{tenant}?weekday=1")).text
