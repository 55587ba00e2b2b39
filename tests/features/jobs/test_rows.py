"""Rows of jobs, and what an operator is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from uuid import uuid4

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.loops import Isolation
from gateway.core.accounts.upstream_jobs import NO_COST, Job
from gateway.features.jobs.rows import COST_MS_MAX, JobsDrain, ListedJobs
from persistence.jobs import JobRows, count_open_jobs
from tests.connections import connected, rows_of

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


class FewJobs:
    """The list of jobs in Redis."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs, self.time_ms = list(jobs), jobs[0].settled_ms

    async def read(self) -> list[Job]:
        return [replace(one) for one in self.jobs]

    async def forget(self, jobs: Sequence[Job]) -> None:
        gone = {one.hold_id for one in jobs}
        self.jobs = [one for one in self.jobs if one.hold_id not in gone]

    async def now_ms(self) -> int:
        return self.time_ms


OWNER = """
WITH o AS (INSERT INTO organization (name) VALUES ('owner of jobs') RETURNING id)
INSERT INTO tenant (name, organization_id) SELECT 'tenant of jobs', id FROM o RETURNING organization_id, id"""
# Its call has 2,357 nano-units; a keeper reclaimed the hold before for 9,000.
CALL = """
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, input, cache_read, cache_write,
                  cache_write_1h, output, reasoning, audio_input, audio_output, image_input, image_output,
                  tokens, credits, units, cost, currency, status, streamed, estimated, duration_ms, reason)
VALUES (%s, now(), %s, %s, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, %s, 'EUR', 200, false, false, 1, %s)"""


async def test_job_row_has_the_cost_of_the_journal_if_redis_had_lost_its_hold(
    migrated: str, pool: AsyncEngine
) -> None:
    (owner,) = rows_of(migrated, OWNER)
    times = {"created_ms": 1_000_000, "expires_ms": 9_000_000, "settled_ms": 2_000_000}
    charged, unknown, plain = (
        Job(
            str(uuid4()), *owner, 1, 0, "", "chat", "up", "/v1/responses", "draw", "", 1, id=name, held=5_000,
            kind="response", status="completed", cost=cost, currency="EUR", **times,
        )
        for name, cost in (("charged", NO_COST), ("unknown", NO_COST), ("plain", 11))
    )  # fmt: skip
    listed = FewJobs(charged, unknown, plain)
    drain = JobsDrain(cast("ListedJobs", listed), JobRows(pool), Isolation())

    def told() -> list[tuple[object, ...]]:
        return rows_of(migrated, "SELECT name, status, held, cost FROM job WHERE held = 0 ORDER BY name")

    await drain.drain()
    first = [
        (name, "completed", 0, cost) for name, cost in (("charged", None), ("plain", 11), ("unknown", None))
    ]
    assert (told(), listed.jobs) == (first, [charged, unknown])
    with connected(migrated) as connection:
        connection.execute(CALL, (charged.hold_id, *owner, 9_000, "reclaimed"))
    await drain.drain()
    assert (told(), listed.jobs) == (first, [charged, unknown])
    with connected(migrated) as connection:
        connection.execute(CALL, (charged.hold_id, *owner, 2_357, None))
    await drain.drain()
    assert (told()[0], listed.jobs) == (("charged", "completed", 0, 2_357), [unknown])
    listed.time_ms += COST_MS_MAX
    await drain.drain()
    assert (told()[2], listed.jobs) == (("unknown", "completed", 0, None), [])
