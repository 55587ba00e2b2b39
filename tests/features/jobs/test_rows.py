"""Rows of jobs, and what an operator is told of them."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.jobs import count_open_jobs
from tests.connections import connected

# One is settled, one is long past its end.
JOBS = """
WITH o AS (INSERT INTO organization (name) VALUES ('o') RETURNING id),
     t AS (INSERT INTO tenant (name, organization_id) SELECT 't', id FROM o RETURNING id, organization_id)
INSERT INTO job (request_id, organization_id, tenant_id, name, kind, model, status, lines, created_at,
                 expires_at, settled_at)
SELECT gen_random_uuid(), t.organization_id, t.id, 'j', 'video', 'm', 'running', 1, now() - j.age,
       now() - j.age + interval '2 days', j.settled
  FROM t, (VALUES (interval '1 hour', null), (interval '3 hours', null),
       (interval '9 hours', now()), (interval '9 days', null)) AS j (age, settled);
"""


async def test_open_jobs_are_counted_with_the_age_of_the_oldest(migrated: str, pool: AsyncEngine) -> None:
    with connected(migrated) as connection:
        connection.execute(JOBS)
    found = await count_open_jobs(pool)
    assert found["jobs_open"] == 2
    assert abs(float(str(found["jobs_oldest_seconds"])) - 3 * 3600) < 600
