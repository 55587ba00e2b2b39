"""Lists: counted, sorted and written to files, under whatever filters are in force."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from typing import Any
from uuid import uuid4

import pytest

from gateway.admin.console.console import ROWS_MAX
from gateway.admin.console.screens import SCREENS
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import well_formed
from tests.admin.console.usage_rows import call


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


async def test_money_and_numbers_are_sorted_as_such_and_nothing_comes_last(api: Api, reader: Person) -> None:
    for name, cap in (("a", "9"), ("b", None), ("c", "10.5"), ("d", "100")):
        await api.make("organizations", name=name, spend_cap=cap)
    assert names_in(await reader.open("/organizations?sort=-spend_cap")) == ["d", "c", "a", "b"]
    assert names_in(await reader.open("/organizations?sort=spend_cap")) == ["a", "c", "d", "b"]


async def test_a_sorted_list_goes_on_where_it_ends_and_a_long_one_stays_as_it_is(
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


async def test_a_file_has_what_the_filters_let_through(
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


async def test_every_list_has_a_file_of_all_its_rows_in_batches(api: Api, reader: Person) -> None:
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


async def test_a_list_that_is_too_long_is_no_file(api: Api, reader: Person) -> None:
    number = call(api, str(uuid4()), organization=1, tenant=1, model="many")
    [columns] = api.rows(
        "select string_agg(column_name, ',') from information_schema.columns"
        " where table_name = 'call' and column_name <> 'id'"
    )
    api.rows(
        f"insert into call ({columns[0]}) select {columns[0]} from call, generate_series(1, %s)"
        " where id = %s",
        ROWS_MAX, number,
    )  # fmt: skip
    page = await reader.open("/calls.csv?model=many")
    assert page.status == 422
    assert "more than 100,000 rows" in page.text
    assert (await reader.open("/calls.csv?model=few")).status == 200


async def test_files_need_a_session(nobody: Person) -> None:
    answer = await nobody.open("/tenants.csv")
    assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?next=%2Ftenants.csv")


def test_every_filter_of_the_api_is_offered() -> None:
    for name, screen in SCREENS.items():
        known = set(screen.resource.filters)
        # Names are searched by their words.
        assert set(screen.filters) == (known - {"name"} if "search" in known else known), name
