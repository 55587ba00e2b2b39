"""What was used of budgets is kept for some time, and as long as anybody can go by it."""

from __future__ import annotations

import psycopg

from persistence import engine as engines
from persistence.keeper.verification import KEPT_DAYS, SESSIONS_KEPT_DAYS, forget_budget_uses
from tests.persistence.scenario import insert_budget, rows_of, settle_in


async def test_windows_that_ended_long_ago_are_forgotten(migrated: str) -> None:
    [account] = settle_in(migrated, None)
    with psycopg.connect(migrated, autocommit=True) as connection:
        for name, interval, each in (
            ("year", "year", None), ("each", "day", "user"), ("total", "total", None),
            ("users", "total", "user"), ("sessions", "total", "session"),
        ):  # fmt: skip
            budget = insert_budget(
                connection, account.organization_id, name=name, interval=interval, each=each
            )
            for days in (SESSIONS_KEPT_DAYS - 1, SESSIONS_KEPT_DAYS + 1, KEPT_DAYS - 1, KEPT_DAYS + 1):
                connection.execute(
                    "INSERT INTO budget_use (budget_id, start, used, moved_at) VALUES"
                    " (%s, now() - make_interval(days => %s), 1, now() - make_interval(days => %s))",
                    (budget, days, days),
                )
    pool = engines.create(migrated)
    assert await forget_budget_uses(pool) == 5
    assert await forget_budget_uses(pool) == 0
    await pool.dispose()
    kept = "SELECT b.name, count(*) FROM budget_use AS u JOIN budget AS b ON b.id = u.budget_id GROUP BY 1"
    assert dict(rows_of(migrated, kept)) == {"year": 3, "each": 3, "total": 4, "users": 4, "sessions": 1}
