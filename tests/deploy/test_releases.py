"""The release before this one is upgraded in one step: both run side by side, and its rows stay as they were.

The older program is of the repository's history: the last commit whose newest schema is the baseline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import psycopg
import pytest
import redis

from gateway.core.layout import LAYOUT
from gateway.counters.redis import keys
from persistence.schema.standing import NEEDED
from tests import newer
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
from tests.deploy.layouts import ORDERS, Rollout
from tests.deploy.rolling import Load
from tests.deploy.test_layouts import readiness, status_of_call, whole
from tests.release_before import write_release
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

LOAD = Load(rate=15, clients=4, streams=2, pieces=4)
# Rows that nothing changes once they are written.
SNAPSHOT = ("token_ledger", "credit_posting", "invoice", "invoice_line", "budget", "price")
SELLER = {"TOLLKEEPER_INVOICE_ISSUER": "Tests Ltd\nOne Street 1"}
Own = Callable[..., ValkeyServer]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The program of the release before."""
    return write_release(tmp_path / "release")


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["keepers first", "gateways first"])
async def test_the_release_before_is_upgraded_under_traffic_and_its_rows_stay(
    tmp_path: Path, own_valkey: Own, database: str, release: Path, order: str
) -> None:
    rollout = Rollout(tmp_path, own_valkey("--appendonly", "yes").url, database, (release, ROOT), **SELLER)
    try:
        organization = _money(rollout)
        async with rollout.under(LOAD):
            await asyncio.to_thread(_bill, rollout, organization)
            before = await asyncio.to_thread(_snapshot, database)
            assert len(before["token_ledger"]) > 2
            assert len(before["invoice_line"]) > 0
            rollout.deployment.environ["PYTHONPATH"] = str(ROOT)
            migrate = rollout.deployment.start("migrate")
            assert await asyncio.to_thread(migrate.ended) == 0
            with psycopg.connect(database) as connection:
                assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(NEEDED,)]
            await rollout.replace(ORDERS[order][:2], ROOT)
            if order == "keepers first":
                await asyncio.to_thread(_refuse_large_budget, rollout, organization)
            await rollout.replace(ORDERS[order][2:], ROOT)
        whole(rollout)
        after = _snapshot(database)
        for table, rows in before.items():
            assert rows <= after[table], table
        budgets = rollout.admin.ask("GET", "/budgets")["items"]
        with psycopg.connect(database) as connection:
            summed = "SELECT sum(cost) FROM call WHERE organization_id = %s"
            [(cost,)] = connection.execute(summed, [organization])
        assert [Decimal(one["used"]) for one in budgets] == [Decimal(cost) / 10**9]
    finally:
        rollout.deployment.stop()


async def test_a_keeper_of_the_release_before_rebuilds_no_account_of_a_newer_fleet_and_refuses_rebuilds_by_its_name(
    tmp_path: Path, own_valkey: Own, database: str, release: Path
) -> None:
    tree = newer.make(tmp_path / "tree", newer.unreleased("aaaaaaaa"), newer.SOONER)
    valkey = own_valkey()
    deployment = Deployment(tmp_path, valkey.url, database, PYTHONPATH=str(tree))
    try:
        tenant, key = deployment.admin.customer()
        organization = deployment.admin.ask("GET", f"/tenants/{tenant}")["organization_id"]
        port = free_port()
        deployment.serve(port, ops := free_port())
        await asyncio.to_thread(
            wait_until, lambda: deployment.admin.ask("GET", "/programs")["layout"] == LAYOUT, HUNG_S
        )
        assert [status_of_call(port, key) for _ in range(3)] == [200] * 3
        await asyncio.to_thread(wait_until, lambda: deployment.admin.used(tenant) > 0, HUNG_S)
        client = redis.Redis.from_url(valkey.url)
        name = keys.tenant_state(keys.partition_of(organization), tenant)
        spoiled = bytes(client.get(name))[:-8]  # as of a tree whose form has a field less
        client.set(name, spoiled)
        older = deployment.start("keeper", "--admin-port", str(free_port()), PYTHONPATH=str(release))
        await asyncio.to_thread(wait_until, lambda: "left alone, another version's" in older.said, HUNG_S)
        rebuild = partial(deployment.admin.ask, "POST", "/counters", organization_id=organization)
        with pytest.raises(HTTPError) as refused:
            await asyncio.to_thread(rebuild)
        assert (refused.value.code, b"keeper 1.0.0 on " in refused.value.read()) == (409, True)
        assert status_of_call(port, key) == 503
        remedy = "tollkeeper counters rebuild ORG"
        await asyncio.to_thread(wait_until, lambda: remedy in readiness(ops)[1], HUNG_S)
        assert readiness(ops)[0] == 200
        assert client.get(name) == spoiled
        assert "counters verified" not in older.said  # it rebuilt none
        assert older.stop() == 0
        await asyncio.to_thread(
            wait_until, lambda: len(deployment.admin.ask("GET", "/programs")["items"]) == 2, HUNG_S
        )
        assert (await asyncio.to_thread(rebuild))["tenants"] == 1
        assert status_of_call(port, key) == 200
    finally:
        deployment.stop()


def _money(rollout: Rollout) -> int:
    """A price, and a budget in money of the organization whose calls go on; the tenant."""
    ask, tenant = rollout.admin.ask, rollout.tenants[0][0]
    organization = ask("GET", f"/tenants/{tenant}")["organization_id"]
    ask(
        "POST", "/prices", model="demo-", match="prefix", currency="USD", input="1", output="2",
        effective_from="2026-01-01T00:00:00Z",
    )  # fmt: skip
    ask(
        "POST", "/budgets", organization_id=organization, name="all", unit="money", amount="1000000",
        interval="total",
    )  # fmt: skip
    return int(organization)


def _refuse_large_budget(rollout: Rollout, organization: int) -> None:
    """Have a budget refused that gateways of the release before, which still run, would not enforce."""
    with pytest.raises(HTTPError) as refused:
        rollout.admin.ask(
            "POST", "/budgets", organization_id=organization, name="large", unit="money", amount="9500000000",
            interval="month",
        )  # fmt: skip
    assert (refused.value.code, b"gateway 1.0.0 on " in refused.value.read()) == (409, True)


def _bill(rollout: Rollout, organization: int) -> None:
    """Have a final invoice of the release before."""
    ask = rollout.admin.ask
    terms = {"monthly_cost": "10", "annual_cost": "100", "feature_access": ["chat"]}
    plan = ask("POST", "/subscription-plans", name="all", **terms)
    ask(
        "POST", "/organization-subscriptions", organization_id=organization, plan_id=plan["id"],
        start_date="2026-10-01T00:00:00Z",
    )  # fmt: skip
    made = ask(
        "POST", "/invoices", organization_id=organization, period_start="2026-10-01T00:00:00Z",
        period_end="2026-11-01T00:00:00Z",
    )  # fmt: skip
    ask("POST", f"/invoices/{made['id']}/finalize")


def _snapshot(database: str) -> dict[str, set[str]]:
    """Return each row as text, without empty columns: those that came since are empty."""
    with psycopg.connect(database) as connection:
        return {
            table: {
                str(row)
                for row in connection.execute(
                    f"SELECT jsonb_strip_nulls(to_jsonb(t))::text FROM {table} AS t"
                )
            }
            for table in SNAPSHOT
        }
