"""`GET /usage`: calls added up, compared with a sum of the journal's own rows made in Python."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.admin.api import usage
from gateway.admin.http.requests import encode_cursor
from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.usage import GROUPS
from gateway.core.accounts.usage_sums import MONEY_SUMS, SUMS
from gateway.features.finance import focus
from persistence import engine as engines
from persistence.ledger.writer import LedgerWriter
from persistence.schema import partitions
from tests.admin.conftest import READONLY, Api
from tests.in_turn import in_turn
from tests.persistence.scenario import batch_of, settle_in

BEGAN = datetime(2026, 3, 30, 5, tzinfo=UTC)
SPAN = "from=2026-03-30T05:00:00Z&to=2026-04-03T07:00:00Z"


@pytest.fixture
async def calls(api: Api, admin_database: str) -> list[dict[str, Any]]:
    """Two organizations' calls over four days, as rows of the journal."""
    random.seed(7)
    accounts = settle_in(admin_database, 10**9, 10**9)
    for account in accounts:
        account.reset()
        account.at_ms = int(BEGAN.timestamp() * 1000)
        for number in range(75):
            priced = number % 5
            facts = CallFacts(
                model=f"m{number % 3}", status=200, counts=(7, 3, 2, 1, 5, 4, 0, 0, 0, 0), total=18, units=1,
                estimated=number % 7 == 0, cost=random.randrange(10**9) if priced else None,
                currency="USD" if priced else "",
                tags={"feature": f"f{number % 4}", **({"team": "red"} if number % 3 else {})} if number % 2 else {},
                groups=((), (5,), (5, 9))[number % 3],
            )  # fmt: skip
            project = f"\t{number % 2}\t" if number % 3 else ""
            account.consume(18, user=f"u{number % 4}", attribution=project, metadata=write_facts(facts))
            account.at_ms += random.randrange(140 * 60_000)
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(*accounts))
    writer.close()
    found: list[dict[str, Any]] = (await api.get("calls?limit=1000")).json["items"]
    assert len(found) == 150
    first = min(call["organization_id"] for call in found)
    since = json.dumps(dict.fromkeys(("absent", "feature", "team"), "2026-03-01T00:00:00Z"))
    api.rows(f"update organization set tags_since = '{since}' where id = {first} returning id")
    for group in (5, 9):
        api.rows(
            "insert into caller_group (id, organization_id, name, kind)"
            f" values ({group}, {first}, '{group}', 'user') returning id"
        )
    return found


def expected(
    calls: list[dict[str, Any]], start: Callable[[datetime], datetime], *columns: str
) -> dict[tuple[Any, ...], Counter[str]]:
    """The same sums by another way: one call after the other, money as decimals."""
    sums: dict[tuple[Any, ...], Counter[str]] = {}
    for call in calls:
        at = datetime.fromisoformat(call["created_at"])
        if not BEGAN <= at < datetime(2026, 4, 3, 7, tzinfo=UTC):
            continue
        key = (start(at), *(call[column] for column in columns))
        into = sums.setdefault(key, Counter())
        into["requests"] += 1
        into["tokens"] += call["tokens"]
        into["output"] += call["usage"]["output"]
        into["cache_write"] += call["usage"]["cache_write"] + call["usage"]["cache_write_1h"]
        into["cache_write_1h"] += call["usage"]["cache_write_1h"]
        into["estimated"] += call["estimated"]
        into["cost"] += Decimal(call["cost"] or 0)  # type: ignore[assignment]  # exact, as it is told
    return sums


STARTS: dict[str, Callable[[datetime], datetime]] = {
    "none": lambda at: BEGAN,
    "hour": lambda at: at.replace(minute=0, second=0, microsecond=0),
    "day": lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda at: at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}


@pytest.mark.usefixtures("calls")
async def test_usage_report_between_dates_covers_whole_days_and_between_times_whole_hours(api: Api) -> None:
    days, times = "from=2026-03-30&to=2026-04-02", "from=2026-03-30T00:59:01Z&to=2026-04-01T23:00:01Z"
    whole = await api.get("usage?from=2026-03-30T00:00:00Z&to=2026-04-02T00:00:00Z")
    assert whole.json["items"]
    assert [(await api.get(f"usage?{said}")).json for said in (days, times)] == [whole.json] * 2


@in_turn("interval", STARTS)
@in_turn("groups", ["", "model", "user,project", ",".join(one for one in GROUPS if one != "group")])
async def test_usage_report_groups_add_up_to_the_individual_calls(
    api: Api, calls: list[dict[str, Any]], interval: str, groups: str
) -> None:
    asked = f"usage?{SPAN}&interval={interval}" + (f"&group_by={groups}" if groups else "")
    items = (await api.acting_as(READONLY).get(asked)).json["items"]
    columns = [GROUPS[group] for group in groups.split(",")] if groups else []
    found = {
        (datetime.fromisoformat(item["start"]), *(item[column] for column in columns)): {
            "cost" if name == "cost" else name: Decimal(item[name]) if name == "cost" else item[name]
            for name in (
                "requests",
                "tokens",
                "output",
                "cache_write",
                "cache_write_1h",
                "estimated",
                "cost",
            )
        }
        for item in items
    }
    wanted = expected(calls, STARTS[interval], *columns)
    assert len(items) == len(wanted)
    assert found == {key: dict.fromkeys(found[key], 0) | sums for key, sums in wanted.items()}
    assert {item["currency"] for item in items} == {"USD"}


def by_tags(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**call, **{f"tag:{name}": call["tags"].get(name) for name in ("feature", "team")}} for call in calls
    ]


@in_turn("interval", STARTS)
@in_turn("groups", ["tag:feature", "tag:team,tag:feature,model", "user_id,tag:team", "tag:absent"])
async def test_usage_report_by_tags_adds_up_to_the_individual_calls(
    api: Api, calls: list[dict[str, Any]], interval: str, groups: str
) -> None:
    """Calls without a tag are in a row of their own, as those are from before it was declared."""
    named = groups.replace("_id", "")
    items = (await api.get(f"usage?{SPAN}&interval={interval}&group_by={named}")).json["items"]
    columns = groups.split(",")
    found = {
        (datetime.fromisoformat(item["start"]), *(item[name] for name in columns)): (
            item["requests"], item["tokens"], Decimal(item["cost"]),
        )
        for item in items
    }  # fmt: skip
    told = [{"tag:absent": None, **call} for call in by_tags(calls)]
    wanted = expected(told, STARTS[interval], *columns)
    assert len(items) == len(wanted)
    assert found == {key: (sums["requests"], sums["tokens"], sums["cost"]) for key, sums in wanted.items()}


TAGGED = in_turn(
    ("sent", "holds"),
    [
        ("tag:feature=f1", {"feature": {"f1"}}), ("tag:feature=f1&tag:team=red", {"feature": {"f1"}, "team": {"red"}}),
        ("tag:team=", {"team": {None}}), ("tag:feature=f3&tag:team=", {"feature": {"f3"}, "team": {None}}),
        ("tag:feature=F1", {"feature": {"F1"}}),
    ],
)  # fmt: skip


@TAGGED
async def test_usage_report_is_filtered_by_tags(
    api: Api, calls: list[dict[str, Any]], sent: str, holds: dict[str, set[str | None]]
) -> None:
    items = (await api.get(f"usage?from=2026-03-30&to=2026-04-09&{sent}")).json["items"]
    wanted = sum(all(call["tags"].get(name) in some for name, some in holds.items()) for call in calls)
    assert sum(item["requests"] for item in items) == wanted


@TAGGED
async def test_calls_of_a_usage_report_are_listed_by_the_same_tags(
    api: Api, calls: list[dict[str, Any]], sent: str, holds: dict[str, set[str | None]]
) -> None:
    listed = (await api.get(f"calls?limit=1000&{sent}")).json["items"]
    wanted = [
        call["id"]
        for call in calls
        if all(call["tags"].get(name) in values for name, values in holds.items())
    ]
    assert [call["id"] for call in listed] == wanted


@in_turn(
    ("sent", "field"),
    [
        ("tag:a%20b=c", "tag:a b"), ("tag:a=b&tag:a=c", "tag:a"), ("tag:a=" + "x" * 201, "tag:a"),
        ("&".join(f"tag:t{n}=x" for n in range(9)), "tag:t0"),
    ],
)  # fmt: skip
async def test_calls_of_a_usage_report_are_refused_by_wrong_tags(api: Api, sent: str, field: str) -> None:
    answer = await api.get(f"calls?{sent}")
    assert (answer.status, [error["field"] for error in answer.json["errors"]]) == (422, [field])


async def test_usage_report_by_tags_is_a_column_in_csv_and_parquet(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    answer = await api.get(f"usage.csv?{SPAN}&group_by=tag:feature&tag:team=red")
    rows = list(csv.DictReader(io.StringIO(answer.raw.decode())))
    assert list(rows[0])[:3] == ["start", "tag:feature", "requests"]
    assert {row["tag:feature"] for row in rows} == {"f1", "f3"}
    content = (await api.get(f"usage.parquet?{SPAN}&group_by=tag:feature&tag:team=red")).raw
    assert sorted(pq.read_table(io.BytesIO(content)).column("tag:feature").to_pylist()) == ["f1", "f3"]


@in_turn(
    ("sent", "field"),
    [("group_by=tag:a%20b", "group_by"), ("group_by=tag:a,tag:a", "group_by"), ("tag:a%20b=c", "tag:a b"),
     ("group_by=tags", "group_by"), ("group_by=" + ",".join(f"tag:t{n}" for n in range(9)), "group_by"),
     ("group_by=model,tag:nowhere", "group_by"), ("tag:nowhere=x", "tag:nowhere"), ("group_id=999", "group_id")],
)  # fmt: skip
async def test_usage_report_by_invalid_tag_or_unknown_group_is_422(api: Api, sent: str, field: str) -> None:
    answer = await api.get(f"usage?{sent}")
    assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (422, [field])


async def test_usage_report_says_since_when_calls_have_tags(api: Api, calls: list[dict[str, Any]]) -> None:
    own, other = sorted({call["organization_id"] for call in calls})
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature"]})).status == 200
    since = (await api.get(f"organizations/{own}")).json["tags_since"]
    assert list(since) == ["feature"]
    asked = "usage?group_by=tag:feature"
    assert (await api.get(asked)).json["tags_since"] == since
    assert (await api.get(f"{asked}&organization_id={other}")).status == 422
    assert "tags_since" not in (await api.get("usage?group_by=model")).json
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature", "team"]})).status == 200
    assert (await api.get(f"organizations/{own}")).json["tags_since"]["feature"] == since["feature"]


async def test_focus_report_has_the_tags_of_calls(api: Api, calls: list[dict[str, Any]]) -> None:
    rows = list(csv.DictReader(io.StringIO((await api.get(f"usage/focus.csv?{SPAN}")).raw.decode())))
    costs = Counter[str]()
    for row in rows:
        costs[json.loads(row["Tags"]).get("feature", "")] += Decimal(row["BilledCost"])  # type: ignore[assignment]
    wanted = expected(by_tags(calls), STARTS["none"], "tag:feature")
    assert costs == {key[1] or "": sums["cost"] for key, sums in wanted.items()}


@in_turn("interval", STARTS)
@in_turn("others", [(), ("model",), ("user", "tenant")])
async def test_usage_report_has_a_call_with_each_of_its_groups(
    api: Api, calls: list[dict[str, Any]], interval: str, others: tuple[str, ...]
) -> None:
    asked = f"usage?{SPAN}&interval={interval}&group_by={','.join((*others, 'group'))}"
    items = (await api.acting_as(READONLY).get(asked)).json["items"]
    columns = (*(GROUPS[each] for each in others), "group_id")
    in_groups = [{**call, "group_id": group} for call in calls for group in call["groups"]]
    wanted = expected(in_groups, STARTS[interval], *columns)
    found = {
        (datetime.fromisoformat(item["start"]), *(item[column] for column in columns)): (
            item["requests"], item["tokens"], item["estimated"], Decimal(item["cost"])
        )
        for item in items
    }  # fmt: skip
    assert found == {
        key: (sums["requests"], sums["tokens"], sums["estimated"], Decimal(sums["cost"]))
        for key, sums in wanted.items()
    }
    assert {item["group_id"] for item in items} == {5, 9}


async def test_usage_report_has_tags_of_calls_beside_their_groups(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    items = (await api.get(f"usage?{SPAN}&group_by=tag:feature,group&tag:team=red")).json["items"]
    wanted = Counter(
        (call["tags"].get("feature"), group)
        for call in calls
        for group in call["groups"]
        if call["tags"].get("team") == "red"
    )
    assert wanted
    assert {(item["tag:feature"], item["group_id"]): item["requests"] for item in items} == wanted


@in_turn("name", ["group_id", "group"])
async def test_usage_report_and_calls_are_filtered_by_group(
    api: Api, calls: list[dict[str, Any]], name: str
) -> None:
    within = expected([call for call in calls if 9 in call["groups"]], STARTS["none"], "tenant_id")
    assert within
    items = (await api.get(f"usage?{SPAN}&group_by=tenant&{name}=9")).json["items"]
    assert {(BEGAN, item["tenant_id"]): item["requests"] for item in items} == {
        key: sums["requests"] for key, sums in within.items()
    }
    found = (await api.get("calls?limit=1000&group_id=9")).json["items"]
    assert [call["id"] for call in found] == [call["id"] for call in calls if 9 in call["groups"]]


async def test_usage_report_by_group_refuses_times_before_calls_are_kept(api: Api) -> None:
    api.rows("insert into kept_since values ('call', '2026-03-31') returning ledger")
    refused = await api.get(f"usage?{SPAN}&group_by=group")
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, ["from"])
    assert (await api.get("usage?from=2026-03-31&to=2026-04-03&group_by=group")).status == 200


async def test_api_key_shows_the_day_of_the_last_call(api: Api, calls: list[dict[str, Any]]) -> None:
    used = calls[0]["api_key_id"]
    for _ in range(used):
        await api.make("api-keys", tenant_id=calls[0]["tenant_id"])
    last = max(call["created_at"] for call in calls if call["api_key_id"] == used)
    keys = (await api.get("api-keys")).json["items"]
    days = {key["id"]: key["last_used_at"] for key in keys}
    assert days == dict.fromkeys(days) | {used: f"{last[:10]}T00:00:00Z"}


async def test_usage_report_rows_have_only_the_fields_chosen_by_group_by(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    [item] = (await api.get(f"usage?{SPAN}&group_by=user&user_id={calls[0]['user_id']}")).json["items"]
    assert item["user"].startswith("u")
    assert "tenant_id" not in item
    assert "model" not in item
    items = (await api.get(f"usage?{SPAN}&group_by=organization,project")).json["items"]
    names = {(item["organization_id"], item["organization"]) for item in items}
    organizations = (await api.get("organizations")).json["items"]
    assert names == {(each["id"], each["name"]) for each in organizations}
    assert None in {item["project_id"] for item in items}


async def test_usage_report_filters_give_the_same_rows_in_json_and_csv(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    organization = calls[0]["organization_id"]
    asked = f"{SPAN}&group_by=model&organization_id={organization}&model=m1"
    [item] = (await api.get(f"usage?{asked}")).json["items"]
    assert item["model"] == "m1"
    assert item["requests"] == sum(
        call["model"] == "m1"
        and call["organization_id"] == organization
        and call["created_at"] < "2026-04-03T07"
        for call in calls
    )
    file = await api.get(f"usage.csv?{asked}")
    [row] = csv.DictReader(io.StringIO(file.raw.decode()))
    assert row == {name: str(value) for name, value in item.items()}


@in_turn(
    ("query", "field"),
    [
        ("group_by=colour", "group_by"), ("group_by=model,model", "group_by"), ("group_by=", "group_by"),
        ("interval=week", "interval"), ("from=2026-02-30", "from"), ("from=yesterday", "from"),
        ("to=9999-12-31T23:00:00Z", "to"), ("to=3000-01-01T00:00:00Z", "to"),
        ("to=0001-01-01T00:00:00Z", "to"), ("from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "from"),
        ("organization_id=x", "organization_id"), ("tenant_id=0", "tenant_id"), ("model=a&model=b", "model"),
        ("colour=red", "colour"), ("from=2006-03-01T00:00:00Z&to=2026-03-01T00:00:00Z", "from"),
    ],
)  # fmt: skip
async def test_usage_report_with_an_invalid_parameter_is_422_naming_the_parameter(
    api: Api, query: str, field: str
) -> None:
    for name in ("usage", "usage.csv"):
        answer = await api.get(f"{name}?{query}")
        assert answer.status == 422
        assert [error["field"] for error in answer.json["errors"]] == [field]


@in_turn("interval", STARTS)
@in_turn("limit", [11, 1000])
async def test_usage_report_pages_together_equal_the_answer_without_pages(
    api: Api, calls: list[dict[str, Any]], interval: str, limit: int
) -> None:
    asked = f"usage?{SPAN}&interval={interval}&group_by=user,project,model"
    whole = (await api.get(f"{asked}&limit=10000")).json
    assert whole["next_cursor"] is None
    pages, cursor = [], ""
    while cursor is not None:
        page = (await api.get(f"{asked}&limit={limit}" + (f"&cursor={cursor}" if cursor else ""))).json
        pages.append(page["items"])
        cursor = page["next_cursor"]
    assert [item for page in pages for item in page] == whole["items"]
    assert all(len(page) == limit for page in pages[:-1])
    dearest = [(item["start"], -Decimal(item["cost"])) for item in whole["items"]]
    assert dearest == sorted(dearest)


async def test_usage_report_refuses_a_forged_cursor_or_the_cursor_of_another_query(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    asked = f"usage?{SPAN}&group_by=user&limit=1"
    cursor = (await api.get(asked)).json["next_cursor"]
    assert (await api.get(f"{asked}&cursor={cursor}")).status == 200
    mark = json.loads(base64.b64decode(cursor + "=="))[0]
    far = 10**15
    forged = [
        encode_cursor(place, mark)
        for place in ((0,), (far, far + 3600, 0), (3600, 7200, -1), (7200, 3600, 0), (1, 3601, 0))
    ]
    for other in (*forged, "x", "", "a" * 500):
        answer = await api.get(f"{asked}&cursor={other}")
        assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (422, ["cursor"])
    answer = await api.get(f"usage?{SPAN}&group_by=model&limit=1&cursor={cursor}")
    assert answer.status == 422
    for limit in ("0", "10001", "x", ""):
        answer = await api.get(f"usage?limit={limit}")
        assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (422, ["limit"])


async def test_usage_report_sum_too_large_for_a_bigint_is_exact(api: Api, admin_database: str) -> None:
    accounts = settle_in(admin_database, 10**9, 10**9)
    for account in accounts:
        account.at_ms = int(BEGAN.timestamp() * 1000)
        account.reset()
        account.consume(1, metadata=write_facts(CallFacts(total=1, cost=2**62 + 2**61, currency="USD")))
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(*accounts))
    writer.close()
    [item] = (await api.get(f"usage?{SPAN}")).json["items"]
    assert Decimal(item["cost"]) == 2 * Decimal(2**62 + 2**61) / 10**9


async def test_usage_report_without_calls_is_empty_and_without_a_token_refused(api: Api) -> None:
    assert (await api.get("usage")).json == {"items": [], "next_cursor": None}
    assert (await api.get("usage.csv?group_by=model")).raw.startswith(b"start,model,requests,")
    assert (await api.acting_as(None).get("usage")).status == 401


async def test_usage_report_covers_the_last_thirty_days_by_default(api: Api, admin_database: str) -> None:
    [account] = settle_in(admin_database, 10**9)
    account.reset()
    for days in (0, 29, 31):
        account.at_ms = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000)
        account.consume(5)
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(account))
    writer.close()
    [item] = (await api.get("usage")).json["items"]
    assert item["requests"] == 2


@pytest.mark.parametrize("interval", ["none", "day"])
async def test_usage_report_file_contains_all_rows_even_if_more_than_a_page(
    api: Api, admin_database: str, interval: str
) -> None:
    [account] = settle_in(admin_database, 1)
    count = usage.PAGE_ROWS * 2 + 7
    sums = ", ".join("n" if name == "cost" else "1" for name in SUMS)
    api.rows(
        "INSERT INTO usage_rollup (span, start, organization_id, tenant_id, api_key_id, user_id, project_id,"
        f" service_id, model, currency, {', '.join(SUMS)})"
        f" SELECT 'team_day', '2026-03-31Z'::timestamptz + n %% 3 * interval '1 day',"
        f" {account.organization_id}, {account.tenant_id}, 0, 0, -1, 1, 'm' || n, 'USD', {sums}"
        f" FROM generate_series(1, {count}) AS n"
    )
    asked = f"from=2026-03-31T00:00:00Z&to=2026-04-03T00:00:00Z&interval={interval}&group_by=model"
    rows = list(csv.DictReader(io.StringIO((await api.get(f"usage.csv?{asked}")).raw.decode())))
    assert len({row["model"] for row in rows}) == len(rows) == count
    cost = Decimal(count * (count + 1) // 2) / 10**9
    assert sum(Decimal(row["cost"]) for row in rows) == cost
    table = pq.read_table(io.BytesIO((await api.get(f"usage.parquet?{asked}")).raw))
    assert len(set(table["model"].to_pylist())) == table.num_rows == count
    assert sum(table["cost"].to_pylist()) == cost


async def test_usage_report_in_parquet_equals_the_json_with_typed_columns(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    asked = f"{SPAN}&interval=hour&group_by=user,project,service,model"
    file = await api.acting_as(READONLY).get(f"usage.parquet?{asked}")
    table = pq.read_table(io.BytesIO(file.raw))
    types = {field.name: str(field.type) for field in table.schema}
    assert types["start"] == "timestamp[us, tz=UTC]"
    assert types["cost"] == "decimal128(38, 9)"
    assert (types["tokens"], types["user_id"], types["model"]) == ("int64", "int64", "string")
    items = (await api.get(f"usage?{asked}&limit=10000")).json["items"]
    assert table.schema.names == list(items[0])
    assert [
        {
            **row,
            "start": row["start"].isoformat().replace("+00:00", "Z"),
            **{name: format(row[name].normalize(), "f") for name in MONEY_SUMS},
        }
        for row in table.to_pylist()
    ] == [{**item, "cost": format(Decimal(item["cost"]).normalize(), "f")} for item in items]


async def test_usage_report_in_parquet_without_calls_has_all_columns_and_no_rows(api: Api) -> None:
    table = pq.read_table(io.BytesIO((await api.get("usage.parquet?group_by=model")).raw))
    assert table.num_rows == 0
    assert table.schema.names[:3] == ["start", "model", "requests"]
    assert (await api.acting_as(None).get("usage.parquet")).status == 401
    assert (await api.get("usage.parquet?group_by=colour")).status == 422


async def test_focus_report_charges_add_up_to_the_cost_of_the_calls(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    answer = await api.acting_as(READONLY).get(f"usage/focus.csv?{SPAN}")
    rows = list(csv.DictReader(io.StringIO(answer.raw.decode())))
    assert list(rows[0]) == list(focus.FOCUS_COLUMNS)
    [sums] = expected(calls, STARTS["none"]).values()
    assert sum(Decimal(row["BilledCost"]) for row in rows) == sums["cost"]
    assert sum(Decimal(row["PricingQuantity"]) for row in rows) == sums["tokens"]
    by_day = expected(calls, STARTS["day"], "organization_id", "tenant_id", "model")
    found: dict[tuple[Any, ...], Decimal] = {}
    for row in rows:
        day = datetime.fromisoformat(row["ChargePeriodStart"]).replace(hour=0)
        model = json.loads(row["Tags"])["model"]
        ids = (int(row[name].partition("/")[2]) for name in ("BillingAccountId", "SubAccountId"))
        key = (day, *ids, model)
        found[key] = found.get(key, Decimal(0)) + Decimal(row["BilledCost"])
        assert row["ResourceId"] == "api-key/5"
        assert datetime.fromisoformat(row["ChargePeriodStart"]) >= BEGAN
    assert found == {key: each["cost"] for key, each in by_day.items()}
    # The same rows in Parquet, with types and in the columns of another version.
    content = (await api.get(f"usage/focus.parquet?{SPAN}&version=1.2")).raw
    table = pq.read_table(io.BytesIO(content))
    assert tuple(table.column_names) == focus.VERSIONS["1.2"]
    assert [row["BilledCost"] for row in table.to_pylist()] == [Decimal(row["BilledCost"]) for row in rows]
    assert {each["ProviderName"] for each in table.to_pylist()} == {rows[0]["ServiceProviderName"]}
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[us, tz=UTC]"
    one = calls[0]["organization_id"]
    answer = await api.get(f"usage/focus.csv?{SPAN}&organization_id={one}")
    rows = list(csv.DictReader(io.StringIO(answer.raw.decode())))
    assert {row["BillingAccountId"] for row in rows} == {f"organization/{one}"}


async def test_focus_report_with_a_grouping_parameter_is_422_and_without_a_token_401(api: Api) -> None:
    for name in ("interval=hour", "group_by=model", "limit=5", "colour=red"):
        answer = await api.get(f"usage/focus.csv?{name}")
        assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (
            422,
            [name.partition("=")[0]],
        )
    assert (await api.get("usage/focus.csv")).raw.decode().split() == [",".join(focus.FOCUS_COLUMNS)]
    assert (await api.get("usage/focus.csv?version=1.3")).json["errors"][0]["field"] == "version"
    for file in ("usage.csv", "usage/focus.csv", "usage/focus.parquet"):
        assert (await api.acting_as(None).get(file)).status == 401


async def test_usage_report_omits_a_group_corrected_to_zero(api: Api, admin_database: str) -> None:
    [account] = settle_in(admin_database, 10**9)
    account.at_ms = int(BEGAN.timestamp() * 1000)
    account.reset()
    request = str(uuid.uuid4())
    account.consume(5, request_id=request, metadata=b'{"estimated":true,"reclaimed":true}')
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(account))
    facts = CallFacts(model="m", counts=(5, 0, 0, 0, 0, 0, 0, 0, 0, 0), total=5)
    account.consume(
        1, kind=EventKind.ADJUST, metadata=mark_as_correction(write_facts(facts), request, "settled late")
    )
    await writer.write(batch_of(account))
    writer.close()
    [item] = (await api.get(f"usage?{SPAN}&group_by=model")).json["items"]
    assert (item["model"], item["requests"]) == ("m", 1)


async def test_usage_report_by_hour_is_422_after_hours_are_deleted_and_by_day_is_unchanged(
    api: Api, calls: list[dict[str, Any]]
) -> None:
    days = "from=2026-03-31T00:00:00Z&to=2026-04-03T00:00:00Z"
    before = (await api.get(f"usage?{days}&group_by=user&interval=day")).json
    assert sum(item["requests"] for item in before["items"]) > 50
    engine = engines.create(api.url)
    await partitions.drop_hours(engine, 0)
    await engine.dispose()
    assert (await api.get(f"usage?{days}&group_by=user&interval=day")).json == before
    hours = "from=2026-03-31T00:00:00Z&to=2026-04-02T07:00:00Z"
    for asked, field in (
        (f"{days}&interval=hour&group_by=tenant", "interval"),
        (f"{hours}&group_by=tenant", "to"),
        ("from=2026-03-31T02:00:00%2B01:00&to=2026-04-02T00:00:00Z&group_by=user", "from"),
    ):
        for path in ("usage", "usage.csv", "usage.parquet"):
            refused = await api.get(f"{path}?{asked}")
            assert refused.status == 422
            [error] = refused.json["errors"]
            assert error["field"] == field
            assert "asks for hours before 20" in str(error)
    # Of models alone every hour is kept.
    by_hour = (await api.get(f"usage?{days}&interval=hour&group_by=model")).json["items"]
    assert sum(item["requests"] for item in by_hour) == sum(item["requests"] for item in before["items"])
    assert (await api.get(f"usage/focus.csv?{hours}")).status == 422
    assert (await api.get(f"usage/focus.csv?{days}")).status == 200
    shifted = days.replace("T00:00:00Z", "T02:00:00%2B02:00")
    assert (await api.get(f"usage?{shifted}&group_by=user&interval=day")).json == before
