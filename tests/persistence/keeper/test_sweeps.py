"""Whose reset is due: those who were deleted are not gone through with each look."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import event

from persistence import engine
from persistence.keeper.sweeps import LOOKS_A_ROUND, Sweeps
from tests.connections import connected

TENANT = "insert into tenant (organization_id, name, deleted_at) values (%s, %s, %s) returning id"
QUOTA = """insert into tenant_quota (tenant_id, next_reset_at) values (%s, now() - cast(%s as interval))
on conflict (tenant_id) do update set next_reset_at = excluded.next_reset_at returning next_reset_at"""


async def test_who_was_deleted_is_looked_at_once_a_round_and_whoever_comes_is_found(migrated: str) -> None:
    pool, looks = engine.create(migrated), list[Any]()
    sweeps = Sweeps(pool)

    @event.listens_for(pool.sync_engine, "before_cursor_execute")
    def _(_1: object, _2: object, statement: str, values: Any, *_3: object) -> None:
        if "tenant_quota" in statement:
            looks.append(values)

    with connected(migrated, autocommit=True) as connection:

        def one(query: str, *values: object) -> Any:
            return connection.execute(query.encode(), values).fetchone()[0]  # type: ignore[index]  # one row

        owner = one("insert into organization (name) values ('one') returning id")
        gone = one(TENANT, owner, "gone", datetime.now().astimezone())
        here = one(TENANT, owner, "here", None)
        deleted: datetime = one(QUOTA, gone, "1 day")
        assert await sweeps.due(10) == []
        one(QUOTA, here, "0")
        assert await sweeps.due(10) == await sweeps.due(10) == [(here, owner)]  # until it is reset
        assert [look["since"] > deleted for look in looks] == [False, True, True]
        one(QUOTA, here, "2 days")  # which was stored late
        assert [await sweeps.due(10) for _ in range(LOOKS_A_ROUND - 2)] == [
            *[[]] * (LOOKS_A_ROUND - 3),
            [(here, owner)],
        ]
    await pool.dispose()


async def test_a_look_that_failed_is_taken_again(migrated: str) -> None:
    """The first of a round looks at everybody: where it comes to nothing, the next one does."""
    pool, looks = engine.create(migrated), list[Any]()
    sweeps = Sweeps(pool)

    @event.listens_for(pool.sync_engine, "before_cursor_execute")
    def _(_1: object, _2: object, statement: str, values: Any, *_3: object) -> None:
        if "tenant_quota" in statement:
            looks.append(values["since"])
            if len(looks) == 2:
                raise ConnectionError

    assert await sweeps.due(10) == []
    sweeps._looks = LOOKS_A_ROUND
    with pytest.raises(ConnectionError):
        await sweeps.due(10)
    assert await sweeps.due(10) == []
    assert [since.year for since in looks] == [1, 1, 1]
    await pool.dispose()
