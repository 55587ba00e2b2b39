"""Lists: pages that neither skip nor repeat, filters, spans of time, the ledger in the order of its seq."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from gateway.admin.resources.registry import RESOURCES
from tests.admin.conftest import Api

SAMPLES = {"flag": "true", "uuid": "00000000-0000-4000-8000-000000000000"}


async def walk(api: Api, path: str, limit: int) -> list[Any]:
    found: list[Any] = []
    cursor = ""
    while True:
        sign = "&" if "?" in path else "?"
        page = (await api.get(f"{path}{sign}limit={limit}{cursor}")).json
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


async def fill_ledger(api: Api, tenants: int, rows: int) -> None:
    api.rows(
        "insert into token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
        " created_at, epoch, seq, cycle, request_id, metadata)"
        " select t, case when s = 1 then 'reset' else 'consume' end, 1, 100 - s,"
        " case when s = 1 then 'IN' else 'OUT' end, now() - interval '1 hour' + s * interval '1 second',"
        ' 1, s, 1, gen_random_uuid(), \'{"model": "m"}\''
        " from generate_series(1, %s) as t, generate_series(1, %s) as s",
        tenants,
        rows,
    )


async def test_list_pages_neither_skip_nor_repeat_while_rows_are_added(api: Api) -> None:
    made = [(await api.make("organizations", name=f"o{n}"))["id"] for n in range(5)]
    first = (await api.get("organizations?limit=2")).json
    await api.make("organizations", name="late")
    rest = (await api.get(f"organizations?limit=1000&cursor={first['next_cursor']}")).json
    ids = [row["id"] for row in first["items"] + rest["items"]]
    assert ids[:5] == made
    assert len(ids) == len(set(ids)) == 6
    assert rest["next_cursor"] is None


async def test_list_ends_after_an_exactly_full_page(api: Api) -> None:
    for n in range(4):
        await api.make("organizations", name=f"o{n}")
    assert len(await walk(api, "organizations", 2)) == 4
    assert len(await walk(api, "organizations", 4)) == 4
    assert [row["name"] for row in await walk(api, "organizations?order=desc", 3)] == ["o3", "o2", "o1", "o0"]


async def test_list_filters_select_by_foreign_key_and_name(api: Api) -> None:
    one = await api.make("tenants", name="one")
    two = await api.make("tenants", name="two", organization_id=one["organization_id"])
    await api.make("tenants", name="three")
    found = (await api.get(f"tenants?organization_id={one['organization_id']}")).json["items"]
    assert found == [one, two]
    assert (await api.get("tenants?name=two")).json["items"] == [two]
    key = await api.make("api-keys", tenant_id=two["id"], name="k")
    found = (await api.get(f"api-keys?organization_id={one['organization_id']}&tenant_id={two['id']}")).json[
        "items"
    ]
    assert [row["id"] for row in found] == [key["id"]]
    quotas = (await api.get(f"tenant-quotas?organization_id={one['organization_id']}")).json["items"]
    assert [row["tenant_id"] for row in quotas] == [one["id"], two["id"]]


async def test_ledger_row_is_read_by_id(api: Api) -> None:
    await fill_ledger(api, tenants=2, rows=3)
    rows = await walk(api, "token-ledger", 10)
    for row in rows:
        read = await api.get(f"token-ledger/{row['id']}")
        assert (read.status, read.json) == (200, row)
    beyond = max(row["id"] for row in rows) + 1
    for name in ("token-ledger", "credit-transactions", "feature-usage"):
        assert (await api.get(f"{name}/{beyond}")).status == 404


async def test_token_ledger_is_listed_in_the_order_of_tenant_and_sequence_number(api: Api) -> None:
    await fill_ledger(api, tenants=3, rows=12)
    rows = await walk(api, "token-ledger?tenant_id=2", 5)
    assert [row["seq"] for row in rows] == list(range(1, 13))
    assert {row["tenant_id"] for row in rows} == {2}
    assert rows[0]["transaction_type"] == "reset"
    assert rows[0]["metadata"] == {"model": "m"}
    everything = await walk(api, "token-ledger", 7)
    assert [(row["tenant_id"], row["seq"]) for row in everything] == [
        (tenant, seq) for tenant in (1, 2, 3) for seq in range(1, 13)
    ]
    newest = (await api.get("token-ledger?tenant_id=2&order=desc&limit=2")).json["items"]
    assert [row["seq"] for row in newest] == [12, 11]


async def test_token_ledger_is_filtered_by_request_kind_and_time(api: Api) -> None:
    await fill_ledger(api, tenants=2, rows=4)
    row = (await api.get("token-ledger?tenant_id=1")).json["items"][2]
    assert (await api.get(f"token-ledger?request_id={row['request_id']}")).json["items"] == [row]
    resets = (await api.get("token-ledger?transaction_type=reset&direction=IN")).json["items"]
    assert [found["seq"] for found in resets] == [1, 1]
    since = (await api.get(f"token-ledger?tenant_id=1&from={row['created_at']}")).json["items"]
    assert [found["seq"] for found in since] == [3, 4]
    until = (await api.get(f"token-ledger?tenant_id=1&to={row['created_at']}")).json["items"]
    assert [found["seq"] for found in until] == [1, 2]


WRONG = [
    ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=1&limit=2", "limit"),
    ("colour=red", "colour"), ("name=", "name"), ("name=%00", "name"), ("from=yesterday", "from"),
    ("to=2026-01-32", "to"), ("cursor=", "cursor"), ("cursor=abc", "cursor"), ("cursor=WzFd", "cursor"),
    ("order=up", "order"),
]  # fmt: skip


async def test_list_with_a_wrong_parameter_is_422_and_names_the_parameter(api: Api) -> None:
    for query, field in WRONG:
        refused = await api.get(f"organizations?{query}")
        assert refused.status == 422, query
        assert [error["field"] for error in refused.json["errors"]] == [field], query


async def test_page_cursor_of_another_list_or_filter_is_refused(api: Api) -> None:
    for n in range(2):
        await api.make("tenants", name=f"t{n}")
    cursor = (await api.get("tenants?limit=1")).json["next_cursor"]
    assert (await api.get(f"tenants?cursor={cursor}")).status == 200
    for elsewhere in (f"organizations?cursor={cursor}", f"tenants?name=t0&cursor={cursor}"):
        assert (await api.get(elsewhere)).status == 422


async def test_time_filter_accepts_an_unescaped_plus_in_the_utc_offset(api: Api) -> None:
    await api.make("organizations", name="x")
    assert len((await api.get("organizations?from=2020-01-01T00:00:00+02:00")).json["items"]) == 1


async def test_search_finds_rows_by_words_of_the_name_and_by_id(api: Api) -> None:
    for name in ("Acme Europe", "Acme America", "Zenith"):
        await api.make("tenants", name=name)
    found = (await api.get("tenants?search=eur")).json["items"]
    assert [row["name"] for row in found] == ["Acme Europe"]
    assert [row["name"] for row in (await api.get("organizations?search=acme")).json["items"]] == [
        "Acme Europe",
        "Acme America",
    ]
    for said_twice in ("e eu eur EUR", "eur,eur;e", "eur " + "e." * 90):
        assert (await api.get(f"tenants?search={quote(said_twice)}")).json["items"] == found, said_twice
    by_id = (await api.get(f"tenants?search={found[0]['id']}")).json["items"]
    assert [row["id"] for row in by_id] == [found[0]["id"]]
    assert (await api.get("tenants?search=%25%27--")).json["items"] == []


async def test_token_ledger_is_filtered_by_direction(api: Api) -> None:
    plan = await api.make("token-plans", name="Some", total_amount=10)
    tenant = await api.make("tenants", name="Acme", plan_id=plan["id"])
    api.rows(
        "insert into token_ledger"
        " (tenant_id, transaction_type, amount, direction, created_at, epoch, seq, cycle)"
        " select %s, kind, 1, direction, now(), 1, n, 1 from (values (100, 'consume', 'OUT'),"
        " (101, 'recharge', 'IN'), (102, 'adjust', 'OUT'), (103, 'adjust', 'IN')) as l (n, kind, direction)",
        tenant["id"],
    )

    async def seqs(filters: str) -> list[int]:
        listed = (await api.get(f"token-ledger?tenant_id={tenant['id']}&{filters}")).json["items"]
        return [row["seq"] for row in listed if row["seq"] >= 100]

    assert await seqs("direction=IN") == [101, 103]
    assert await seqs("direction=OUT") == [100, 102]
    assert await seqs("direction=IN&transaction_type=consume") == []
    assert await seqs("direction=IN&transaction_type=adjust") == [103]


async def test_every_filter_of_every_resource_is_accepted(api: Api) -> None:
    refused = []
    for resource, made in RESOURCES.items():
        for name, wanted in made.filters.items():
            value = SAMPLES.get(wanted.kind, "7") if not wanted.choices else wanted.choices[0]
            found = await api.get(f"{resource}?{name}={value}")
            if (found.status, found.json.get("next_cursor", "")) != (200, None):
                refused.append(f"{resource}?{name}={value}: {found.status}")
    assert not refused, "\n".join(refused)
