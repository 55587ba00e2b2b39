"""Reports for finance over HTTP and on the command line: as JSON by pages, as files, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import io
import socket
from collections import defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp.test_utils import TestClient, TestServer
from psycopg import sql
from sqlalchemy import make_url

from gateway.admin.application import build
from persistence import engine as engines
from tests.admin.conftest import ADMIN, READONLY, Api, ports_over
from tests.admin.test_cli import Run, run
from tests.admin.test_invoices import acme, draft
from tests.connections import connected
from tests.faults.proxy import Proxy
from tests.in_turn import in_turn

__all__ = ["run"]

NAMES = ("receivables", "unbilled", "balances", "deferred-revenue", "revenue", "taxes", "ledger")


async def billed(api: Api) -> dict[str, Any]:
    """An invoice over 58.00 and 20 % tax, for use of April 2026, of which 9.60 are paid."""
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    paid = await api.post(f"invoices/{made['id']}/payments", {"amount": "9.60", "reference": "bank-1"})
    assert paid.status == 200
    return dict(paid.json)


def table(raw: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(raw.decode())))


async def test_finance_reports_show_the_receivables_unbilled_amounts_balances_and_revenue(api: Api) -> None:
    await billed(api)
    reader = api.acting_as(READONLY)
    [row] = (await reader.get("reports/receivables")).json["items"]
    assert (row["organization"], row["currency"], row["invoices"]) == ("Acme", "USD", 1)
    assert (row["open"], row["overdue_1_30"], row["to_pay_back"], row["total"]) == ("60", "0", "0", "60")
    file = await reader.get("reports/receivables.csv")
    assert file.headers["Content-Disposition"].endswith(f'-{datetime.now(UTC).date()}.csv"')
    assert [each["total"] for each in table(file.raw)] == ["60"]
    assert (await reader.get("reports/receivables?at=2020-01-01")).json == {"items": [], "next_cursor": None}
    parquet = pq.read_table(io.BytesIO((await reader.get("reports/receivables.parquet")).raw)).to_pylist()
    assert [(each["organization"], each["total"]) for each in parquet] == [("Acme", Decimal(60))]
    assert (await reader.get("reports/receivables?organization_id=77")).json["items"] == []
    api.rows(
        "INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount,"
        " currency, source, reason, fact)"
        " VALUES (%s, 'usage', '2026-03-01', '2026-03-02', 1, 2.5, 2.5, 'USD', 'usage_tier', 'fact', 'x')",
        row["organization_id"],
    )
    [unbilled] = (await reader.get("reports/unbilled")).json["items"]
    assert [unbilled[name] for name in ("month", "kind", "amount", "charges")] == [
        "2026-03-01",
        "usage",
        "2.5",
        1,
    ]
    [account] = table((await reader.get("reports/balances.csv")).raw)
    assert [account[name] for name in ("invoiced", "paid", "due", "open_credit", "unbilled", "balance")] == [
        "69.6", "9.6", "60", "0", "2.5", "62.5",
    ]  # fmt: skip
    [read] = pq.read_table(io.BytesIO((await reader.get("reports/unbilled.parquet")).raw)).to_pylist()
    assert (read["month"], read["amount"]) == (date(2026, 3, 1), Decimal("2.5"))
    [revenue] = (await reader.get("reports/revenue?from=2026-01")).json["items"]
    assert (revenue["kind"], revenue["amount"]) == ("usage", "60.5")
    for name in ("unbilled", "balances"):
        assert (await reader.get(f"reports/{name}?at=2020-01-01")).json["items"] == []


async def test_tax_report_sums_tax_by_month_of_the_invoice_or_by_month_of_use(api: Api) -> None:
    await billed(api)
    this = f"{datetime.now(UTC):%Y-%m}"
    [row] = (await api.get("reports/taxes")).json["items"]
    assert (row["month"], row["rate"], row["net"], row["tax"]) == (f"{this}-01", "0.2", "58", "11.6")
    [row] = (await api.get("reports/taxes?from=2026-04&to=2026-04&by=supply")).json["items"]
    assert (row["month"], row["rate"], row["net"], row["tax"]) == ("2026-04-01", "0.2", "58", "11.6")
    by_days = "from=2026-04-01&to=2026-05-01T00:00:00Z&by=supply"
    assert (await api.get(f"reports/taxes?{by_days}")).json["items"] == [row]
    assert (await api.get("reports/taxes?from=2026-04&to=2026-04")).json["items"] == []
    read = pq.read_table(io.BytesIO((await api.get("reports/taxes.parquet")).raw)).to_pylist()
    assert [(each["month"], each["tax"]) for each in read] == [
        (date.fromisoformat(f"{this}-01"), Decimal("11.6"))
    ]


async def test_every_ledger_report_entry_has_equal_debit_and_credit_and_the_given_account_codes(
    api: Api,
) -> None:
    done = await billed(api)
    asked = "from=2026-01&accounts=receivables:1200,bank:1800 EUR,revenue_usage:8400"
    rows = table((await api.get(f"reports/ledger.csv?{asked}")).raw)
    sums: dict[str, Decimal] = defaultdict(Decimal)
    balances: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        amount = Decimal(row["debit"] or 0) - Decimal(row["credit"] or 0)
        assert bool(row["debit"]) != bool(row["credit"])
        sums[row["entry_id"]] += amount
        balances[row["account"]] += amount
    assert set(sums.values()) == {Decimal(0)}
    assert {name: amount for name, amount in balances.items() if amount} == {
        "1200": Decimal(60), "1800 EUR": Decimal("9.6"), "8400": Decimal(-58), "tax": Decimal("-11.6"),
    }  # fmt: skip
    assert {row["number"] for row in rows if row["source"] == "payment"} == {done["number"]}
    # What is read again is the same, also leg by leg.
    assert table((await api.get(f"reports/ledger.csv?{asked}")).raw) == rows
    found, cursor = [], ""
    while True:
        page = (await api.get(f"reports/ledger?{asked}&limit=1{cursor}")).json
        found += [row["entry_id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == [row["entry_id"] for row in rows]
    other = await api.get(f"reports/revenue?limit=3{cursor}")
    assert (other.status, other.json["errors"][0]["field"]) == (422, "cursor")
    nobody = (await api.make("organizations", name="Nobody"))["id"]
    for nothing in (f"organization_id={nobody}", "currency=EUR"):
        assert (await api.get(f"reports/ledger?from=2026-01&{nothing}")).json["items"] == []


@pytest.mark.parametrize("cause", ["all connections are taken", "login is slow"])
async def test_file_is_503_as_any_answer_when_its_own_connection_cannot_be_had(api: Api, cause: str) -> None:
    """The pool has its one connection; a file's own would be the second."""
    done = await billed(api)
    address = make_url(api.url)
    name = f"{address.database}_lone"
    proxy = Proxy(address.port or 0)
    await proxy.start()
    with connected(api.url, autocommit=True) as owner, socket.create_server(("127.0.0.1", 0)) as silent:
        role, writer = sql.Identifier(name), sql.Identifier(f"{address.database}_writer")
        limit = sql.Literal(1 if cause == "all connections are taken" else -1)
        made = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p' CONNECTION LIMIT {} IN ROLE {}")
        owner.execute(made.format(role, limit, writer))
        engine = engines.create(
            address.set(username=name, password="p", port=proxy.port).render_as_string(hide_password=False),
            connections_max=1,
        )
        try:
            app = TestServer(build(ports_over(engine, api.counters)))
            async with TestClient(app, headers={"Authorization": f"Bearer {ADMIN}"}) as client:

                async def answer(path: str) -> tuple[int, str | None, str]:
                    async with client.get(f"/admin/v1/{path}") as got:
                        problem = await got.json()
                        return got.status, got.headers.get("Retry-After"), problem.get("type")

                assert (await answer(f"invoices/{done['id']}"))[0] == 200
                if cause == "login is slow":
                    proxy.target = silent.getsockname()
                files = f"invoices/{done['id']}/usage.csv", "reports/ledger.csv?from=2026-01"
                refused = await asyncio.gather(*map(answer, files))
                assert refused == [(503, "1", "urn:tollkeeper:problem:store_unavailable")] * 2
        finally:
            await engine.dispose()
            await proxy.stop()
            owner.execute(sql.SQL("DROP ROLE {}").format(role))


@in_turn(
    ("asked", "field"),
    [
        ("receivables?at=2026-02-30", "at"), ("receivables?organization_id=x", "organization_id"),
        ("receivables.csv?currency=QQQ", "currency"), ("taxes?by=colour", "by"),
        ("taxes?from=2026-13", "from"), ("taxes.parquet?from=2026-05&to=2026-04", "from"),
        ("revenue?from=1990-01&to=2026-01", "from"), ("ledger?accounts=cash:1", "accounts"),
        ("ledger?cursor=WzFd", "cursor"),
    ],
)  # fmt: skip
async def test_finance_report_with_an_invalid_parameter_is_422_naming_the_parameter(
    api: Api, asked: str, field: str
) -> None:
    answer = await api.get(f"reports/{asked}")
    assert (answer.status, [error["field"] for error in answer.json["errors"]]) == (422, [field])


async def test_finance_reports_need_a_token(api: Api) -> None:
    for name in NAMES:
        for path in (name, f"{name}.csv"):
            assert (await api.acting_as(None).get(f"reports/{path}")).status == 401
            assert (await api.get(f"reports/{path}")).status == 200
    assert (await api.get("reports/ledger.parquet")).status == 404


async def test_report_commands_print_tables_csv_and_parquet(run: Run, api: Api, tmp_path: Path) -> None:
    await billed(api)
    shown = await run("report", "receivables", "--org", "Acme")
    assert (shown.exit_code, "60" in shown.stdout, "Acme" in shown.stdout) == (0, True, True)
    told = await run("report", "taxes", "--csv")
    assert [row["tax"] for row in table(told.stdout.encode())] == ["11.6"]
    told = await run("report", "ledger", "--csv", "--account", "bank:1800", "--account", "tax:1776")
    assert {"1800", "1776"} <= {row["account"] for row in table(told.stdout.encode())}
    file = tmp_path / "revenue.parquet"
    assert (await run("report", "revenue", "--parquet", str(file))).exit_code == 0
    assert [str(row["amount"]) for row in pq.read_table(file).to_pylist()] == ["58.000000000000"]
    refused = await run("report", "revenue", "--from", "April")
    assert (refused.exit_code, "2026-04" in refused.stderr) == (1, True)
    assert (await run("report", "deferred-revenue")).exit_code == 0
    assert (await run("report", "unbilled")).exit_code == 0
    assert "60" in (await run("report", "balances", "--org", "Acme")).stdout
