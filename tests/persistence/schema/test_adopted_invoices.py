"""Invoices of before there were charges: what they billed becomes charges, and is billed no more."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from gateway.core.accounts.administration import Actor, Command, Committed
from gateway.counters.redis.keys import partition_of
from persistence import engine
from persistence.engine import dialect_url
from persistence.schema import migrate
from persistence.store import Store
from tests.letterhead import LETTERHEAD
from tests.persistence.scenario import broken, rows_of

BEFORE = "0022"
HISTORY = Path(__file__).with_name("invoiced.sql").read_text(encoding="utf-8")


def bring_to(url: str, revision: str) -> None:
    """Bring an empty database to an earlier version."""
    pool = create_engine(dialect_url(url))
    with pool.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migrate.MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.exec_driver_sql("SELECT ensure_partitions('2026-05-01Z', 3)")
    pool.dispose()


async def test_what_was_invoiced_is_adopted_and_the_rest_is_on_the_next_invoice(database: str) -> None:
    bring_to(database, BEFORE)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(HISTORY.encode())
    migrate.upgrade(database)
    assert await broken(database) == []
    billed = "SELECT kind, sum(amount) FROM charge WHERE invoice_id = 1 GROUP BY 1 ORDER BY 1"
    assert {kind: round(Decimal(str(amount)), 2) for kind, amount in rows_of(database, billed)} == {
        "credits_purchased": 10, "overage": 2, "subscription": Decimal("29.52"), "usage": 1,
    }  # fmt: skip
    pool = engine.create(database)
    store = Store(pool, partition_of, lambda: datetime(2026, 6, 1, 6, tzinfo=UTC), letterhead=LETTERHEAD)

    async def do(verb: str, row_id: int | None = None, **values: object) -> dict[str, Any]:
        actor = Actor("builtin:admin", "admin")
        done = await store.write(Command("invoices", verb, actor, "test", lambda _: {}, row_id, values))
        assert isinstance(done, Committed)
        return dict(done.row)

    draft = await do("create", organization_id=1, period_start=date(2026, 5, 1), period_end=date(2026, 6, 1))
    made = await do("finalize", draft["id"])
    assert [(line["kind"], line["quantity"], line["amount"]) for line in made["lines"]] == [
        # Sixteen days of March that nobody was invoiced for, fifteen and five of May.
        ("subscription", 16, "15.48"), ("subscription", 15, "15.00"), ("subscription", 5, "4.84"),
        ("overage", 1_000, "1.00"), ("credits_purchased", 50, "5.00"), ("usage", 500, "0.50"),
    ]  # fmt: skip
    assert await broken(database) == []
    await do("void", 2)
    await do("void", 1)
    assert await broken(database) == []
    again = await do("create", organization_id=1, period_start=date(2026, 4, 1), period_end=date(2026, 5, 1))
    await pool.dispose()
    assert str(again["total_amount"]) == "42.52"
